"""A worker: a locked down fork of the zygote. It waits for one request, answers it and is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .audit_hook import install as install_audit_hook
from .failure import ScriptFailure, cut, type_and_message
from .frames import Channel, ChannelClosed
from .limits import lower_limits
from .outputs import Directory
from .script import Request, run
from .warmup import warm_up

if TYPE_CHECKING:
    from .late_limits import LateLimits
    from .outputs import WorkDir
    from .printing import Stdout
    from .process_state import ProcessState

# The channel to the supervisor.
CHANNEL = 3
# Types of frames to a worker.
SCRIPT, INPUT, STDIN, FILE, RUN = b"S", b"I", b"T", b"D", b"R"
# Types of frames from a worker. Files have the type FILE in both directions.
READY, NOT_READY, VALUE, FAILURE = b"R", b"L", b"V", b"F"
NAME_LENGTH = struct.Struct("<H")
# What fits into a pipe whatever the kernel's page size and limits are.
PIPE_BYTES = 4096
# The longest reason for a failed start that is logged, characters.
MAX_REASON = 2000


class UsualOptions(NamedTuple):
    """The options of most runs, read once for all workers."""

    text: bytes
    options: dict[str, Any]


class Inherited(NamedTuple):
    """What the zygote has made for its workers."""

    state: ProcessState
    usual: UsualOptions
    is_file_system: bool
    """Whether the working directory of each worker is a file system of its own."""
    late_limits: LateLimits | None


def live(scratch: str, warm: bool, inherited: Inherited) -> NoReturn:
    """Runs in a worker, which is locked down and has `scratch` as its working directory."""
    state, usual, is_file_system, late_limits = inherited
    channel = Channel(CHANNEL)
    step = "process_state"
    try:
        state.take_over(scratch)
        step = "work_dir"
        work_dir = Directory(scratch, is_file_system=is_file_system) if late_limits is None else late_limits.work_dir()
        if warm:
            step = "warm_up"
            warm_up(work_dir)
        step = "audit_hook"
        install_audit_hook()
        channel.send(READY)
    except ChannelClosed:
        os._exit(0)
    except BaseException as error:
        try:
            reason = cut(type_and_message(error), MAX_REASON)
            channel.send(NOT_READY, json.dumps({"step": step, "error": reason}).encode())
        finally:
            os._exit(1)
    try:
        serve(channel, state.stdout, usual, work_dir, late_limits)
    except ChannelClosed:
        os._exit(0)
    finally:
        os._exit(1)


def serve(
    channel: Channel, stdout: Stdout, usual: UsualOptions, work_dir: WorkDir, late_limits: LateLimits | None
) -> NoReturn:
    """Receives the request, answers it, and waits to be killed."""
    source, arguments, files = "", [], []
    while True:
        kind, payload = channel.receive()
        if kind == SCRIPT:
            # Python ignores a byte order mark too. The codec for it is a module that each worker would import in 1 ms.
            source = payload.decode().removeprefix("\ufeff")
        elif kind == INPUT:
            arguments.append(payload)
        elif kind == STDIN:
            place_stdin(payload)
        elif kind == FILE:
            files.append(name_and_content(payload))
        elif kind == RUN:
            break
    try:
        options = usual.options if payload == usual.text else json.loads(payload)
        if options["live"]:
            stdout.keep_nothing()
        frames = answer(Request(source, arguments, files), options, work_dir, late_limits)
        stdout.finish()
        for frame in frames:
            channel.send(*frame)
    except BaseException:
        # The script may have broken anything. Without its channel the worker counts as crashed; an exit would look
        # like an exit of the script.
        os.closerange(CHANNEL, CHANNEL + 1)
    wait_to_be_killed()


def place_stdin(content: bytes | bytearray) -> None:
    """Makes descriptor 0 yield `content`, and then its end."""
    if len(content) <= PIPE_BYTES:
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
    else:
        reader = unnamed_file()
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(reader, rest) :]
        os.lseek(reader, 0, os.SEEK_SET)
    os.dup2(reader, 0, inheritable=False)
    os.close(reader)


def unnamed_file() -> int:
    """Opens a new file without a name, in the working directory or, in the tier `rlimits`, in /tmp."""
    for folder in (".", "/tmp"):
        path = os.path.join(folder, f".stdin-{os.getpid()}")
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.unlink(path)
            return descriptor
    raise OSError("no file can be made for the standard input")


def name_and_content(payload: bytes | bytearray) -> tuple[str, memoryview]:
    """Splits the payload of a file frame."""
    (length,) = NAME_LENGTH.unpack_from(payload)
    start = NAME_LENGTH.size + length
    return payload[NAME_LENGTH.size : start].decode(), memoryview(payload)[start:]


def answer(
    request: Request, options: dict[str, Any], work_dir: WorkDir, late_limits: LateLimits | None
) -> list[tuple[bytes, ...]]:
    """Runs the script. Returns the frames of the answer, each a type and the parts of a payload."""
    if options["lower"]:
        lower_limits(options["lower"])
    try:
        result, outputs = run(request, options, work_dir, late_limits)
    except ScriptFailure as failure:
        return [(FAILURE, failure.to_json())]
    frames = [(FILE, NAME_LENGTH.pack(len(name)), name, content) for name, content in outputs]
    return [*frames, (VALUE, *result)]


def wait_to_be_killed() -> NoReturn:
    """Waits while the supervisor measures what the process used and kills it. Exits if the supervisor is gone."""
    while True:
        try:
            gone = os.read(CHANNEL, 1) == b""
        except OSError:
            signal.pause()
        else:
            if gone:
                os._exit(0)
