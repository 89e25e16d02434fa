//! Keeps the compiled harness between starts, in the cache directory of the user. Compiling it takes a third of a start.
//!
//! The code runs in the zygote, so the file must be as safe as the program. It is used only if it and its directory belong
//! to this user and nobody else may write to them, and only in sandboxes whose scripts cannot write there. A zygote makes
//! the code before it imports any package.

use std::fs::{DirBuilder, File};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::config::Config;
use crate::config::choices::Tier;
use crate::python::interpreter::Python;
use crate::sandbox::Sandbox;

/// The largest file that is read, bytes. The code has some 400 KB.
const MOST_BYTES: u64 = 8 << 20;
/// The permission bits for the group and for others to write.
const OTHERS_WRITE: u32 = 0o022;

/// The file for one interpreter.
#[derive(Debug)]
pub(super) struct CodeCache {
    /// The directory of caches, of this user.
    home: PathBuf,
    name: String,
}

impl CodeCache {
    /// The cache for an interpreter. None if scripts might write to it, or the user has no directory for it. A bytecode
    /// archive replaces it.
    pub(super) fn of(python: &Python, config: &Config, sandbox: &Sandbox) -> Option<CodeCache> {
        let home = directory(|name| std::env::var_os(name).map(PathBuf::from))?;
        // In the tier `rlimits`, a script cannot open files, but rename them.
        let is_safe =
            sandbox.confines_files() && sandbox.tier.is_some_and(|tier| tier != Tier::Rlimits);
        (is_safe && config.archive.is_none()).then(|| CodeCache::new(home, &python.program))
    }

    fn new(home: PathBuf, python: &Path) -> CodeCache {
        let mut hasher = DefaultHasher::new();
        python.hash(&mut hasher);
        CodeCache { home, name: format!("harness-{:016x}", hasher.finish()) }
    }

    /// Reads the code. The zygote checks whether it is that of this version.
    ///
    /// # Errors
    /// When there is no such file, or somebody else could have changed it.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(self.open()?, self.name.as_str(), flags, Mode::empty())?);
        let is_file = file.metadata()?.is_file();
        if !is_file || !is_own(&file)? {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut code = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut code)?;
        Ok(code)
    }

    /// Replaces the code at once: others that start meanwhile read the old or the new one.
    ///
    /// # Errors
    /// When the file cannot be written, or is not safe there.
    pub(super) fn write(&self, code: &[u8]) -> io::Result<()> {
        create(&self.home)?;
        create(&self.home.join(DIRECTORY))?;
        let directory = self.open()?;
        // Containers may share the directory and have the same process ids.
        let new = format!("{}-{:016x}", self.name, RandomState::new().hash_one(0));
        let new = new.as_str();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut file = File::from(openat(&directory, new, flags, mode)?);
        let written = file
            .write_all(code)
            .and_then(|()| Ok(renameat(&directory, new, &directory, self.name.as_str())?));
        written.inspect_err(|_| {
            // Fails only if it is gone.
            let _ = unlinkat(&directory, new, UnlinkatFlags::NoRemoveDir);
        })
    }

    /// Opens the directory.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = open(&self.home.join(DIRECTORY), flags, Mode::empty())?;
        if is_own(&directory)? {
            Ok(directory)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

/// The name of the directory in that of the user.
const DIRECTORY: &str = "mainbox";

/// The directory of caches: <https://specifications.freedesktop.org/basedir-spec/latest/>.
fn directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let home = || variable("HOME").filter(absolute).map(|home| home.join(".cache"));
    variable("XDG_CACHE_HOME").filter(absolute).or_else(home)
}

/// Returns whether this user owns a file or directory and nobody else may write to it.
fn is_own(file: impl AsFd) -> io::Result<bool> {
    let found = nix::sys::stat::fstat(file)?;
    Ok(found.st_uid == geteuid().as_raw() && found.st_mode & OTHERS_WRITE == 0)
}

/// Creates a directory if it does not exist. Root leaves none in the directory of another user.
fn create(directory: &Path) -> io::Result<()> {
    if directory.symlink_metadata().is_ok() {
        return Ok(());
    }
    let parent = directory.parent().ok_or(io::ErrorKind::NotFound)?.symlink_metadata()?;
    let is_closed = parent.is_dir() && parent.permissions().mode() & OTHERS_WRITE == 0;
    if !is_closed || parent.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    DirBuilder::new().mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Home(PathBuf);

    impl Home {
        fn new(name: &str) -> Home {
            let path =
                std::env::temp_dir().join(format!("mainbox-cache-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Home(path)
        }

        fn cache(&self) -> CodeCache {
            CodeCache::new(self.0.join(".cache"), Path::new("/usr/bin/python3"))
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(self.0.join(path), Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_was_written_is_read_and_only_the_user_can_read_it() {
        let home = Home::new("written");
        let cache = home.cache();
        assert_eq!(cache.read().unwrap_err().kind(), io::ErrorKind::NotFound);
        cache.write(b"first").unwrap();
        cache.write(b"second").unwrap();
        assert_eq!(cache.read().unwrap(), b"second");
        let directory = home.0.join(".cache/mainbox");
        let files: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&files[0].path())), (0o700, 0o600));
        let other = CodeCache::new(home.0.join(".cache"), Path::new("/usr/bin/python3.13"));
        assert_eq!(other.read().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_others_could_have_changed_is_not_read() {
        let home = Home::new("foreign");
        let cache = home.cache();
        cache.write(b"code").unwrap();
        let file = format!(".cache/mainbox/{}", cache.name);
        for path in [".cache/mainbox", &file] {
            for (mode, is_read) in [(0o720, false), (0o702, false), (0o700, true)] {
                home.mode(path, mode);
                assert_eq!(cache.read().is_ok(), is_read, "{path} {mode:o}");
            }
        }
        let moved = home.0.join("moved");
        fs::rename(home.0.join(&file), &moved).unwrap();
        symlink(&moved, home.0.join(&file)).unwrap();
        assert!(cache.read().is_err());
        if geteuid().is_root() {
            fs::remove_file(home.0.join(&file)).unwrap();
            fs::rename(&moved, home.0.join(&file)).unwrap();
            std::os::unix::fs::chown(home.0.join(&file), Some(1000), None).unwrap();
            assert_eq!(cache.read().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn nothing_is_left_in_the_home_of_another_user() {
        let home = Home::new("other");
        if geteuid().is_root() {
            std::os::unix::fs::chown(&home.0, Some(1000), None).unwrap();
        } else {
            home.mode("", 0o500);
        }
        assert_eq!(home.cache().write(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        home.mode("", 0o700);
        assert!(!home.0.join(".cache").exists());
    }

    #[test]
    fn the_directory_is_that_of_the_user() {
        let given = |xdg: &'static str, home: &'static str| {
            let path = |value: &str| (!value.is_empty()).then(|| PathBuf::from(value));
            directory(|name| path(if name == "HOME" { home } else { xdg }))
        };
        assert_eq!(given("/c", "/h").unwrap(), Path::new("/c"));
        assert_eq!(given("c", "/h").unwrap(), Path::new("/h/.cache"));
        assert_eq!(given("", "/h").unwrap(), Path::new("/h/.cache"));
        assert_eq!(given("", ""), None);
    }
}
