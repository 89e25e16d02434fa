"""The end of a script: what the interpreter does when a program ends, but bounded."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import time
from io import IOBase, TextIOBase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long threads may take after main has returned, seconds.
THREADS_SECONDS = 1.0
# Classes whose objects write when they are closed, by module: members of archives, archives, and what may be around them.
CLOSED_AT_END: list[dict[str, str]] = [
    {"zipfile": "_ZipWriteFile"},
    {"zipfile": "ZipFile", "tarfile": "TarFile"},
    {"gzip": "GzipFile", "bz2": "BZ2File", "lzma": "LZMAFile"},
]


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


def exit_functions() -> tuple[int, list[Any]]:
    """Returns the number of functions of atexit, and the handlers of logging."""
    logging: Any = sys.modules.get("logging")
    return atexit._ncallbacks(), [] if logging is None else logging._handlerList[:]


def run_exit_functions(before: tuple[int, list[Any]]) -> None:
    """Runs what the script registered with atexit, and flushes the handlers of logging, if it has others.

    `before` is what there was before the script ran.
    """
    functions, handlers = before
    if atexit._ncallbacks() > functions:
        atexit._run_exitfuncs()
    logging: Any = sys.modules.get("logging")
    if logging is not None and logging._handlerList != handlers:
        logging.shutdown()


def flush_files() -> dict[tuple[int, int], str]:
    """Writes what the script left in open files and archives, as the interpreter would at its end.

    Returns the device and inode number of the files that could not be written, and why.
    """
    failed: dict[tuple[int, int], str] = {}
    things = gc.get_objects()
    files = [thing for thing in things if issubclass(type(thing), IOBase)]
    # Text first, since it is written into the files and archives below it.
    for file in sorted(files, key=lambda file: not issubclass(type(file), TextIOBase)):
        attempt(flush, file, failed)
    # Then archives, of which the members are closed first: closing writes their end.
    for classes in CLOSED_AT_END:
        kinds = tuple(known_classes(classes))
        for thing in things if kinds else ():
            if issubclass(type(thing), kinds):
                attempt(close_written, thing, failed)
    # Closing an archive writes into the file below it.
    for file in files:
        attempt(flush, file, failed)
    return failed


def attempt(act: Callable[[Any], None], thing: Any, failed: dict[tuple[int, int], str]) -> None:
    """Writes something. Objects that are closed, read only, or of a class of the script may raise anything."""
    place = identity(thing)
    try:
        act(thing)
    except OSError as error:
        if place is not None:
            failed[place] = error.strerror or str(error)
    except Exception:
        return


def close_written(thing: Any) -> None:
    """Closes an archive or a compressed file that was opened for writing."""
    if thing.mode not in ("r", "rb") if not hasattr(thing, "writable") else thing.writable():
        thing.close()


def flush(file: Any) -> None:
    """Writes what is buffered."""
    file.flush()


def known_classes(classes: dict[str, str]) -> Iterator[type]:
    """Yields those classes whose modules are imported."""
    for module, name in classes.items():
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type):
            yield known


def identity(file: Any) -> tuple[int, int] | None:
    """Returns device and inode number of an open file, if it has them."""
    try:
        status = os.fstat((getattr(file, "fp", None) or getattr(file, "fileobj", None) or file).fileno())
    except Exception:  # in memory, closed, or of a class of the script
        return None
    return status.st_dev, status.st_ino
