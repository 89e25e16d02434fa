"""Runs the script: as the module `script`, its main once, and whatever becomes of it as one answer."""

import contextlib
import json
import linecache
import resource
import sys
import types
from collections.abc import Awaitable
from types import CodeType
from typing import Any, NamedTuple

from mainbox_courtesy import explain_late_limits
from mainbox_encoding import to_json
from mainbox_failure import SCRIPT, ScriptFailure, of_exception, of_exit
from mainbox_files import Workplace, collect
from mainbox_lockdown import libc, set_limits
from mainbox_validation import NO_MAIN, check, imported, is_async

MODULE = "script"
# Only there where scripts cannot open files: elsewhere its own imports would hold up the start.
library: Any = sys.modules.get("mainbox_library")


class Request(NamedTuple):
    """What is to be run."""

    source: str
    # None, or that of main as JSON.
    arguments: list[bytes]
    # Each with its name.
    files: list[tuple[str, memoryview]]


class Answer(NamedTuple):
    """What came of it."""

    # The JSON of what main returned.
    result: bytes
    # What was left in outputs/, each with its name.
    outputs: list[tuple[bytes, bytes]]


def answer(
    request: Request, go: dict[str, Any], workplace: Workplace | None, late_limits: list[dict[str, int]]
) -> Answer:
    """Runs the script. Raises ScriptFailure for everything but success."""
    checked = check(request.source, go["refused"])
    if late_limits:
        library.prepare(list(imported(checked.tree)), is_async(checked.tree))
        set_limits(late_limits)
        explain_late_limits()
    try:
        try:
            while request.files:  # each is in memory no longer than it must be
                workplace.lay(*request.files.pop())
            result = to_json(run(checked.code, request), go["max_depth"])
        finally:
            flush()  # its streams may be files in outputs/
        outputs = collect(workplace, go["outputs"]) if workplace else []
    except ScriptFailure:
        raise
    except SystemExit as error:
        raise of_exit(error) from None
    except MemoryError as error:
        use_reserve()
        raise of_exception(error) from None
    except BaseException as error:
        raise of_exception(error) from None
    if len(result) > go["max_result_bytes"]:
        raise ScriptFailure(
            "result_too_large", f"The result has {len(result)} bytes; the limit is {go['max_result_bytes']}"
        )
    return Answer(result, outputs)


def run(code: CodeType, request: Request) -> object:
    """Executes the script and its main, and waits for its threads."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    source = request.source
    linecache.cache[SCRIPT] = (len(source), None, source.splitlines(keepends=True), SCRIPT)
    exec(code, module.__dict__)
    main = module.__dict__.get("main")
    if not callable(main) or isinstance(main, type):
        raise ScriptFailure("missing_main", NO_MAIN)
    result = main(*map(json.loads, request.arguments))
    if isinstance(result, Awaitable):
        import asyncio  # as slow to import as all else together, and few scripts want it

        result = asyncio.run(await_it(result))
    if (threading := sys.modules.get("threading")) is not None:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    return result


async def await_it(result: Any) -> object:
    """Any awaitable as a coroutine, which is what asyncio.run takes."""
    return await result


def use_reserve() -> None:
    """Raises the memory limit to its hard value: what it takes to report that memory ran out."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def flush() -> None:
    """What a script has printed through C, or through a stream that it put in the place of ours, is printed too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # a stream of the script's own may do anything
            stream.flush()
    libc.fflush(None)
