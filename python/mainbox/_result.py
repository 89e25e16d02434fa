"""What a request contains, and what comes back: the bodies of docs/api.md as Python objects."""

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

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

    `kind` is one of the kinds of docs/api.md, or `unreachable` if no whole response came. `status` is then 0.
    """

    def __init__(self, kind: str, message: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        # All arguments, so that the error can be pickled.
        super().__init__(kind, message, status, body)
        fields = body or {}
        self.kind = kind
        self.message = message
        self.status = status
        # What the script wrote before it failed.
        self.stdout = str(fields.get("stdout", ""))
        self.stderr = str(fields.get("stderr", ""))
        # The traceback, reduced to the frames of the script, and the line of the script that failed.
        self.traceback: str | None = fields.get("traceback")
        self.line: int | None = fields.get("line")

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
    """Returns the body of a request. `fields` are `input` or `inputs`, or neither."""
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


def _file(content: Content) -> str | dict[str, str]:
    if isinstance(content, str):
        return content
    data = content if isinstance(content, bytes) else Path(content).read_bytes()
    return {"base64": base64.b64encode(data).decode()}


def outcome(status: int, content: bytes | Mapping[str, Any]) -> Result | MainboxError:
    """Reads the body of a response, or one of its results."""
    try:
        body = json.loads(content) if isinstance(content, bytes) else content
        if "kind" in body:
            return MainboxError(str(body["kind"]), body["error"], status, body)
        return Result(
            value=body["result"],
            stdout=body["stdout"],
            stderr=body.get("stderr", ""),
            files={
                name: file.encode() if isinstance(file, str) else base64.b64decode(file["base64"])
                for name, file in body.get("files", {}).items()
            },
            truncated=tuple(body.get("truncated", ())),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return not_of_mainbox(status)


def not_of_mainbox(status: int) -> MainboxError:
    """The error for an answer that has another form, such as that of a proxy."""
    return MainboxError("unreachable", f"the answer does not come from mainbox (status {status})", status)
