//! History items and their times (checklist I-01, I-10, I-11).

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::assemble::{AssembleError, NewLayer};
use crate::oci::HistoryEntry;

/// Comment of the items that a Dockerfile's instructions make.
pub(super) const DOCKERFILE_COMMENT: &str = "buildkit.dockerfile.v0";
/// Comment of items that stand for layers without one.
const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";

/// A history being put together.
#[derive(Debug, Default)]
pub(super) struct History {
    items: Vec<Map<String, Value>>,
}

impl History {
    /// An item of the base, as it is.
    pub(super) fn inherit(&mut self, entry: &HistoryEntry) {
        self.items.push(entry.raw.clone());
    }

    /// A new item.
    pub(super) fn push(&mut self, created_by: &str, empty: bool, created: Option<String>) {
        let mut item = Map::new();
        item.insert("created_by".to_owned(), created_by.into());
        item.insert("comment".to_owned(), DOCKERFILE_COMMENT.into());
        if empty {
            item.insert("empty_layer".to_owned(), true.into());
        }
        if let Some(created) = created {
            item.insert("created".to_owned(), created.into());
        }
        self.items.push(item);
    }

    /// Makes the number of items with a layer the number of `layers`: items in surplus lose their layer from the end, and
    /// layers in surplus get items, new ones with the time `epoch` if there is one.
    pub(super) fn fit(&mut self, layers: &[Option<&NewLayer>], epoch: Option<&str>) -> Result<(), AssembleError> {
        let mut counted = 0;
        for item in &mut self.items {
            if is_empty(item) {
                continue;
            }
            if counted == layers.len() {
                item.insert("empty_layer".to_owned(), true.into());
            } else {
                counted += 1;
            }
        }
        for layer in &layers[counted..] {
            let mut item = Map::new();
            item.insert("comment".to_owned(), EXPORTER_COMMENT.into());
            if let Some(layer) = layer {
                let created = epoch.map_or_else(|| timestamp(layer.created), |epoch| Ok(epoch.to_owned()))?;
                item.insert("created".to_owned(), created.into());
                item.insert("created_by".to_owned(), layer.description.as_str().into());
            }
            self.items.push(item);
        }
        Ok(())
    }

    /// Gives every item a time: the first without one, and those right behind it, get the first time that follows (else the
    /// last there is); later ones the nearest before them.
    pub(super) fn date(&mut self) {
        let mut current: Option<String> = None;
        let mut undated_seen = false;
        for item in &self.items {
            match created(item) {
                Some(time) => {
                    current = Some(time.to_owned());
                    if undated_seen {
                        break;
                    }
                }
                None => undated_seen = true,
            }
        }
        undated_seen = false;
        for item in &mut self.items {
            match created(item) {
                Some(time) => {
                    if undated_seen {
                        current = Some(time.to_owned());
                    }
                }
                None => {
                    undated_seen = true;
                    if let Some(time) = &current {
                        item.insert("created".to_owned(), time.as_str().into());
                    }
                }
            }
        }
    }

    /// The last time in the list.
    pub(super) fn last_time(&self) -> Option<String> {
        self.items.iter().rev().find_map(created).map(str::to_owned)
    }

    pub(super) fn into_value(self) -> Value {
        self.items.into_iter().map(Value::Object).collect()
    }
}

fn created(item: &Map<String, Value>) -> Option<&str> {
    item.get("created").and_then(Value::as_str)
}

fn is_empty(item: &Map<String, Value>) -> bool {
    item.get("empty_layer").and_then(Value::as_bool).unwrap_or(false)
}

/// RFC 3339 in UTC with as many digits as needed, as Go writes times.
pub(super) fn timestamp(time: SystemTime) -> Result<String, AssembleError> {
    let time = jiff::Timestamp::try_from(time).map_err(|source| AssembleError::Time { source })?;
    Ok(time.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// Dates a list in which `None` has no time.
    #[track_caller]
    fn check(times: &[Option<&str>], expected: &[Option<&str>]) {
        let mut history = History::default();
        for time in times {
            history.push("x", false, time.map(str::to_owned));
        }
        history.date();
        let dated: Vec<Option<&str>> = history.items.iter().map(created).collect();
        assert_eq!(dated, expected);
    }

    #[test]
    fn times_are_filled_in() {
        check(&[], &[]);
        check(&[None], &[None]);
        check(&[Some("1"), None], &[Some("1"), Some("1")]);
        check(&[None, Some("1")], &[Some("1"), Some("1")]);
        check(&[Some("1"), Some("2"), None, None, Some("3")], &["1", "2", "3", "3", "3"].map(Some));
        check(&[Some("1"), None, Some("3"), None, Some("4"), None], &["1", "3", "3", "3", "4", "4"].map(Some));
        check(&[Some("1"), Some("2"), None], &["1", "2", "2"].map(Some));
    }

    #[test]
    fn times_are_gos() {
        let at = |nanos| timestamp(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)).expect("in range");
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(at(1_700_000_000_000_000_001), "2023-11-14T22:13:20.000000001Z");
    }

    #[test]
    fn items_fit_layers() {
        let mut history = History::default();
        history.push("a", false, None);
        history.push("b", true, None);
        history.push("c", false, None);
        history.fit(&[None], None).expect("no times");
        let empty: Vec<bool> = history.items.iter().map(is_empty).collect();
        assert_eq!(empty, [false, true, true]);
        history.fit(&[None, None], None).expect("no times");
        assert_eq!(history.items[3].get("comment"), Some(&json!("buildkit.exporter.image.v0")));
        assert_eq!(history.items.len(), 4);
    }
}
