//! Whether the service owns what its scripts read, so that workers with its uid could change it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

/// How deep directories are looked at. A package that an installer put into `lib/python3.13/site-packages` is three
/// levels below the directory that workers may read.
const DEPTH: u32 = 3;

/// Returns whether the user of this process owns any of `paths`, or a directory not far below one, on a file system that
/// is not read-only. The owner of a file can change its mode and times through a descriptor that is open for reading.
pub(super) fn owns_any(paths: &[PathBuf]) -> bool {
    paths.iter().any(|path| !is_read_only(path) && owns(path, DEPTH))
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|status| status.flags().contains(FsFlags::ST_RDONLY))
}

fn owns(path: &Path, depth: u32) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    // The devices belong to nobody's installation, and nobody can change their modes for others.
    if metadata.uid() == geteuid().as_raw() && !path.starts_with("/dev") {
        return true;
    }
    depth > 0
        && metadata.is_dir()
        && fs::read_dir(path).into_iter().flatten().flatten().any(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && owns(&entry.path(), depth - 1)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_the_user_is_found_three_levels_down_and_one_of_another_is_not() {
        let top = std::env::temp_dir().join(format!("mainbox-ownership-{}", std::process::id()));
        fs::create_dir_all(top.join("lib/site-packages/numpy")).unwrap();
        assert!(owns_any(std::slice::from_ref(&top)));
        assert!(
            !owns_any(&[top.join("missing"), PathBuf::from("/proc/sys")]) || geteuid().is_root()
        );
        assert!(!owns_any(&[PathBuf::from("/dev/null")]));
        fs::remove_dir_all(&top).unwrap();
    }
}
