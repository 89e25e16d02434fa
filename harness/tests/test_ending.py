"""Tests of the end of a script."""

import atexit
import bz2
import gzip
import io
import logging
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from mainbox_harness import ending


def test_a_thread_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "THREADS_SECONDS", 0.05)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    began = time.monotonic()
    ending.end_threads()
    assert thread.is_alive() and time.monotonic() - began < 1
    done.set()
    thread.join()


def test_a_thread_that_ends_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # The hooks end the executors of this interpreter for good.
    monkeypatch.setattr(threading, "_threading_atexits", [])
    thread = threading.Thread(target=time.sleep, args=(0.05,))
    thread.start()
    ending.end_threads()
    assert not thread.is_alive()


def test_exit_functions_run_only_if_the_script_registered_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: ran.append(1))
    before = ending.exit_functions()
    ending.run_exit_functions(before)
    assert ran == []
    atexit.register(print)
    ending.run_exit_functions(before)
    atexit.unregister(print)
    assert ran == [1]


def test_handlers_are_flushed_only_if_the_script_added_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(logging, "shutdown", lambda: flushed.append(1))
    before = ending.exit_functions()
    ending.run_exit_functions(before)
    assert flushed == []
    # As many as before, but others, as logging.config makes them.
    monkeypatch.setattr(logging, "_handlerList", [object() for _ in before[1]])
    ending.run_exit_functions(before)
    assert flushed == [1]


def test_archives_that_were_left_open_are_whole(tmp_path: Path) -> None:
    written = zipfile.ZipFile(tmp_path / "a.zip", "w")
    written.writestr("name", "content")
    packed = tarfile.open(tmp_path / "a.tar", "w")  # noqa: SIM115, F841
    squeezed = gzip.open(tmp_path / "a.gz", "wb")  # noqa: SIM115
    squeezed.write(b"content")
    text = gzip.open(tmp_path / "t.gz", "wt")  # noqa: SIM115
    text.write("text")
    other = bz2.open(tmp_path / "t.bz2", "wt")  # noqa: SIM115
    other.write("text")
    member = io.TextIOWrapper(written.open("member", "w"))
    member.write("text")
    read = zipfile.ZipFile(tmp_path / "b.zip", "w")
    read.close()
    ending.flush_files()
    assert zipfile.ZipFile(tmp_path / "a.zip").read("name") == b"content"
    with tarfile.open(tmp_path / "a.tar") as whole:
        assert whole.getnames() == []
    assert zipfile.ZipFile(tmp_path / "a.zip").read("member") == b"text"
    assert gzip.decompress((tmp_path / "t.gz").read_bytes()) == b"text"
    assert bz2.decompress((tmp_path / "t.bz2").read_bytes()) == b"text"
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"content"
