"""Runs the work of thread pools inline, in order, where a script can have no threads.

`asyncio.to_thread` and `run_in_executor` use a thread pool too, so they give the same answer as elsewhere.
"""

import threading
from concurrent.futures import Future
from concurrent.futures.thread import ThreadPoolExecutor
from typing import Any

# The target of that thread.
ENDS_EXECUTOR = "BaseEventLoop._do_shutdown"


def install() -> None:
    """Installs it for the rest of the process."""
    executor: Any = ThreadPoolExecutor
    executor.submit = submit
    thread: Any = threading.Thread
    thread.start = started_by(thread.start)


def started_by(real: Any) -> Any:
    """Returns Thread.start, which runs the thread with which asyncio ends its executor inline."""

    def start(thread: Any) -> None:
        if getattr(getattr(thread, "_target", None), "__qualname__", "") != ENDS_EXECUTOR:
            return real(thread)
        thread.run()
        thread.join = lambda timeout=None: None
        return None

    return start


def submit(self: Any, function: Any, /, *arguments: Any, **keywords: Any) -> "Future[Any]":
    """ThreadPoolExecutor.submit, without a thread."""
    if self._shutdown:
        raise RuntimeError("cannot schedule new futures after shutdown")
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    try:
        initialize(self)
        result = function(*arguments, **keywords)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    return future


def initialize(pool: Any) -> None:
    """Runs the initializer of a pool once, as its first thread would."""
    if getattr(pool, "_initialized_inline", False):
        return
    pool._initialized_inline = True
    # Python 3.14 keeps it in an object that makes a context for each thread.
    initializer = getattr(pool, "_initializer", None)
    if initializer is not None:
        initializer(*pool._initargs)
