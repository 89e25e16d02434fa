//! What a worker has printed and not written yet: memory that it shares with the supervisor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use mainbox_zygote::messages::OUTPUT_BYTES;
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

    /// What is left there. The worker may write anything at any time, so this is no more than bytes.
    pub(super) fn rest(&self) -> Vec<u8> {
        let mut bytes = vec![0; OUTPUT_BYTES];
        // Fails for no file in memory.
        let length = self.0.read_at(&mut bytes, 0).unwrap_or(0);
        let end = bytes[..length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(end);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_ends_with_its_last_character() {
        let kept = KeptOutput::new().unwrap();
        assert_eq!(kept.rest(), b"");
        kept.0.write_at(b"a\0b\n\0", 0).unwrap();
        assert_eq!(kept.rest(), b"a\0b\n");
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
