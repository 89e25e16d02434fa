"""A worker: a fork of the zygote that locks itself down, rehearses, waits for one request, answers and dies."""

import gc
import io
import json
import os
import signal
import struct
import sys
from typing import Any, NoReturn

from mainbox_channel import Channel, ChannelClosed
from mainbox_courtesy import install as install_courtesy
from mainbox_failure import ScriptFailure
from mainbox_files import OUTPUTS, Directory, Workplace
from mainbox_lockdown import CHANNEL, RULESET, LockdownError, lock_down, lower_limits
from mainbox_rehearsal import rehearse
from mainbox_script import Request, answer

# Only there where scripts cannot open files.
memory: Any = sys.modules.get("mainbox_memory")

SCRIPT, INPUT, FILE, GO = b"S", b"I", b"D", b"G"
READY, LOCKDOWN, VALUE, FAILURE = b"R", b"L", b"V", b"F"
NAME_LENGTH = struct.Struct("<H")


def live(order: dict[str, Any], descriptors: list[int], lockdown: dict[str, Any], zygote: int) -> NoReturn:
    """The whole life of a worker. `descriptors` are its channel, stdout, stderr and, if it has one, its ruleset."""
    try:
        channel = Channel(CHANNEL)
        place_descriptors(descriptors)
        order["ruleset"] = len(descriptors) > RULESET - 1
        try:
            lock_down(lockdown, order, zygote)
        except LockdownError as failure:
            channel.send(LOCKDOWN, json.dumps({"step": failure.step, "error": failure.error}).encode())
            os._exit(1)
        furnish(order["scratch"])
        workplace = memory.Memory(OUTPUTS) if lockdown["late_limits"] else Directory(order["scratch"])
        if order["rehearse"]:
            rehearse(workplace)
        install_courtesy()
        channel.send(READY)
        serve(channel, workplace, lockdown["late_limits"])
    except ChannelClosed:
        os._exit(0)
    finally:
        os._exit(1)


def place_descriptors(descriptors: list[int]) -> None:
    """/dev/null, stdout, stderr, the channel and the ruleset get the numbers 0 to 4; everything else is closed."""
    channel, stdout, stderr, *ruleset = descriptors
    # First out of the way of each other; those of the zygote that we overwrite are its control socket and its pipes.
    sources = [os.dup(descriptor) for descriptor in (stdout, stderr, channel, *ruleset)]
    high = [os.dup2(source, 100 + place, inheritable=False) for place, source in enumerate(sources)]
    # Opened anew: what workers share of it, they could leave each other messages in.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0, inheritable=False)
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, 1 + place, inheritable=False)
    os.closerange(1 + len(high), 4096)


def furnish(scratch: str) -> None:
    """Streams that lose nothing when the process dies, a clean environment, fresh random numbers."""
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout = sys.__stdout__ = unbuffered(1, "surrogateescape")
    sys.stderr = sys.__stderr__ = unbuffered(2, "backslashreplace")
    os.environ.clear()
    os.environ.update(
        HOME=scratch, TMPDIR=scratch, PATH="/usr/bin:/bin", LANG="C.UTF-8", TZ="UTC", USER="script", LOGNAME="script"
    )
    sys.argv = ["script.py"]
    if "numpy.random" in sys.modules:
        # The module `random` does the same by itself after a fork.
        sys.modules["numpy.random"].seed()
    gc.enable()


def unbuffered(descriptor: int, errors: str) -> io.TextIOWrapper:
    """A text stream that writes at once, so that what was printed survives whatever comes next."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, newline="\n", write_through=True)


def serve(channel: Channel, workplace: Workplace, late_limits: list[dict[str, int]]) -> NoReturn:
    """Reads the request, answers it, ends the process."""
    source, arguments, files = "", [], []
    while True:
        kind, payload = channel.receive()
        if kind == SCRIPT:
            source = payload.decode()
        elif kind == INPUT:
            arguments.append(payload)
        elif kind == FILE:
            files.append(named(payload))
        elif kind == GO:
            break
    try:
        for frame in run(Request(source, arguments, files), json.loads(payload), workplace, late_limits):
            channel.send(*frame)
    except BaseException:
        # The script may have broken anything by now. Without its channel the worker counts as crashed; an exit would
        # look like the script's own.
        os.closerange(CHANNEL, CHANNEL + 1)
    wait_to_be_killed()


def named(payload: bytearray) -> tuple[str, memoryview]:
    """Name and content of a file, as a frame has them."""
    (length,) = NAME_LENGTH.unpack_from(payload)
    start = NAME_LENGTH.size + length
    return payload[NAME_LENGTH.size : start].decode(), memoryview(payload)[start:]


def run(
    request: Request, go: dict[str, Any], workplace: Workplace, late_limits: list[dict[str, int]]
) -> list[tuple[bytes, ...]]:
    """The frames that answer the request, each a type and the parts of a payload; the last ends the answer."""
    lower_limits(go["lower"])
    sys.setrecursionlimit(1000)
    try:
        result, outputs = answer(request, go, workplace, late_limits)
    except ScriptFailure as failure:
        return [(FAILURE, failure.to_json())]
    frames = [(FILE, NAME_LENGTH.pack(len(name)), name, content) for name, content in outputs]
    return [*frames, (VALUE, result)]


def wait_to_be_killed() -> NoReturn:
    """The supervisor measures what the process has used, then kills it. If it is gone, nobody will."""
    while True:
        try:
            gone = os.read(CHANNEL, 1) == b""
        except OSError:
            signal.pause()
        else:
            if gone:
                os._exit(0)
