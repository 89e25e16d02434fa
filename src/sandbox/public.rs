//! The directories of the host in which a worker can create files, if no mechanism confines it: found once, at the start.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

/// The most directories that are looked at. A container image has a few thousand; looking at this many takes a second.
const MAX_DIRECTORIES: usize = 100_000;
/// File systems of the kernel. What looks like a public directory there holds no files of a script.
const SKIPPED: [&str; 2] = ["/proc", "/sys"];

/// The directories in which a worker can create files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Public {
    /// Their paths.
    pub(super) directories: Vec<PathBuf>,
    /// Whether the whole file system was looked at.
    pub(super) complete: bool,
}

/// Finds the directories in which a worker can create files: with a uid of its own, those that every user can reach and
/// write to; otherwise those that this process can write to. Read-only file systems have none.
pub(super) fn find(own_uids: bool) -> Public {
    below(Path::new("/"), own_uids, MAX_DIRECTORIES)
}

fn below(top: &Path, own_uids: bool, most: usize) -> Public {
    let mut found = Public::default();
    let mut read_only = HashMap::new();
    let mut waiting = vec![top.to_owned()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        seen += 1;
        if seen > most {
            return found;
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let is_writable = match own_uids {
            true => metadata.mode() & 0o003 == 0o003,
            false => access(&path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        };
        if is_writable && !*read_only.entry(metadata.dev()).or_insert_with(|| is_read_only(&path)) {
            found.directories.push(path.clone());
        }
        if can_pass(&metadata, own_uids) && !SKIPPED.contains(&path.to_str().unwrap_or_default()) {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            let directories =
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            waiting.extend(directories.map(|entry| entry.path()));
        }
    }
    found.complete = true;
    found
}

/// Returns whether a worker can reach what is in a directory.
fn can_pass(directory: &Metadata, own_uids: bool) -> bool {
    !own_uids || directory.mode() & 0o001 != 0
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|status| status.flags().contains(FsFlags::ST_RDONLY))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn public_directories_are_found_wherever_every_user_can_reach_them() {
        let top = std::env::temp_dir().join(format!("mainbox-public-{}", std::process::id()));
        for (path, mode) in [
            ("", 0o755),
            ("run", 0o755),
            ("run/lock", 0o1777),
            ("run/lock/deep", 0o777),
            ("private", 0o700),
            ("private/public", 0o777),
            ("dropbox", 0o773),
            ("listing", 0o776),
        ] {
            fs::create_dir(top.join(path)).unwrap();
            fs::set_permissions(top.join(path), Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink(top.join("private/public"), top.join("link")).unwrap();
        let names = |found: &Public| {
            let paths = found.directories.iter();
            let mut names: Vec<_> = paths
                .map(|path| path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned())
                .collect();
            names.sort();
            names
        };
        let found = below(&top, true, 100);
        assert!(found.complete);
        assert_eq!(names(&found), ["dropbox", "run/lock", "run/lock/deep"]);

        let own = below(&top, false, 100);
        assert!(names(&own).contains(&String::from("private/public")));

        assert!(!below(&top, true, 6).complete);
        fs::remove_dir_all(&top).unwrap();
    }
}
