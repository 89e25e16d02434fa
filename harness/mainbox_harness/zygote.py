"""The zygote: imports the preloaded modules once. Then machine code forks and reaps workers."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import substitutes, worker
from .control import send
from .failure import cut, type_and_message
from .fork_hooks import ForkHooks
from .import_home import import_home
from .lazy_imports import load_pending
from .libc import become_non_dumpable
from .long_parts import LongParts
from .native import GONE, NEVER, QUIET, WARM_WORKER, Native
from .patterns import Patterns
from .pictures import PICTURES, Pictures, replace_show
from .process_state import ProcessState
from .validation import WORDS, words_of
from .warmup import LIBRARIES, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from .late_limits import LateLimits

CONTROL = 3
# What the supervisor sends to a zygote with a single thread.
FORK_ALONE = b"A"
# The most distributions that are reported.
MAX_INSTALLED = 500
# The longest reason for a failed import that is reported, characters.
MAX_REASON = 2000
MAX_VERSION = 100
# How long the zygote must have received no order before it runs deferred imports.
QUIET_MS = 20
# Modules that many scripts import but that are not needed at startup.
COMMON = [
    "asyncio", "base64", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal",
    "fractions", "functools", "heapq", "inspect", "io", "itertools", "math", "operator", "pathlib",
    "random", "re", "statistics", "string", "textwrap", "threading", "time", "typing", "uuid",
]  # fmt: skip


class Zygote:
    """Imports, and then serves."""

    def __init__(self, boot: dict[str, Any]) -> None:
        """Imports every part of the harness that is needed, since the package cannot be imported later."""
        lockdown = boot["lockdown"]
        self.preload: list[str] = boot["preload"]
        self.usual_options = boot["usual_options"].encode()
        self.late_limits = load_late_limits(lockdown["late_limits"])
        self.archive = open_archive(boot["archive"])
        if lockdown["filtered"]:
            substitutes.install(lockdown["by_descriptor"])
        if not lockdown["threads"]:
            run_threads_inline()
        elif lockdown["max_threads"]:
            limit_threads(lockdown["max_threads"])
        self.lockdown = lockdown
        self.native = Native(boot["native"])
        LongParts.use(*self.native.json)
        # In threads of libraries too: one that takes this signal would keep it from the loop.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    def run(self) -> None:
        """Imports, reports that it is ready, and serves until the supervisor is gone."""
        os.setsid()  # Ctrl-C in a terminal is meant for the supervisor only
        if self.lockdown["prctl"]:
            become_non_dumpable()  # workers of the same uid must not read its memory
        sys.set_int_max_str_digits(0)  # results may contain integers of any size; the timeout limits their conversion
        os.environ.update(LIBRARIES)
        home = import_home(self.lockdown["home"]) if self.preload else nullcontext()
        with ForkHooks() as hooks:
            with home, self.archive:
                imported = import_all(self.preload, lambda name: send(CONTROL, {"report": "importing", "module": name}))
                load_pending()
            if self.late_limits is not None:
                self.late_limits.take_into_memory(imported.packages)
                preload_common_modules()  # at once: AWS Lambda freezes the process between requests
            replace_show()
            warm_up(None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a package may ignore it, or have it write to a descriptor
        signal.set_wakeup_fd(-1)
        options = json.loads(self.usual_options)
        options["refused"][WORDS] = words_of(options["refused"])
        options[PICTURES] = Pictures(Patterns(options["collect"]))
        options[PICTURES].install()  # else each worker would free those of the warm-up
        usual = worker.UsualOptions(self.usual_options, options)
        ready = imported._asdict() | {
            "python": sys.version.split()[0],
            "standard": sorted(sys.stdlib_module_names),
            "installed": installed(),
        }
        send(CONTROL, {"report": "ready"} | ready)
        # Only Python can do what modules want done around a fork, and forget the threads that are not in the child.
        through_python = receive_byte() != FORK_ALONE or bool(hooks.around)
        after_fork = [] if through_python else hooks.in_child
        state = ProcessState(self.lockdown["scratch"], after_fork, self.native.output)
        gc.freeze()
        self.serve(through_python, worker.Inherited(state, usual, self.lockdown["home"] is not None, self.late_limits))

    def serve(self, through_python: bool, inherited: worker.Inherited) -> NoReturn:
        """Serves forever. The first time that there is nothing to do, it does what later requests gain from."""
        quiet_ms = QUIET_MS if self.late_limits is None else NEVER
        moves_heap = False
        while (end := self.native.serve(through_python, moves_heap, quiet_ms)) == QUIET:
            preload_common_modules()
            inherited.state.find_generators()
            quiet_ms = NEVER
            moves_heap = not through_python  # such forks write to it each time
        if end == GONE:
            os._exit(0)
        worker.live(self.native.scratch(), end == WARM_WORKER, inherited)


def receive_byte() -> bytes:
    """Receives how to fork. Ends the process if the supervisor is gone."""
    try:
        return os.read(CONTROL, 1) or os._exit(0)
    except ConnectionError:
        os._exit(0)


def load_late_limits(limits: list[dict[str, int]]) -> LateLimits | None:
    """Imports what the tier `rlimits` needs, if it is in force."""
    if not limits:
        return None
    from . import memory_fs

    memory_fs.install()  # before further imports: modules keep functions such as `open` when they are imported
    from .late_limits import LateLimits

    return LateLimits(limits)


def open_archive(path: str | None) -> AbstractContextManager[None]:
    """Returns a context in which imports read from the bytecode archive, if one is used."""
    if path is None:
        return nullcontext()
    from .bytecode_archive import archived

    return archived(path)


def run_threads_inline() -> None:
    """Has thread pools run their work inline. Imported here, since it is slow to import and most hosts have threads."""
    from . import inline_threads

    inline_threads.install()


def limit_threads(most: int) -> None:
    """Refuses further threads. Imported here, since few hosts need it."""
    from . import thread_limit

    thread_limit.install(most)


def preload_common_modules() -> None:
    """Imports common modules, and freezes all objects so that the garbage collector of a worker does not touch them."""
    import_all(COMMON, lambda _: None)
    gc.collect()
    gc.freeze()


def forget(package: str, before: set[str]) -> None:
    """Drops the modules of a package whose import failed. A half-initialized package would break later imports."""
    for name in set(sys.modules) - before:
        if name == package or name.startswith(package + "."):
            del sys.modules[name]


def installed() -> dict[str, str]:
    """Returns the installed distributions and their versions, from the names of their metadata directories."""
    names = (name for path in sys.path if os.path.isdir(path) for name in os.listdir(path))
    stems = sorted(name.removesuffix(".dist-info") for name in names if name.endswith(".dist-info"))
    return dict(stem.split("-", 1) for stem in stems[:MAX_INSTALLED] if "-" in stem)


class Imported(NamedTuple):
    """What became of modules to import."""

    packages: dict[str, str]
    """The version of each module that was imported."""
    missing: dict[str, str]
    """Why the others were not."""
    threaded: list[str]
    """The modules that left threads running. A fork can then copy a lock that no thread will ever release."""


def import_all(names: list[str], announce: Callable[[str], None]) -> Imported:
    """Imports each module, and announces it before."""
    packages, missing, threaded = {}, {}, []
    for name in names:
        announce(name)
        before, threads_before = set(sys.modules), running_threads()
        try:
            module = importlib.import_module(name)
        except BaseException as error:  # a module may also call sys.exit()
            missing[name] = cut(type_and_message(error), MAX_REASON)
            forget(name.partition(".")[0], before)
        else:
            packages[name] = cut(str(getattr(module, "__version__", "")), MAX_VERSION)
        if running_threads() > threads_before:
            threaded.append(name)
    return Imported(packages, missing, threaded)


def running_threads() -> int:
    """Returns the number of Python threads, without importing anything."""
    threading = sys.modules.get("threading")
    return 1 if threading is None else threading.active_count()
