"""The failure of a script: its kind, a sentence for the caller, and the frames of the script."""

import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn

from .hints import hint_for, links

SCRIPT = "script.py"
# Characters. Longer texts are cut in the middle.
MAX_ERROR = 4_000
MAX_TRACEBACK = 32_000
# Frames at each end of a traceback. The middle of a longer one is left out.
KEPT_FRAMES = 1000


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
        return json.dumps({name: valid(value) for name, value in fields.items()}).encode()


def cut(text: str, most: int) -> str:
    """Keeps the beginning and the end of a text that is longer than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters left out ...]\n{text[-most // 2 :]}"


def type_and_message(error: BaseException) -> str:
    """Returns the type and message of an exception as valid text, even if its message cannot be computed."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # of a class of the script
        text = type(error).__name__
    return text.encode("utf-8", "replace").decode()


def valid(value: object) -> object:
    """Replaces lone surrogates, which UTF-8 does not have."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def of_exception(error: BaseException) -> ScriptFailure:
    """Returns the failure for an exception that the script raised."""
    hint = hint_for(error)
    keep_own_frames(error)
    summary = traceback.TracebackException.from_exception(error)
    line = mark_what_is_left_out(summary)
    frames = "".join(summary.format())
    if isinstance(error, MemoryError):
        return ScriptFailure("memory_limit", "The script needed more memory than its limit", frames=frames, line=line)
    return ScriptFailure("exception", sentence_of(error, summary) + hint, frames=frames, line=line)


def sentence_of(error: BaseException, summary: traceback.TracebackException) -> str:
    """Returns the type and the whole message of an exception. For a group also its first exception."""
    if isinstance(error, SyntaxError):  # from exec or eval; its summary begins with the place
        return type_and_message(error)
    sentence = "".join(summary.format_exception_only()).strip()
    if isinstance(error, BaseExceptionGroup):
        first: BaseException = error
        while parts := inner(first):
            first = parts[0]
        sentence += f"; the first is {type_and_message(first)}"
    return sentence


def inner(error: BaseException) -> tuple[BaseException, ...]:
    """Returns the exceptions of a group, which a class of the script cannot override; none of any other exception."""
    if not isinstance(error, BaseExceptionGroup):
        return ()
    return BaseExceptionGroup.exceptions.__get__(error)  # type: ignore[attr-defined]


def of_exit(error: SystemExit) -> ScriptFailure:
    """Returns the failure for sys.exit(), which ends the script before its main returns."""
    sentence = f"The script called sys.exit({describe(error.code)}) before main returned"
    own = own_frames(error.__traceback__)
    return ScriptFailure("exit", sentence, line=own[-1].tb_lineno if own else None)


def describe(value: object) -> str:
    """Returns the repr of a value, or its type if its repr fails."""
    try:
        return cut(repr(value), 200)
    except BaseException:  # of a class of the script
        return f"<{type(value).__name__}>"


def own_frames(frames: TracebackType | None) -> list[TracebackType]:
    """Returns the frames of the script itself, without those of the harness and of libraries."""
    return [frame for frame in links(frames) if frame.tb_frame.f_code.co_filename == SCRIPT]


def linked(first: Any, parts: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yields an exception, or the summary of one, with its causes and contexts and with those in `parts`, each once."""
    pending = [first]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__, *parts(current)]


def keep_own_frames(error: BaseException) -> None:
    """Drops all frames but the script's, and the middle of a long traceback, also in causes and exception groups.

    This is done before a summary is made of the frames: for the 200,000 of a deep recursion, that takes seconds.
    """
    for current in linked(error, inner):
        own = own_frames(current.__traceback__)
        if len(own) >= 2 * KEPT_FRAMES:
            own = own[:KEPT_FRAMES] + own[-KEPT_FRAMES:]
        chain = None
        for frame in reversed(own):
            chain = TracebackType(chain, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
        current.__traceback__ = chain


class CutFrames(traceback.StackSummary):
    """The frames of a traceback without its middle."""

    def format(self, **options: Any) -> list[str]:
        """Returns the lines, with a line for the middle."""
        first, last = (traceback.StackSummary.from_list(part) for part in (self[:KEPT_FRAMES], self[KEPT_FRAMES:]))
        return [*first.format(**options), "  [The frames in the middle are left out]\n", *last.format(**options)]


def mark_what_is_left_out(summary: traceback.TracebackException) -> int | None:
    """Marks the place of frames that `keep_own_frames` dropped. Returns the line of the innermost frame."""
    for current in linked(summary, lambda summary: getattr(summary, "exceptions", None) or ()):
        if len(current.stack) == 2 * KEPT_FRAMES:
            current.stack = CutFrames(current.stack)
    return summary.stack[-1].lineno if summary.stack else None


def fail(kind: str, error: str, line: int | None = None) -> NoReturn:
    """Raises a ScriptFailure."""
    raise ScriptFailure(kind, error, line=line)
