import errno
import socket

import pytest
from mainbox_harness import audit_hook
from mainbox_harness.audit_hook import explain, explain_late_limits


def refusal(event: str, *arguments: object) -> tuple[int | None, str | None]:
    with pytest.raises(PermissionError) as caught:
        explain(event, arguments)
    return caught.value.errno, caught.value.strerror


def test_the_refusal_of_an_event_is_explained() -> None:
    assert refusal("socket.connect") == (errno.EPERM, "network access is not available in the sandbox")
    assert refusal("os.fork") == (errno.EPERM, "starting other programs is not available in the sandbox")
    assert refusal("os.killpg") == (errno.EPERM, "signaling other processes is not available in the sandbox")


def test_only_unix_sockets_can_be_made() -> None:
    explain("socket.__new__", (None, socket.AF_UNIX, socket.SOCK_STREAM, 0))
    explain("socket.__new__", (None, -1, -1, -1))
    assert refusal("socket.__new__", None, socket.AF_INET, socket.SOCK_STREAM, 0) == (
        errno.EPERM,
        "network access is not available in the sandbox",
    )


def test_files_and_threads_are_refused_with_the_late_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_hook, "REFUSED", dict(audit_hook.REFUSED))
    explain("open", ("/etc/passwd", "r", 0))
    explain_late_limits()
    assert refusal("open") == (errno.EPERM, "opening files is not available in this sandbox")
    assert refusal("_thread.start_new_thread") == (errno.EPERM, "threads are not available in this sandbox")
