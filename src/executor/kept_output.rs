//! What a worker has printed and not written yet: memory that it shares with the supervisor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use mainbox_zygote::messages::{OUTPUT_BYTES, OUTPUT_HEADER_BYTES};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The memory of one worker, as a file.
#[derive(Debug)]
pub(super) struct KeptOutput(File);

impl KeptOutput {
    /// New memory, which its worker cannot make larger.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn new() -> io::Result<KeptOutput> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"mainbox-output", flags)?);
        file.set_len(OUTPUT_BYTES as u64)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
        Ok(KeptOutput(file))
    }

    /// The descriptor for the worker.
    ///
    /// # Errors
    /// When there can be no further descriptor.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// What is left there, if `received` bytes have come through the pipe, the last of which are `tail`. The worker may
    /// write anything at any time, so the text is no more than bytes, and the header decides only how much of it is left
    /// out.
    pub(super) fn rest(&self, received: u64, tail: &[u8]) -> Vec<u8> {
        let mut text = vec![0; OUTPUT_BYTES];
        // Fails for no file in memory.
        let length = self.0.read_at(&mut text, 0).unwrap_or(0);
        text.truncate(length);
        let header = text.split_off(length.saturating_sub(OUTPUT_HEADER_BYTES));
        let (numbers, _) = header.as_chunks::<8>();
        let [leaving, before] =
            [0, 1].map(|at| numbers.get(at).copied().map_or(0, u64::from_le_bytes));
        let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        text.truncate(end);
        // A worker that died while it wrote the text has not removed it yet. C code may have written what the worker did
        // not count, and then some text comes twice.
        let arrived = received.saturating_sub(before).min(leaving).min(end as u64) as usize;
        if tail.ends_with(&text[..arrived]) { text.split_off(arrived) } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_ends_with_its_last_character() {
        let kept = KeptOutput::new().unwrap();
        assert_eq!(kept.rest(0, b""), b"");
        kept.0.write_at(b"a\0b\n\0", 0).unwrap();
        assert_eq!(kept.rest(0, b""), b"a\0b\n");
        assert_eq!(kept.rest(9, b"x"), b"a\0b\n");
    }

    #[test]
    fn what_has_arrived_is_left_out() {
        let kept = KeptOutput::new().unwrap();
        kept.0.write_at(b"abcdef", 0).unwrap();
        let header = |leaving: u64, before: u64| {
            let header = [leaving.to_le_bytes(), before.to_le_bytes()].concat();
            kept.0.write_at(&header, (OUTPUT_BYTES - OUTPUT_HEADER_BYTES) as u64).unwrap();
        };
        header(6, 100);
        assert_eq!(kept.rest(100, b"xyz"), b"abcdef");
        assert_eq!(kept.rest(104, b"xyzabcd"), b"ef");
        assert_eq!(kept.rest(106, b"xyzabcdef"), b"");
        assert_eq!(kept.rest(0, b""), b"abcdef");
        // C code has written something that was not counted.
        assert_eq!(kept.rest(104, b"abCC"), b"abcdef");
        // A worker may claim anything.
        header(u64::MAX, 0);
        assert_eq!(kept.rest(u64::MAX, b"abcdef"), b"");
        assert_eq!(kept.rest(u64::MAX, b""), b"abcdef");
        header(u64::MAX, u64::MAX);
        assert_eq!(kept.rest(7, b""), b"abcdef");
    }

    #[test]
    fn a_worker_cannot_change_the_size() {
        let kept = KeptOutput::new().unwrap();
        let worker = File::from(kept.share().unwrap());
        for size in [0, OUTPUT_BYTES as u64 + 1] {
            let refused = worker.set_len(size).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(nix::errno::Errno::EPERM as i32));
        }
        assert!(worker.write_at(b"x", OUTPUT_BYTES as u64).is_err());
    }
}
