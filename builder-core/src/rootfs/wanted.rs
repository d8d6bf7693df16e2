//! Which trees several users are going to begin with, in directory mode: what one of them unpacks the others copy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::oci::ChainId;

/// How many users each tree will have.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted(Arc<Mutex<BTreeMap<ChainId, usize>>>);

/// Somebody is going to begin with a tree of some layers, as long as this lives: see [`super::Trees::expect`].
#[derive(Debug)]
#[must_use = "nobody is expected any more when this is dropped"]
pub struct Expected(Option<(Wanted, ChainId)>);

impl Wanted {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChainId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects one user more; none for the empty tree.
    pub(super) fn expect(&self, chain: Option<ChainId>) -> Expected {
        Expected(chain.map(|chain| {
            *self.lock().entry(chain).or_default() += 1;
            (self.clone(), chain)
        }))
    }

    /// Whether somebody will begin with this tree.
    pub(super) fn has(&self, chain: ChainId) -> bool {
        self.lock().contains_key(&chain)
    }

    /// Length of the longest beginning of a stack that somebody will begin with.
    pub(super) fn longest(&self, chains: &[ChainId]) -> usize {
        let wanted = self.lock();
        chains.iter().rposition(|chain| wanted.contains_key(chain)).map_or(0, |at| at + 1)
    }
}

impl Expected {
    /// Nobody is expected.
    pub fn nobody() -> Self {
        Self(None)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let Some((wanted, chain)) = self.0.take() else { return };
        let mut wanted = wanted.lock();
        if let Some(count) = wanted.get_mut(&chain) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&chain);
            }
        }
    }
}
