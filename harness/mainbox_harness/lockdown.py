"""Locks a worker into the sandbox: one step, one mechanism, in a fixed order. The supervisor decides what; this does it.

Any step that fails ends the worker before it has read its request.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable
from typing import Any

CHANNEL = 3
RULESET = 4

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
    """A seccomp filter with places in it for the process id of whoever installs it; made once, in the zygote."""

    def __init__(self, program: str, own_process: int) -> None:
        self.code = bytearray.fromhex(program)
        operands = (operand for _, _, _, operand in BPF_INSTRUCTION.iter_unpack(self.code))
        self.places = [
            number * BPF_INSTRUCTION.size + OPERAND_OFFSET
            for number, operand in enumerate(operands)
            if operand == own_process
        ]

    def install(self) -> None:
        """Installs it in this process."""
        me = os.getpid()
        for place in self.places:
            OPERAND.pack_into(self.code, place, me)
        code = bytes(self.code)
        filters = SockFprog(len(code) // BPF_INSTRUCTION.size, code)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filters))


class LockdownError(Exception):
    """A step failed; the worker must not go on."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(step)
        self.step = step
        self.error = f"{type(error).__name__}: {error}"


def lock_down(lockdown: dict[str, Any], order: dict[str, Any], zygote: int) -> None:
    """Carries out every step, or raises LockdownError. The worker's descriptors are at their places already."""
    prctl_works = lockdown["prctl"]
    steps: list[tuple[str, Callable[[], None]]] = [("session", os.setsid)]
    if order["mount"] is not None:
        steps.append(("mount", lambda: mount_scratch(order["scratch"], order["mount"])))
    if lockdown["user_namespace"]:
        steps.append(("user_namespace", lambda: unshare(CLONE_NEWUSER)))
    steps += [
        ("limits", lambda: set_limits(order["limits"])),
        ("uid", lambda: change_uid(order["uid"])),
        ("scratch", lambda: os.chdir(order["scratch"])),
    ]
    if prctl_works:
        steps += [
            ("capabilities", drop_capabilities),
            ("parent_death_signal", lambda: die_with(zygote)),
            ("non_dumpable", lambda: prctl(PR_SET_DUMPABLE, 0)),
            ("no_new_privs", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1)),
        ]
    if order["ruleset"]:
        steps.append(("landlock", enter_ruleset))
    steps += [("seccomp", seccomp_filter.install) for seccomp_filter in lockdown["filters"]]
    for step, act in steps:
        try:
            act()
        except Exception as error:
            raise LockdownError(step, error) from error


def mount_scratch(place: str, options: str) -> None:
    """Mounts a tmpfs that nobody else sees and that goes with us."""
    unshare(CLONE_NEWNS)
    mount(place, options)


def mount(place: str, options: str) -> None:
    """Mounts a tmpfs."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if libc.mount(b"tmpfs", place.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        raise_errno()


def unmount(place: str) -> None:
    """Takes away what is mounted there."""
    if libc.umount2(place.encode(), MNT_DETACH) != 0:
        raise_errno()


def unshare(namespace: int) -> None:
    """Leaves a namespace for a new one."""
    if libc.unshare(namespace) != 0:
        raise_errno()


def set_limits(limits: list[dict[str, int]]) -> None:
    """Sets each limit, or less where we were started with less."""
    for limit in limits:
        _, most = resource.getrlimit(limit["resource"])
        soft, hard = limit["soft"], limit["hard"]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(limit["resource"], (soft, hard))


def lower_limits(differences: list[dict[str, int]]) -> None:
    """Lowers each limit by so much."""
    for limit in differences:
        soft, hard = resource.getrlimit(limit["resource"])
        resource.setrlimit(limit["resource"], (soft - limit["soft"], hard - limit["hard"]))


def change_uid(uid: int | None) -> None:
    """Takes a uid and gid that no other process has."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Gives up every capability, also where the uid stays root's."""
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    none = bytes(24)
    if libc.capset(header, none) != 0:
        raise_errno()


def die_with(zygote: int) -> None:
    """Asks the kernel to end us with the zygote; it may have ended just before."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:
        raise ProcessLookupError("the zygote is gone")


def enter_ruleset() -> None:
    """Enters the Landlock ruleset that the supervisor made for us."""
    if libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, RULESET, 0, 0, 0) != 0:
        raise_errno()
    os.close(RULESET)


def prctl(option: int, value: int, pointer: int = 0) -> None:
    """Calls prctl(2)."""
    if libc.prctl(option, value, pointer, 0, 0) != 0:
        raise_errno()


def raise_errno() -> None:
    """Raises what the last call answered."""
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno))
