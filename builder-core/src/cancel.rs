//! Stopping a build from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that ends a build: set by a signal handler or by the first failing step, read by everything that waits.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<Cancel>>,
}

impl Cancel {
    /// Asks everything that holds a clone of this flag, or a child of it, to end soon.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::SeqCst) || self.parent.as_ref().is_some_and(|parent| parent.is_cancelled())
    }

    /// A flag that is also set when this one, or one above it, is, and can be set alone.
    pub fn child(&self) -> Self {
        Self { own: Arc::default(), parent: Some(Arc::new(self.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::Cancel;

    #[test]
    fn children_end_with_their_ancestors_only() {
        let top = Cancel::default();
        let (middle, other) = (top.child(), top.child());
        let bottom = middle.child();
        middle.clone().cancel();
        assert_eq!([&top, &middle, &bottom, &other].map(Cancel::is_cancelled), [false, true, true, false]);
        top.cancel();
        assert!(other.is_cancelled());
    }
}
