import mmap
import os
import random
import sys
from typing import Any

import pytest
from mainbox_harness import process_state
from mainbox_harness.process_state import find_numpy, find_random, make_streams


def test_streams_know_what_workers_have_and_the_descriptors_are_as_before() -> None:
    before = [os.fstat(descriptor) for descriptor in range(3)]
    count = len(os.listdir("/proc/self/fd"))
    raw, (stdin, stdout, stderr) = make_streams(mmap.mmap(-1, 4080))
    assert [os.fstat(descriptor) for descriptor in range(3)] == before
    assert len(os.listdir("/proc/self/fd")) == count
    assert [stream.fileno() for stream in (stdin, stdout, stderr)] == [0, 1, 2]
    assert [stream.encoding for stream in (stdin, stdout, stderr)] == ["utf-8"] * 3
    assert (stdout.errors, stderr.errors) == ("surrogateescape", "backslashreplace")
    assert not stdout.seekable()
    assert stdout.write_through
    assert stdout.buffer is raw
    assert not stdin.writable()


class Generator:
    """A stand-in for numpy, which the tests of the harness do not need."""

    def __init__(self, *, name: str = "MT19937", position: int = 624, has_gauss: int = 0) -> None:
        self.name = name
        self.memory = bytearray(process_state.WORDS_BYTES) + process_state.AT_THE_END
        self.position, self.has_gauss = position, has_gauss
        buffer = (process_state.ctypes.c_char * len(self.memory)).from_buffer(self.memory)
        self.buffer = buffer
        self.mtrand = self._rand = self._bit_generator = self.ctypes = self
        self.state_address = process_state.ctypes.addressof(buffer)

    def seed(self) -> None:
        """Leaves the state as it is."""

    def get_state(self, *, legacy: bool) -> dict[str, Any]:
        assert not legacy
        key = memoryview(bytes(self.memory[: process_state.WORDS_BYTES]))
        state = {"key": key, "pos": self.position}
        return {"bit_generator": self.name, "state": state, "has_gauss": self.has_gauss}


def test_the_state_of_numpy_is_renewed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator()
    monkeypatch.setitem(sys.modules, "numpy.random", generator)  # type: ignore[arg-type]
    state = find_numpy()
    assert state is not None
    state.renew()
    words = bytes(generator.memory[: process_state.WORDS_BYTES])
    assert any(words)
    assert generator.memory[process_state.WORDS_BYTES :] == (624).to_bytes(4, sys.byteorder)
    state.renew()
    assert generator.memory[: process_state.WORDS_BYTES] != words


@pytest.mark.parametrize(
    "generator", [None, object(), Generator(position=0), Generator(has_gauss=1), Generator(name="PCG64")]
)
def test_a_numpy_that_is_different_is_not_touched(generator: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy.random", generator)  # type: ignore[arg-type]
    assert find_numpy() is None


def test_the_state_of_random_is_renewed_in_place() -> None:
    state = find_random()
    assert state is not None
    before = random.getstate()
    state.renew()
    renewed = random.getstate()
    assert renewed[1][-1] == 624
    assert renewed[1] != before[1]
    # The first number needs new words, and so changes the state.
    assert 0 <= random.random() < 1
    assert random.getstate()[1][-1] == 2


def test_a_random_that_is_different_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(random.Random):
        pass

    monkeypatch.setattr(random, "_inst", Other())
    assert find_random() is None
