"""The failure of a script: its kind, a sentence for the caller, and the frames of the script."""

import json
import sys
import traceback
from typing import NoReturn

SCRIPT = "script.py"
# Characters. Longer texts are cut in the middle.
MAX_ERROR = 4_000
MAX_TRACEBACK = 32_000


class ScriptFailure(Exception):
    """The reason why a script has no result."""

    def __init__(self, kind: str, error: str, *, frames: str | None = None, line: int | None = None) -> None:
        super().__init__(error)
        self.kind = kind
        self.error = error
        self.frames = frames
        self.line = line

    def to_json(self) -> bytes:
        """Returns the payload of a failure frame."""
        fields: dict[str, object] = {"kind": self.kind, "error": cut(self.error, MAX_ERROR)}
        if self.frames is not None:
            fields["traceback"] = cut(self.frames, MAX_TRACEBACK)
        if self.line is not None:
            fields["line"] = self.line
        return json.dumps(without_server_paths(fields)).encode()


def cut(text: str, most: int) -> str:
    """Keeps the beginning and the end of a text that is longer than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-most // 2 :]}"


def type_and_message(error: BaseException) -> str:
    """Returns the type and message of an exception as valid text, even if its message cannot be computed."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    return text.encode("utf-8", "replace").decode()


def without_server_paths(fields: dict[str, object]) -> dict[str, object]:
    """Replaces the directories of the server's Python, which libraries name in their messages."""
    # Without /usr, which is the prefix of the system's Python and the beginning of many other paths. The longest first,
    # since they contain the shorter ones.
    directories = {path for path in (*sys.path, sys.prefix, sys.base_prefix) if path not in ("", "/usr")}
    longest_first = sorted(directories, key=len, reverse=True)

    def clean(text: str) -> str:
        for directory in longest_first:
            text = text.replace(directory, "<python>")
        return text.encode("utf-8", "replace").decode()  # UTF-8 has no lone surrogates

    return {name: clean(value) if isinstance(value, str) else value for name, value in fields.items()}


def of_exception(error: BaseException) -> ScriptFailure:
    """Returns the failure for an exception that the script raised."""
    summary = traceback.TracebackException.from_exception(error)
    line = own_frames_only(summary, set())
    frames = "".join(summary.format())
    if isinstance(error, MemoryError):
        return ScriptFailure("memory_limit", "The script needed more memory than its limit", frames=frames, line=line)
    if isinstance(error, SyntaxError):  # from exec or eval; its summary begins with the place
        sentence = f"{type(error).__name__}: {error}"
    else:
        sentence = "".join(summary.format_exception_only()).strip().split("\n  ")[0]
    return ScriptFailure("exception", sentence, frames=frames, line=line)


def of_exit(error: SystemExit) -> ScriptFailure:
    """Returns the failure for sys.exit(), which ends the script before its main returns."""
    return ScriptFailure("exit", f"The script called sys.exit({describe(error.code)}) before main returned")


def describe(value: object) -> str:
    """Returns the repr of a value, or its type if its repr fails."""
    try:
        return cut(repr(value), 200)
    except Exception:
        return f"<{type(value).__name__}>"


def own_frames_only(summary: traceback.TracebackException, seen: set[int]) -> int | None:
    """Drops the frames of the harness and of libraries, also in causes and exception groups.

    Returns the line of the innermost frame that is left.
    """
    if id(summary) in seen:
        return None
    seen.add(id(summary))
    own = [frame for frame in summary.stack if frame.filename == SCRIPT]
    summary.stack = traceback.StackSummary.from_list(own)
    for other in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if other is not None:
            own_frames_only(other, seen)
    return own[-1].lineno if own else None


def fail(kind: str, error: str, line: int | None = None) -> NoReturn:
    """Raises a ScriptFailure."""
    raise ScriptFailure(kind, error, line=line)
