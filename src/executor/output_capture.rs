//! Captures what a script prints.

use std::io;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};

use super::live_output::{LiveOutput, Stream};

/// The beginning of a stream.
#[derive(Debug, Default)]
pub struct Captured {
    /// At most as many bytes as the configured limit.
    pub bytes: Vec<u8>,
    /// Whether more was printed and discarded.
    pub truncated: bool,
}

/// Reads a worker's pipe. It keeps what fits and discards the rest, so a script never blocks on a full pipe.
#[derive(Debug)]
pub struct OutputCapture {
    pipe: pipe::Receiver,
    captured: Captured,
    limit: usize,
    live: Option<(LiveOutput, Stream)>,
    received: u64,
    closed: bool,
}

/// One read takes at most the size of a pipe, bytes.
const READ_BYTES: usize = 64 * 1024;

impl OutputCapture {
    /// Captures at most `limit` bytes from `pipe`, and adds them to that stream of `live`, if given.
    pub fn new(
        pipe: pipe::Receiver,
        limit: usize,
        live: Option<(LiveOutput, Stream)>,
    ) -> OutputCapture {
        OutputCapture {
            pipe,
            captured: Captured::default(),
            limit,
            live,
            received: 0,
            closed: false,
        }
    }

    /// Waits for output and takes it. Never returns once the stream has ended.
    pub async fn pump(&mut self) {
        while !self.closed {
            if self.pipe.readable().await.is_err() {
                break;
            }
            if self.read_once() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Takes what comes until the worker has closed its end, or for `most`.
    pub async fn drain(&mut self, most: Duration) {
        let end = Instant::now() + most;
        while !self.closed && matches!(timeout_at(end, self.pipe.readable()).await, Ok(Ok(()))) {
            self.read_once();
        }
    }

    /// How many bytes have come, and what is kept of them.
    pub fn received(&self) -> (u64, &[u8]) {
        (self.received, &self.captured.bytes)
    }

    /// Takes what is in the pipe, and then `rest`. The number of reads is bounded, since a script may still be writing.
    pub fn finish(mut self, rest: &[u8]) -> Captured {
        let mut reads = self.limit / READ_BYTES + 2;
        while reads > 0 && !self.closed && self.read_once() {
            reads -= 1;
        }
        self.take(rest);
        self.captured
    }

    /// Returns whether something was read.
    fn read_once(&mut self) -> bool {
        let mut chunk = [0; READ_BYTES];
        match self.pipe.try_read(&mut chunk) {
            Ok(0) => {
                self.closed = true;
                false
            }
            Ok(length) => {
                self.received += length as u64;
                self.take(&chunk[..length]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.closed = true;
                false
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = self.limit - self.captured.bytes.len();
        let kept = &bytes[..bytes.len().min(room)];
        self.captured.bytes.extend_from_slice(kept);
        if let (Some((live, stream)), false) = (&self.live, kept.is_empty()) {
            live.push(*stream, kept);
        }
        self.captured.truncated |= bytes.len() > room;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use nix::unistd::pipe;

    use super::*;

    fn capture(limit: usize, live: Option<(LiveOutput, Stream)>) -> (OutputCapture, File) {
        let (ours, theirs) = pipe().unwrap();
        let receiver = pipe::Receiver::from_owned_fd(ours).unwrap();
        (OutputCapture::new(receiver, limit, live), theirs.into())
    }

    #[tokio::test]
    async fn output_beyond_the_limit_is_read_and_discarded() {
        let live = LiveOutput::default();
        let (mut capture, mut script) = capture(5, Some((live.clone(), Stream::Stderr)));
        script.write_all(b"abc").unwrap();
        capture.pump().await;
        script.write_all(b"defg").unwrap();
        capture.pump().await;
        script.write_all(b"h").unwrap();
        let captured = capture.finish(b"i");
        assert_eq!((captured.bytes.as_slice(), captured.truncated), (&b"abcde"[..], true));
        assert_eq!(
            (live.unread_bytes(), live.take(Stream::Stderr, 9, true)),
            (5, String::from("abcde"))
        );
    }

    #[tokio::test]
    async fn a_closed_stream_is_whole() {
        let (mut capture, script) = capture(5, None);
        drop(script);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), capture.pump());
        assert!(waits.await.is_err());
        let captured = capture.finish(b"rest");
        assert_eq!((captured.bytes.as_slice(), captured.truncated), (&b"rest"[..], false));
    }
}
