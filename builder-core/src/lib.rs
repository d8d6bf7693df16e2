//! Builds OCI images from Dockerfiles, without a daemon and without privileges.
//!
//! The entry point is [`exec::build`], which takes a [`exec::BuildRequest`] and tells an [`event::Observer`] what happens.
//! A program that links the library calls [`sandbox::enter`] first thing in `main`, while it has one thread. One work directory serves any
//! number of builds at a time, of one process or several. Parts serve alone, too: `examples/plan.rs` of this crate goes from text to [`plan::Plan`]
//! without network or work directory, `examples/layer.rs` from a directory to a pushed image without a Dockerfile; `examples/several.rs` shows
//! observers and cancellation.
//!
//! # From text to registry
//!
//! Each arrow carries a value that can be printed and tested alone. Base images are resolved *between* two planning steps,
//! because a base's `ENV`, `WORKDIR` and `ONBUILD` change what later instructions mean.
//!
//! ```text
//! Dockerfile text ─dockerfile→ Dockerfile ─plan::outline→ Outline ─source→ Bases ─plan::lower→ Plan
//! Plan ─exec→ each step: rootfs → sandbox or copy → snapshot → layer (tar → compress → digest → spill) → SealedLayer
//! Bases + SealedLayers ─image→ Image ─output→ registry | OCI layout | archive | files
//! ```
//!
//! **Text.** [`dockerfile`] turns text into typed instructions. Every node keeps its byte span in the file as written, and all
//! errors are collected. *Invariant: the parser reads no file and knows no image; expansion gets its environment as an
//! argument.*
//!
//! **Plan.** [`plan`] decides everything that can be known before something runs: stages, targets, configs, history, what each
//! step is and what its cache key covers. *Invariant: planning does no I/O and reads neither clock nor environment; executing
//! decides nothing.*
//!
//! **Sources.** [`source`] resolves a name and a platform to a manifest, a config and layers, over [`registry`] and [`http`], or
//! from an OCI layout. Blobs are streams that check their digest as they are read. *Invariant: `http` is the only user of
//! `reqwest`, and credentials are seen by `registry`'s authentication alone.*
//!
//! **Trees.** [`rootfs`] keeps root filesystems under the work dir: one directory a layer, stacked by overlayfs, where the
//! kernel and the disk allow it; one plain directory a tree elsewhere. Everything that touches a path of an image goes
//! through [`rootfs::Rootfs`], which resolves it inside the root. What a layer holds is known without a directory from its
//! [`rootfs::index`], and COPY, ADD and WORKDIR change either through [`rootfs::View`]. *Invariant: nothing is mounted in any
//! mount namespace but the builder's and a RUN's own, so a builder that is killed leaves no mount behind.*
//!
//! **Steps.** [`sandbox`] runs a command in a tree, [`copy`] writes files from a [`context`] or another tree into it.
//! [`snapshot`] lists what changed, [`layer`] writes that as a deterministic tar through the compressor into the [`store`].
//! *Invariant: a layer is written in one pass and is never whole in memory; the same changes give the same bytes for any number
//! of threads; `unsafe` code and raw system calls are in `sandbox::sys` alone.*
//!
//! **Image.** [`image`] makes config and manifest, keeping what it does not know of the base's config; [`output`] writes blobs
//! before the config before the manifest; [`cache`] keeps results of steps as small images in a repository. *Invariant: nobody
//! outside can see an image that is not whole.*
//!
//! **Execution.** [`exec`] is the only module that sees the others together: it runs stages in parallel, keeps the step cache,
//! passes on cancellation, and says what happens through [`event`]. *Invariant: the library never prints, and never asks the
//! environment, the clock or the terminal: they are parameters.*
//!
//! # Module map
//!
//! The table is checked by `tests/tests/architecture.rs`: a module that uses another one which its row does not name fails.
//!
//! | Module | Its one job | May use |
//! |---|---|---|
//! | [`oci`] | Value types of the OCI specifications | |
//! | [`cancel`], [`disk`], [`limits`], [`hint`] | Small values that everything may carry | |
//! | [`spool`] | Long sequences that leave memory | |
//! | [`dockerfile`] | Text → spanned, typed instructions; word expansion; findings | `hint` |
//! | [`event`] | What a build tells while it runs | `dockerfile`, `oci` |
//! | [`plan`] | Instructions + arguments + base configs → steps with cache keys | `dockerfile`, `oci`, `hint`; of `context` the pattern matcher, for lint |
//! | [`http`] | One HTTP client: TLS, proxies, retry, redaction, limits | `cancel`, `hint` |
//! | [`cloud`] | Amazon, Google, Azure: identities, tokens, objects in stores | `http`, `cancel`, `hint` |
//! | [`git`] | One commit of a repository as files | `http`, `cancel`, `disk`, `hint` |
//! | [`ssh`] | Private keys, and an agent that signs with them | `hint` |
//! | [`store`] | Content-addressed blobs on local disk | `oci`, `disk`, `hint` |
//! | [`registry`] | The distribution protocol | `cloud`, `http`, `oci`, `cancel`, `limits`, `hint` |
//! | [`source`] | Name + platform → resolved base | `registry`, `store`, `oci`, `cancel`, `hint`; of `rootfs` the types of stacks |
//! | [`rootfs`] | Layers → directory trees; safe paths | `oci`, `cancel`, `disk`, `spool`, `hint` |
//! | [`context`] | Build context: ignore rules, walk, content hash | `rootfs`, `spool`, `cloud`, `http`, `git`, `oci`, `cancel`, `disk`, `hint` |
//! | [`copy`] | COPY, ADD, WORKDIR into a tree | `context`, `rootfs`, `http`, `plan`, `oci`, `cancel`, `hint` |
//! | [`sandbox`] | One command in a tree | `rootfs`, `cancel`, `event`, `hint` |
//! | [`snapshot`] | Before + after → sorted changes | `rootfs`, `spool`, `oci`; of `context` the pattern matcher |
//! | [`layer`] | Changes → tar → compressor → digests → blob | `snapshot`, `rootfs`, `store`, `oci`, `cancel`, `limits` |
//! | [`image`] | Config, manifest and index bytes; validation | `oci`, `plan`, `layer` |
//! | [`output`] | Image → registry, layout, archive, files | `image`, `registry`, `http`, `layer`, `snapshot`, `rootfs`, `store`, `oci`, `cancel`, `limits`, `event`, `hint` |
//! | [`cache`] | Results of steps in registries and layouts | `image`, `layer`, `output`, `registry`, `source`, `oci`, `cancel`, `event`, `hint`, `limits` |
//! | [`exec`] | Runs a plan | all of them |

pub mod oci;

pub mod cancel;
pub mod disk;
pub mod hint;
pub mod limits;
pub mod spool;

pub mod dockerfile;
pub mod event;
pub mod plan;

pub mod cloud;
pub mod git;
pub mod http;
pub mod registry;
pub mod source;
pub mod ssh;
pub mod store;

pub mod context;
pub mod copy;
pub mod rootfs;
pub mod sandbox;

pub mod cache;
pub mod image;
pub mod layer;
pub mod output;
pub mod snapshot;

pub mod exec;
