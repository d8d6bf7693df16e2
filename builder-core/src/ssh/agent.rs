//! The agent's side of its protocol: draft-miller-ssh-agent.

use std::io::{self, Read, Write};

use super::SshKey;
use super::key::put;

/// Longest request, in bytes: OpenSSH's limit.
const LARGEST_REQUEST_BYTES: u32 = 256 * 1024;

// Numbers of messages.
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Answers requests that come over `stream` until its other side ends.
///
/// # Errors
/// What the stream says; `InvalidData` for what is longer than any request.
pub fn serve(mut stream: impl Read + Write, keys: &[SshKey]) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let length = u32::from_be_bytes(length);
        if length == 0 || length > LARGEST_REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request)?;
        let mut message = Vec::new();
        put(&mut message, &answer(&request, keys));
        stream.write_all(&message)?;
    }
}

fn answer(request: &[u8], keys: &[SshKey]) -> Vec<u8> {
    let answered = match request.split_first() {
        Some((&REQUEST_IDENTITIES, [])) => {
            let mut message = vec![IDENTITIES_ANSWER];
            message.extend(u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes());
            for key in keys {
                put(&mut message, key.public());
                put(&mut message, key.comment().as_bytes());
            }
            Some(message)
        }
        Some((&SIGN_REQUEST, rest)) => sign(rest, keys),
        // To add and remove keys, to lock, extensions: not the command's business.
        _ => None,
    };
    answered.unwrap_or_else(|| vec![FAILURE])
}

fn sign(mut rest: &[u8], keys: &[SshKey]) -> Option<Vec<u8>> {
    let (public, data) = (string(&mut rest)?, string(&mut rest)?);
    let flags = u32::from_be_bytes(rest.try_into().ok()?);
    let key = keys.iter().find(|key| key.public() == public)?;
    let mut message = vec![SIGN_RESPONSE];
    put(&mut message, &key.sign(data, flags)?);
    Some(message)
}

/// Takes a string off the front.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (string, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *rest = after;
    Some(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_answered_fails() {
        for request in
            [&[][..], &[REQUEST_IDENTITIES, 0], &[SIGN_REQUEST], &[SIGN_REQUEST, 0, 0, 0, 9, 1], &[17, 1], &[255]]
        {
            assert_eq!(answer(request, &[]), [FAILURE], "{request:?}");
        }
        assert_eq!(answer(&[REQUEST_IDENTITIES], &[]), [IDENTITIES_ANSWER, 0, 0, 0, 0]);
    }

    #[test]
    fn a_stream_is_served_to_its_end() {
        struct Both(io::Cursor<Vec<u8>>, Vec<u8>);
        impl Read for Both {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Write for Both {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut both = Both(io::Cursor::new(vec![0, 0, 0, 1, 17, 0, 0, 0, 1, REQUEST_IDENTITIES]), Vec::new());
        serve(&mut both, &[]).expect("a whole stream");
        assert_eq!(both.1, [0, 0, 0, 1, FAILURE, 0, 0, 0, 5, IDENTITIES_ANSWER, 0, 0, 0, 0]);
        let mut long = Both(io::Cursor::new(vec![0xff; 8]), Vec::new());
        assert_eq!(serve(&mut long, &[]).expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }
}
