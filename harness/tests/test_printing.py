import contextlib
import io
import mmap
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from mainbox_harness import printing
from mainbox_harness.printing import Stdout

SIZE = 4096 - 16


class Pipe:
    """Takes the place of descriptor 1."""

    def __init__(self) -> None:
        self.kept = os.dup(1)
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.dup2(writer, 1)
        os.close(writer)

    def read(self) -> bytes:
        """Returns what was written since the last time."""
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Gives the descriptor back."""
        os.dup2(self.kept, 1)
        os.close(self.kept)
        os.close(self.reader)


@contextlib.contextmanager
def piped() -> Iterator[Pipe]:
    """No fixture, since pytest changes the descriptor between a fixture and its test."""
    pipe = Pipe()
    try:
        yield pipe
    finally:
        pipe.close()


def stdout() -> tuple[Stdout, mmap.mmap]:
    memory = mmap.mmap(-1, SIZE)  # the header is in the rest of the page
    return Stdout(memory), memory


def kept(memory: mmap.mmap) -> bytes:
    return memory[:].rstrip(b"\0")


def test_lines_are_kept_until_someone_flushes() -> None:
    with piped() as pipe:
        raw, memory = stdout()
        stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        print("a", "ü", file=stream)
        assert (kept(memory), pipe.read()) == ("a ü\n".encode(), b"")
        stream.flush()
        assert (kept(memory), pipe.read()) == (b"", "a ü\n".encode())
        stream.flush()
        assert pipe.read() == b""


def test_what_has_no_room_is_written_in_order() -> None:
    with piped() as pipe:
        raw, memory = stdout()
        assert raw.write(b"a" * (SIZE - 2)) == SIZE - 2
        assert raw.write(b"bcd") == 3
        assert raw.write(b"e") == 1
        assert (pipe.read(), kept(memory)) == (b"a" * (SIZE - 2) + b"bcd", b"e")
        assert raw.write(b"f" * 9000) == 9000
        assert (pipe.read(), kept(memory)) == (b"e" + b"f" * 9000, b"")


def test_whoever_asks_for_the_descriptor_finds_everything_there() -> None:
    with piped() as pipe:
        raw, memory = stdout()
        raw.write(b"first ")
        os.write(raw.fileno(), b"second ")
        raw.write(b"third")
        assert (pipe.read(), kept(memory)) == (b"first second third", b"")


def test_functions_of_os_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped() as pipe:
        for module, name in (*printing.WRITERS, *printing.OTHERS):
            monkeypatch.setattr(module, name, getattr(module, name))
        raw, _ = stdout()
        raw.order_writers()
        raw.write(b"1 ")
        os.write(1, b"2 ")
        raw.write(b"3 ")
        os.writev(1, [b"4 ", b"5 "])
        raw.write(b"6 ")
        assert pipe.read() == b"1 2 3 4 5 "
        assert raw.header.before == 10
        # As scripts do that capture what they print.
        reader, writer = os.pipe()
        before = os.dup(1)
        os.dup2(writer, fd2=1)
        raw.write(b"captured")
        os.dup2(before, 1)
        raw.write(b"7")
        raw.finish()
        assert (pipe.read(), os.read(reader, 99)) == (b"6 7", b"captured")
        for descriptor in (reader, writer, before):
            os.close(descriptor)


def test_nothing_that_threads_print_is_lost() -> None:
    with piped() as pipe:
        raw, memory = stdout()
        lines = [b"%d %d\n" % (thread, line) for thread in range(4) for line in range(300)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            parts = [lines[start : start + 300] for start in range(0, 1200, 300)]
            threads = [threading.Thread(target=lambda part=part: [raw.write(line) for line in part]) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        written = pipe.read() + kept(memory)
        assert sorted(written.splitlines(keepends=True)) == sorted(lines)


def test_nothing_is_lost_when_the_descriptor_is_closed_and_opened_again() -> None:
    with piped() as pipe:
        raw, memory = stdout()
        raw.write(b"before ")
        copy = os.dup(1)
        os.close(1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            raw.flush()
        with pytest.raises(OSError, match="Bad file descriptor"):
            raw.write(b"refused")
        os.dup2(copy, 1)
        os.close(copy)
        raw.write(b"after")
        assert (pipe.read(), kept(memory)) == (b"before after", b"")
        raw.write(b" kept")
        assert kept(memory) == b" kept"


def test_a_signal_handler_may_print_while_a_write_waits_for_the_reader() -> None:
    with piped() as pipe:
        raw, _ = stdout()
        printed: list[bytes] = []
        read: list[bytes] = []
        main = threading.main_thread().ident
        assert main is not None

        def handle(*_: object) -> None:
            printed.append(b"handler %d\n" % len(printed))
            raw.write(printed[-1])

        def interrupt_and_read() -> None:
            for _ in range(20):
                time.sleep(0.005)
                signal.pthread_kill(main, signal.SIGUSR1)
            while not done:
                read.append(pipe.read())
                time.sleep(0.001)

        before = signal.signal(signal.SIGUSR1, handle)
        done = False
        reader = threading.Thread(target=interrupt_and_read)
        reader.start()
        lines = [b"%d\n" % number for number in range(30000)]
        for line in lines:
            raw.write(line)
        raw.flush()
        done = True
        reader.join()
        signal.signal(signal.SIGUSR1, before)
        raw.flush()
        found = (b"".join(read) + pipe.read()).splitlines(keepends=True)
        assert [line for line in found if not line.startswith(b"handler")] == lines
        # Text that waits may come after that of a later signal.
        assert sorted(line for line in found if line.startswith(b"handler")) == sorted(printed)
        assert len(printed) > 1


def test_a_trace_function_may_print() -> None:
    with piped() as pipe:
        raw, _ = stdout()
        traced = []

        def trace(frame: Any, *_: object) -> Any:
            if frame.f_code.co_name == "leave":
                traced.append(b"%d\n" % len(traced))
                raw.write(traced[-1])
            return trace

        raw.write(b"text\n")
        sys.settrace(trace)
        try:
            raw.flush()
        finally:
            sys.settrace(None)
        raw.flush()
        assert sorted(pipe.read().splitlines(keepends=True)) == sorted([b"text\n", *traced])


class Raised(Exception):
    """Raised by a signal handler."""


def test_a_signal_handler_may_print_or_raise_at_any_time() -> None:
    with piped() as pipe:
        raw, _ = stdout()
        lines: list[bytes] = []
        received: list[bytes] = []
        number = raised = 0
        may_raise = True

        def handle(*_: object) -> None:
            nonlocal raised
            lines.append(b"handler %d\n" % len(lines))
            raw.write(lines[-1])
            if len(lines) % 2 and may_raise:
                raised += 1
                raise Raised

        def print_and_read() -> None:
            nonlocal number, may_raise
            while number < 30000:
                number += 1
                raw.write(b"%d\n" % number)
                if number % 100 == 0:
                    may_raise = False
                    received.append(pipe.read())
                    may_raise = number < 30000

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while number < 30000:
            with contextlib.suppress(Raised):
                print_and_read()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        raw.flush()
        received.append(pipe.read())
        text = b"".join(received)
        found = text.splitlines(keepends=True)
        assert b"\0" not in text
        assert len(set(found)) == len(found), "something was printed twice"
        # The handler prints in a call that is interrupted, before what that call prints. What it prints itself is whole.
        assert raised > 10
        assert 30000 - len([line for line in found if not line.startswith(b"handler")]) <= raised
        assert sorted(line for line in found if line.startswith(b"handler")) == sorted(lines)


def test_the_end_writes_what_a_signal_handler_printed_before_it_raised() -> None:
    with piped() as pipe:
        raw, _ = stdout()
        raw.write(b"first\n")

        def trace(frame: types.FrameType, event: str, _: object) -> Any:
            if frame.f_code is Stdout.leave.__code__ and event == "return":
                raw.write_through(b"from the handler\n")
                raise Raised
            return trace

        sys.settrace(trace)
        with contextlib.suppress(Raised):
            raw.flush()
        sys.settrace(None)
        raw.finish()
        assert pipe.read() == b"first\nfrom the handler\n"


def test_the_header_tells_what_leaves_the_memory() -> None:
    with piped():
        raw, _ = stdout()
        raw.write(b"1234")
        assert (raw.header.leaving, raw.header.before) == (0, 0)
        seen = []
        observed = printing.write
        printing.write = lambda *arguments: seen.append(raw.header.leaving) or observed(*arguments)
        try:
            raw.flush()
        finally:
            printing.write = observed
        assert (seen, raw.header.leaving, raw.header.before) == ([4], 0, 4)
        raw.write(b"x" * 5000)
        assert raw.header.before == 5004


def test_a_stream_that_is_closed_refuses_more() -> None:
    with piped() as pipe:
        raw, _ = stdout()
        raw.write(b"kept")
        raw.close()
        with pytest.raises(ValueError, match="closed file"):
            raw.write(b"more")
        assert pipe.read() == b"kept"


def test_other_arguments_may_be_anything() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    raw, _ = stdout()
    given: list[Any] = []
    raw.ordered(lambda *arguments: given.extend(arguments), counts=False)(2, Odd())
    assert given[0] == 2
