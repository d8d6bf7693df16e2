//! Streams a pipe line by line.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Longest line that is kept together, in bytes; longer ones come in pieces. A progress bar without line ends stays visible
/// this way, and a RUN that prints a gigabyte of one line costs this much memory.
const LINE_BYTES: usize = 16 * 1024;

/// Gives each line of `pipe` to `line`, without its `\n`, and what follows the last `\n` at the end.
///
/// It ends when no process holds the other end, or, once `ended` has an event (its other end was closed), as soon as the
/// pipe is empty: a descriptor that a process handed out of the sandbox must not hang the build.
///
/// # Panics
/// If `line` does, at the end: until then the rest is read, as who writes would wait for ever.
pub fn stream(pipe: &OwnedFd, ended: &OwnedFd, line: impl FnMut(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read_lines(pipe, ended, line))) {
        read_lines(pipe, ended, |_| {});
        resume_unwind(panic);
    }
}

fn read_lines(pipe: &OwnedFd, ended: &OwnedFd, mut line: impl FnMut(&[u8])) {
    // Without it a read after the last byte would block although `ended` has told that nothing will come.
    if rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).is_err() {
        return;
    }
    let mut buffer = vec![0; LINE_BYTES];
    let mut filled = 0;
    let mut last = false;
    loop {
        match rustix::io::read(pipe, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => {
                let searched = filled;
                filled += length;
                let mut begin = 0;
                let mut from = searched;
                while let Some(offset) = buffer[from..filled].iter().position(|&byte| byte == b'\n') {
                    line(&buffer[begin..from + offset]);
                    begin = from + offset + 1;
                    from = begin;
                }
                buffer.copy_within(begin..filled, 0);
                filled -= begin;
                if filled == buffer.len() {
                    line(&buffer);
                    filled = 0;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if last => break,
            Err(Errno::AGAIN) => last = wait(pipe, ended),
            Err(_) => break,
        }
    }
    if filled > 0 {
        line(&buffer[..filled]);
    }
}

/// Waits for bytes or the end; whether it is the end.
fn wait(pipe: &OwnedFd, ended: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN), PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
    match rustix::event::poll(&mut fds, None) {
        Ok(_) => !fds[1].revents().is_empty(),
        Err(errno) => errno != Errno::INTR,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sandbox::sys::pipe;

    /// Writes the pieces one after the other and collects the lines.
    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (reader, writer) = pipe().expect("pipe");
        let (ended, alive) = pipe().expect("pipe");
        let mut writer = std::fs::File::from(writer);
        std::thread::scope(|scope| {
            let streamed = scope.spawn(|| {
                let mut lines = Vec::new();
                stream(&reader, &ended, |line| lines.push(line.to_vec()));
                lines
            });
            for piece in pieces {
                writer.write_all(piece).expect("write");
            }
            drop((writer, alive));
            streamed.join().expect("no panic")
        })
    }

    #[track_caller]
    fn check(pieces: &[&[u8]], expected: &[&[u8]]) {
        assert_eq!(lines(pieces), expected, "{pieces:?}");
    }

    #[test]
    fn nobody_waits_for_a_reader_that_panicked() {
        let (reader, writer) = pipe().expect("pipe");
        let (ended, alive) = pipe().expect("pipe");
        let mut writer = std::fs::File::from(writer);
        std::thread::scope(|scope| {
            let streamed = scope.spawn(|| stream(&reader, &ended, |line| assert_eq!(line, b"good")));
            // More than a pipe holds.
            writer.write_all(b"good\nbad\n").and_then(|()| writer.write_all(&[b'\n'; 1 << 20])).expect("write");
            drop((writer, alive));
            assert!(streamed.join().is_err());
        });
    }

    #[test]
    fn line_ends() {
        check(&[], &[]);
        check(&[b"a\nb\n"], &[b"a", b"b"]);
        check(&[b"a\n\nb"], &[b"a", b"", b"b"]);
        check(&[b"a", b"b", b"\nc\n"], &[b"ab", b"c"]);
        check(&[b"\r\n\xff\0\n"], &[b"\r", b"\xff\0"]);
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; 3 * LINE_BYTES + 5];
        let lines = lines(&[&long, b"\nend\n"]);
        assert_eq!(lines.concat().len(), long.len() + 3);
        assert_eq!(lines.last().map(Vec::as_slice), Some(&b"end"[..]));
        assert!(lines.iter().all(|line| line.len() <= LINE_BYTES));
    }

    #[test]
    fn ends_although_somebody_holds_the_pipe() {
        let (reader, writer) = pipe().expect("pipe");
        let (ended, alive) = pipe().expect("pipe");
        rustix::io::write(&writer, b"one\ntwo").expect("write");
        drop(alive);
        let mut lines = Vec::new();
        stream(&reader, &ended, |line| lines.push(line.to_vec()));
        assert_eq!(lines, [b"one".to_vec(), b"two".to_vec()]);
        drop(writer);
    }
}
