//! Removes what scripts leave, however deep and however much.

use std::fs::{self, DirEntry, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The number of directory entries that are held in memory during a removal, since a script can create millions.
const ENTRIES_AT_ONCE: usize = 1024;

/// Removes the file or directory at `path`; a missing one is not an error. Symbolic links are removed, not followed.
///
/// The content comes from a script, so it may be nested deeper than the stack, the file descriptors or the longest path
/// allow. Therefore this does not recurse as [`fs::remove_dir_all`] does: it moves nested directories to the top level
/// and removes them from there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => remove_tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(
        |error| {
            if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
        },
    )
}

/// Removes a directory. Each round removes the directories at the top level, after their subdirectories have been moved
/// to the top level for the next round, so no path is ever more than two levels below `top`.
fn remove_tree(top: &Path) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let entries = some_entries(top)?;
        if entries.is_empty() {
            return fs::remove_dir(top);
        }
        for entry in entries {
            if entry.file_type()?.is_dir() {
                empty_into(top, &entry.path(), &mut moved)?;
                fs::remove_dir(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
}

/// Removes the files in `directory` and moves its subdirectories to unused names in `top`.
fn empty_into(top: &Path, directory: &Path, moved: &mut u64) -> io::Result<()> {
    loop {
        let entries = some_entries(directory)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            if entry.file_type()?.is_dir() {
                // Moving a directory changes its `..` entry, which needs write permission on the directory itself.
                fs::set_permissions(entry.path(), Permissions::from_mode(0o700))?;
                fs::rename(entry.path(), free_name(top, moved))?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
}

/// Returns up to [`ENTRIES_AT_ONCE`] entries of a directory.
fn some_entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    // A script with the uid of the service may have removed its permissions.
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    fs::read_dir(directory)?.take(ENTRIES_AT_ONCE).collect()
}

/// Returns a path in `top` that does not exist yet. A script may have used some of these names itself.
fn free_name(top: &Path, moved: &mut u64) -> PathBuf {
    loop {
        *moved += 1;
        let name = top.join(format!("moved-{moved}"));
        if fs::symlink_metadata(&name).is_err() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_is_removed_and_links_are_not_followed() {
        let parent = std::env::temp_dir().join(format!("mainbox-deep-{}", std::process::id()));
        let top = parent.join("top");
        fs::create_dir_all(top.join("moved-1/moved-2")).unwrap();
        fs::write(top.join("moved-3"), "").unwrap();
        fs::write(parent.join("outside"), "").unwrap();
        std::os::unix::fs::symlink(&parent, top.join("moved-1/link")).unwrap();
        let mut deepest = std::process::Command::new("python3")
            .args(["-c", "import os\nfor n in range(3000):\n    os.mkdir('d'); os.chdir('d')"])
            .current_dir(&top)
            .spawn()
            .unwrap();
        assert!(deepest.wait().unwrap().success());
        fs::set_permissions(top.join("d/d"), Permissions::from_mode(0o000)).unwrap();

        remove(&top).unwrap();

        let rest: Vec<_> =
            fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(rest, ["outside"]);
        remove(&parent).unwrap();
        remove(&parent).unwrap();
    }
}
