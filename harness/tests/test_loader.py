import sys
from pathlib import Path

import pytest

LOADER = Path(__file__).parents[1] / "mainbox_harness" / "loader.py"
COLLECTOR = (
    "mainbox does not run on CPython 3.14.0 to 3.14.4, whose garbage collector lets memory grow; "
    "use 3.14.5 or newer, or 3.13; MAINBOX_PYTHON is "
)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((3, 10, 13), "mainbox needs CPython 3.11 or newer; MAINBOX_PYTHON is 3.10.13"),
        ((3, 14, 0), COLLECTOR + "3.14.0"),
        ((3, 14, 4), COLLECTOR + "3.14.4"),
    ],
)
def test_a_version_that_cannot_be_used_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], message: str
) -> None:
    number = ".".join(map(str, version))
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", f"{number} (main, Nov 26 2026)")
    with pytest.raises(SystemExit) as refused:
        exec(compile(LOADER.read_text(), str(LOADER), "exec"), {"__name__": "loader"})
    assert refused.value.code == message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 9), (3, 14, 5), (3, 15, 0)])
def test_other_versions_are_used(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    class Started(Exception):
        pass

    def read(descriptor: int, length: int) -> bytes:
        raise Started

    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr("os.read", read)
    monkeypatch.setattr("gc.disable", lambda: None)
    with pytest.raises(Started):
        exec(compile(LOADER.read_text(), str(LOADER), "exec"), {"__name__": "loader"})
