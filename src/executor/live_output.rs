//! Live output: what a script prints, for a front that shows it while the script runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

/// What a script prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Stream {
    /// Both streams, in the order of their descriptors.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The name, as in responses.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// What a script has printed and its front has not taken yet: of each stream at most what a response keeps. Cheap to clone.
/// A front attaches it to a request as an extension; one task may take from it.
#[derive(Clone, Debug, Default)]
pub struct LiveOutput(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    unread: Mutex<[BytesMut; 2]>,
    changed: Notify,
}

impl LiveOutput {
    /// Adds what the script has printed.
    pub fn push(&self, stream: Stream, printed: &[u8]) {
        self.unread()[stream as usize].extend_from_slice(printed);
        self.0.changed.notify_one();
    }

    /// Waits until something was added since the last call.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// The first text of a stream, and how many bytes of output it is: at most `most`, and whole characters only. Bytes that
    /// are not UTF-8 become replacement characters. The beginning of a character waits for its rest, unless `is_last` says
    /// that the script has ended. All texts together are what the response says that the script printed.
    pub fn first(&self, stream: Stream, most: usize, is_last: bool) -> (String, usize) {
        let unread = &self.unread()[stream as usize];
        let bytes = &unread[..unread.len().min(most)];
        let is_cut = bytes.len() < unread.len();
        let whole = if is_last && !is_cut { bytes.len() } else { whole_characters(bytes) };
        (String::from_utf8_lossy(&bytes[..whole]).into_owned(), whole)
    }

    /// Forgets the first bytes of a stream.
    pub fn forget(&self, stream: Stream, bytes: usize) {
        let _ = self.unread()[stream as usize].split_to(bytes);
    }

    /// Takes the first text of a stream, as [`LiveOutput::first`] returns it.
    pub fn take(&self, stream: Stream, most: usize, is_last: bool) -> String {
        let (text, bytes) = self.first(stream, most, is_last);
        self.forget(stream, bytes);
        text
    }

    /// Whether there is a whole character to take.
    pub fn has_text(&self, stream: Stream) -> bool {
        let unread = self.unread();
        // A character has four bytes at most.
        whole_characters(&unread[stream as usize][..unread[stream as usize].len().min(4)]) > 0
    }

    /// The number of bytes that wait.
    pub fn unread_bytes(&self) -> usize {
        self.unread().iter().map(BytesMut::len).sum()
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        *self.unread() = Default::default();
    }

    fn unread(&self) -> MutexGuard<'_, [BytesMut; 2]> {
        self.0.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of bytes before an incomplete character at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has four bytes at most, so its beginning is among the last three.
    let tail = bytes.len().saturating_sub(3);
    let may_continue = |start: &usize| {
        std::str::from_utf8(&bytes[*start..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (tail..bytes.len()).find(may_continue).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(pieces: &[&[u8]], most: usize) -> Vec<String> {
        let output = LiveOutput::default();
        let mut texts = Vec::new();
        for piece in pieces {
            output.push(Stream::Stdout, piece);
            texts.push(output.take(Stream::Stdout, most, false));
        }
        texts.push(output.take(Stream::Stdout, usize::MAX, true));
        texts
    }

    #[test]
    fn a_character_waits_for_its_rest() {
        assert_eq!(taken(&[b"a\xe2\x82", b"\xac!"], 9), ["a", "\u{20ac}!", ""]);
        assert_eq!(taken(&[b"\xf0\x9f", b"\xa6"], 9), ["", "", "\u{fffd}"]);
        assert_eq!(taken(&[b"\xe2\x82", b"x"], 9), ["", "\u{fffd}x", ""]);
        assert_eq!(taken(&["\u{20ac}\u{20ac}".as_bytes()], 4), ["\u{20ac}", "\u{20ac}"]);
    }

    #[test]
    fn the_streams_do_not_mix_and_nothing_remains() {
        let output = LiveOutput::default();
        output.push(Stream::Stdout, b"out");
        output.push(Stream::Stderr, b"err\xc3");
        assert_eq!((output.unread_bytes(), output.has_text(Stream::Stderr)), (7, true));
        assert_eq!(output.take(Stream::Stderr, 9, false), "err");
        assert!(!output.has_text(Stream::Stderr) && output.has_text(Stream::Stdout));
        output.clear();
        assert_eq!(
            (output.unread_bytes(), output.take(Stream::Stdout, 9, true)),
            (0, String::new())
        );
    }

    proptest! {
        #[test]
        fn the_texts_together_are_the_whole(
            bytes in prop::collection::vec(prop_oneof![0x7f..0xff_u8, Just(b'a'), Just(0xe2), Just(0x82), Just(0xac)], 0..40),
            size in 1..6_usize,
            most in 4..9_usize,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(taken(&pieces, most).concat(), String::from_utf8_lossy(&bytes));
        }
    }
}
