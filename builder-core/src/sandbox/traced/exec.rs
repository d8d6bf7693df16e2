//! execve(2): what is executed for a path of the image, and the work of the kernel's loader that has to be done again.
//!
//! The kernel executes either a static program, by its path on the host, or the loader (`ld.so`) that a program names: the
//! kernel would look for that on the host. In the second case the supervisor then maps the program beside the loader and
//! corrects the auxiliary vector, so that the loader finds everything as if the kernel had loaded both.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::super::sys::ptrace::Registers;
use super::super::sys::{self, memory};
use super::calls::HANDED;
use super::elf::{self, Elf, Format};
use super::ids::Credentials;
use super::loader::{Call, Code, Value, assemble};
use super::permission::may;
use super::tasks::{Image, Program, SCRATCH_BYTES, SLOT_BYTES, Scratch, Task, lock};
use super::view::{Kind, MAX_PATH, STAT, bytes, key, own_path, reopen};
use super::world::Caller;
use crate::rootfs::CAPABILITY;

/// Scripts that may be interpreted by scripts: linux/binfmts.h says 4 in a row and the program behind.
const MAX_SCRIPTS: usize = 5;

/// Free space between a program that can be put anywhere and its loader, in bytes: for the vdso and what lies near.
const GAP: u64 = 64 << 20;

/// Bytes of a page on x86-64; on aarch64 the largest page, with which programs are linked for all sizes.
pub const PAGE: u64 = if cfg!(target_arch = "aarch64") { 65_536 } else { 4096 };

/// Room below the stack pointer that a function may use without moving it: x86-64 psABI, "red zone".
const RED_ZONE: u64 = 256;

/// What is to be executed.
pub struct Plan {
    /// Path for the kernel.
    host: Vec<u8>,
    /// What of the arguments comes in place of the first one: interpreter, its argument, the script.
    script: Option<Vec<Vec<u8>>>,
    /// The program, if the kernel executes its loader.
    program: Option<Elf>,
    /// What the kernel executes.
    executed: Elf,
    /// Path as given, for the program.
    name: Vec<u8>,
    /// The program's path and file.
    running: Arc<Program>,
    /// Whom it plays afterwards.
    credentials: Credentials,
    /// Whether it gained rights that its caller did not have: `AT_SECURE`.
    secure: bool,
    /// Registers before.
    pub before: Registers,
}

/// A file that can be executed.
struct Found {
    file: OwnedFd,
    path: Vec<u8>,
    format: Format,
    uid: Option<u32>,
    gid: Option<u32>,
    capabilities: Option<(u64, u64, bool)>,
}

impl Caller<'_> {
    /// Decides what an exec executes. `complain` is told of 32-bit programs.
    ///
    /// # Errors
    /// What execve(2) says.
    pub fn plan(&self, before: Registers, complain: &dyn Fn(&str)) -> Result<Plan, Errno> {
        let at = libc::c_long::from(self.call.number) == libc::SYS_execveat;
        let (descriptor, path, flags) =
            if at { (self.int(0), self.path(1)?, self.uint(4)) } else { (super::world::HERE, self.path(0)?, 0) };
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0;
        let empty = flags & libc::AT_EMPTY_PATH as u32 != 0;
        let mut found = if path.is_empty() && empty {
            let file = self.reach_descriptor(descriptor)?;
            self.executable(rustix::io::fcntl_dupfd_cloexec(&*file.fd, 0)?, None)?
        } else {
            self.find(descriptor, &path, follow)?
        };
        let name = match (at, path.as_slice(), descriptor) {
            (false, _, _) | (true, [b'/', ..], _) | (true, _, super::world::HERE) => path,
            (true, [], _) => format!("/dev/fd/{descriptor}").into_bytes(),
            (true, path, _) => [format!("/dev/fd/{descriptor}/").as_bytes(), path].concat(),
        };
        let mut script: Option<Vec<Vec<u8>>> = None;
        let mut called = name.clone();
        for _ in 0..MAX_SCRIPTS {
            let Format::Script { interpreter, argument } = &found.format else { break };
            let mut words = vec![interpreter.clone()];
            words.extend(argument.clone());
            match &mut script {
                // The script that was found is the interpreter of the one before.
                Some(script) => _ = script.splice(..1, words.into_iter().chain([called])),
                None => script = Some(words.into_iter().chain([called]).collect()),
            }
            called = interpreter.clone();
            let path = interpreter.clone();
            found = self.find(super::world::HERE, &path, true)?;
        }
        let executed = match &found.format {
            Format::Script { .. } => return Err(Errno::LOOP),
            Format::Narrow => {
                complain("slipway: 32-bit programs cannot run in the sandbox `traced`");
                return Err(Errno::NOEXEC);
            }
            Format::Program(program) => program.clone(),
        };
        let mut credentials = self.me();
        credentials.execute(found.uid, found.gid, found.capabilities);
        let secure = credentials.user.real != credentials.user.effective
            || credentials.group.real != credentials.group.effective
            || found.capabilities.is_some() && credentials.user.real != 0;
        let (host, executed, program) = match &executed.interpreter {
            None => (host_path(&found.file)?, executed, None),
            Some(path) => {
                let loader = self.find(super::world::HERE, path, true)?;
                let Format::Program(elf) = loader.format else { return Err(Errno::NOEXEC) };
                if elf.interpreter.is_some() {
                    return Err(Errno::NOEXEC);
                }
                (host_path(&loader.file)?, elf, Some(executed))
            }
        };
        if host.len() > MAX_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        let running = self.running(found)?;
        Ok(Plan { host, script, program, executed, name, running, credentials, secure, before })
    }

    /// The same program that runs elsewhere is held open once.
    fn running(&self, found: Found) -> Result<Arc<Program>, Errno> {
        let key = key(&rustix::fs::statx(&found.file, "", AtFlags::EMPTY_PATH, STAT)?);
        let mut programs = lock(&self.world.programs);
        if let Some(program) = programs.get(&key).and_then(std::sync::Weak::upgrade)
            && program.path == found.path
        {
            return Ok(program);
        }
        programs.retain(|_, program| program.strong_count() > 0);
        let program = Arc::new(Program { path: found.path, file: found.file });
        programs.insert(key, Arc::downgrade(&program));
        Ok(program)
    }

    fn find(&self, descriptor: i32, path: &[u8], follow: bool) -> Result<Found, Errno> {
        let (file, physical) = self.at(descriptor, path, follow, |place| {
            if let Some(file) = self.magic(place, follow)? {
                return Ok((file, None));
            }
            let file = place.open(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
            if rustix::fs::fstat(&file)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
                return Err(Errno::LOOP);
            }
            if matches!(place.mount.kind, Kind::Proc | Kind::Sys) || place.slash {
                return Err(Errno::ACCESS);
            }
            Ok((file, place.physical()))
        })?;
        self.executable(file, physical)
    }

    /// Checks a file and reads what it is.
    fn executable(&self, file: OwnedFd, path: Option<Vec<u8>>) -> Result<Found, Errno> {
        let real = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, STAT)?;
        let mode = u32::from(real.stx_mode);
        if mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::ACCESS);
        }
        let path = match path {
            Some(path) => path,
            None => {
                let host = rustix::fs::readlinkat(CWD, own_path(file.as_fd()), Vec::new())?.into_bytes();
                self.world.view.inside(&host).unwrap_or(host)
            }
        };
        let mount = Some(self.world.view.mount(&path)).filter(|mount| mount.mount_id == super::view::mount_id(&real));
        let me = self.me();
        let shown = self.world.shown(&real, mount, &me);
        if u32::from(shown.stx_mode) & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::ACCESS);
        }
        self.allow(&shown, may::EXECUTE, &me)?;
        let owners = mount.and_then(|mount| mount.owners.as_ref());
        if mode & 0o100 == 0
            && let Some(owners) = owners
        {
            // The kernel asks the real owner's bit.
            let real_mode = mode & 0o7777 | 0o700;
            if mount.is_some_and(|mount| mount.kind == Kind::Tree) {
                self.world.view.touched.entry(&path);
            }
            self.world.chmod(&file, real_mode)?;
            owners.set_mode(key(&real), u32::from(shown.stx_mode) & 0o7777, real_mode);
        }
        let shown_mode = u32::from(shown.stx_mode);
        let uid = (shown_mode & 0o4000 != 0).then_some(shown.stx_uid);
        let gid = (shown_mode & 0o2010 == 0o2010).then_some(shown.stx_gid);
        let attribute = owners.and_then(|owners| {
            owners.settle(key(&real), bytes(&real));
            owners.xattrs(key(&real)).remove(OsStr::new(CAPABILITY))
        });
        let capabilities = attribute.as_deref().and_then(capabilities);
        let readable = reopen(file.as_fd(), OFlags::RDONLY, Mode::empty())?;
        let format = elf::read(readable.as_fd())?;
        Ok(Found { file: readable, path, format, uid, gid, capabilities })
    }
}

/// `struct vfs_cap_data`, linux/capability.h: permitted, inheritable, whether they are effective at once.
fn capabilities(value: &[u8]) -> Option<(u64, u64, bool)> {
    let word = |at: usize| value.get(at..at + 4).map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let head = word(0)?;
    if !matches!(head >> 24, 2 | 3) {
        return None;
    }
    Some((word(4)? | word(12)? << 32, word(8)? | word(16)? << 32, head & 1 == 1))
}

/// Path of a file on the host.
fn host_path(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(CWD, own_path(file.as_fd()), Vec::new())?.into_bytes())
}

/// Where the supervisor may write arguments for a thread: its scratch memory, or below its stack.
///
/// # Errors
/// `EAGAIN` if too many threads of the process do this at once.
pub fn room(task: &Task, registers: &Registers) -> Result<u64, Errno> {
    let scratch = Arc::clone(&lock(&task.image).scratch);
    match scratch.begin {
        Some(_) => scratch.take(task.thread).ok_or(Errno::AGAIN),
        None => Ok((registers.stack() - RED_ZONE - 64 * 1024) & !15),
    }
}

impl Plan {
    /// Path of what the kernel executes.
    pub fn host(&self) -> &[u8] {
        &self.host
    }

    /// Writes the path, and for scripts the arguments, into the process; registers with which it executes.
    ///
    /// # Errors
    /// `E2BIG`, `EFAULT`.
    pub fn arguments(&self, task: &Task) -> Result<Registers, Errno> {
        let mut registers = self.before;
        let at = registers.number() == libc::SYS_execveat;
        let (argv, envp) = if at { (2, 3) } else { (1, 2) };
        let (mut argv, envp) = (registers.argument(argv), registers.argument(envp));
        let room = room(task, &registers)?;
        let mut bytes = self.host.clone();
        bytes.push(0);
        if let Some(script) = &self.script {
            let mut pointers = Vec::new();
            for word in script {
                pointers.push(room + bytes.len() as u64);
                bytes.extend_from_slice(word);
                bytes.push(0);
            }
            // The rest of the arguments, without the first.
            let mut from = argv;
            if from != 0 && memory::read_word(task.thread, from)? != 0 {
                from += 8;
                loop {
                    let pointer = memory::read_word(task.thread, from)?;
                    if pointer == 0 {
                        break;
                    }
                    pointers.push(pointer);
                    from += 8;
                    if pointers.len() as u64 * 8 + 64 * 1024 > SLOT_BYTES {
                        return Err(Errno::TOOBIG);
                    }
                }
            }
            pointers.push(0);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            argv = room + bytes.len() as u64;
            bytes.extend(pointers.iter().flat_map(|pointer| pointer.to_ne_bytes()));
            if lock(&task.image).scratch.begin.is_none() && bytes.len() > 60 * 1024 {
                return Err(Errno::TOOBIG);
            }
        }
        memory::write(task.thread, room, &bytes)?;
        registers.set_argument(0, room);
        registers.set_argument(1, argv);
        registers.set_argument(2, envp);
        Ok(registers)
    }
}

/// A process between its exec and its first instruction.
pub struct Loading {
    plan: Plan,
    registers: Registers,
    /// What the code covers.
    covered: Vec<u8>,
    code: Code,
    /// How far the program was moved from where it was linked; 0 for one that cannot be.
    moved: u64,
    scratch: u64,
}

/// What comes after exec.
pub enum Started {
    /// The code is in place; the process traps when it is done.
    Loading(Box<Loading>),
    /// Nothing has to be done.
    Running,
}

/// At the stop after a successful exec: takes over, and prepares the code that completes it.
///
/// # Errors
/// What the kernel says; the process cannot go on then.
pub fn begin(task: &Task, plan: Plan) -> Result<Started, Errno> {
    let thread = task.thread;
    let registers = Registers::of(thread)?;
    let start = registers.instruction();
    *lock(&task.credentials) = plan.credentials.clone();
    *lock(&task.image) = Image { program: Arc::clone(&plan.running), scratch: Arc::default() };
    let base = start.wrapping_sub(plan.executed.entry);
    // Above everything that grows: the program is put below.
    let scratch_at =
        if plan.executed.movable { Some(align_down(base - GAP - SCRATCH_BYTES - (512 << 20), PAGE)) } else { None };
    let mut moved = 0;
    let mut calls = Vec::new();
    if let Some(program) = &plan.program {
        let (low, high) = program.extent();
        let length = align_up(high, PAGE) - align_down(low, PAGE);
        if program.movable {
            let below = scratch_at.unwrap_or(base) - (16 << 20);
            moved = align_down(below - length, program.align().max(PAGE)) - align_down(low, PAGE);
        }
        *lock(&task.handed) = Some(reopen(plan.running.file.as_fd(), OFlags::RDONLY, Mode::empty())?);
        calls = map(program, moved);
    }
    let name = plan.name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let mut name = name[..name.len().min(15)].to_vec();
    name.push(0);
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let mut call =
        Call::new(libc::SYS_mmap, &[scratch_at.unwrap_or(0), SCRATCH_BYTES, writable, anonymous, u64::MAX, 0]);
    call.keep = scratch_at.is_none();
    calls.push(call);
    let tell = |address: u64| Call::new(libc::SYS_prctl, &[libc::PR_SET_NAME as u64, address]);
    // The name lies behind the code, whose length does not depend on it: both addresses have the same width.
    calls.push(tell(start));
    let length = assemble(&calls).bytes.len() as u64;
    calls.pop();
    calls.push(tell(start + length));
    let mut code = assemble(&calls);
    code.bytes.extend(name);
    let room = plan.executed.segments.iter().find_map(|segment| {
        let end = align_up(segment.address + segment.in_file, 4096);
        (segment.address..end).contains(&plan.executed.entry).then(|| end - plan.executed.entry)
    });
    if room.is_none_or(|room| room < code.bytes.len() as u64) {
        // Without a loader nothing of it is needed to run.
        return if plan.program.is_some() { Err(Errno::NOEXEC) } else { Ok(Started::Running) };
    }
    let mut covered = vec![0; code.bytes.len()];
    memory::read_exact(thread, start, &mut covered)?;
    memory::write_anywhere(thread, start, &code.bytes).map_err(sys::errno)?;
    Ok(Started::Loading(Box::new(Loading { plan, registers, covered, code, moved, scratch: scratch_at.unwrap_or(0) })))
}

impl Loading {
    /// At the trap behind the code: everything as the program expects it.
    ///
    /// # Errors
    /// `ENOMEM` if the program could not be mapped.
    pub fn end(self, task: &Task) -> Result<(), Errno> {
        let thread = task.thread;
        let now = Registers::of(thread)?;
        let start = self.registers.instruction();
        if now.instruction() != start + self.code.done {
            return Err(Errno::NOMEM);
        }
        memory::write_anywhere(thread, start, &self.covered).map_err(sys::errno)?;
        let scratch = if self.scratch != 0 { self.scratch } else { now.kept() };
        lock(&task.image).scratch = Arc::new(Scratch::at(scratch));
        let program = self.plan.program.as_ref();
        for segment in program.into_iter().flat_map(|program| &program.segments) {
            let end = self.moved + segment.address + segment.in_file;
            let page_end = align_up(end, 4096);
            let zeros = (page_end - end).min(segment.in_memory - segment.in_file);
            if segment.flags & 2 != 0 && zeros > 0 {
                memory::write(thread, end, &vec![0; zeros as usize])?;
            }
        }
        self.correct(task, scratch)?;
        let mut registers = self.registers;
        registers.set_instruction(start);
        registers.set_result(0);
        registers.set(thread)
    }

    /// Corrects the auxiliary vector, getauxval(3).
    fn correct(&self, task: &Task, scratch: u64) -> Result<(), Errno> {
        let thread = task.thread;
        let stack = self.registers.stack();
        let mut words = Vec::new();
        let mut at = stack;
        // argc, argv, NULL, envp, NULL, then pairs.
        let mut piece = vec![0; 16 * 1024];
        let mut vector = None;
        let mut nulls = 0;
        'search: loop {
            let length = memory::read(thread, at, &mut piece)? / 8 * 8;
            if length == 0 {
                return Err(Errno::FAULT);
            }
            for word in piece[..length].chunks_exact(8) {
                let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
                words.push(word);
                match vector {
                    None => {
                        // The first word is a number.
                        if words.len() > 1 && word == 0 {
                            nulls += 1;
                        }
                        if nulls == 2 {
                            vector = Some(words.len());
                        }
                    }
                    // A pair that begins with AT_NULL.
                    Some(begin) if (words.len() - begin) % 2 == 0 && words[words.len() - 2] == 0 => break 'search,
                    Some(_) => {}
                }
            }
            at += length as u64;
        }
        let Some(begin) = vector else { return Err(Errno::FAULT) };
        let credentials = &self.plan.credentials;
        let base = self.registers.instruction().wrapping_sub(self.plan.executed.entry);
        let mut name_at = None;
        for pair in words[begin..].chunks_exact_mut(2) {
            let [kind, value] = pair else { continue };
            let program = self.plan.program.as_ref();
            match (*kind, program) {
                (3, Some(program)) => *value = self.moved + program.table,
                (4, Some(program)) => *value = program.entry_bytes.into(),
                (5, Some(program)) => *value = program.entries.into(),
                (7, Some(_)) => *value = base,
                (9, Some(program)) => *value = self.moved + program.entry,
                (11, _) => *value = credentials.user.real.into(),
                (12, _) => *value = credentials.user.effective.into(),
                (13, _) => *value = credentials.group.real.into(),
                (14, _) => *value = credentials.group.effective.into(),
                (23, _) => *value = self.plan.secure.into(),
                (31, _) => {
                    // The kernel's own text lies at the end of the stack and has room for the path on the host.
                    if self.plan.name.len() > self.plan.host.len() {
                        *value = Scratch::kept(scratch);
                    }
                    name_at = Some(*value);
                }
                _ => {}
            }
        }
        let bytes: Vec<u8> = words[begin..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        memory::write(thread, stack + begin as u64 * 8, &bytes)?;
        if let Some(at) = name_at {
            let mut name = self.plan.name.clone();
            name.push(0);
            memory::write(thread, at, &name)?;
        }
        Ok(())
    }
}

/// Calls that map a program as the kernel does: elf(5), `PT_LOAD`.
fn map(program: &Elf, moved: u64) -> Vec<Call> {
    let (low, high) = program.extent();
    let (low, high) = (align_down(moved + low, PAGE), align_up(moved + high, PAGE));
    let open = Call {
        keep: true,
        ..Call::new(libc::SYS_openat, &[libc::AT_FDCWD as i64 as u64, HANDED, libc::O_CLOEXEC as u64, 0])
    };
    // MAP_FIXED_NOREPLACE, since Linux 4.17.
    let reserve = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | 0x10_0000) as u64;
    let fixed = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
    let mut calls =
        vec![open, Call::new(libc::SYS_mmap, &[low, high - low, libc::PROT_NONE as u64, reserve, u64::MAX, 0])];
    for segment in &program.segments {
        let protection = [(4, libc::PROT_READ), (2, libc::PROT_WRITE), (1, libc::PROT_EXEC)];
        let protection = protection
            .iter()
            .filter(|(flag, _)| segment.flags & flag != 0)
            .fold(0, |all, (_, protection)| all | *protection) as u64;
        let begin = moved + segment.address;
        let in_page = segment.address % 4096;
        let file_end = align_up(begin + segment.in_file, 4096);
        if segment.in_file > 0 {
            let mut call =
                Call::new(libc::SYS_mmap, &[begin - in_page, file_end - (begin - in_page), protection, fixed]);
            call.arguments.extend([Value::Kept, Value::Number(segment.offset - in_page)]);
            calls.push(call);
        }
        let start = if segment.in_file > 0 { file_end } else { begin - in_page };
        let end = align_up(begin + segment.in_memory, 4096);
        if end > start {
            let anonymous = fixed | libc::MAP_ANONYMOUS as u64;
            calls.push(Call::new(libc::SYS_mmap, &[start, end - start, protection, anonymous, u64::MAX, 0]));
        }
    }
    let mut close = Call::new(libc::SYS_close, &[]);
    close.arguments.push(Value::Kept);
    calls.push(close);
    calls
}

const fn align_down(value: u64, to: u64) -> u64 {
    value & !(to - 1)
}

const fn align_up(value: u64, to: u64) -> u64 {
    align_down(value + to - 1, to)
}
