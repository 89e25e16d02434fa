import os
import resource
import struct
from typing import Any

import pytest
from mainbox_harness import lockdown
from mainbox_harness.lockdown import Filter, LockdownError, lock_down, lower_limits, set_limits

OWN_PROCESS = 0xFFFFFFFF
INSTRUCTION = struct.Struct("=HBBI")


def program(*operands: int) -> bytes:
    return b"".join(INSTRUCTION.pack(0x15, 1, 2, operand) for operand in operands)


def test_a_filter_contains_the_process_id_of_its_worker() -> None:
    made = Filter(program(62, OWN_PROCESS, 7, OWN_PROCESS).hex(), OWN_PROCESS)
    assert made.for_process(4242) == program(62, 4242, 7, 4242)
    # A second worker of the same zygote.
    assert made.for_process(4243) == program(62, 4243, 7, 4243)


def test_a_filter_without_a_process_id_stays_unchanged() -> None:
    assert Filter(program(1, 2, 3).hex(), OWN_PROCESS).for_process(4242) == program(1, 2, 3)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Records the steps instead of taking them."""
    taken: list[tuple[Any, ...]] = []

    def recorded(name: str) -> Any:
        return lambda *arguments: taken.append((name, *arguments))

    for name in ("mount_scratch", "unshare", "set_limits", "change_uid", "drop_capabilities", "die_with", "prctl"):
        monkeypatch.setattr(lockdown, name, recorded(name))
    monkeypatch.setattr(lockdown, "enter_ruleset", recorded("enter_ruleset"))
    monkeypatch.setattr(os, "setsid", recorded("setsid"))
    monkeypatch.setattr(os, "chdir", recorded("chdir"))
    monkeypatch.setattr(Filter, "install", recorded("install"))
    return taken


START = {"mount": "size=1m", "scratch": "/box", "limits": [], "uid": 61000, "ruleset": True}


def test_the_steps_have_a_fixed_order(steps: list[tuple[Any, ...]]) -> None:
    seccomp_filter = Filter("", OWN_PROCESS)
    lock_down({"prctl": True, "user_namespace": True, "filter": seccomp_filter}, START, zygote=10)
    assert steps == [
        ("setsid",),
        ("mount_scratch", "/box", "size=1m"),
        ("unshare", 0x10000000),
        ("set_limits", []),
        ("change_uid", 61000),
        ("chdir", "/box"),
        ("drop_capabilities",),
        ("die_with", 10),
        ("prctl", 4, 0),
        ("prctl", 38, 1),
        ("enter_ruleset",),
        ("install", seccomp_filter),
    ]


def test_steps_that_the_host_lacks_are_left_out(steps: list[tuple[Any, ...]]) -> None:
    start = START | {"mount": None, "uid": None, "ruleset": False}
    lock_down({"prctl": False, "user_namespace": False, "filter": None}, start, zygote=10)
    assert steps == [("setsid",), ("set_limits", []), ("change_uid", None), ("chdir", "/box")]


def test_a_step_that_fails_is_named_and_ends_the_lock_down(
    steps: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lockdown, "change_uid", refuse)
    with pytest.raises(LockdownError) as caught:
        lock_down({"prctl": True, "user_namespace": False, "filter": None}, START, zygote=10)
    assert caught.value.step == "uid"
    assert caught.value.error == "PermissionError: [Errno 1] Operation not permitted"
    assert [name for name, *_ in steps] == ["setsid", "mount_scratch", "set_limits"]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """The limits of a process that has some already."""
    current = {1: (100, 200), 2: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", current.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", current.__setitem__)
    return current


def test_a_limit_that_is_lower_already_stays_in_force(limits: dict[int, tuple[int, int]]) -> None:
    set_limits([{"resource": 1, "soft": 150, "hard": 300}, {"resource": 2, "soft": 150, "hard": 300}])
    assert limits == {1: (150, 200), 2: (150, 300)}


def test_limits_are_lowered_by_differences(limits: dict[int, tuple[int, int]]) -> None:
    lower_limits([{"resource": 1, "soft": 30, "hard": 40}])
    assert limits[1] == (70, 160)


def test_a_worker_whose_zygote_is_gone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockdown, "prctl", lambda *_: None)
    lockdown.die_with(os.getppid())
    with pytest.raises(ProcessLookupError, match="the zygote is gone"):
        lockdown.die_with(0)
