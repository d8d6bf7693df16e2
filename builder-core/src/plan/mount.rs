//! `RUN --mount` (checklist M-01 to M-19): comma-separated fields → a checked mount. What `from` means is
//! [`super::run`]'s business.

use crate::dockerfile::{CsvProblem, Quoted, csv_fields};
use crate::hint::suggest::nearest;

use super::types::Sharing;

/// A `--mount` that cannot be used. Displays as BuildKit words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// Quotes of the comma-separated list do not fit.
    #[error("failed to parse csv mounts: {0}")]
    Fields(#[from] CsvProblem),
    /// A bare key that needs a value.
    #[error("invalid field '{field}' must be a key=value pair")]
    NotKeyValue {
        /// As written.
        field: String,
    },
    /// A key that no mount has.
    #[error("unexpected key '{key}' in '{field}'{}", did_you_mean(suggestion))]
    UnknownKey {
        /// Lower-cased.
        key: String,
        /// As written.
        field: String,
        /// A key near it.
        suggestion: Option<&'static str>,
    },
    /// A key that this type does not have.
    #[error("unexpected key '{key}' for mount type '{kind}'")]
    KeyForType {
        /// The key.
        key: String,
        /// The type so far: `type` has to come first (M-04).
        kind: &'static str,
    },
    /// An unknown `type`.
    #[error("unsupported mount type {}{}", Quoted(kind), did_you_mean(suggestion))]
    Type {
        /// What was given.
        kind: String,
        /// A type near it.
        suggestion: Option<&'static str>,
    },
    /// An unknown `sharing`.
    #[error("unsupported sharing value {}{}", Quoted(value), did_you_mean(suggestion))]
    Sharing {
        /// What was given.
        value: String,
        /// A value near it.
        suggestion: Option<&'static str>,
    },
    /// A value that cannot be read.
    #[error("invalid value for {key}: {value}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A `mode`, `uid` or `gid` that is no number of 32 bits.
    #[error("invalid value {value} for {key}")]
    Number {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// `mode`, `uid` or `gid` of a bind or tmpfs.
    #[error("{key} not allowed for {} type mounts", Quoted(kind))]
    NotAllowed {
        /// The key.
        key: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// `sharing` of something else than a cache.
    #[error("invalid cache sharing set for {kind} mount")]
    SharingNotCache {
        /// The type.
        kind: &'static str,
    },
    /// A secret with `from`.
    #[error("secret mount should not have a from")]
    SecretFrom,
    /// A secret without any name.
    #[error("invalid secret mount. one of source, target required")]
    SecretUnnamed,
    /// A secret with two names.
    #[error("both source and id can't be set")]
    SecretNamedTwice,
    /// An agent has no path.
    #[error("ssh does not support source")]
    SshSource,
    /// The target is the root directory.
    #[error("invalid mount target \"/\"")]
    TargetIsRoot,
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// The `type` of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum MountType {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

const TYPES: [(&str, MountType); 5] = [
    ("bind", MountType::Bind),
    ("cache", MountType::Cache),
    ("tmpfs", MountType::Tmpfs),
    ("secret", MountType::Secret),
    ("ssh", MountType::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// Every type of mount and every key, as the planner knows them; documentation is tested with it.
pub fn mount_words() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().map(|(name, _)| name).chain(SHARINGS.into_iter().map(|(name, _)| name)).chain(KEYS)
}

impl MountType {
    pub(super) fn name(self) -> &'static str {
        TYPES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// The fields of one `--mount`, expanded and checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MountFields {
    pub(super) kind: MountType,
    pub(super) from: String,
    pub(super) source: String,
    pub(super) target: String,
    pub(super) readonly: bool,
    pub(super) id: String,
    pub(super) sharing: Option<Sharing>,
    pub(super) required: bool,
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) env: Option<String>,
}

/// Reads a raw `--mount` value; `expand` is applied to each value (M-05).
///
/// # Errors
/// [`MountError`] converted to `E`, or what `expand` says.
pub(super) fn parse<E: From<MountError>>(
    raw: &str,
    mut expand: impl FnMut(&str) -> Result<String, E>,
) -> Result<MountFields, E> {
    let mut mount = MountFields::default();
    let mut readonly = None;
    for field in csv_fields(raw).map_err(MountError::Fields)? {
        let Some((key, value)) = field.split_once('=') else {
            match field.to_lowercase().as_str() {
                "readonly" | "ro" => readonly = Some(true),
                "readwrite" | "rw" => readonly = Some(false),
                "required" if matches!(mount.kind, MountType::Secret | MountType::Ssh) => mount.required = true,
                "required" => {
                    return Err(MountError::KeyForType { key: "required".to_owned(), kind: mount.kind.name() }.into());
                }
                _ => return Err(MountError::NotKeyValue { field }.into()),
            }
            continue;
        };
        let key = key.to_lowercase();
        let value = expand(value)?;
        set(&mut mount, &mut readonly, &key, value, &field)?;
    }
    check(&mount)?;
    mount.readonly = readonly.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
    Ok(mount)
}

/// One `key=value`.
fn set(
    mount: &mut MountFields,
    readonly: &mut Option<bool>,
    key: &str,
    value: String,
    field: &str,
) -> Result<(), MountError> {
    let invalid = |value: &str| MountError::Value { key: key.to_owned(), value: value.to_owned() };
    let key_for_type = |kind: MountType| MountError::KeyForType { key: key.to_owned(), kind: kind.name() };
    let number = |radix| {
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        let number = u32::from_str_radix(&value, radix).ok().filter(|_| digits);
        number.ok_or_else(|| MountError::Number { key: key.to_owned(), value: value.clone() })
    };
    match key {
        "type" => match TYPES.iter().find(|(name, _)| *name == value) {
            Some((_, kind)) => mount.kind = *kind,
            None => {
                let suggestion = nearest(&value, TYPES.map(|(name, _)| name));
                return Err(MountError::Type { kind: value, suggestion });
            }
        },
        "from" => mount.from = value,
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "readonly" | "ro" => *readonly = Some(boolean(&value).ok_or_else(|| invalid(&value))?),
        "readwrite" | "rw" => *readonly = Some(!boolean(&value).ok_or_else(|| invalid(&value))?),
        "required" => match mount.kind {
            MountType::Secret | MountType::Ssh => {
                mount.required = boolean(&value).ok_or_else(|| invalid(&value))?;
            }
            kind => return Err(key_for_type(kind)),
        },
        "size" => match mount.kind {
            MountType::Tmpfs => mount.size = Some(bytes(&value).ok_or_else(|| invalid(&value))?),
            kind => return Err(key_for_type(kind)),
        },
        "id" => mount.id = value,
        "sharing" => match SHARINGS.iter().find(|(name, _)| *name == value) {
            Some((_, sharing)) => mount.sharing = Some(*sharing),
            None => {
                let suggestion = nearest(&value, SHARINGS.map(|(name, _)| name));
                return Err(MountError::Sharing { value, suggestion });
            }
        },
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        "env" => mount.env = Some(value),
        _ => {
            let suggestion = nearest(key, KEYS);
            return Err(MountError::UnknownKey { key: key.to_owned(), field: field.to_owned(), suggestion });
        }
    }
    Ok(())
}

/// What fields must not stand together.
fn check(mount: &MountFields) -> Result<(), MountError> {
    let kind = mount.kind.name();
    if matches!(mount.kind, MountType::Bind | MountType::Tmpfs) {
        for (key, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if given.is_some() {
                return Err(MountError::NotAllowed { key, kind });
            }
        }
    }
    if mount.sharing.is_some() && mount.kind != MountType::Cache {
        return Err(MountError::SharingNotCache { kind });
    }
    if mount.kind == MountType::Ssh && !mount.source.is_empty() {
        return Err(MountError::SshSource);
    }
    if mount.kind == MountType::Secret {
        if !mount.from.is_empty() {
            return Err(MountError::SecretFrom);
        }
        if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            return Err(MountError::SecretUnnamed);
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return Err(MountError::SecretNamedTwice);
        }
    }
    Ok(())
}

/// The value of `from` as written, which does not expand (M-05). Mistakes are left to [`parse`].
pub(super) fn from_of(raw: &str) -> Option<String> {
    let fields = csv_fields(raw).ok()?;
    let is_from = |(key, value): (&str, &str)| key.eq_ignore_ascii_case("from").then(|| value.to_owned());
    fields.iter().rev().find_map(|field| field.split_once('=').and_then(is_from)).filter(|from| !from.is_empty())
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A number of bytes with an optional unit `k`, `m`, `g`, `t` or `p` (1024-based, `kb` and `KiB` too), as Docker's
/// `units.RAMInBytes`.
pub fn bytes(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = text.split_at(end);
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let exponent = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(exponent);
    // Go keeps sizes in an int64.
    (bytes < i64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Result<MountFields, MountError> {
        parse(raw, |value| Ok(value.replace("$x", "expanded")))
    }

    #[track_caller]
    fn check_error(raw: &str, expected: &str) {
        assert_eq!(read(raw).map_err(|error| error.to_string()), Err(expected.to_owned()), "{raw}");
    }

    #[test]
    fn fields_are_read() {
        let mount = read("type=cache,target=/c,id=$x,sharing=locked,mode=0700,uid=1,gid=2,ro").expect("valid");
        assert_eq!(
            mount,
            MountFields {
                kind: MountType::Cache,
                target: "/c".to_owned(),
                id: "expanded".to_owned(),
                sharing: Some(Sharing::Locked),
                mode: Some(0o700),
                uid: Some(1),
                gid: Some(2),
                readonly: true,
                ..MountFields::default()
            }
        );
        assert!(read("target=/x").expect("valid").readonly, "bind");
        assert!(!read("target=/x,rw").expect("valid").readonly);
        assert!(!read("type=tmpfs,target=/x").expect("valid").readonly);
        assert_eq!(read("TYPE=tmpfs,target=/x,size=1.5k").expect("valid").size, Some(1536));
        assert_eq!(read(r#"target=/x,"source=a,b""c""#).expect("valid").source, "a,b\"c");
        assert!(read("type=secret,id=a,required").expect("valid").required);
        assert_eq!(read("dst=/a=b").expect("valid").target, "/a=b");
    }

    #[test]
    fn mistakes_have_buildkits_words() {
        check_error("foo", "invalid field 'foo' must be a key=value pair");
        check_error("targt=/x", "unexpected key 'targt' in 'targt=/x' (did you mean target?)");
        check_error("type=bnd", "unsupported mount type \"bnd\" (did you mean bind?)");
        check_error("type=cache,sharing=maybe", "unsupported sharing value \"maybe\"");
        check_error("target=/x,uid=1", "uid not allowed for \"bind\" type mounts");
        check_error("type=tmpfs,size=lots", "invalid value for size: lots");
        check_error("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'");
        check_error("required,type=secret", "unexpected key 'required' for mount type 'bind'");
        check_error("type=cache,ro=maybe", "invalid value for ro: maybe");
        check_error("type=cache,mode=9", "invalid value 9 for mode");
        check_error("type=cache,uid=+5", "invalid value +5 for uid");
        check_error("", "failed to parse csv mounts: EOF");
        check_error("type=bind,sharing=shared", "invalid cache sharing set for bind mount");
        check_error("type=secret", "invalid secret mount. one of source, target required");
        check_error("type=secret,id=a,source=b", "both source and id can't be set");
        check_error("type=secret,id=a,from=b", "secret mount should not have a from");
        check_error(
            "target=\"/x\"",
            "failed to parse csv mounts: parse error on line 1, column 8: bare \" in non-quoted-field",
        );
    }

    #[test]
    fn from_is_found_without_expansion() {
        assert_eq!(from_of("type=bind,from=a,from=b$").as_deref(), Some("b$"));
        assert_eq!(from_of("FROM=a,target=/x").as_deref(), Some("a"));
        assert_eq!(from_of("target=/x"), None);
        assert_eq!(from_of("from=,target=/x"), None);
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("64m", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2 kb", Some(2048)),
            ("0.5k", Some(512)),
            ("", None),
            ("k", None),
            ("-1", None),
            ("1x", None),
            ("1e5", None),
            ("99999999p", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }
}
