"""The end of a script: what the interpreter does when a program ends, but bounded."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import time
from io import IOBase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long threads may take after main has returned, seconds.
THREADS_SECONDS = 1.0
# Classes whose objects write when they are closed, by module.
CLOSED_AT_END = {
    "zipfile": ("ZipFile",),
    "tarfile": ("TarFile",),
    "gzip": ("GzipFile",),
    "bz2": ("BZ2File",),
    "lzma": ("LZMAFile",),
}


def end_threads() -> None:
    """Waits for threads that are not daemons, as the interpreter does, but not forever. The others die with the worker."""
    threading: Any = sys.modules.get("threading")
    if threading is None or threading.active_count() == 1:
        return
    end = time.monotonic() + THREADS_SECONDS
    # Executors register a function here that ends their threads. It waits for them, so it gets a thread of its own.
    hooks = list(getattr(threading, "_threading_atexits", ()))
    helper = threading.Thread(target=lambda: [hook() for hook in reversed(hooks)], daemon=True)
    with contextlib.suppress(RuntimeError):  # there is no room for another thread
        helper.start()
        helper.join(THREADS_SECONDS)
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


def run_exit_functions(before: int) -> None:
    """Runs what the script registered with atexit, if it registered anything, and flushes the handlers of logging.

    `before` is the number of functions that were registered before the script ran.
    """
    if atexit._ncallbacks() > before:
        atexit._run_exitfuncs()
    logging: Any = sys.modules.get("logging")
    if logging is not None and logging._handlerList:
        logging.shutdown()


def close_archives() -> None:
    """Closes archives that the script left open, since closing writes their end."""
    classes = tuple(known_classes())
    for thing in gc.get_objects() if classes else ():
        if issubclass(type(thing), classes) and getattr(thing, "mode", "r") not in ("r", "rb", 1):
            with contextlib.suppress(Exception):  # of a class of the script, or its file is gone
                thing.close()


def known_classes() -> Iterator[type]:
    """Yields the classes of CLOSED_AT_END whose modules are imported."""
    for module, names in CLOSED_AT_END.items():
        for name in names:
            known = getattr(sys.modules.get(module), name, None)
            if isinstance(known, type):
                yield known


def flush_files() -> dict[tuple[int, int], str]:
    """Flushes files that the script did not close, as the interpreter would at its end.

    Returns the device and inode number of the files that could not be written, and why.
    """
    close_archives()
    failed: dict[tuple[int, int], str] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), IOBase):
            try:
                thing.flush()
            except OSError as error:
                if (place := identity(thing)) is not None:
                    failed[place] = error.strerror or str(error)
            except Exception:  # read-only, closed, or of a class of the script
                continue
    return failed


def identity(file: Any) -> tuple[int, int] | None:
    """Returns device and inode number of an open file, if it has them."""
    try:
        status = os.fstat(file.fileno())
    except Exception:  # in memory, closed, or of a class of the script
        return None
    return status.st_dev, status.st_ino
