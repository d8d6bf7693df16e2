//! Image configs, edited as documents so that what slipway does not know survives.

use serde_json::{Map, Value};

use super::{DiffId, Platform};

/// An image config (image-spec, config.md); fields of the base image that we do not know survive unchanged.
///
/// This differs from BuildKit on purpose, which re-creates the document from the fields it knows (checklist F-15): an
/// image that carries a vendor's field still carries it after slipway has added a layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImageConfig {
    raw: Map<String, Value>,
}

/// One item of `history` (image-spec, config.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The item as it stands in the config: `created`, `created_by`, `comment`, `empty_layer`, `author`, and more.
    pub raw: Map<String, Value>,
}

/// Fields that describe how one image came about: they would be lies in an image made from it. `container` to
/// `throwaway` are those of Docker's v1 images, the last two BuildKit's inline cache and build records.
const FIELDS_OF_ONE_IMAGE: &[&str] = &[
    "created",
    "history",
    "rootfs",
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "parent_id",
    "layer_id",
    "size",
    "throwaway",
    "moby.buildkit.cache.v0",
    "moby.buildkit.buildinfo.v1",
];

impl HistoryEntry {
    /// Whether the item has no layer of its own.
    pub fn is_empty_layer(&self) -> bool {
        self.raw.get("empty_layer").and_then(Value::as_bool).unwrap_or(false)
    }

    /// `created_by`; empty if it is missing.
    pub fn created_by(&self) -> &str {
        self.raw.get("created_by").and_then(Value::as_str).unwrap_or_default()
    }

    /// `created`, as it is written.
    pub fn created(&self) -> Option<&str> {
        self.raw.get("created").and_then(Value::as_str)
    }
}

impl ImageConfig {
    /// Reads a config document.
    ///
    /// # Errors
    /// If `bytes` are not a JSON object.
    pub fn from_json(bytes: &[u8]) -> serde_json::Result<Self> {
        Ok(Self { raw: serde_json::from_slice(bytes)? })
    }

    /// The config that `FROM scratch` starts with, without `rootfs` and `history` (checklist F-02).
    pub fn scratch(platform: &Platform) -> Self {
        let mut config = Self::default();
        config.set_platform(platform);
        config.set("WorkingDir", Value::from("/"));
        config
    }

    /// The whole document.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The whole document, to change it.
    pub fn raw_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.raw
    }

    /// A copy without the fields that belong to this one image: `created`, `history`, `rootfs`, and what Docker and
    /// BuildKit note about the image's own making.
    pub fn for_derived_image(&self) -> Self {
        let mut derived = self.clone();
        for field in FIELDS_OF_ONE_IMAGE {
            derived.raw.remove(*field);
        }
        derived
    }

    /// `rootfs.diff_ids`, lowest layer first. Values that are not digests are left out.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        let ids = self.raw.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")).and_then(Value::as_array);
        ids.into_iter().flatten().filter_map(|id| id.as_str()?.parse().ok()).collect()
    }

    /// `history`, oldest first.
    pub fn history(&self) -> Vec<HistoryEntry> {
        let items = self.raw.get("history").and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|item| Some(HistoryEntry { raw: item.as_object()?.clone() })).collect()
    }

    /// `os`, `architecture`, `variant` and `os.version`, normalised.
    pub fn platform(&self) -> Platform {
        let text = |key: &str| self.raw.get(key).and_then(Value::as_str).unwrap_or_default();
        let mut platform = Platform::new(text("os"), text("architecture"), text("variant"));
        platform.os_version = text("os.version").to_owned();
        platform
    }

    /// Writes `os`, `architecture`, `variant` and `os.version`; empty parts are removed.
    pub fn set_platform(&mut self, platform: &Platform) {
        for (field, text) in [
            ("os", &platform.os),
            ("architecture", &platform.architecture),
            ("variant", &platform.variant),
            ("os.version", &platform.os_version),
        ] {
            if text.is_empty() {
                self.raw.remove(field);
            } else {
                self.raw.insert(field.to_owned(), Value::from(text.as_str()));
            }
        }
    }

    /// A field of the inner `config` object.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.raw.get("config")?.get(name)
    }

    /// A text field of the inner `config` object; empty if it is missing.
    pub fn text(&self, name: &str) -> &str {
        self.field(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field of the inner `config` object that is a list of texts; empty if it is missing.
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.field(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// `Env`, cut at the first `=`; an entry without `=` has an empty value.
    pub fn env(&self) -> Vec<(String, String)> {
        let split = |entry: String| match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (entry, String::new()),
        };
        self.list("Env").into_iter().map(split).collect()
    }

    /// Writes a field of the inner `config` object. An empty text, list or object, `null` and `false` remove it, as Go's
    /// `omitempty` does.
    pub fn set(&mut self, name: &str, value: Value) {
        let empty = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        if empty {
            if let Some(Value::Object(config)) = self.raw.get_mut("config") {
                config.remove(name);
            }
        } else {
            self.inner().insert(name.to_owned(), value);
        }
    }

    /// Sets one variable of `Env`: in place if it is there, else at the end (checklist A-13).
    pub fn set_env(&mut self, key: &str, value: &str) {
        let mut env = self.list("Env");
        let entry = format!("{key}={value}");
        match env.iter_mut().find(|old| old.split_once('=').map_or(old.as_str(), |(key, _)| key) == key) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
        self.set("Env", env.into());
    }

    /// Adds `key` to a field of the inner `config` object that is an object, such as `Labels` or `Volumes`.
    pub fn insert(&mut self, name: &str, key: &str, value: Value) {
        let field = self.inner().entry(name).or_insert_with(|| Value::Object(Map::new()));
        if !field.is_object() {
            // Go writes empty maps as `null`.
            *field = Value::Object(Map::new());
        }
        if let Value::Object(fields) = field {
            fields.insert(key.to_owned(), value);
        }
    }

    /// The inner `config` object, made if it is missing or `null`.
    fn inner(&mut self) -> &mut Map<String, Value> {
        let config = self.raw.entry("config").or_insert_with(|| Value::Object(Map::new()));
        if !config.is_object() {
            *config = Value::Object(Map::new());
        }
        config.as_object_mut().expect("an object, because the line above makes it one")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> ImageConfig {
        ImageConfig::from_json(value.to_string().as_bytes()).expect("an object")
    }

    #[test]
    fn unknown_fields_survive_and_stale_ones_do_not() {
        let base = config(json!({
            "os": "linux", "architecture": "amd64", "created": "2020-01-01T00:00:00Z", "docker_version": "1.0",
            "vendor.field": {"a": 1}, "config": {"Vendor": [1], "Env": ["A=1"]}, "rootfs": {}, "history": []
        }));
        let derived = base.for_derived_image();
        assert_eq!(
            Value::Object(derived.raw().clone()),
            json!({
                "os": "linux", "architecture": "amd64", "vendor.field": {"a": 1},
                "config": {"Vendor": [1], "Env": ["A=1"]}
            })
        );
    }

    #[test]
    fn env_keeps_its_order() {
        let mut edited = config(json!({"config": {"Env": ["A=1", "B=2", "A=3"]}}));
        edited.set_env("A", "x=y");
        edited.set_env("C", "");
        assert_eq!(edited.list("Env"), ["A=x=y", "B=2", "A=3", "C="]);
        assert_eq!(edited.env()[0], ("A".to_owned(), "x=y".to_owned()));
    }

    #[test]
    fn empty_values_remove_a_field() {
        let mut edited = config(json!({"config": null}));
        edited.set("Cmd", json!(["x"]));
        edited.insert("Labels", "a", json!("b"));
        edited.set("Cmd", json!([]));
        assert_eq!(Value::Object(edited.raw().clone()), json!({"config": {"Labels": {"a": "b"}}}));
    }
}
