"""What a script can do instead, for errors that the sandbox causes or that Python explains too little."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from types import TracebackType

from .pandas_hints import moved

# Errors of the kernel for a file that a script may not reach.
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
PROCESSES = ("/multiprocessing/", "/concurrent/futures/process.py")
SUGGESTION = re.compile(r"\. Did you mean: '[^'\n]+'\?$")

WORKING_DIRECTORY = "a script can create files in its working directory only, by a relative path"
NO_PROCESSES = "starting other processes is not available in the sandbox; use threads or asyncio"
NO_INPUT = "the standard input of this script has ended; input() reads the `stdin` of the request"
NO_THREADS = "a script can have 64 threads, or fewer with little memory"


def hint_for(error: BaseException) -> str:
    """Returns the rest of a sentence about an error, or nothing."""
    if isinstance(error, OSError):
        files = {frame.tb_frame.f_code.co_filename for frame in links(error.__traceback__)}
        if any(part in file for part in PROCESSES for file in files):
            return f"; {NO_PROCESSES}"
        if type(error.errno) is int and error.errno in CLOSED and is_outside(error.filename):
            return f"; {WORKING_DIRECTORY}"
    if type(error) is EOFError and says(error, "EOF when reading a line"):
        return f"; {NO_INPUT}"
    if type(error) is RuntimeError and says(error, "can't start new thread"):
        return f"; {NO_THREADS}"
    if isinstance(error, (AttributeError, TypeError)) and (hint := moved(error)):
        return hint
    if sys.version_info < (3, 12) and isinstance(error, (NameError, AttributeError)):
        return suggestion(error)
    return ""


def says(error: BaseException, message: str) -> bool:
    """Whether the only argument of an error is this message. Comparing arguments of other types can raise anything."""
    return len(error.args) == 1 and type(error.args[0]) is str and error.args[0] == message


def is_outside(path: object) -> bool:
    """Whether a path that an error names is outside the working directory."""
    if not isinstance(path, str):
        return False
    home = os.environ.get("HOME", "")
    return os.path.isabs(path) and not f"{os.path.normpath(path)}/".startswith(f"{home}/")


def suggestion(error: BaseException) -> str:
    """Returns what Python 3.11 suggests only when it prints an error; newer ones do it in a traceback too."""
    text = io.StringIO()
    with redirect_stderr(text):
        # The suggestion is made from the names of the innermost frame.
        innermost = [None, *links(error.__traceback__)][-1]
        sys.__excepthook__(type(error), error, innermost)
    found = SUGGESTION.search(text.getvalue().rstrip())
    return found.group() if found else ""


def links(frames: TracebackType | None) -> Iterator[TracebackType]:
    """Yields the frames of a traceback, the innermost last."""
    while frames is not None:
        yield frames
        frames = frames.tb_next
