//! Image configs, edited as documents so that what slipway does not know survives.

use serde_json::{Map, Value};

use super::{DiffId, Platform};

/// An image config (image-spec, config.md); fields of the base image that we do not know survive unchanged.
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

impl HistoryEntry {
    /// Whether the item has no layer of its own.
    pub fn is_empty_layer(&self) -> bool {
        self.raw.get("empty_layer").and_then(Value::as_bool).unwrap_or(false)
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

    /// The whole document.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The whole document, to change it.
    pub fn raw_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.raw
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

    /// A field of the inner `config` object.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.raw.get("config")?.get(name)
    }
}
