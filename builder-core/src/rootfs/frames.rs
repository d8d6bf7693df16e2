//! zstd with bounded memory. A frame says how much of what it unpacked its decoder has to remember (RFC 8878, 3.1.1.1.2); `--long`
//! makes that 128 MiB, and several layers are read at a time. So frames whose windows do not fit beside each other wait for each other, and
//! one that does not fit alone is an error once it really takes as much.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Largest window, as a power of two: what the reference decoder takes without being told otherwise.
const WINDOW_LOG: u32 = 27;

/// Magic number and header of a frame, at most, in bytes.
const HEADER_BYTES: usize = 18;

/// One read from the blob, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// Memory for windows, shared by all who inflate.
#[derive(Debug, Clone)]
pub(super) struct Windows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What all of them may take together, in bytes. One of them may take more.
    together: u64,
    /// What one of them may take, in bytes.
    alone: u64,
    taken: Mutex<u64>,
    released: Condvar,
}

/// The window does not fit into the memory that a build was given.
#[derive(Debug, thiserror::Error)]
#[error("to decompress it takes {needed} bytes of memory, of which {limit} may be used")]
pub(super) struct WindowTooLarge {
    /// Bytes of the window.
    pub needed: u64,
    /// Bytes it may have.
    pub limit: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self::new(32 << 20, 1 << WINDOW_LOG)
    }
}

/// Memory that a window has as long as this lives.
struct Window {
    of: Windows,
    bytes: u64,
}

impl Drop for Window {
    fn drop(&mut self) {
        *self.of.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.of.0.released.notify_all();
    }
}

impl Windows {
    /// All together may take so many bytes, and one alone so many.
    pub(super) fn new(together: u64, alone: u64) -> Self {
        let alone = alone.min(1 << WINDOW_LOG);
        Self(Arc::new(Shared { together, alone, taken: Mutex::default(), released: Condvar::new() }))
    }

    /// Waits until there is memory. Whoever has some waits for nobody that waits here: it reads a blob, and writes what is in it.
    fn take(&self, bytes: u64) -> Window {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken > 0 && *taken + bytes > self.0.together {
            taken = self.0.released.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += bytes;
        Window { of: self.clone(), bytes }
    }
}

/// What zstd frames say, one after the other.
pub(super) struct Frames<R: Read> {
    state: State<R>,
    windows: Windows,
}

enum State<R: Read> {
    Between(Ahead<R>),
    Within {
        decoder: zstd::Decoder<'static, Ahead<R>>,
        window: Window,
        inflated: u64,
    },
    /// A decoder failed.
    Failed,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(blob: R, windows: &Windows) -> Self {
        Self { state: State::Between(Ahead { input: blob, buffer: Vec::new(), at: 0 }), windows: windows.clone() }
    }

    /// Begins the next frame.
    fn begin(&self, mut input: Ahead<R>) -> io::Result<State<R>> {
        let wanted = window_bytes(input.ahead(HEADER_BYTES)?);
        if wanted > 1 << WINDOW_LOG {
            return Err(io::Error::other(WindowTooLarge { needed: wanted, limit: 1 << WINDOW_LOG }));
        }
        let window = self.windows.take(wanted);
        let mut decoder = zstd::Decoder::with_buffer(input)?.single_frame();
        decoder.window_log_max(WINDOW_LOG)?;
        Ok(State::Within { decoder, window, inflated: 0 })
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let State::Within { decoder, window, inflated } = &mut self.state {
                let count = decoder.read(buffer)?;
                *inflated += count as u64;
                let limit = self.windows.0.alone;
                if window.bytes.min(*inflated) > limit {
                    return Err(io::Error::other(WindowTooLarge { needed: window.bytes, limit }));
                }
                if count > 0 {
                    return Ok(count);
                }
            }
            let mut input = match std::mem::replace(&mut self.state, State::Failed) {
                State::Between(input) => input,
                State::Within { decoder, .. } => decoder.finish(),
                State::Failed => return Err(io::ErrorKind::InvalidData.into()),
            };
            if input.ahead(1)?.is_empty() {
                self.state = State::Between(input);
                return Ok(0);
            }
            self.state = self.begin(input)?;
        }
    }
}

/// Bytes that the decoder of a frame has to remember; 0 for one that holds nothing, and for what is no frame.
fn window_bytes(header: &[u8]) -> u64 {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = header else { return 0 };
    if descriptor & 0x20 == 0 {
        let Some(window) = rest.first() else { return 0 };
        let base = 1_u64 << (10 + (window >> 3));
        return base + base / 8 * u64::from(window & 7);
    }
    // One segment: all that is in it, whose size is behind the number of a dictionary.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1 << (descriptor >> 6);
    let Some(field) = rest.get(dictionary..dictionary + length) else { return 0 };
    let size = field.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    if length == 2 { size + 256 } else { size }
}

/// A reader whose next bytes can be looked at.
struct Ahead<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
}

impl<R: Read> Ahead<R> {
    /// The next bytes, as many as these or all that are left.
    fn ahead(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.at < count {
            self.buffer.drain(..self.at);
            self.at = 0;
            let there = self.buffer.len();
            self.buffer.resize(there + BUFFER_BYTES, 0);
            let read = self.input.read(&mut self.buffer[there..]);
            self.buffer.truncate(there + read.as_ref().map_or(0, |count| *count));
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.at..])
    }
}

impl<R: Read> Read for Ahead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.ahead(1)
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A frame with a window of so many bits; its size in the header, if that is told before.
    fn frame(bytes: &[u8], window_log: u32, told: bool) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        if told {
            encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
        }
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8], windows: &Windows) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Frames::new(blob, windows).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn frames_say_how_much_they_need() {
        let bytes = vec![7; 300_000];
        for log in [10, 17, 27] {
            assert_eq!(window_bytes(&frame(&bytes, log, false)), 1 << log);
        }
        for length in [0, 1, 255, 256, 257, 65_535, 65_536, 300_000] {
            assert_eq!(window_bytes(&frame(&bytes[..length], 27, true)), length as u64, "{length}");
        }
        assert_eq!(window_bytes(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x0b]), (1 << 11) + 3 * (1 << 8));
        assert_eq!(window_bytes(b"\x28\xb5\x2f\xfd"), 0);
        assert_eq!(window_bytes(b"no frame at all, and no header"), 0);
    }

    #[test]
    fn frames_follow_each_other() {
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let text: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let (one, two) = text.split_at(1_000_001);
        let blob =
            [&skipped, &frame(one, 20, true)[..], &skipped, &frame(b"", 20, false), &frame(two, 27, false), &skipped];
        assert_eq!(read(&blob.concat(), &Windows::default()).unwrap(), text);
        assert_eq!(read(b"", &Windows::default()).unwrap(), b"");
        for (end, what) in
            [(&b"junk"[..], "junk"), (&frame(b"cut", 20, false)[..8], "a cut frame"), (&skipped[..9], "cut")]
        {
            let blob = [&frame(one, 20, true)[..], end].concat();
            assert!(read(&blob, &Windows::default()).is_err(), "{what}");
        }
    }

    #[test]
    fn what_needs_too_much_is_an_error_when_it_takes_it() {
        let windows = Windows::new(1 << 20, 2 << 20);
        let (small, large) = (vec![1; 1 << 20], vec![1; 3 << 20]);
        assert_eq!(read(&frame(&small, 27, false), &windows).unwrap(), small);
        assert_eq!(read(&frame(&large, 21, false), &windows).unwrap(), large);
        let error = read(&frame(&large, 22, false), &windows).unwrap_err();
        let found: &WindowTooLarge = error.get_ref().unwrap().downcast_ref().unwrap();
        assert_eq!((found.needed, found.limit), (4 << 20, 2 << 20));
        assert_eq!(*windows.0.taken.lock().unwrap(), 0);
        // 2 GiB, as `zstd --long=31` has it, without any content.
        let error = read(&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0], &Windows::default()).unwrap_err();
        assert!(error.to_string().contains("2147483648"), "{error}");
    }

    #[test]
    fn large_windows_wait_for_each_other() {
        let windows = Windows::new(1 << 20, u64::MAX);
        let (open, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for log in [19, 21, 20, 24, 18, 27, 20, 19] {
                let (windows, open, most) = (&windows, &open, &most);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let bytes = 1_usize << log;
                        let _window = windows.take(bytes as u64);
                        let all = open.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        assert!(all <= (1 << 20) || all == bytes, "{all} bytes at a time");
                        most.fetch_max(all, Ordering::SeqCst);
                        open.fetch_sub(bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), *windows.0.taken.lock().unwrap()), (1 << 27, 0));
    }
}
