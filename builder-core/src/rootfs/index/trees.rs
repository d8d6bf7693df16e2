//! The indexes of a work dir's trees: kept ones, and those that have to be made.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{IndexTree, Indexes, ReplayError};
use crate::cancel::Cancel;
use crate::rootfs::fetch::{Stop, index_blob, open};
use crate::rootfs::inflate::Allowance;
use crate::rootfs::{LayerRef, LayerSource, TreeError, TreeMode, Trees};

impl Trees {
    /// The indexes of layers.
    pub fn indexes(&self) -> Indexes {
        match self.mode() {
            TreeMode::Overlay => self.dir().indexes(),
            TreeMode::Directory => self.dir().indexes().hashing(),
        }
    }

    /// What the tree of these layers (lowest first) holds, without unpacking it: from the kept indexes, and by reading the
    /// layers that have none yet, several at once. `None` if that is too much for memory or some layer cannot be
    /// replayed: unpacking it says why.
    ///
    /// # Errors
    /// [`TreeError`], of reading layers.
    pub fn index(
        &self,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<Option<IndexTree>, TreeError> {
        self.index_within(self.known_bounds().entries, layers, source, cancel)
    }

    /// The same; `None` also if all have more than so many entries.
    ///
    /// # Errors
    /// [`TreeError`], of reading layers.
    pub fn index_within(
        &self,
        most: u64,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<Option<IndexTree>, TreeError> {
        self.apply_all(IndexTree::empty(), most, layers, source, cancel)
    }

    /// The same of layers on top of a tree that is known, with which the result shares what they leave as it was.
    ///
    /// # Errors
    /// [`TreeError`], of reading layers.
    pub fn index_on(
        &self,
        tree: IndexTree,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<Option<IndexTree>, TreeError> {
        self.apply_all(tree, self.known_bounds().entries, layers, source, cancel)
    }

    fn apply_all(
        &self,
        mut tree: IndexTree,
        most: u64,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<Option<IndexTree>, TreeError> {
        let indexes = self.indexes();
        let stop = Stop::new(cancel);
        let missing: Vec<&LayerRef> = layers.iter().filter(|layer| !indexes.contains(layer.diff_id)).collect();
        index_all(&missing, &indexes, source, self.streams(), self.allowed(), &stop)?;
        for layer in layers {
            let applied = match indexes.open(layer.diff_id) {
                Ok(Some(mut index)) => tree.apply(&mut index, most),
                Ok(None) => Err(io::Error::from(io::ErrorKind::NotFound).into()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = applied {
                if matches!(error, ReplayError::Read(_)) {
                    indexes.forget(layer.diff_id);
                }
                tracing::debug!(layer = %layer.diff_id, %error, "the tree has to be unpacked to be known");
                return Ok(None);
            }
        }
        Ok(Some(tree))
    }
}

/// Reads layers for their indexes, several at once; the first error ends the others.
fn index_all(
    layers: &[&LayerRef],
    indexes: &Indexes,
    source: &dyn LayerSource,
    streams: usize,
    allowed: &Allowance,
    stop: &Stop<'_>,
) -> Result<(), TreeError> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..streams.min(layers.len()) {
            scope.spawn(|| {
                while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed))
                    && !stop.is_stopped()
                {
                    let indexed = open(source, layer).and_then(|blob| index_blob(blob, layer, indexes, allowed, stop));
                    if let Err(error) = indexed {
                        let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                        // Others only say that they were cancelled because of it.
                        if !matches!(&*first, Some(known) if !matches!(known, TreeError::Cancelled)) {
                            *first = Some(error);
                        }
                        stop.fail();
                    }
                }
            });
        }
    });
    if stop.cancel.is_cancelled() {
        return Err(TreeError::Cancelled);
    }
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
