"""The zygote: imports what scripts will want, then does nothing but fork and reap."""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import nullcontext
from typing import Any

import mainbox_worker
from mainbox_home import home
from mainbox_lockdown import PR_SET_DUMPABLE, Filter, prctl
from mainbox_rehearsal import rehearse
from mainbox_script import library

# Only there where an archive is in use.
archived: Any = getattr(sys.modules.get("mainbox_archive"), "archived", None)

CONTROL = 3
MESSAGE_BYTES = 1 << 16
MOST_DESCRIPTORS = 8
# So many fit into a message, with all else that it tells.
MOST_INSTALLED = 500
# So long must nobody have wanted anything before the zygote does what can wait.
QUIET_MS = 20
# What many scripts import, and no start needs.
COMMON = [
    "asyncio", "base64", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal",
    "fractions", "functools", "heapq", "inspect", "io", "itertools", "math", "operator", "pathlib",
    "random", "re", "statistics", "string", "textwrap", "threading", "time", "typing", "uuid",
]  # fmt: skip


def serve(boot: dict[str, Any]) -> None:
    """The whole life of a zygote."""
    os.setsid()  # the terminal's Ctrl-C is for the supervisor
    if boot["lockdown"]["prctl"]:
        prctl(PR_SET_DUMPABLE, 0)  # workers of the same uid cannot look into it
    sys.set_int_max_str_digits(0)  # integers of any size pass through; time is limited otherwise
    Zygote(boot["lockdown"]).serve(boot["preload"], boot["archive"])


class Zygote:
    """Its children, and its two ears: orders from the supervisor, and SIGCHLD."""

    def __init__(self, lockdown: dict[str, Any]) -> None:
        filters = [Filter(program, lockdown["own_process"]) for program in lockdown["filters"]]
        self.lockdown = lockdown | {"filters": filters}
        self.control = socket.socket(fileno=CONTROL)
        self.children: dict[int, int] = {}
        self.released: dict[int, int] = {}
        self.wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self, preload: list[str], archive: str | None) -> None:
        """Imports, says that it is ready, and serves until the supervisor is gone."""
        with home(self.lockdown["home"]) if preload else nullcontext(), archived(archive) if archive else nullcontext():
            packages, missing = import_all(preload)
        if self.lockdown["late_limits"]:
            library.take_into_memory(packages)
            improve()  # frozen between requests, it would be at work during one
        rehearse(None)
        gc.freeze()
        python = sys.version.split()[0]
        standard = sorted(sys.stdlib_module_names)
        self.report(
            "ready", python=python, packages=packages, missing=missing, standard=standard, installed=installed()
        )
        try:
            self.listen()
        except ConnectionError:
            os._exit(0)  # the supervisor is gone

    def listen(self) -> None:
        """Obeys and reaps, for ever; the first time that nothing is to be done, it makes later workers faster."""
        ears = select.poll()
        ears.register(self.control, select.POLLIN)
        ears.register(self.wake, select.POLLIN)
        patience = None if self.lockdown["late_limits"] else QUIET_MS
        while True:
            events = ears.poll(patience)
            if not events:
                improve()
                patience = None
            for descriptor, _ in events:
                if descriptor == self.wake:
                    os.read(self.wake, 4096)
                    self.reap()
                else:
                    self.obey()

    def obey(self) -> None:
        """Receives one order and carries it out."""
        message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, MOST_DESCRIPTORS)
        if not message:
            os._exit(0)
        order = json.loads(message)
        if order["order"] == "fork":
            self.fork(order, descriptors)
        elif (child := self.children.pop(order["worker"], None)) is not None:
            self.released[child] = order["worker"]
            self.reap()
        else:  # its fork had failed
            self.report("reaped", worker=order["worker"], status=0, cpu_us=0, peak_bytes=0)

    def fork(self, order: dict[str, Any], descriptors: list[int]) -> None:
        """Forks a worker; in the child this does not return."""
        zygote = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            self.report("fork_failed", worker=order["worker"], errno=error.errno)
            child = -1
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.detach()
            mainbox_worker.live(order, descriptors, self.lockdown, zygote)
        for descriptor in descriptors:
            os.close(descriptor)
        if child > 0:
            self.children[order["worker"]] = child

    def reap(self) -> None:
        """Reports those that the supervisor released and that are dead; until then their process ids stay taken."""
        for child, worker in list(self.released.items()):
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                del self.released[child]
                self.report(
                    "reaped",
                    worker=worker,
                    status=status,
                    cpu_us=int((usage.ru_utime + usage.ru_stime) * 1e6),
                    peak_bytes=usage.ru_maxrss * 1024,
                )

    def report(self, report: str, **fields: object) -> None:
        """Tells the supervisor."""
        self.control.send(json.dumps({"report": report, **fields}).encode())


def improve() -> None:
    """Imports what is common, and leaves the garbage collector nothing that it would touch in a worker."""
    import_all(COMMON)
    gc.collect()
    gc.freeze()


def forget(package: str, before: set[str]) -> None:
    """Drops what has been imported since of a package that could not be: half of it would be in the way of a script."""
    for name in set(sys.modules) - before:
        if name == package or name.startswith(package + "."):
            del sys.modules[name]


def installed() -> dict[str, str]:
    """The distributions that scripts can import from, and their versions, by the names of their metadata."""
    names = (name for path in sys.path if os.path.isdir(path) for name in os.listdir(path))
    stems = sorted(name.removesuffix(".dist-info") for name in names if name.endswith(".dist-info"))
    return dict(stem.split("-", 1) for stem in stems[:MOST_INSTALLED] if "-" in stem)


def import_all(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Imports each module; returns the versions of those that are there, and why the others are not."""
    packages, missing = {}, {}
    for name in names:
        before = set(sys.modules)
        try:
            module = importlib.import_module(name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
            forget(name.partition(".")[0], before)
        else:
            packages[name] = str(getattr(module, "__version__", ""))
    return packages, missing
