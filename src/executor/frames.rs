//! Frames between supervisor and worker, and the length-prefixed messages between supervisor and zygote: writing them into
//! a buffer, and receiving them within a limit.

use std::io;

use bytes::BufMut;
use tokio::net::UnixStream;

use super::protocol::to_worker;

/// Appends a frame to `buffer`.
pub fn push_frame(buffer: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    push_header(buffer, kind, payload.len());
    buffer.extend_from_slice(payload);
}

/// Size of the length of a name, bytes.
pub const NAME_LENGTH_BYTES: usize = 2;

/// Appends the frame of a file up to its content, which has `content` bytes and follows.
pub fn push_file_header(buffer: &mut Vec<u8>, name: &str, content: usize) {
    push_header(buffer, to_worker::FILE, NAME_LENGTH_BYTES + name.len() + content);
    buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
    buffer.extend_from_slice(name.as_bytes());
}

/// Splits the payload of a file frame into name and content. Returns `None` if it is malformed.
pub fn file_of(mut payload: Vec<u8>) -> Option<(String, Vec<u8>)> {
    let (length, rest) = payload.split_first_chunk::<NAME_LENGTH_BYTES>()?;
    let length = usize::from(u16::from_le_bytes(*length));
    let name = String::from_utf8(rest.get(..length)?.to_vec()).ok()?;
    payload.drain(..NAME_LENGTH_BYTES + length);
    Some((name, payload))
}

/// Appends the header of a frame whose payload of `length` bytes follows.
pub fn push_header(buffer: &mut Vec<u8>, kind: u8, length: usize) {
    buffer.push(kind);
    buffer.extend_from_slice(&(length as u32).to_le_bytes());
}

/// A frame from a worker.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`from_worker`](super::protocol::from_worker), if the worker is honest.
    pub kind: u8,
    /// At most as long as the reader's limit.
    pub payload: Vec<u8>,
}

/// Why no frame was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The worker closed the channel or died.
    #[error("the channel is closed")]
    Closed,
    /// The worker closed the channel or died before it had read everything that it was sent.
    #[error("the channel is closed, and the worker did not read the request")]
    Unread,
    /// The frame claims to be longer than frames of its type may be.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// The socket failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

const HEADER_BYTES: usize = 5;
/// Room for a payload grows in steps of this size, bytes.
const READ_BYTES: usize = 64 * 1024;

/// Receives a frame. `limit` returns the longest payload of a frame type, bytes. Memory grows with what has arrived and not
/// with what a frame claims, and nothing beyond the frame is read.
///
/// # Errors
/// See [`FrameError`].
pub async fn receive(
    channel: &UnixStream,
    limit: impl FnOnce(u8) -> usize,
) -> Result<Frame, FrameError> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    read_up_to(channel, &mut header, HEADER_BYTES).await?;
    let length = [header[1], header[2], header[3], header[4]];
    let payload = read_payload(channel, length, limit(header[0])).await?;
    Ok(Frame { kind: header[0], payload })
}

/// Size of the length of a message to or from a zygote, bytes.
const MESSAGE_LENGTH_BYTES: usize = 4;

/// A message to a zygote: `text` after its length.
pub fn message(text: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(MESSAGE_LENGTH_BYTES + text.len());
    message.extend_from_slice(&(text.len() as u32).to_le_bytes());
    message.extend_from_slice(text);
    message
}

/// Receives the text of a message of at most `most` bytes from a zygote.
///
/// # Errors
/// See [`FrameError`].
pub async fn receive_message(control: &UnixStream, most: usize) -> Result<Vec<u8>, FrameError> {
    let mut length = Vec::with_capacity(MESSAGE_LENGTH_BYTES);
    read_up_to(control, &mut length, MESSAGE_LENGTH_BYTES).await?;
    read_payload(control, [length[0], length[1], length[2], length[3]], most).await
}

/// Receives what has a fixed size.
///
/// # Errors
/// See [`FrameError`].
pub async fn receive_bytes<const LENGTH: usize>(
    control: &UnixStream,
) -> Result<[u8; LENGTH], FrameError> {
    let mut bytes = Vec::with_capacity(LENGTH);
    read_up_to(control, &mut bytes, LENGTH).await?;
    bytes.try_into().map_err(|_| FrameError::Closed)
}

/// Reads what follows its length (little-endian), if that is at most `most` bytes.
async fn read_payload(
    channel: &UnixStream,
    length: [u8; 4],
    most: usize,
) -> Result<Vec<u8>, FrameError> {
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        return Err(FrameError::TooLong(length));
    }
    let mut payload = Vec::new();
    read_up_to(channel, &mut payload, length).await?;
    Ok(payload)
}

async fn read_up_to(
    channel: &UnixStream,
    buffer: &mut Vec<u8>,
    length: usize,
) -> Result<(), FrameError> {
    while buffer.len() < length {
        let missing = length - buffer.len();
        buffer.reserve(missing.min(READ_BYTES));
        match channel.try_read_buf(&mut buffer.limit(missing)) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => channel.readable().await?,
            // The kernel's answer when the other end is closed with unread data in its queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(FrameError::Unread);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn received(bytes: &[u8], limit: usize) -> Result<Frame, FrameError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        drop(theirs);
        receive(&ours, |_| limit).await
    }

    #[tokio::test]
    async fn a_frame_is_received_unchanged_and_the_next_one_stays_in_the_socket() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, b'V', b"[1]");
        push_frame(&mut bytes, b'F', b"");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes).await.unwrap();
        for (kind, payload) in [(b'V', b"[1]".to_vec()), (b'F', vec![])] {
            assert_eq!(receive(&ours, |_| 3).await.unwrap(), Frame { kind, payload });
        }
    }

    #[tokio::test]
    async fn a_worker_that_ends_without_reading_is_distinguished_from_one_that_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"request").await.unwrap();
        drop(theirs);
        assert!(matches!(receive(&ours, |_| 3).await, Err(FrameError::Unread)));
    }

    #[tokio::test]
    async fn half_a_frame_is_an_error_and_a_long_one_is_refused_by_its_header() {
        for half in [&b"V\x03\0\0\0[1"[..], b"V\x03\0\0", b""] {
            assert_eq!(received(half, 3).await.unwrap_err().to_string(), "the channel is closed");
        }
        let refused = received(b"V\xff\xff\xff\xff", 3).await.unwrap_err();
        assert_eq!(refused.to_string(), "a frame of 4294967295 bytes");
    }
}
