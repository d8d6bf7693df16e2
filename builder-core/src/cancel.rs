//! Stopping a build from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that ends a build: set by a signal handler or by the first failing step, read by everything that waits.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parents: Vec<Arc<AtomicBool>>,
}

impl Cancel {
    /// Asks everything that holds a clone of this flag, or a child of it, to end soon.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::SeqCst) || self.parents.iter().any(|parent| parent.load(Ordering::SeqCst))
    }

    /// A flag that is also set when this one is, and can be set alone.
    pub fn child(&self) -> Self {
        let parents = self.parents.iter().chain([&self.own]).map(Arc::clone).collect();
        Self { own: Arc::default(), parents }
    }
}

#[cfg(test)]
mod tests {
    use super::Cancel;

    #[test]
    fn children_follow_and_do_not_lead() {
        let top = Cancel::default();
        let middle = top.child();
        let bottom = middle.child();
        middle.cancel();
        assert!(!top.is_cancelled() && middle.is_cancelled() && bottom.is_cancelled());
        let other = top.child().child();
        top.cancel();
        assert!(other.is_cancelled());
    }
}
