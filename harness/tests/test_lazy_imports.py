import sys
import types
from pathlib import Path

import pytest
from mainbox_harness.lazy_imports import load_pending


def test_python_without_lazy_imports_has_nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(types, "LazyImportType", raising=False)
    before = set(sys.modules)
    load_pending()
    assert set(sys.modules) == before


class Lazy:
    """Stands for the lazy imports of Python 3.15."""


def test_pending_imports_are_resolved_also_those_of_what_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Module("first_of_two"), Module("second_of_two")
    first.pending = {"second": lambda: monkeypatch.setitem(sys.modules, "second_of_two", second)}
    second.pending = {"exits": sys.exit, "fine": lambda: None}
    for module in (first, second):
        module.__dict__.update(dict.fromkeys(module.pending, Lazy()))
    monkeypatch.setattr(types, "LazyImportType", Lazy, raising=False)
    monkeypatch.setitem(sys.modules, "first_of_two", first)
    load_pending()
    assert (first.loaded, second.loaded) == (["second"], ["fine"])


class Module(types.ModuleType):
    """A module whose pending names load when they are read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.pending: dict[str, object] = {}
        self.loaded: list[str] = []

    def __getattribute__(self, name: str) -> object:
        names = super().__getattribute__("__dict__")
        if type(names.get(name)) is Lazy:
            names["pending"][name]()
            names[name] = "loaded"
            names["loaded"].append(name)
        return super().__getattribute__(name)


@pytest.mark.skipif(sys.version_info < (3, 15), reason="lazy imports are new in Python 3.15")
def test_a_real_lazy_import_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("lazy_user.py").write_text("lazy import colorsys\nlazy import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("lazy_user")
    assert "colorsys" not in sys.modules
    load_pending()
    assert "colorsys" in sys.modules
