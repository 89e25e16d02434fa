"""The lockdown: puts a worker into the sandbox, one mechanism per step, in a fixed order.

The supervisor decides which steps there are. If one fails, the worker ends before it has read its request.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable
from typing import Any

# Descriptors of a worker.
CHANNEL = 3
RULESET = 4

# Numbers from the kernel's headers.
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SYS_LANDLOCK_RESTRICT_SELF = 446
LINUX_CAPABILITY_VERSION_3 = 0x20080522
# struct sock_filter of linux/filter.h, and the field `k` in it.
BPF_INSTRUCTION = struct.Struct("=HBBI")
OPERAND, OPERAND_OFFSET = struct.Struct("=I"), 4

libc = ctypes.CDLL(None, use_errno=True)
for function in (libc.prctl, libc.syscall):
    function.argtypes = [ctypes.c_long, *[ctypes.c_ulong] * 4]
    function.restype = ctypes.c_long


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class Filter:
    """A seccomp filter that compares with the process id of the worker. Made once, in the zygote.

    `own_process` is the number that stands for that process id in the program.
    """

    def __init__(self, program: str, own_process: int) -> None:
        self.code = bytearray.fromhex(program)
        operands = (operand for _, _, _, operand in BPF_INSTRUCTION.iter_unpack(self.code))
        self.offsets = [
            number * BPF_INSTRUCTION.size + OPERAND_OFFSET
            for number, operand in enumerate(operands)
            if operand == own_process
        ]

    def install(self) -> None:
        """Installs the filter in this process."""
        code = self.for_process(os.getpid())
        program = SockFprog(len(code) // BPF_INSTRUCTION.size, code)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))

    def for_process(self, pid: int) -> bytes:
        """Returns the program with `pid` as the process id."""
        for offset in self.offsets:
            OPERAND.pack_into(self.code, offset, pid)
        return bytes(self.code)


class LockdownError(Exception):
    """A step failed. The worker must not continue."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(step)
        self.step = step
        self.error = f"{type(error).__name__}: {error}"


def lock_down(lockdown: dict[str, Any], start: dict[str, Any], zygote: int) -> None:
    """Takes every step, or raises LockdownError. The descriptors of the worker are in place already."""
    steps: list[tuple[str, Callable[[], None]]] = []

    # Its own process group: killpg() in the script must not reach the zygote. It needs no other step, so it comes
    # first.
    steps.append(("session", os.setsid))
    # A file system in memory that only this worker sees, with limits on bytes and files that the kernel enforces. Needs
    # CAP_SYS_ADMIN in the zygote's user namespace, so it comes before everything that gives up privileges.
    if start["mount"] is not None:
        steps.append(("mount", lambda: mount_scratch(start["scratch"], start["mount"])))
    # The kernel counts threads for each user namespace and uid. Workers that share a uid need a namespace each, or one
    # could use up the threads of all. After the mount, so that the new namespace has no rights over it.
    if lockdown["user_namespace"]:
        steps.append(("user_namespace", lambda: unshare(CLONE_NEWUSER)))
    # Bounds memory, CPU time, descriptors, threads and file size. After the user namespace, in which the threads of
    # this worker are counted alone; before the uid, so that nothing runs with that uid and the limits of the service.
    steps.append(("limits", lambda: set_limits(start["limits"])))
    # Keeps the worker from files, processes and memory of the service and of other workers. Needs CAP_SETUID.
    steps.append(("uid", lambda: change_uid(start["uid"])))
    # After the uid, so that it fails now if the worker cannot enter its scratch directory.
    steps.append(("scratch", lambda: os.chdir(start["scratch"])))
    if lockdown["prctl"]:
        # A worker that stays root or is in a new user namespace still has capabilities. After the uid, which needs one.
        steps.append(("capabilities", drop_capabilities))
        # If the zygote is killed, no worker may outlive it. The kernel resets this and the next flag when the uid
        # changes, so both come after it.
        steps.append(("parent_death_signal", lambda: die_with(zygote)))
        # Other processes of the same uid must not trace this one or read its memory.
        steps.append(("non_dumpable", lambda: prctl(PR_SET_DUMPABLE, 0)))
        # Executing a program cannot restore privileges. Landlock and seccomp require it from processes without
        # CAP_SYS_ADMIN.
        steps.append(("no_new_privs", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)))
    # Confines the worker to the files of the interpreter and its scratch directory, even if its uid may read more.
    # Before seccomp, which refuses the system call.
    if start["ruleset"]:
        steps.append(("landlock", enter_ruleset))
    # Refuses every system call that scripts do not need, among them those of the steps above and further filters, so it
    # is the last.
    if lockdown["filter"]:
        steps.append(("seccomp", lockdown["filter"].install))

    for step, act in steps:
        try:
            act()
        except Exception as error:
            raise LockdownError(step, error) from error


def mount_scratch(path: str, options: str) -> None:
    """Mounts a tmpfs that only this process sees. The kernel removes it when the process ends."""
    unshare(CLONE_NEWNS)
    mount(path, options)


def mount(path: str, options: str) -> None:
    """Mounts a tmpfs."""
    # No devices and no programs: neither has a use in a directory of data.
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        raise_errno()


def unmount(path: str) -> None:
    """Unmounts what is mounted at `path`."""
    # MNT_DETACH: succeeds although an imported library still has a file open there.
    if libc.umount2(path.encode(), MNT_DETACH) != 0:
        raise_errno()


def unshare(namespace: int) -> None:
    """Moves this process into a new namespace."""
    if libc.unshare(namespace) != 0:
        raise_errno()


def set_limits(limits: list[dict[str, int]]) -> None:
    """Sets each limit. Where the service was started with a lower limit, that one stays in force."""
    for limit in limits:
        _, most = resource.getrlimit(limit["resource"])
        soft, hard = limit["soft"], limit["hard"]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit["resource"], (soft, hard))


def lower_limits(differences: list[dict[str, int]]) -> None:
    """Lowers each limit by a difference."""
    for limit in differences:
        soft, hard = resource.getrlimit(limit["resource"])
        resource.setrlimit(limit["resource"], (soft - limit["soft"], hard - limit["hard"]))


def change_uid(uid: int | None) -> None:
    """Changes to a uid and gid that no other process has. Without one, the uid stays that of the zygote."""
    if uid is not None:
        # The uid last: without the privileges of root, neither groups nor gid can change.
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Gives up every capability, even if the worker stays root."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    # The effective, permitted and inheritable sets, all empty.
    empty = bytes(24)
    if libc.capset(header, empty) != 0:
        raise_errno()


def die_with(zygote: int) -> None:
    """Asks the kernel to kill this process when the zygote ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The zygote may have ended before the call.
    if os.getppid() != zygote:
        raise ProcessLookupError("the zygote is gone")


def enter_ruleset() -> None:
    """Enters the Landlock ruleset that the supervisor made."""
    if libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, RULESET, 0, 0, 0) != 0:
        raise_errno()
    # The script must not inherit a descriptor that it has no use for.
    os.close(RULESET)


def prctl(option: int, value: int, pointer: int = 0) -> None:
    """Calls prctl(2)."""
    if libc.prctl(option, value, pointer, 0, 0) != 0:
        raise_errno()


def raise_errno() -> None:
    """Raises the error of the last call of the C library."""
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno))
