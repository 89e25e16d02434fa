"""Runs a script: executes it as the module `script`, calls its main once, and encodes the result."""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import resource
import sys
import types
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from .ending import end_threads, exit_functions, run_exit_functions
from .failure import SCRIPT, ScriptFailure, of_exception, of_exit
from .libc import libc
from .outputs import collect
from .patterns import Patterns
from .pictures import PICTURES, Pictures
from .to_json import to_json
from .validation import NO_MAIN, check

if TYPE_CHECKING:
    from .late_limits import LateLimits
    from .outputs import WorkDir
    from .validation import Checked

MODULE = "script"


class Request(NamedTuple):
    """A script to run."""

    source: str
    arguments: list[bytes]
    """Empty, or the argument of main as JSON."""
    files: list[tuple[str, memoryview]]
    """Name and content of each file."""


class Answer(NamedTuple):
    """What a script returned."""

    result: list[bytes]
    """The result of main as JSON, in pieces."""
    outputs: list[tuple[bytes, bytes]]
    """Name and content of each file that comes back."""


def run(request: Request, options: dict[str, Any], work_dir: WorkDir | None, late_limits: LateLimits | None) -> Answer:
    """Runs a script. Raises ScriptFailure unless it succeeds."""
    pictures = options.get(PICTURES) or Pictures(Patterns(options["collect"]))
    pictures.install()  # before the late limits, which import what the script names
    checked = check(
        request.source,
        options["refused"],
        options["entry"],
        has_input=bool(request.arguments),
        needs_tree=late_limits is not None,
    )
    if late_limits is not None:
        late_limits.set(checked)
    try:
        registered = exit_functions()
        try:
            while work_dir and request.files:  # each is dropped once written, since the memory limit counts it
                work_dir.write(*request.files.pop())
            if work_dir and "__file__" in request.source:
                place_source(work_dir, request.source)
            returned = call(checked, request)
            end_threads()
            result = to_json(returned, options["max_depth"], options["max_result_bytes"], pictures)
            pictures.add_open_figures()  # before the exit functions, one of which closes them
            run_exit_functions(registered)
        finally:
            flush()  # the script may have replaced its streams with files in outputs/
        outputs = collect(work_dir, pictures.patterns, options["outputs"], pictures.files) if work_dir else []
    except ScriptFailure:
        raise
    except SystemExit as error:
        raise of_exit(error) from None
    except MemoryError as error:
        use_memory_reserve()
        raise of_exception(error) from None
    except BaseException as error:
        raise of_exception(error) from None
    size = sum(map(len, result))
    if size > options["max_result_bytes"]:
        raise ScriptFailure(
            "result_too_large", f"The result has {size} bytes; the limit is {options['max_result_bytes']}"
        )
    return Answer(result, outputs)


def call(checked: Checked, request: Request) -> object:
    """Executes the module, and calls its main unless the script is run as a program."""
    module = types.ModuleType("__main__" if checked.is_program else MODULE)
    sys.modules[MODULE] = sys.modules["__main__"] = module
    source = request.source
    path = module.__dict__["__file__"] = own_file()
    lines = lines_of(source)
    for name in (SCRIPT, path):
        linecache.cache[name] = (len(source), None, lines, name)
    exec(checked.code, module.__dict__)
    if checked.is_program:
        return None
    main = module.__dict__.get("main")
    if not callable(main) or isinstance(main, type):
        raise ScriptFailure("missing_main", NO_MAIN)
    result = main(*map(json.loads, request.arguments))
    if isinstance(result, Awaitable):
        import asyncio  # here, since it takes as long to import as everything else together and few scripts need it

        result = asyncio.run(as_coroutine(result))
    return result


def own_file() -> str:
    """Returns the path of the script in its working directory."""
    return os.path.join(os.environ.get("HOME", ""), SCRIPT)


def forget() -> None:
    """Removes every trace of a script that a later one could see."""
    del sys.modules[MODULE]
    for name in (SCRIPT, own_file()):
        linecache.cache.pop(name, None)


def lines_of(source: str) -> list[str]:
    """Splits a source where Python does. str.splitlines also splits at form feeds and other characters."""
    return io.StringIO(source, newline=None).readlines()


def place_source(work_dir: WorkDir, source: str) -> None:
    """Writes the source to the path in `__file__`, unless there is a file of the request or none can be written."""
    with contextlib.suppress(OSError):
        work_dir.write(SCRIPT, memoryview(source.encode()))


async def as_coroutine(result: Any) -> object:
    """Turns any awaitable into a coroutine, which is what asyncio.run accepts."""
    return await result


def use_memory_reserve() -> None:
    """Raises the memory limit to its hard value, so that there is memory to report that it ran out."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def flush() -> None:
    """Flushes what the script printed through C, or through a stream that it put in place of stdout."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # a stream of the script can raise anything
            stream.flush()
    libc.fflush(None)
