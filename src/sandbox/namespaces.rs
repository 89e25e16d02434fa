//! Namespaces around a zygote: a plan, as data, of the steps that its process takes between clone and exec.
//!
//! The steps build a private root. It holds the interpreter and its libraries, four devices, the time zones, the names of
//! its users and the mount point of scratch directories, all read-only. /tmp leads to the scratch directory. There is no
//! /proc or /sys, and no network interface is up.
//! See <https://man7.org/linux/man-pages/man7/namespaces.7.html>.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::policy::MAX_SCRATCH_FILES;
use super::scratch::{GROUP, PASSWD};
use crate::python::interpreter::Python;

/// The path of a worker's scratch directory in the private root: a mount point in a read-only directory.
pub const SCRATCH: &str = "/box/scratch";
/// The directory of that mount point in the private root.
pub const BOX: &str = "/box";
/// The devices in the private root. They keep no data and give no access to hardware.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"];

/// The namespaces of a zygote: layer name and clone flag. A service without the privilege to create them creates a user
/// namespace first, in which it has that privilege.
pub const NAMESPACES: [(&str, CloneFlags); 5] = [
    ("mount namespace", CloneFlags::CLONE_NEWNS),
    ("pid namespace", CloneFlags::CLONE_NEWPID),
    ("net namespace", CloneFlags::CLONE_NEWNET),
    ("ipc namespace", CloneFlags::CLONE_NEWIPC),
    ("uts namespace", CloneFlags::CLONE_NEWUTS),
];

/// How much of mount(2) and pivot_root(2) a host allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// Linux: every mount is read-only, the old root is detached, and scratch directories are file systems with a size
    /// and a number of files.
    Full,
    /// The same where pivot_root(2) is refused, as by the default filters of container engines. The private root is moved
    /// over the old one, which stays mounted below it where no path leads. Only a process with CAP_SYS_ADMIN could remove
    /// what covers it; workers have dropped that capability.
    Moved,
    /// Old versions of gVisor, without read-only remounts, pivot_root(2) and mounts that only some processes see. The
    /// root is changed by chroot(2), workers cannot write to the files of root since they have uids of their own, and
    /// scratch directories are plain directories.
    Plain,
}

impl Mounts {
    /// Whether all is as in `Full`, but for how the root is changed.
    pub fn are_complete(self) -> bool {
        self != Mounts::Plain
    }
}

/// The namespaces of a process and the steps that it takes between clone and exec. A plan is made before the clone,
/// since the child must not allocate memory.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The namespaces that the process is created in.
    pub namespaces: Vec<CloneFlags>,
    /// How much of mount(2) the kernel supports; `None` if the plan mounts nothing.
    pub mounts: Option<Mounts>,
    /// The steps, in the order in which the process takes them.
    pub steps: Vec<Step>,
}

/// One step of a plan. The child carries it out with system calls only.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes a file in /proc: path, content.
    Write(CString, CString),
    /// Makes the process dumpable or non-dumpable. The files in /proc/self of a non-dumpable process belong to root, so
    /// that it cannot write its own uid_map without being root:
    /// <https://man7.org/linux/man-pages/man5/proc_pid.5.html>. An error is ignored: if prctl(2) is refused, the
    /// supervisor is still dumpable, and so is its child.
    Dumpable(bool),
    /// Creates a directory, if it does not exist yet.
    Directory(CString),
    /// Creates an empty file, as the mount point of a file.
    File(CString),
    /// Creates a symbolic link: target, path.
    Link(CString, CString),
    /// Mounts a file system: source, target, type, flags, options.
    Mount(CString, CString, CString, MsFlags, CString),
    /// Stops mounts from propagating to the host. gVisor does not know propagation and fails with EINVAL, which is
    /// ignored. A kernel with shared mounts would refuse [`Step::Root`] later.
    Private,
    /// Makes a directory the root with pivot_root(2), and detaches the old root.
    Root(CString),
    /// Makes a mount the root by moving it over the old one, as switch_root(8) does.
    Move(CString),
    /// Makes a directory the root with chroot(2). Only a process with CAP_SYS_CHROOT can leave it; workers have dropped
    /// that capability.
    Chroot(CString),
    /// Sets the host name.
    HostName(CString),
    /// Moves the process to new namespaces.
    Unshare(CloneFlags),
}

impl Step {
    /// Returns what the step does, for an error message.
    pub fn describe(&self) -> String {
        let text = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            Step::Write(path, _) => format!("write {}", text(path)),
            Step::Dumpable(_) => String::from("set the dumpable attribute"),
            Step::Directory(path) => format!("create directory {}", text(path)),
            Step::File(path) => format!("create file {}", text(path)),
            Step::Link(_, path) => format!("create symbolic link {}", text(path)),
            Step::Mount(source, target, kind, _, _) => {
                let words = ["mount", &text(kind), &text(source), "on", &text(target)];
                words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
            }
            Step::Private => String::from("make the mounts private"),
            Step::Root(path) => format!("change the root to {}", text(path)),
            Step::Move(path) => format!("move {} over the root", text(path)),
            Step::Chroot(path) => format!("chroot to {}", text(path)),
            Step::HostName(_) => String::from("set the host name"),
            Step::Unshare(flags) => format!("unshare {flags:?}"),
        }
    }
}

impl Plan {
    /// Returns whether the process is created in a new user namespace.
    pub fn has_user_namespace(&self) -> bool {
        self.flags().contains(CloneFlags::CLONE_NEWUSER)
    }

    /// The flags for clone(2).
    pub fn flags(&self) -> CloneFlags {
        self.namespaces.iter().copied().collect()
    }

    /// Makes the plan of a zygote. The private root is built in `root`, an empty directory. `scratch_home` is the
    /// directory that holds the mount point of scratch directories. `user` tells whether a user namespace is needed.
    ///
    /// # Errors
    /// When a path of the policy cannot be resolved.
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
        // First, since the other steps need the capabilities of root in the user namespace.
        if user {
            builder.map_to_root()?;
        }
        let none = || CString::default();
        // Before any mount, so that none of them is seen on the host. pivot_root(2) demands it too.
        builder.steps.push(Step::Private);
        // The root is a small tmpfs: it holds only directories, links and mount points.
        let (tmpfs, small) = (c"tmpfs".to_owned(), c"mode=0755,size=1m".to_owned());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        builder.steps.push(Step::Mount(tmpfs.clone(), c_path(root)?, tmpfs, flags, small));
        let mut paths = readable.to_vec();
        paths.push(python.program.clone());
        // Sorted, a directory comes before what it holds, which then needs no mount of its own.
        paths.sort();
        for path in &paths {
            builder.show(path)?;
        }
        // The only mounts without MS_NODEV: devices must work here.
        for device in DEVICES {
            builder.bind(Path::new(device), Path::new(device), MsFlags::MS_NOEXEC)?;
        }
        builder.bind(scratch_home, Path::new(BOX), MsFlags::MS_NODEV)?;
        // Without these, a script could not look up its own name.
        builder.steps.push(Step::Directory(builder.inside(Path::new("/etc"))?));
        for file in [PASSWD, GROUP] {
            let link = builder.inside(&Path::new("/etc").join(file))?;
            builder.steps.push(Step::Link(c_path(&Path::new(BOX).join(file))?, link));
        }
        // Many scripts write to /tmp. Not if libraries are in it, and only where each worker sees its own at one path.
        let holds_libraries = paths.iter().any(|path| path.starts_with("/tmp"));
        if mounts.are_complete() && !holds_libraries {
            builder
                .steps
                .push(Step::Link(c_path(Path::new(SCRATCH))?, builder.inside(Path::new("/tmp"))?));
        }
        match mounts {
            // The root becomes read-only last, since the steps before create files in it.
            Mounts::Full | Mounts::Moved => {
                let sealed = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
                let root = c_path(root)?;
                builder.steps.extend([
                    if mounts == Mounts::Full { Step::Root(root) } else { Step::Move(root) },
                    Step::Mount(none(), c"/".into(), none(), sealed, none()),
                ]);
            }
            Mounts::Plain => builder.steps.push(Step::Chroot(c_path(root)?)),
        }
        // Otherwise scripts could read the name of the host.
        builder.steps.push(Step::HostName(c"mainbox".into()));
        let mut namespaces: Vec<CloneFlags> = NAMESPACES.iter().map(|(_, flag)| *flag).collect();
        // The kernel creates a user namespace before the others of the same clone, which then belong to it.
        if user {
            namespaces.insert(0, CloneFlags::CLONE_NEWUSER);
        }
        Ok(Plan { namespaces, mounts: Some(mounts), steps: builder.steps })
    }
}

/// The steps with which a worker gets its own scratch directory, for the probe to try. The harness takes the same steps
/// for a real worker.
///
/// # Errors
/// When a string holds a NUL, which these strings do not.
pub fn worker_steps(scratch_bytes: u64, uid: Option<u32>, mounts: Mounts) -> io::Result<Vec<Step>> {
    if !mounts.are_complete() {
        return Ok(vec![]);
    }
    let mut steps = vec![
        // A mount namespace of its own, so that no other worker sees the tmpfs and it ends with the worker.
        Step::Unshare(CloneFlags::CLONE_NEWNS),
        // A tmpfs, so that the kernel limits the size of the scratch directory and the number of files in it.
        Step::Mount(
            c"tmpfs".into(),
            c_path(Path::new(SCRATCH))?,
            c"tmpfs".into(),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            CString::new(scratch_options(scratch_bytes, uid))?,
        ),
    ];
    // The kernel counts threads for RLIMIT_NPROC by uid and user namespace. Workers that share a uid are counted apart
    // in user namespaces of their own. This comes last: the mount namespace then belongs to the outer user namespace,
    // and the worker cannot change its mounts any more.
    if uid.is_none() {
        steps.push(Step::Unshare(CloneFlags::CLONE_NEWUSER));
    }
    Ok(steps)
}

/// The mount options of a scratch directory's tmpfs, which holds `bytes` bytes and belongs to `uid`, if given. See
/// <https://man7.org/linux/man-pages/man5/tmpfs.5.html>.
pub fn scratch_options(bytes: u64, uid: Option<u32>) -> String {
    let owner = uid.map_or_else(String::new, |uid| format!(",uid={uid},gid={uid}"));
    // At least one page, since size=0 means no limit.
    format!("mode=0700,size={},nr_inodes={MAX_SCRATCH_FILES}{owner}", bytes.max(4096))
}

/// Collects the steps that build a private root.
struct Builder {
    root: PathBuf,
    mounts: Mounts,
    steps: Vec<Step>,
    /// The paths that exist in the private root already, with everything beneath them.
    bound: Vec<PathBuf>,
}

impl Builder {
    /// Makes the process root of its user namespace, which maps the uid and gid of the service only. See
    /// <https://man7.org/linux/man-pages/man7/user_namespaces.7.html>.
    fn map_to_root(&mut self) -> io::Result<()> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        // The uid_map of a non-dumpable process belongs to root and could not be written.
        self.steps.push(Step::Dumpable(true));
        for (file, text) in [
            // A process without privileges must give up setgroups(2) before it may write gid_map.
            (c"/proc/self/setgroups", String::from("deny")),
            (c"/proc/self/uid_map", format!("0 {uid} 1")),
            (c"/proc/self/gid_map", format!("0 {gid} 1")),
        ] {
            self.steps.push(Step::Write(file.into(), CString::new(text)?));
        }
        self.steps.push(Step::Dumpable(false));
        Ok(())
    }

    /// Makes `path` readable at the same path in the private root. If it is a symbolic link, its target is mounted and
    /// the link is created again.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        let real = path.canonicalize()?;
        // Devices are mounted separately, with other flags.
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

    /// Mounts `source` at `place` in the private root, read-only if the kernel supports it, with the flags `more`
    /// added.
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
        // A bind mount ignores all other flags, so a second call sets them:
        // https://man7.org/linux/man-pages/man2/mount.2.html.
        if self.mounts.are_complete() {
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

    /// Creates the directories above `place`, except those that are part of a mount.
    fn directories_above(&mut self, place: &Path) -> io::Result<()> {
        let above: Vec<&Path> = place.ancestors().skip(1).collect();
        for directory in above.into_iter().rev().filter(|path| path.parent().is_some()) {
            if !self.bound.iter().any(|bound| directory.starts_with(bound)) {
                self.steps.push(Step::Directory(self.inside(directory)?));
            }
        }
        Ok(())
    }

    /// The path of `place` while the private root is being built.
    fn inside(&self, place: &Path) -> io::Result<CString> {
        let mut path = self.root.clone().into_os_string();
        path.push(place);
        c_path(Path::new(&path))
    }
}

/// The flags of the mount that holds `path` which a remount must repeat. In a user namespace, the kernel refuses a
/// remount that clears a restriction: <https://man7.org/linux/man-pages/man7/mount_namespaces.7.html>. Of these, only
/// MS_NOEXEC is not always set here. The kernel keeps the flags of access times if a remount names none.
fn restrictions(path: &Path) -> io::Result<MsFlags> {
    let noexec = statvfs(path)?.flags().contains(FsFlags::ST_NOEXEC);
    Ok(if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
