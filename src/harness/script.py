"""Runs the script: as the module `script`, its main once, and whatever becomes of it as one answer."""

import contextlib
import json
import linecache
import resource
import sys
import types
from collections.abc import Awaitable
from types import CodeType
from typing import Any

from mainbox_courtesy import explain_late_limits
from mainbox_encoding import to_json
from mainbox_failure import SCRIPT, ScriptFailure, of_exception, of_exit
from mainbox_lockdown import libc, set_limits
from mainbox_validation import NO_MAIN, check, imported, is_async

MODULE = "script"
# Only there where scripts cannot open files: elsewhere its own imports would hold up the start.
library: Any = sys.modules.get("mainbox_library")


def answer(source: str, arguments: list[bytes], go: dict[str, Any], late_limits: list[dict[str, int]]) -> bytes:
    """The JSON of what main returned. Raises ScriptFailure for everything else."""
    checked = check(source, go["refused"])
    if late_limits:
        library.prepare(list(imported(checked.tree)), is_async(checked.tree))
        set_limits(late_limits)
        explain_late_limits()
    try:
        try:
            result = to_json(run(checked.code, source, arguments), go["max_depth"])
        except ScriptFailure:
            raise
        except SystemExit as error:
            raise of_exit(error) from None
        except MemoryError as error:
            use_reserve()
            raise of_exception(error) from None
        except BaseException as error:
            raise of_exception(error) from None
    finally:
        flush()
    if len(result) > go["max_result_bytes"]:
        raise ScriptFailure(
            "result_too_large", f"The result has {len(result)} bytes; the limit is {go['max_result_bytes']}"
        )
    return result


def run(code: CodeType, source: str, arguments: list[bytes]) -> object:
    """Executes the script and its main, and waits for its threads."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    linecache.cache[SCRIPT] = (len(source), None, source.splitlines(keepends=True), SCRIPT)
    exec(code, module.__dict__)
    main = module.__dict__.get("main")
    if not callable(main) or isinstance(main, type):
        raise ScriptFailure("missing_main", NO_MAIN)
    result = main(*map(json.loads, arguments))
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
