"""Tests of the substitutes for functions that the sandbox refuses."""

import os
import select
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mainbox_harness import substitutes


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what the tests install."""
    for name in ("chmod", "truncate", "utime"):
        monkeypatch.setattr(os, name, getattr(os, name))
    for supports in ("supports_dir_fd", "supports_fd", "supports_follow_symlinks"):
        monkeypatch.setattr(os, supports, set(getattr(os, supports)))
    monkeypatch.setattr(select, "epoll", select.epoll)
    monkeypatch.setattr(socket.socket, "sendmsg", socket.socket.sendmsg)
    yield


def test_epoll_fails_with_a_sentence_and_default_selectors_use_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    selectors = SimpleNamespace(DefaultSelector="epoll", PollSelector="poll")
    monkeypatch.setitem(sys.modules, "selectors", selectors)
    substitutes.install(by_descriptor=False)
    assert selectors.DefaultSelector == "poll"
    for make in (select.epoll, lambda: select.epoll.fromfd(3)):
        with pytest.raises(PermissionError) as caught:
            make()
        assert caught.value.strerror == (
            "select.epoll is not available in the sandbox; use select.poll, selectors or asyncio"
        )


def test_messages_are_sent_without_descriptors() -> None:
    substitutes.install(by_descriptor=False)
    left, right = socket.socketpair()
    with left, right:
        assert left.sendmsg([b"a", memoryview(b"bc")]) == 3
        assert right.recv(9) == b"abc"
        with pytest.raises(PermissionError):
            left.sendmsg([b"a"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")])


def test_functions_by_path_stay_where_they_are_allowed() -> None:
    before = (os.chmod, os.truncate, os.utime)
    substitutes.install(by_descriptor=False)
    assert before == (os.chmod, os.truncate, os.utime)


def test_functions_by_descriptor_do_what_those_by_path_do(tmp_path: Path) -> None:
    substitutes.install(by_descriptor=True)
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("content")
    link.symlink_to(file)
    file.chmod(0o640)
    os.truncate(file, 3)
    os.utime(file, ns=(5, 7))
    directory = os.open(tmp_path, os.O_RDONLY)
    os.utime("file", (1, 2), dir_fd=directory)
    os.close(directory)
    found = file.stat()
    assert (found.st_mode & 0o777, found.st_size, found.st_mtime) == (0o640, 3, 2)
    with pytest.raises(OSError, match="symbolic"):
        os.chmod(link, 0o600, follow_symlinks=False)
    assert shutil.copy2(file, tmp_path / "copy") and (tmp_path / "copy").stat().st_mtime == 2
    assert shutil.copytree(tmp_path, tmp_path / "sub", ignore=lambda *_: {"sub", "link"})


def test_a_refusal_is_explained_and_an_unchanged_mode_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    file = tmp_path / "file"
    file.touch(0o600)
    substitutes.install(by_descriptor=True)
    file.chmod(0o600)
    with pytest.raises(PermissionError) as caught:
        file.chmod(0o644)
    assert caught.value.strerror == "changing the mode or the times of a file is not available in this sandbox"
