"""Refuses to start more threads than are allowed, where the kernel cannot since workers share a uid.

The supervisor ends a script with too many threads. This gives honest scripts the error that they get elsewhere.
"""

import _thread
import threading
from collections.abc import Callable
from typing import Any

# Of _thread, and under which threading imports them. Python 3.13 has the second.
STARTERS = ("start_new_thread", "start_joinable_thread")


def install(most: int) -> None:
    """Allows `most` threads for the rest of the process, the main thread included."""
    for name in STARTERS:
        for module, attribute in ((_thread, name), (threading, f"_{name}")):
            start = getattr(module, attribute, None)
            if start is not None:
                setattr(module, attribute, limited(start, most))


def limited(start: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Returns a function that starts a thread, or raises what Python raises if the kernel refuses it."""

    def limited_start(*arguments: Any, **options: Any) -> Any:
        # Without the main thread.
        if _thread._count() + 1 >= most:
            raise RuntimeError("can't start new thread")
        return start(*arguments, **options)

    return limited_start
