//! Whether the service owns what its scripts read, so that workers with its uid could change it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::geteuid;

use super::layer::Layer;

/// How deep directories are looked at. A package that an installer put into `lib/python3.13/site-packages` is three
/// levels below the directory that workers may read.
const DEPTH: u32 = 3;

/// Whether the libraries belong to another user than the service.
pub(super) fn layer(owned: Option<&Path>) -> Layer {
    Layer {
        name: "libraries of another owner",
        works: owned.is_none(),
        detail: owned.map_or_else(
            || String::from("works"),
            |path| {
                let path = path.display();
                format!("the service owns {path}, so no script may change modes and times of files")
            },
        ),
    }
}

/// Returns the first of `paths` that the user of this process owns, itself or in a directory not far below, on a file
/// system that is not read-only. The owner of a file can change its mode and times through a descriptor that is open for
/// reading.
pub(super) fn first_owned(paths: &[PathBuf]) -> Option<&Path> {
    paths.iter().map(PathBuf::as_path).find(|path| !is_read_only(path) && owns(path, DEPTH))
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
        let paths = [PathBuf::from("/dev/null"), top.join("missing"), top.clone()];
        assert_eq!(first_owned(&paths), Some(top.as_path()));
        assert_eq!(first_owned(&paths[..2]), None);
        fs::remove_dir_all(&top).unwrap();
    }
}
