import resource

import pytest
from mainbox_harness.limits import lower_limits, set_limits


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
