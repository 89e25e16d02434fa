//! The attempts of the probe. Each tries one mechanism and returns 0, or an errno that tells why the mechanism does not
//! work. ENOTSUP means that the system calls succeed without the effect that the sandbox needs.
//!
//! Most mechanisms cannot be undone. An attempt that returns an `i32` changes the calling process and must run in
//! [`sys::in_child`]; one that returns an [`io::Result`] forks such a child itself.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use landlock::ABI;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::landlock::empty_ruleset;
use super::rlimits::Limit;
use super::system_calls::Workers;
use super::{rlimits, seccomp, sys};

/// Creates the namespace of `flag`, in a new user namespace if `user` is set.
pub(super) fn try_namespace(flag: CloneFlags, user: bool) -> io::Result<i32> {
    let flags = if user { flag | CloneFlags::CLONE_NEWUSER } else { flag };
    sys::in_child(|| errno_of_nix(unshare(flags)))
}

/// Mounts a tmpfs at `place` in a new mount namespace, and checks that this process does not see it. Under old versions
/// of gVisor it does.
pub(super) fn try_mount_namespace(place: &Path, user: bool) -> io::Result<i32> {
    let before = std::fs::metadata(place)?.dev();
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWUSER, user);
    let none = None::<&str>;
    let errno = sys::in_child(|| {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        errno_of_nix(unshare(flags).and_then(|()| {
            // This fails on a kernel without mount propagation. Whether the mount is visible is checked below anyway.
            let _ = mount(none, "/", none, private, none);
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)
        }))
    })?;
    // A mount that is visible here changes the device number of its mount point.
    if std::fs::metadata(place)?.dev() == before {
        return Ok(errno);
    }
    umount(place)?;
    Ok(libc::ENOTSUP)
}

/// Changes to a worker's uid, as a worker does.
pub(super) fn try_own_uid(uid: u32) -> i32 {
    let change = || -> nix::Result<()> {
        // The uid is last, since the other calls need the privileges of root.
        setgroups(&[])?;
        let gid = Gid::from_raw(uid);
        setresgid(gid, gid, gid)?;
        let uid = Uid::from_raw(uid);
        setresuid(uid, uid, uid)
    };
    errno_of_nix(change())
}

/// Installs the filter of a worker, then checks that it refuses one call and allows another.
pub(super) fn try_seccomp() -> i32 {
    let installed = sys::set_no_new_privileges()
        .and_then(|()| sys::install_filter(&seccomp::filter(Workers::APART)));
    match errno_of(installed) {
        0 => {}
        errno => return errno,
    }
    let refused = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    );
    match refused {
        Err(nix::errno::Errno::EPERM) if nix::unistd::getpid().as_raw() > 0 => 0,
        _ => libc::ENOTSUP,
    }
}

/// Enters a ruleset that allows nothing, then checks that a file cannot be opened.
pub(super) fn try_landlock(abi: ABI) -> i32 {
    let Ok(status) = empty_ruleset(abi).and_then(|ruleset| ruleset.restrict_self()) else {
        return libc::EOPNOTSUPP;
    };
    let enforced = status.ruleset == landlock::RulesetStatus::FullyEnforced;
    let refused = std::fs::File::open("/dev/null")
        .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    if enforced && refused { 0 } else { libc::EOPNOTSUPP }
}

/// Sets `limits`.
pub(super) fn try_limits(limits: &[Limit]) -> i32 {
    errno_of_nix(limits.iter().try_for_each(Limit::set))
}

/// Sets the late limits, then checks that no file can be opened and no process forked. This fails for root, to which
/// RLIMIT_NPROC does not apply.
pub(super) fn try_rlimits_of_zero() -> i32 {
    match try_limits(&rlimits::late_limits()) {
        0 => {}
        errno => return errno,
    }
    let opened = std::fs::File::open("/dev/null").is_ok();
    let forked = sys::in_child(|| 0).is_ok();
    if opened || forked { libc::ENOTSUP } else { 0 }
}

/// The errno of `outcome`, or 0 for a success. EIO stands for an error without an errno.
pub(super) fn errno_of(outcome: io::Result<()>) -> i32 {
    outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

/// The errno of `outcome`, or 0 for a success.
pub(super) fn errno_of_nix(outcome: nix::Result<()>) -> i32 {
    outcome.map_or_else(|errno| errno as i32, |()| 0)
}
