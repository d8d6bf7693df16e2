//! Values that are made once per key, even if several threads ask at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Value of one key; locked while it is made.
type Slot<V> = Arc<Mutex<Option<Arc<V>>>>;

/// A map whose values are made on demand. Errors are not kept.
#[derive(Debug)]
pub(super) struct OnceMap<K, V> {
    slots: Mutex<BTreeMap<K, Slot<V>>>,
}

impl<K, V> Default for OnceMap<K, V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<K: Ord, V> OnceMap<K, V> {
    pub(super) fn get_or_try<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        // Neither lock guards anything that a panic could leave half done.
        let slot = Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*slot {
            return Ok(Arc::clone(value));
        }
        Ok(Arc::clone(slot.insert(Arc::new(make()?))))
    }
}
