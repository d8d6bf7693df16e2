//! What a build takes while it runs: space below the work dir, files elsewhere, memory. Measured from outside of the code
//! that takes it, so that nothing can forget to count.
//!
//! A thread looks every now and then, more rarely where looking takes longer, and at once when a writer of the builder
//! might pass the budget ([`crate::disk`]). Free space on the volume is looked at every 20 ms: what is gone from it may be a new peak, or a
//! command's that passes the budget, and makes somebody look. Before a large layer goes it is looked, too.
//!
//! # Limitations
//! Between two looks more may be taken than the peak says, and a command in a RUN can pass the budget by what it writes in
//! that time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::BuildError;
use super::cache::StepCache;
use super::report::Recorder;
use super::shared::lock;
use super::space::Space;
use super::trace::Sample;
use crate::cancel::Cancel;
use crate::disk::Disk;
use crate::event::{Event, Observer as _};
use crate::rootfs::Trees;

/// Shortest and longest time between two looks.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The same where a budget must be kept.
const PAUSE_WITH_BUDGET: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Free space on the volume is looked at so often: what is gone from it may be a command's.
const GLANCE: Duration = Duration::from_millis(20);

/// What is gone from the volume counts as a new peak if that is higher than the last one by so many bytes and one part in
/// [`NEW_PEAK_SHARE`]: others write there, too.
const NEW_PEAK_BYTES: u64 = 1 << 20;
const NEW_PEAK_SHARE: u64 = 50;

/// A look takes at most one part in so many of the time.
const SHARE: u32 = 20;

/// The same where a budget must be kept.
const SHARE_WITH_BUDGET: u32 = 4;

/// Samples that a trace holds; every second one goes when there are more.
const MOST_SAMPLES: usize = 4096;

/// Free space on the volume of the work dir below which a build tells so: this many bytes, or one part in fifty.
const LITTLE_FREE_BYTES: u64 = 256 << 20;

/// Free space on the volume of the work dir below which trees that nobody uses make room: this many bytes, or one part in ten.
const ROOM_BYTES: u64 = 2 << 30;

/// What a build took at most.
#[derive(Debug, Clone, Default)]
pub(super) struct Peaks {
    /// Space below the work dir, in bytes.
    pub(super) disk: u64,
    /// Regular files open for writing that are neither there nor an output, in bytes.
    pub(super) elsewhere: u64,
    /// Anonymous memory of this process, in bytes.
    pub(super) anonymous: u64,
}

/// Looks at one build.
pub(super) struct Meter<'a> {
    work_dir: PathBuf,
    budget: Option<u64>,
    /// Directories in which outputs appear.
    outputs: Vec<PathBuf>,
    space: Space<'a>,
    disk: Disk,
    /// What can make room.
    trees: Option<&'a Trees>,
    recorder: &'a Recorder,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peaks: Peaks,
    samples: Vec<Sample>,
    /// Only every so-many-th look becomes a sample.
    stride: usize,
    looks: usize,
    /// Space below the work dir when each running step was first seen.
    at_beginning: BTreeMap<String, u64>,
    exceeded: Option<BuildError>,
    told: bool,
    told_of_budget: bool,
    /// Space below the work dir and free space of its volume at the last look.
    last: (u64, u64),
}

impl<'a> Meter<'a> {
    pub(super) fn new(
        work_dir: &Path,
        (budget, disk): (Option<u64>, Disk),
        outputs: Vec<PathBuf>,
        cache: &'a StepCache,
        recorder: &'a Recorder,
        begun: Instant,
    ) -> Self {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let work_dir = real(work_dir);
        Self {
            space: Space::new(&work_dir, cache),
            work_dir,
            budget,
            disk,
            trees: None,
            outputs: outputs.iter().map(|path| real(path)).collect(),
            recorder,
            begun,
            state: Mutex::new(State { stride: 1, ..State::default() }),
        }
    }

    /// Where little is left, trees that nobody uses go before anything is refused.
    pub(super) fn making_room_in(self, trees: &'a Trees) -> Self {
        Self { trees: Some(trees), ..self }
    }

    /// Measures while `build` runs, and ends it when it takes more than it may.
    ///
    /// # Errors
    /// That of `build`, or [`BuildError::DiskBudget`].
    pub(super) fn during<T>(
        &self,
        stop: &Cancel,
        build: impl FnOnce() -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            scope.spawn(move || self.watch(stop, &ended));
            self.disk.watch(true);
            // Also when `build` panics: nobody waits for a measurement that does not come.
            let _unwatched = Unwatched(&self.disk, Some(running));
            build()
        })
        // Whoever was refused a write, or cancelled, failed because of that.
        .map_err(|error| lock(&self.state).exceeded.take().unwrap_or(error))
    }

    pub(super) fn peaks(&self) -> Peaks {
        lock(&self.state).peaks.clone()
    }

    pub(super) fn samples(&self) -> Vec<Sample> {
        lock(&self.state).samples.clone()
    }

    /// To be called before something of so many bytes goes: what is in use now may be more than ever, for less time than there is between two
    /// looks. What is small is passed over.
    pub(super) fn before_removal(&self, bytes: u64) {
        let peak = lock(&self.state).peaks.disk;
        if bytes < NEW_PEAK_BYTES.max(peak / NEW_PEAK_SHARE) {
            return;
        }
        let (unnamed, _) = self.open_files();
        let used = self.space.measure().saturating_add(unnamed);
        let mut state = lock(&self.state);
        state.peaks.disk = state.peaks.disk.max(used);
    }

    fn watch(&self, stop: &Cancel, ended: &Receiver<()>) {
        let (pause, share) = match self.budget {
            Some(_) => (PAUSE_WITH_BUDGET, SHARE_WITH_BUDGET),
            None => (PAUSE, SHARE),
        };
        let asked = self.disk.asked();
        loop {
            let looked = Instant::now();
            self.look(stop);
            let took = looked.elapsed();
            let until = Instant::now() + (took * share).clamp(pause.0, pause.1);
            // What others do on the volume must not keep us busy.
            let earliest = Instant::now() + took;
            let for_a_peak = Instant::now() + took * share;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                crossbeam_channel::select! {
                    recv(ended) -> _ => return self.look(stop),
                    // Somebody wants to write and may not know whether that is too much.
                    recv(asked) -> _ => break,
                    default(left.min(GLANCE)) => {}
                }
                let now = Instant::now();
                if now >= until || now >= earliest && self.may_be_over() || now >= for_a_peak && self.may_be_a_peak() {
                    break;
                }
            }
        }
    }

    /// Whether the budget may be passed, as far as free space tells.
    fn may_be_over(&self) -> bool {
        self.budget.is_some_and(|budget| self.estimate() > budget)
    }

    /// Whether more may be taken than ever, as far as free space tells.
    fn may_be_a_peak(&self) -> bool {
        let peak = lock(&self.state).peaks.disk;
        self.estimate() > peak.saturating_add(peak / NEW_PEAK_SHARE).saturating_add(NEW_PEAK_BYTES)
    }

    /// What was in use at the last look, and what is gone from the volume since.
    fn estimate(&self) -> u64 {
        let now = free_space(&self.work_dir).map(|(free, _)| free);
        let (used, free) = lock(&self.state).last;
        used.saturating_add(now.map_or(0, |now| free.saturating_sub(now)))
    }

    fn look(&self, stop: &Cancel) {
        self.disk.measuring();
        let (unnamed, elsewhere) = self.open_files();
        // What is written while the work dir is walked is gone from the volume afterwards.
        let measure = || (free_space(&self.work_dir), self.space.measure().saturating_add(unnamed));
        let (mut free, before) = measure();
        let mut disk = before;
        while self.is_tight(disk, free) && self.trees.is_some_and(Trees::make_room) {
            (free, disk) = measure();
        }
        let refused = self.disk.measured(disk);
        let anonymous = anonymous_memory();
        let running = self.recorder.running();
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.peaks.disk = state.peaks.disk.max(before);
        state.peaks.anonymous = state.peaks.anonymous.max(anonymous);
        state.peaks.elsewhere = state.peaks.elsewhere.max(elsewhere);
        if state.looks.is_multiple_of(state.stride) {
            state.samples.push(Sample { at: self.begun.elapsed(), anonymous, disk });
            if state.samples.len() > MOST_SAMPLES {
                let mut keep = false;
                state.samples.retain(|_| {
                    keep = !keep;
                    keep
                });
                state.stride *= 2;
            }
        }
        state.looks += 1;
        state.at_beginning.retain(|title, _| running.contains(title));
        for title in &running {
            state.at_beginning.entry(title.clone()).or_insert(disk);
        }
        let wanted = refused.map_or(0, |refused| refused.wanted);
        if let Some(budget) = self.budget.filter(|budget| disk.saturating_add(wanted) > *budget)
            && state.exceeded.is_none()
        {
            // Of several the one during which most came.
            let grown = |(title, before): (&String, &u64)| (disk.saturating_sub(*before), title.clone());
            let (grown, step) = state.at_beginning.iter().map(grown).max().unzip();
            let (used, grown) = (disk.saturating_add(wanted), grown.unwrap_or(0).saturating_add(wanted));
            state.exceeded = Some(BuildError::DiskBudget { budget, used, step, grown });
            stop.cancel();
        }
        let Some((free, total)) = free else { return };
        state.last = (disk, free);
        let path = self.work_dir.display();
        let tell = |message: &str| self.recorder.event(Event::Notice { message });
        if !state.told && free < LITTLE_FREE_BYTES.min(total / 50) {
            state.told = true;
            tell(&format!("only {free} bytes are free on the volume of the work directory `{path}`"));
        }
        if let Some(left) = self.budget.map(|budget| budget.saturating_sub(disk)).filter(|left| *left > free)
            && !std::mem::replace(&mut state.told_of_budget, true)
        {
            tell(&format!(
                "the work directory `{path}` may take {left} bytes more (--max-disk), but only {free} are free on its volume"
            ));
        }
    }

    /// Whether little is left where `used` bytes are in use, and `free` of so many on the volume are free. A command writes without
    /// asking, so a tenth counts as little.
    fn is_tight(&self, used: u64, free: Option<(u64, u64)>) -> bool {
        let wanted = used.saturating_add(self.disk.wanted());
        let budget = self.budget.is_some_and(|budget| wanted > budget - budget / 10);
        budget || free.is_some_and(|(free, total)| free < ROOM_BYTES.min(total / 10))
    }

    /// Space of the files without a name below the work dir, and of regular files that this process has open for writing where
    /// it should not (proc_pid_fd(5), proc_pid_fdinfo(5)).
    fn open_files(&self) -> (u64, u64) {
        let mut seen = BTreeSet::new();
        let descriptors = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        // 0 to 2 are the caller's.
        let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        numbers.filter(|number| *number > 2).fold((0, 0), |(unnamed, elsewhere), number| {
            let Some(file) = OpenFile::of(number) else { return (unnamed, elsewhere) };
            match self.taken_without_name(&file, &mut seen) {
                Some(bytes) => (unnamed + bytes, elsewhere),
                None => (unnamed, elsewhere + self.taken_elsewhere(&file).unwrap_or(0)),
            }
        })
    }

    /// Space of the file behind a descriptor, if it lies below the work dir and no walk finds it; each file once.
    fn taken_without_name(&self, file: &OpenFile, seen: &mut BTreeSet<(u64, u64)>) -> Option<u64> {
        if !file.target.starts_with(&self.work_dir) {
            return None;
        }
        let metadata = fs::metadata(&file.link).ok().filter(|metadata| metadata.is_file() && metadata.nlink() == 0)?;
        Some(if seen.insert((metadata.dev(), metadata.ino())) { metadata.blocks() * 512 } else { 0 })
    }

    /// Space of the file behind a descriptor, if it counts.
    fn taken_elsewhere(&self, OpenFile { descriptor, link, target }: &OpenFile) -> Option<u64> {
        const ACCESS: u32 = 3;
        let in_memory = target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:");
        let allowed = in_memory || ["/dev", "/proc", "/sys"].iter().any(|other| target.starts_with(other));
        let is_ours = target.starts_with(&self.work_dir) || self.outputs.iter().any(|place| target.starts_with(place));
        if !target.is_absolute() || allowed || is_ours {
            return None;
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        if u32::from_str_radix(flags.trim(), 8).ok()? & ACCESS == 0 || is_detached(&info) {
            return None;
        }
        let metadata = fs::metadata(link).ok().filter(fs::Metadata::is_file)?;
        tracing::debug!(path = %target.display(), "a file outside of the work dir is open for writing");
        Some(metadata.blocks() * 512)
    }
}

/// Whether a file is on a mount that has no place: a tree stacked from directories below the work dir, where it is found. Nobody else in
/// this process has such mounts.
fn is_detached(info: &str) -> bool {
    let Some(mount) = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim) else { return false };
    // proc_pid_mountinfo(5): the number comes first.
    let places = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !places.is_empty() && !places.lines().any(|line| line.split(' ').next() == Some(mount))
}

/// A descriptor of this process, its link in /proc, and what that says it stands for.
struct OpenFile {
    descriptor: u32,
    link: String,
    target: PathBuf,
}

impl OpenFile {
    /// `None` if it was closed meanwhile.
    fn of(descriptor: u32) -> Option<Self> {
        let link = format!("/proc/self/fd/{descriptor}");
        let target = fs::read_link(&link).ok()?;
        Some(Self { descriptor, link, target })
    }
}

/// Ends the watch.
struct Unwatched<'a>(&'a Disk, Option<Sender<()>>);

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        self.0.watch(false);
        drop(self.1.take());
    }
}

/// Bytes that a layer takes when it is unpacked, for each of its blob: what gzip makes of most file systems.
const UNPACKED_FOR_PACKED: u64 = 3;

/// One sentence if `free` bytes are hardly enough for layers whose blobs have `packed` bytes.
pub(super) fn hardly_enough(free: u64, packed: u64) -> Option<String> {
    let needed = packed.saturating_mul(UNPACKED_FOR_PACKED);
    (free < needed).then(|| {
        format!(
            "the base images may take {needed} bytes when they are unpacked, and {free} are free on the volume of the work \
             directory"
        )
    })
}

/// Free and total bytes of the volume of `path`.
pub(super) fn free_space(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
}

/// Anonymous memory of this process in bytes (proc_pid_status(5), `RssAnon`); 0 where /proc cannot be read.
fn anonymous_memory() -> u64 {
    super::report::status_bytes("RssAnon:")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use std::os::fd::AsRawFd;

    use super::*;
    use crate::event::Silent;

    #[test]
    fn everything_below_the_work_dir_counts_once() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = StepCache::open(work.path()).expect("a cache");
        let recorder = Recorder::new(Arc::new(Silent));
        let meter = Meter::new(work.path(), (None, Disk::default()), Vec::new(), &cache, &recorder, Instant::now());
        let before = meter.space.measure();
        let layer = work.path().join("trees/layers/00");
        fs::create_dir_all(&layer).expect("a directory");
        fs::create_dir_all(work.path().join("blobs")).expect("a directory");
        fs::write(layer.join("a"), vec![1; 100_000]).expect("a file");
        fs::hard_link(layer.join("a"), layer.join("b")).expect("a link");
        fs::write(work.path().join("blobs/x"), vec![1; 50_000]).expect("a file");
        let grown = meter.space.measure() - before;
        assert!((150_000..200_000).contains(&grown), "{grown}");
        // A named tree is not walked again, by nobody.
        fs::write(layer.join("c"), vec![1; 100_000]).expect("a file");
        let other = Meter::new(work.path(), (None, Disk::default()), Vec::new(), &cache, &recorder, Instant::now());
        assert!(meter.space.measure() - before < 200_000 && other.space.measure() - before < 200_000);
    }

    #[test]
    fn files_without_a_name_count_once() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = StepCache::open(work.path()).expect("a cache");
        let recorder = Recorder::new(Arc::new(Silent));
        let meter = Meter::new(work.path(), (None, Disk::default()), Vec::new(), &cache, &recorder, Instant::now());
        let before = meter.open_files();
        let mut file = tempfile::tempfile_in(work.path()).expect("a file");
        std::io::Write::write_all(&mut file, &[1; 100_000]).expect("written");
        let _again = file.try_clone().expect("a descriptor");
        let (unnamed, elsewhere) = meter.open_files();
        assert!((100_000..150_000).contains(&(unnamed - before.0)), "{unnamed}");
        assert_eq!(elsewhere, before.1);
    }

    #[test]
    fn a_peak_that_ends_at_once_is_seen() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = StepCache::open(work.path()).expect("a cache");
        let recorder = Recorder::new(Arc::new(Silent));
        let meter = Meter::new(work.path(), (None, Disk::default()), Vec::new(), &cache, &recorder, Instant::now());
        fs::write(work.path().join("layer"), vec![1; 3 << 20]).expect("a file");
        meter.before_removal(3 << 20);
        fs::remove_file(work.path().join("layer")).expect("removed");
        assert!(meter.peaks().disk >= 3 << 20);
        // What is small hardly matters.
        fs::write(work.path().join("layer"), vec![1; 5 << 20]).expect("a file");
        meter.before_removal(1000);
        assert!(meter.peaks().disk < 5 << 20);
    }

    #[test]
    fn a_mount_without_a_place_is_no_place_elsewhere() {
        let file = tempfile::tempfile().expect("a file");
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).expect("fdinfo");
        assert!(!is_detached(&info), "{info}");
        assert!(is_detached("pos:\t0\nflags:\t0100002\nmnt_id:\t4294967295\nino:\t3\n"));
        assert!(!is_detached("pos:\t0\n"));
    }

    #[test]
    fn little_space_is_told_early() {
        assert_eq!(hardly_enough(300, 100), None);
        let told = hardly_enough(299, 100).expect("too little");
        assert!(told.contains("may take 300 bytes") && told.contains("299 are free"), "{told}");
    }

    #[test]
    fn a_file_elsewhere_is_seen() {
        let work = tempfile::tempdir().expect("a directory");
        let other = tempfile::tempdir().expect("a directory");
        let cache = StepCache::open(work.path()).expect("a cache");
        let recorder = Recorder::new(Arc::new(Silent));
        let meter =
            |outputs| Meter::new(work.path(), (None, Disk::default()), outputs, &cache, &recorder, Instant::now());
        let (strict, lenient) = (meter(Vec::new()), meter(vec![other.path().to_owned()]));
        let taken = |meter: &Meter<'_>, file: &dyn AsRawFd| {
            let number = u32::try_from(file.as_raw_fd()).expect("a descriptor");
            meter.taken_elsewhere(&OpenFile::of(number).expect("open"))
        };
        let file = fs::File::create(other.path().join("x")).expect("a file");
        std::io::Write::write_all(&mut &file, &[1; 100_000]).expect("written");
        assert!(taken(&strict, &file).is_some_and(|size| size >= 100_000));
        assert_eq!(taken(&lenient, &file), None, "an output");
        assert!(strict.open_files().1 >= 100_000);
        // Memory, although it has a descriptor.
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
        rustix::io::write(&memory, &[1; 100_000]).expect("written");
        assert_eq!(taken(&strict, &memory), None);
    }

    #[test]
    fn more_than_the_budget_ends_a_build() {
        let work = tempfile::tempdir().expect("a directory");
        let cache = StepCache::open(work.path()).expect("a cache");
        let recorder = Recorder::new(Arc::new(Silent));
        let meter = Meter::new(
            work.path(),
            (Some(1 << 20), Disk::limited(1 << 20, 0)),
            Vec::new(),
            &cache,
            &recorder,
            Instant::now(),
        );
        let stop = Cancel::default();
        let error = meter
            .during(&stop, || -> Result<(), BuildError> {
                recorder.event(Event::StepStarted { step: crate::event::StepId(0), title: "RUN large" });
                fs::write(work.path().join("large"), vec![1; 2 << 20]).expect("a file");
                while !stop.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(BuildError::Cancelled)
            })
            .expect_err("too much");
        let BuildError::DiskBudget { budget, used, step, .. } = &error else { panic!("{error}") };
        assert_eq!((*budget, step.as_deref()), (1 << 20, Some("RUN large")));
        assert!(*used > *budget);
    }
}
