"""Tests of the pictures that a script shows, leaves open or returns."""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mainbox_harness.patterns import Patterns
from mainbox_harness.pictures import Pictures, PyplotFinder, replace_show
from mainbox_harness.to_json import to_json

PATTERNS = Patterns(["*.png"])
PACKAGE = """
class Figure:
    def __init__(self, number): self.number = number
    def savefig(self, file, format): file.write(f"{format} {self.number}".encode())
"""
PYPLOT = """
from .figure import Figure
figures = {}
def figure(number):
    return figures.setdefault(number, Figure(number))
def get_fignums(): return list(figures)
def close(which): figures.clear()
def show(): raise RuntimeError("no display")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, and a package that looks like matplotlib."""
    package = tmp_path / "packages" / "matplotlib"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "figure.py").write_text(PACKAGE)
    (package / "pyplot.py").write_text(PYPLOT)
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]


def pyplot() -> Any:
    return importlib.import_module("matplotlib.pyplot")


@pytest.mark.usefixtures("place")
def test_what_is_shown_comes_back_in_order_and_is_closed() -> None:
    pictures = Pictures(PATTERNS)
    pictures.install()
    replace_show()
    plt = pyplot()
    assert not any(type(finder) is PyplotFinder for finder in sys.meta_path)
    plt.figure(2)
    plt.figure(1)
    plt.show()
    assert plt.get_fignums() == []
    plt.figure(3)
    pictures.add_open_figures()
    assert pictures.files == [
        ("figure-1.png", b"png 2"),
        ("figure-2.png", b"png 1"),
        ("figure-3.png", b"png 3"),
    ]


@pytest.mark.usefixtures("place")
def test_a_pyplot_that_is_imported_already_shows_too() -> None:
    plt = pyplot()
    replace_show()
    pictures = Pictures(PATTERNS)
    pictures.install()
    plt.figure(1)
    plt.show(block=True)
    assert pictures.files == [("figure-1.png", b"png 1")]


def test_a_figure_in_the_result_is_the_name_of_its_file(place: Path) -> None:
    (place / "outputs" / "figure-1.png").touch()
    figure = pyplot().figure(7)
    pictures = Pictures(PATTERNS)
    assert b"".join(to_json({"a": figure, "b": [figure]}, 9, 99, pictures)) == (
        b'{"a":{"file":"figure-2.png"},"b":[{"file":"figure-2.png"}]}'
    )
    pictures.add_open_figures()
    assert pictures.files == [("figure-2.png", b"png 7")]


def test_an_image_in_the_result_is_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Image:
        def save(self, file: Any, format: str) -> None:  # noqa: A002
            file.write(format.encode())

    module = types.ModuleType("PIL.Image")
    module.Image = Image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "PIL.Image", module)
    pictures = Pictures(PATTERNS)
    assert to_json([Image()], 9, 99, pictures) == [b'[{"file":"figure-1.png"}]']
    assert pictures.files == [("figure-1.png", b"png")]
    assert place.is_dir()


@pytest.mark.usefixtures("place")
def test_figures_that_match_no_pattern_are_closed_and_not_drawn() -> None:
    pictures = Pictures(Patterns(["*.csv"]))
    pictures.install()
    replace_show()
    plt = pyplot()
    plt.figure(1)
    plt.show()
    assert plt.get_fignums() == []
    assert pictures.files == []
    assert to_json(plt.figure(2), 9, 99, pictures) == [b'{"file":"figure-1.png"}']
    assert pictures.files == [("figure-1.png", b"png 2")]


def test_a_figure_does_not_take_the_name_of_a_file_of_the_script(place: Path) -> None:
    (place / "figure-1.png").touch()
    pictures = Pictures(PATTERNS)
    assert pictures.add(object(), lambda file, format: file.write(b"2")) == "figure-2.png"  # noqa: A006
