"""What a request contains, and what comes back: the bodies of docs/api.md as Python objects."""

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

T = TypeVar("T")

# The largest body of a request that a service accepts, bytes.
BODY_BYTES = 8 << 20

# The longest integer of a result, digits. The time of its conversion grows faster than its length.
INTEGER_DIGITS = 100_000
# As many digits can be converted at once, however the process has limited that.
PART_DIGITS = 600

# A file of a request: text, bytes, or the path of a file of this machine.
Content: TypeAlias = str | bytes | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Result:
    """What a script that succeeded returned, printed and left behind."""

    # What `main` returned, in its JSON form.
    value: Any
    stdout: str
    stderr: str
    # The files that came back, by their path relative to `outputs/`.
    files: dict[str, bytes]
    # Which of `stdout` and `stderr` reached their limit.
    truncated: tuple[str, ...]


class MainboxError(Exception):
    """A script failed, or a request was refused or not answered.

    `kind` is one of the kinds of docs/api.md, or `unreachable` if no whole response of mainbox came. `status` is that of the
    response, or 0 without one.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        status: int = 0,
        body: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Takes the other fields from the `body` of a response. Raises `TypeError` if one has the wrong type."""
        # All arguments, so that the error can be pickled.
        super().__init__(kind, message, status, body, retry_after)
        fields = body or {}
        self.kind = kind
        self.message = message
        self.status = status
        # What the script wrote before it failed.
        self.stdout = typed(str, fields.get("stdout", ""))
        self.stderr = typed(str, fields.get("stderr", ""))
        # The traceback, reduced to the frames of the script, and the line of the script that failed.
        self.traceback = typed(str, fields["traceback"]) if "traceback" in fields else None
        self.line = typed(int, fields["line"]) if "line" in fields else None
        # After how many seconds a request that is `busy` or `rate_limited` can be sent again, if the service said so.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.kind})"


class Options(TypedDict, total=False):
    """What a request can contain besides the script and its input. What is not given has the default of the service."""

    # What the script reads from its standard input.
    stdin: str
    # `script` runs the source as a program, without a `main`.
    entry: Literal["main", "script"]
    # Files for the working directory, by name.
    files: Mapping[str, Content]
    # Patterns for files that come back besides those in `outputs/`.
    collect: Iterable[str]
    # Limits below those of the service.
    timeout_seconds: float
    memory_mb: int


def request_body(script: str, options: Options, **fields: Any) -> bytes:
    """Returns the body of a request. `fields` is `input`, or nothing."""
    given: dict[str, Any] = {**options}
    if unknown := sorted(given.keys() - Options.__annotations__.keys()):
        raise TypeError(f"unknown arguments: {', '.join(unknown)}")
    limits = {name: given[name] for name in ("timeout_seconds", "memory_mb") if name in given}
    body: dict[str, Any] = {"script": script, **fields}
    body |= {name: given[name] for name in ("stdin", "entry") if name in given}
    if "files" in options:
        body["files"] = {name: _file(content) for name, content in options["files"].items()}
    if "collect" in options:
        body["collect"] = list(options["collect"])
    if limits:
        body["limits"] = limits
    return json.dumps(body, allow_nan=False).encode()


def request_bodies(script: str, options: Options, inputs: Iterable[object], most: int) -> Iterator[tuple[bytes, int]]:
    """Yields bodies of requests with at most `most` inputs each, and how many each has."""
    if most < 1:
        raise ValueError(f"batch is at least 1, not {most}")
    start = request_body(script, options)[:-1] + b', "inputs": ['
    part: list[bytes] = []
    size = len(start)
    for value in inputs:
        encoded = json.dumps(value, allow_nan=False).encode()
        if part and size + len(encoded) + len(b"]}") > BODY_BYTES:
            yield start + b",".join(part) + b"]}", len(part)
            part, size = [], len(start)
        part.append(encoded)
        size += len(encoded) + 1
        if len(part) == most:
            yield start + b",".join(part) + b"]}", len(part)
            part, size = [], len(start)
    if part:
        yield start + b",".join(part) + b"]}", len(part)


def _file(content: Content) -> str | dict[str, str]:
    if isinstance(content, str):
        return content
    data = content if isinstance(content, bytes) else Path(content).read_bytes()
    return {"base64": base64.b64encode(data).decode()}


def typed(kind: type[T], value: object) -> T:
    """Returns a value that has the type `kind`.

    Raises:
        TypeError: it has another one.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def parse(content: bytes) -> tuple[Any, bool]:
    """Parses JSON. Returns the value, and whether an integer in it is too long; it is `None` there.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(content), False
    except ValueError:
        # Python converts no integers with more than 4300 digits by default.
        long: list[None] = []

        def integer(digits: str) -> int | None:
            if len(digits) <= INTEGER_DIGITS:
                return -_natural(digits[1:]) if digits.startswith("-") else _natural(digits)
            return long.append(None)

        return json.loads(content, parse_int=integer), bool(long)


def _natural(digits: str) -> int:
    if len(digits) <= PART_DIGITS:
        return int(digits)
    half = len(digits) // 2
    return _natural(digits[:-half]) * 10**half + _natural(digits[-half:])


def outcome(status: int, content: bytes | Mapping[str, Any], retry_after: str | None = None) -> Result | MainboxError:
    """Reads the body of a response, or one of its results. `retry_after` is the header of that name."""
    try:
        body, has_long = parse(content) if isinstance(content, bytes) else (content, False)
        if has_long:
            return long_integer(status)
        if "kind" in body:
            # It may also be a date, or what a proxy made of it.
            seconds = int(retry_after) if retry_after and re.fullmatch("[0-9]{1,9}", retry_after) else None
            return MainboxError(typed(str, body["kind"]), typed(str, body["error"]), status, body, seconds)
        return Result(
            value=body["result"],
            stdout=typed(str, body["stdout"]),
            stderr=typed(str, body.get("stderr", "")),
            files={
                name: file.encode() if isinstance(file, str) else base64.b64decode(file["base64"])
                for name, file in body.get("files", {}).items()
            },
            truncated=tuple(typed(str, stream) for stream in typed(list, body.get("truncated", []))),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return not_of_mainbox(status)


def long_integer(status: int) -> MainboxError:
    """The error for a result with an integer whose conversion would take too long."""
    return MainboxError("result_too_large", f"the result has an integer with more than {INTEGER_DIGITS} digits", status)


def not_of_mainbox(status: int) -> MainboxError:
    """The error for an answer that has another form, such as that of a proxy."""
    return MainboxError("unreachable", f"the answer does not come from mainbox (status {status})", status)
