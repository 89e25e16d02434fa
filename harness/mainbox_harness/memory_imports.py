"""Imports without files: where a script can open none, modules come from the zygote's memory, shared by all workers.

Pure modules of the standard library and of the preloaded packages are kept as bytecode. Their extension modules are
loaded while files can still be opened, and so is the timezone database.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import io
import marshal
import os
import sys
import sysconfig
import warnings
import zoneinfo
from collections.abc import Collection, Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PYC_HEADER = 16
# Whole programs, tests and jokes: nothing that a script imports to use.
LEFT_OUT = frozenset({"__main__", "__pycache__", "antigravity", "idlelib", "test", "tests", "this", "turtledemo"})


class Library:
    """A finder and loader of the modules that it holds."""

    def __init__(self) -> None:
        self.bytecode: dict[str, tuple[str, bytes]] = {}

    def add(self, folder: Path, prefix: str = "") -> list[str]:
        """Reads every pure module below `folder`; returns the names of its extension modules."""
        extensions = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name, dot, _ = entry.name.partition(".")
            if name in LEFT_OUT or name == "site-packages":
                continue
            if entry.is_dir():
                if not dot and name.isidentifier() and (Path(entry.path) / "__init__.py").exists():
                    extensions += self.add(Path(entry.path), f"{prefix}{name}.")
            elif entry.name.endswith(".py"):
                full = prefix.rstrip(".") if name == "__init__" else prefix + name
                self.hold(full, entry.path)
            elif entry.name.endswith(tuple(EXTENSION_SUFFIXES)):
                extensions.append(prefix + name)
        return extensions

    def hold(self, name: str, path: str) -> None:
        """Keeps a module's bytecode: the compiled one, or compiled here where there is none."""
        try:
            with open(importlib.util.cache_from_source(path), "rb") as file:
                self.bytecode[name] = (path, file.read()[PYC_HEADER:])
        except OSError:
            with open(path, "rb") as file:
                source = file.read()
            with warnings.catch_warnings(action="ignore"), contextlib.suppress(SyntaxError, ValueError):
                self.bytecode[name] = (path, marshal.dumps(compile(source, path, "exec", dont_inherit=True)))

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module, as sys.meta_path asks for it."""
        if name not in self.bytecode:
            return None
        origin, _ = self.bytecode[name]
        is_package = os.path.basename(origin) == "__init__.py"
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the making of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs a module's code."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> CodeType:
        """Reads a module's code."""
        return marshal.loads(self.bytecode[name][1])

    def get_source(self, name: str) -> None:
        """Has no sources, which tracebacks ask for."""


def take_into_memory(preloaded: Iterable[str]) -> None:
    """Makes imports and timezones independent of files, for this process and those that it forks."""
    library = Library()
    standard = Path(sysconfig.get_path("stdlib"))
    extensions = library.add(standard) + library.add(standard / "lib-dynload")
    for name in sorted({name.partition(".")[0] for name in preloaded}):
        folder = Path(getattr(sys.modules.get(name), "__file__", None) or "").parent
        if folder.name == name:
            extensions += library.add(folder, f"{name}.")
    load(extensions)
    sys.meta_path.insert(0, library)
    hold_timezones()


def load(extensions: Iterable[str]) -> None:
    """Loads extension modules. Some only work on other systems, or are for tests."""
    for name in extensions:
        if "test" not in name and name not in sys.modules:
            with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):
                importlib.import_module(name)


def hold_timezones() -> None:
    """Reads the timezone database, which zoneinfo would open a file of for each zone."""
    zones = {}
    for key in zoneinfo.available_timezones():
        try:
            with zoneinfo_file(key) as file:
                zones[key] = file.read()
        except (OSError, ValueError):
            continue

    def load_tzdata(key: str) -> io.BytesIO:
        try:
            return io.BytesIO(zones[key])
        except KeyError:
            raise zoneinfo.ZoneInfoNotFoundError(f"No time zone found with key {key}") from None

    zoneinfo.reset_tzpath(to=())
    zoneinfo._common.load_tzdata = load_tzdata


def zoneinfo_file(key: str) -> Any:
    """Opens the file of a timezone."""
    path = zoneinfo._tzpath.find_tzfile(key)
    return open(path, "rb") if path else zoneinfo._common.load_tzdata(key)


def prepare(names: Collection[str], is_async: bool) -> None:
    """Does for a script what needs files and descriptors, while there are some; from then on imports need none."""
    import_named(names)
    if is_async or "asyncio" in names:
        asyncio.set_event_loop_policy(OneLoopPolicy())
    sys.meta_path.remove(PathFinder)


def import_named(names: Iterable[str]) -> None:
    """Imports what a script names and memory does not hold: other packages, while their files can be opened.

    What fails here fails again, and is told, when the script imports it.
    """
    held = sys.meta_path[0].bytecode
    for name in names:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in held and not LEFT_OUT.intersection(name.split(".")):
            with contextlib.suppress(BaseException):
                importlib.import_module(name)


class OneLoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Hands out one event loop, whose descriptors exist already."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = super().new_event_loop()

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Gives the one loop away."""
        loop, self.loop = self.loop, None
        if loop is None:
            raise RuntimeError("a second event loop is not available in this sandbox: it needs descriptors")
        return loop
