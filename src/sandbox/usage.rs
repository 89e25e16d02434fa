//! What a script keeps in a scratch directory that is not a file system of its own, where the kernel does not limit it.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::sys::statvfs::statvfs;

use super::policy::{MAX_SCRATCH_DEPTH, MAX_SCRATCH_FILES};

/// The directory is measured when this many bytes or files of its file system have been used since the last time, by any
/// process.
const BYTES_STEP: u64 = 4 << 20;
const FILES_STEP: u64 = 64;
/// It is also measured after this time, since not every file system tells what is used.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// What files are rounded up to, bytes.
const PAGE_BYTES: u64 = 4096;
/// Measuring takes at most this part of one CPU: 1 to this number.
const SHARE: u32 = 5;

/// The limit that a script has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Bytes.
    Bytes,
    /// Files and directories, or levels of directories.
    Files,
}

/// Measures a scratch directory from time to time.
#[derive(Debug)]
pub struct ScratchGauge {
    directory: PathBuf,
    max_bytes: u64,
    measured: Option<Measured>,
}

#[derive(Debug)]
struct Measured {
    free: Option<Free>,
    at: Instant,
    next: Instant,
}

/// What is free in a file system.
#[derive(Clone, Copy, Debug)]
struct Free {
    bytes: u64,
    files: u64,
}

impl ScratchGauge {
    /// A gauge for a directory that may hold `max_bytes`.
    pub fn new(directory: PathBuf, max_bytes: u64) -> ScratchGauge {
        ScratchGauge { directory, max_bytes, measured: None }
    }

    /// Returns the limit that is passed now; `None` if there is none, or nothing suggests to look. A script decides how long
    /// this takes, up to some 10 ms, so it must not run on the thread of the runtime.
    pub fn excess(&mut self) -> Option<Excess> {
        let (free, now) = (free(&self.directory), Instant::now());
        if self.measured.as_ref().is_some_and(|last| !last.is_outdated(free, now)) {
            return None;
        }
        let excess = measure(&self.directory, self.max_bytes);
        let next = Instant::now() + now.elapsed() * (SHARE - 1);
        self.measured = Some(Measured { free, at: now, next });
        excess
    }
}

impl Measured {
    fn is_outdated(&self, free: Option<Free>, now: Instant) -> bool {
        let is_used = match (self.free, free) {
            (Some(then), Some(now)) => {
                now.bytes + BYTES_STEP <= then.bytes || now.files + FILES_STEP <= then.files
            }
            _ => true,
        };
        now >= self.next && (is_used || now >= self.at + LONGEST_PAUSE)
    }
}

fn free(directory: &Path) -> Option<Free> {
    let status = statvfs(directory).ok()?;
    Some(Free {
        bytes: status.blocks_free().saturating_mul(status.fragment_size()),
        files: status.files_free(),
    })
}

/// Adds up a directory until a limit is passed. The script may change it at the same time.
fn measure(directory: &Path, max_bytes: u64) -> Option<Excess> {
    let mut total = Total { bytes: 0, files: 0, max_bytes };
    let open = || open(directory, DIRECTORY, Mode::empty());
    let opened = match open() {
        // A script with the uid of the service may have removed its own permissions on it.
        Err(Errno::EACCES) => {
            let restored = fs::set_permissions(directory, Permissions::from_mode(0o700));
            restored.map_err(|_| Errno::EACCES).and_then(|()| open())
        }
        opened => opened,
    };
    match opened {
        Ok(top) => total.add(top, 0).err(),
        Err(Errno::ENOENT) => None,
        // What cannot be measured may be anything.
        Err(_) => Some(Excess::Bytes),
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Total {
    bytes: u64,
    files: u64,
    max_bytes: u64,
}

impl Total {
    /// Adds what is in a directory. Uses descriptors rather than paths, which a script can make too long.
    fn add(&mut self, directory: OwnedFd, depth: u32) -> Result<(), Excess> {
        if depth > MAX_SCRATCH_DEPTH {
            return Err(Excess::Files);
        }
        // Fails only if the directory is gone meanwhile.
        let Ok(mut directory) = Dir::from_fd(directory) else { return Ok(()) };
        let names: Vec<_> = directory
            .iter()
            .flatten()
            .map(|entry| entry.file_name().to_owned())
            .filter(|name| ![&b"."[..], b".."].contains(&name.to_bytes()))
            // More than that are too many anyway.
            .take(MAX_SCRATCH_FILES as usize + 1)
            .collect();
        for name in names {
            let Ok(found) =
                fstatat(directory.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
            self.files += 1;
            if kind == SFlag::S_IFREG {
                // Blocks have 512 bytes, whatever the file system uses. A growing file can have more of them than it needs.
                let (blocks, size) = (found.st_blocks as u64 * 512, found.st_size as u64);
                self.bytes += blocks.min(size.next_multiple_of(PAGE_BYTES));
            }
            if self.bytes > self.max_bytes {
                return Err(Excess::Bytes);
            }
            if self.files > MAX_SCRATCH_FILES {
                return Err(Excess::Files);
            }
            if kind == SFlag::S_IFDIR {
                let inner = open_again(directory.as_fd(), &name);
                inner.map_or(Ok(()), |inner| self.add(inner, depth + 1))?;
            }
        }
        Ok(())
    }
}

/// Opens a directory. A script with the uid of the service may have removed its own permissions on it; they are given
/// back.
fn open_again(parent: impl AsFd, name: &std::ffi::CStr) -> Option<OwnedFd> {
    let open = || openat(parent.as_fd(), name, DIRECTORY, Mode::empty());
    match open() {
        Err(Errno::EACCES) => {
            // A script cannot create symbolic links in the tiers that use this.
            fchmodat(parent.as_fd(), name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink).ok()?;
            open().ok()
        }
        opened => opened.ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path =
                std::env::temp_dir().join(format!("mainbox-usage-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            crate::sandbox::removal::remove(&self.0).unwrap();
        }
    }

    #[test]
    fn bytes_count_wherever_they_are_and_holes_do_not() {
        let scratch = Scratch::new("bytes");
        fs::create_dir_all(scratch.0.join("a/b")).unwrap();
        fs::write(scratch.0.join("a/b/file"), vec![1; 600_000]).unwrap();
        fs::File::create(scratch.0.join("hole")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(measure(&scratch.0, 1_000_000), None);
        fs::write(scratch.0.join("file"), vec![1; 600_000]).unwrap();
        assert_eq!(measure(&scratch.0, 1_000_000), Some(Excess::Bytes));
        assert_eq!(measure(&scratch.0.join("missing"), 0), None);
    }

    #[test]
    fn files_and_levels_of_directories_count() {
        let scratch = Scratch::new("files");
        for number in 0..MAX_SCRATCH_FILES {
            fs::write(scratch.0.join(number.to_string()), "").unwrap();
        }
        assert_eq!(measure(&scratch.0, u64::MAX), None);
        fs::write(scratch.0.join("another"), "").unwrap();
        assert_eq!(measure(&scratch.0, u64::MAX), Some(Excess::Files));

        let deep = Scratch::new("deep");
        let name = "d".repeat(200);
        let script = format!(
            "import os\nfor _ in range({MAX_SCRATCH_DEPTH} + 1):\n    os.mkdir('{name}'); os.chdir('{name}')"
        );
        let mut python = std::process::Command::new("python3");
        let python = python.args(["-c", &script]).current_dir(&deep.0).status();
        assert!(python.unwrap().success());
        assert_eq!(measure(&deep.0, u64::MAX), Some(Excess::Files));
    }

    #[test]
    fn a_directory_without_permissions_is_measured() {
        let scratch = Scratch::new("closed");
        fs::create_dir(scratch.0.join("closed")).unwrap();
        fs::write(scratch.0.join("closed/file"), vec![1; 600_000]).unwrap();
        for closed in [scratch.0.join("closed"), scratch.0.clone()] {
            fs::set_permissions(closed, Permissions::from_mode(0o000)).unwrap();
        }
        assert_eq!(measure(&scratch.0, 500_000), Some(Excess::Bytes));
        assert_eq!(measure(&scratch.0, 700_000), None);
    }

    #[test]
    fn a_gauge_looks_again_when_something_was_written_or_after_a_while() {
        let at = Instant::now();
        let free = |bytes, files| Some(Free { bytes, files });
        let last =
            Measured { free: free(100 << 20, 1000), at, next: at + Duration::from_millis(8) };
        let after = |ms| at + Duration::from_millis(ms);
        assert!(!last.is_outdated(free(100 << 20, 1000), after(25)));
        assert!(!last.is_outdated(free(97 << 20, 950), after(25)));
        assert!(last.is_outdated(free(96 << 20, 1000), after(25)));
        assert!(last.is_outdated(free(100 << 20, 936), after(25)));
        assert!(last.is_outdated(None, after(25)));
        assert!(last.is_outdated(free(100 << 20, 1000), after(250)));
        assert!(!last.is_outdated(free(0, 0), after(7)));
    }
}
