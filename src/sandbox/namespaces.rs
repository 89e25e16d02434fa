//! Namespaces around a zygote: a plan of steps that its process takes between clone and exec, as data.
//!
//! The root that it ends in holds the interpreter and its libraries, four devices, a zoneinfo and the place for scratch
//! directories, all read-only. There is no /proc, no /sys, no /tmp, no network interface that is up.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::policy::MAX_SCRATCH_FILES;
use crate::python::interpreter::Python;

/// Where a worker finds its scratch directory: a mount point in a read-only directory.
pub const SCRATCH: &str = "/box/scratch";
/// The directory of that mount point, as the zygote sees it.
pub const BOX: &str = "/box";
/// Devices that are harmless.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"];

/// All that a zygote is separated by. A user namespace comes first where the service may not do the rest without one.
pub const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("mount namespace", CloneFlags::CLONE_NEWNS),
    ("pid namespace", CloneFlags::CLONE_NEWPID),
    ("net namespace", CloneFlags::CLONE_NEWNET),
    ("ipc namespace", CloneFlags::CLONE_NEWIPC),
    ("uts namespace", CloneFlags::CLONE_NEWUTS),
];

/// How well a kernel knows mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// As Linux: everything is mounted read-only, the old root is gone, scratch directories are capped in files too.
    Full,
    /// As gVisor of old, which knows neither read-only remounts, nor a change of root by mounts, nor mounts that only some
    /// processes see: the root is changed by chroot, the uid of a worker is what keeps it from writing to root's files,
    /// and scratch directories are directories.
    Plain,
}

/// What a process does between clone and exec. Made before the clone, since nothing may be allocated after it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The namespaces that it is created in.
    pub namespaces: Vec<CloneFlags>,
    /// What the kernel knows of mounts; `None` when nothing is mounted.
    pub mounts: Option<Mounts>,
    /// What it does then, in this order.
    pub steps: Vec<Step>,
}

/// One step, one or two system calls.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes a file of /proc.
    Write(CString, CString),
    /// Makes the process dumpable, or not. The files in /proc of one that is not are root's, so that an ordinary user could
    /// not write its own; where it cannot be changed, it has not been changed before either.
    Dumpable(bool),
    /// Makes a directory; one that is there already is as good.
    Directory(CString),
    /// Makes an empty file, for a file to be mounted on.
    File(CString),
    /// Makes a symbolic link: its target, its place.
    Link(CString, CString),
    /// Mounts: source, target, type, flags, options.
    Mount(CString, CString, CString, MsFlags, CString),
    /// Keeps mounts from spreading to the host. A kernel that knows no spreading (gVisor) answers EINVAL, which is as
    /// good: one that does would refuse the new root later.
    Private,
    /// Makes a directory the root, and the old root unreachable.
    Root(CString),
    /// Makes a directory the root for whoever may not do so again.
    Chroot(CString),
    /// Names the host.
    HostName(CString),
    /// Leaves a namespace for a new one.
    Unshare(CloneFlags),
}

impl Step {
    /// What it does, for a message when it fails.
    pub fn describe(&self) -> String {
        let text = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            Step::Write(path, _) => format!("write {}", text(path)),
            Step::Dumpable(_) => String::from("change whether it is dumpable"),
            Step::Directory(path) => format!("make directory {}", text(path)),
            Step::File(path) => format!("make file {}", text(path)),
            Step::Link(_, path) => format!("make link {}", text(path)),
            Step::Mount(source, target, kind, _, _) => {
                format!("mount {} {} on {}", text(kind), text(source), text(target))
            }
            Step::Private => String::from("make mounts private"),
            Step::Root(path) => format!("make {} the root", text(path)),
            Step::Chroot(path) => format!("chroot to {}", text(path)),
            Step::HostName(_) => String::from("name the host"),
            Step::Unshare(flags) => format!("unshare {flags:?}"),
        }
    }
}

impl Plan {
    /// Whether a user namespace is among them.
    pub fn has_user_namespace(&self) -> bool {
        self.flags().contains(CloneFlags::CLONE_NEWUSER)
    }

    /// The flags of the clone.
    pub fn flags(&self) -> CloneFlags {
        self.namespaces.iter().copied().collect()
    }

    /// The plan of a zygote. `root` is an empty directory of ours to build in, `scratch_home` the directory that holds
    /// the mount point of scratch directories; `user` says whether a user namespace is needed.
    ///
    /// # Errors
    /// When a path of the policy cannot be looked at.
    pub fn for_zygote(
        python: &Python,
        readable: &[PathBuf],
        root: &Path,
        scratch_home: &Path,
        user: bool,
        mounts: Mounts,
    ) -> io::Result<Plan> {
        let mut builder =
            Builder { root: root.to_owned(), mounts, steps: Vec::new(), bound: Vec::new() };
        if user {
            builder.map_to_root()?;
        }
        let none = || CString::default();
        builder.steps.push(Step::Private);
        let (tmpfs, small) = (c"tmpfs".to_owned(), c"mode=0755,size=1m".to_owned());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        builder.steps.push(Step::Mount(tmpfs.clone(), c_path(root)?, tmpfs, flags, small));
        let mut paths = readable.to_vec();
        paths.push(python.program.clone());
        paths.sort();
        for path in &paths {
            builder.show(path)?;
        }
        for device in DEVICES {
            builder.bind(Path::new(device), Path::new(device), MsFlags::MS_NOEXEC)?;
        }
        builder.bind(scratch_home, Path::new(BOX), MsFlags::MS_NODEV)?;
        match mounts {
            Mounts::Full => {
                let sealed = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
                builder.steps.extend([
                    Step::Root(c_path(root)?),
                    Step::Mount(none(), c"/".into(), none(), sealed, none()),
                ]);
            }
            Mounts::Plain => builder.steps.push(Step::Chroot(c_path(root)?)),
        }
        builder.steps.push(Step::HostName(c"mainbox".into()));
        let mut namespaces: Vec<CloneFlags> = NAMESPACES.iter().map(|(_, flag)| *flag).collect();
        if user {
            namespaces.insert(0, CloneFlags::CLONE_NEWUSER);
        }
        Ok(Plan { namespaces, mounts: Some(mounts), steps: builder.steps })
    }
}

/// What a worker does for a scratch directory of its own: a mount namespace in which only it sees the tmpfs. Without a
/// uid of its own it enters a user namespace too, which is where the kernel counts its threads. The harness does the
/// same; these steps are for the probe.
///
/// # Errors
/// Never for a sane limit.
pub fn worker_steps(scratch_bytes: u64, uid: Option<u32>, mounts: Mounts) -> io::Result<Vec<Step>> {
    if mounts == Mounts::Plain {
        return Ok(vec![]);
    }
    let mut steps = vec![
        Step::Unshare(CloneFlags::CLONE_NEWNS),
        Step::Mount(
            c"tmpfs".into(),
            c_path(Path::new(SCRATCH))?,
            c"tmpfs".into(),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            CString::new(scratch_options(scratch_bytes, uid))?,
        ),
    ];
    if uid.is_none() {
        steps.push(Step::Unshare(CloneFlags::CLONE_NEWUSER));
    }
    Ok(steps)
}

/// The options of a scratch directory's tmpfs.
pub fn scratch_options(bytes: u64, uid: Option<u32>) -> String {
    let owner = uid.map_or_else(String::new, |uid| format!(",uid={uid},gid={uid}"));
    format!("mode=0700,size={},nr_inodes={MAX_SCRATCH_FILES}{owner}", bytes.max(4096))
}

/// Collects the steps.
struct Builder {
    root: PathBuf,
    mounts: Mounts,
    steps: Vec<Step>,
    /// What is mounted already: whatever is beneath is there too.
    bound: Vec<PathBuf>,
}

impl Builder {
    /// Becomes root of a user namespace that knows no uid but ours.
    fn map_to_root(&mut self) -> io::Result<()> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        self.steps.push(Step::Dumpable(true));
        for (file, text) in [
            (c"/proc/self/setgroups", String::from("deny")),
            (c"/proc/self/uid_map", format!("0 {uid} 1")),
            (c"/proc/self/gid_map", format!("0 {gid} 1")),
        ] {
            self.steps.push(Step::Write(file.into(), CString::new(text)?));
        }
        self.steps.push(Step::Dumpable(false));
        Ok(())
    }

    /// Makes `path` readable at its own place. Where it is a link, what it leads to is mounted and the link made anew.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        let real = path.canonicalize()?;
        if real.starts_with("/dev") {
            return Ok(());
        }
        if !self.bound.iter().any(|bound| real.starts_with(bound)) {
            self.bind(&real, &real, MsFlags::MS_NODEV)?;
            self.bound.push(real.clone());
        }
        if real != path && !self.bound.iter().any(|bound| path.starts_with(bound)) {
            self.directories_above(path)?;
            self.steps.push(Step::Link(c_path(&real)?, self.inside(path)?));
            self.bound.push(path.to_owned());
        }
        Ok(())
    }

    /// Mounts `source` read-only at `place`. A mount keeps the restrictions that it has outside, since a user namespace
    /// may not lift them.
    fn bind(&mut self, source: &Path, place: &Path, more: MsFlags) -> io::Result<()> {
        self.directories_above(place)?;
        let target = self.inside(place)?;
        self.steps.push(if source.is_dir() {
            Step::Directory(target.clone())
        } else {
            Step::File(target.clone())
        });
        let none = || CString::default();
        let bind = MsFlags::MS_BIND;
        self.steps.push(Step::Mount(c_path(source)?, target.clone(), none(), bind, none()));
        if self.mounts == Mounts::Full {
            let flags = bind
                | MsFlags::MS_REMOUNT
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | more
                | restrictions(source)?;
            self.steps.push(Step::Mount(none(), target, none(), flags, none()));
        }
        Ok(())
    }

    fn directories_above(&mut self, place: &Path) -> io::Result<()> {
        let above: Vec<&Path> = place.ancestors().skip(1).collect();
        for directory in above.into_iter().rev().filter(|path| path.parent().is_some()) {
            if !self.bound.iter().any(|bound| directory.starts_with(bound)) {
                self.steps.push(Step::Directory(self.inside(directory)?));
            }
        }
        Ok(())
    }

    fn inside(&self, place: &Path) -> io::Result<CString> {
        let mut path = self.root.clone().into_os_string();
        path.push(place);
        c_path(Path::new(&path))
    }
}

/// The restriction of the mount that `path` is on, beyond those that we always set. How it keeps access times, the kernel
/// preserves.
fn restrictions(path: &Path) -> io::Result<MsFlags> {
    let noexec = statvfs(path)?.flags().contains(FsFlags::ST_NOEXEC);
    Ok(if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
