"""Imports without files, for the tier in which a script can open none.

The zygote reads the bytecode of the standard library and of the preloaded packages into memory, which all workers
share. Their extension modules and the time zone database are loaded while files can still be opened.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import io
import marshal
import mimetypes
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

from .memory_fs import LIBRARY_FILES, Node

# Size of the header of a .pyc file, bytes: https://peps.python.org/pep-0552/
PYC_HEADER = 16
# Programs and tests, which scripts do not import. `this` and `antigravity` print text and open a browser.
LEFT_OUT = frozenset({"__main__", "__pycache__", "antigravity", "idlelib", "test", "tests", "this", "turtledemo"})


class FilesOfRequest:
    """Finds and loads modules among the files of the working directory in memory. The last finder, so it hides no library."""

    def __init__(self, directory: Any) -> None:
        self.directory = directory

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module or a package, as `sys.meta_path` requires."""
        stem = name.replace(".", "/")
        for place, is_package in ((f"{stem}/__init__.py", True), (f"{stem}.py", False)):
            if place in self.directory.files:
                loader: Any = self
                spec = ModuleSpec(name, loader, origin=place, is_package=is_package)
                spec.has_location = True
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the creation of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of a module."""
        spec: Any = module.__spec__
        source = bytes(self.directory.files[spec.origin].content)
        exec(compile(source, spec.origin, "exec", dont_inherit=True), module.__dict__)


class Library:
    """Finds and loads the modules that it has in memory."""

    def __init__(self) -> None:
        self.bytecode: dict[str, tuple[str, bytes]] = {}
        """From the name of a module to its path and bytecode."""

    def add(self, folder: Path, prefix: str = "") -> list[str]:
        """Reads every pure module below `folder`. Returns the names of the extension modules there."""
        extensions: list[str] = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name, dot, _ = entry.name.partition(".")
            if name in LEFT_OUT or name == "site-packages":
                continue
            if entry.is_dir():
                if not dot and name.isidentifier() and (Path(entry.path) / "__init__.py").exists():
                    extensions += self.add(Path(entry.path), f"{prefix}{name}.")
            elif entry.name.endswith(".py"):
                full = prefix.rstrip(".") if name == "__init__" else prefix + name
                self.read(full, entry.path)
            elif entry.name.endswith(tuple(EXTENSION_SUFFIXES)):
                extensions.append(prefix + name)
        return extensions

    def read(self, name: str, path: str) -> None:
        """Reads the bytecode of a module, or compiles the module if there is none."""
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
        """Finds a module, as `sys.meta_path` requires."""
        if name not in self.bytecode:
            return None
        origin, _ = self.bytecode[name]
        is_package = os.path.basename(origin) == "__init__.py"
        loader: Any = self  # has the methods of importlib.abc.Loader, without being a subclass
        spec = ModuleSpec(name, loader, origin=origin, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the creation of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of a module."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> CodeType:
        """Returns the code of a module."""
        return marshal.loads(self.bytecode[name][1])

    def get_source(self, name: str) -> None:
        """Returns None: tracebacks request the source, which is not in memory."""


def take_into_memory(preloaded: Iterable[str]) -> None:
    """Makes imports and time zones independent of files, for this process and those that it forks."""
    library = Library()
    standard = Path(sysconfig.get_path("stdlib"))
    extensions = library.add(standard) + library.add(standard / "lib-dynload")
    for name in sorted({name.partition(".")[0] for name in preloaded}):
        folder = Path(getattr(sys.modules.get(name), "__file__", None) or "").parent
        if folder.name == name:
            extensions += library.add(folder, f"{name}.")
    load(extensions)
    sys.meta_path.insert(0, library)
    take_time_zones_into_memory()
    take_fonts_into_memory()
    take_media_types_into_memory()


def load(extensions: Iterable[str]) -> None:
    """Imports extension modules. Some fail, since they only work on other systems."""
    for name in extensions:
        if "test" not in name and name not in sys.modules:
            with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):
                importlib.import_module(name)


def take_time_zones_into_memory() -> None:
    """Reads the time zone database, of which zoneinfo would otherwise open a file for each zone.

    The public interface of zoneinfo reads zones only from files. Without a search path, its implementations in C and in
    Python both call `zoneinfo._common.load_tzdata`, so that function is replaced.
    """
    common: Any = importlib.import_module("zoneinfo._common")
    search: Any = importlib.import_module("zoneinfo._tzpath")
    zones: dict[str, bytes] = {}
    for key in zoneinfo.available_timezones():
        try:
            path = search.find_tzfile(key)
            with open(path, "rb") if path else common.load_tzdata(key) as file:
                zones[key] = file.read()
        except (OSError, ValueError):
            continue

    def load_tzdata(key: str) -> io.BytesIO:
        try:
            return io.BytesIO(zones[key])
        except KeyError:
            raise zoneinfo.ZoneInfoNotFoundError(f"No time zone found with key {key}") from None

    zoneinfo.reset_tzpath(to=())
    common.load_tzdata = load_tzdata


def take_fonts_into_memory() -> None:
    """Reads the fonts of matplotlib, which opens them in each process that draws."""
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None:
        for path in Path(matplotlib.get_data_path(), "fonts", "ttf").iterdir():
            LIBRARY_FILES[str(path)] = Node(path.read_bytes())


def take_media_types_into_memory() -> None:
    """Reads the media types of this system, such as those in /etc/mime.types, which `mimetypes` does at its first use."""
    mimetypes.init()


def prepare(names: Collection[str], implied: Iterable[str], is_async: bool) -> None:
    """Does what needs files and descriptors for a script that imports `names`, while they can still be opened.

    Of the packages that are `implied` it may import any module.
    """
    import_named(names)
    for name in implied:
        take_package_into_memory(name)
    if is_async or "asyncio" in names:
        give_out_one_event_loop()
    # It lists directories, which fails from then on with an error other than ModuleNotFoundError.
    sys.meta_path.remove(PathFinder)


def take_package_into_memory(name: str) -> None:
    """Reads the pure modules of a package, unless it is not installed."""
    spec = importlib.util.find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or ():
        the_library().add(Path(folder), f"{name}.")


def the_library() -> Any:
    """Returns the library of this process."""
    return next(finder for finder in sys.meta_path if type(finder) is Library)


def import_named(names: Iterable[str]) -> None:
    """Imports what a script names and is not in memory: packages that are not preloaded.

    An import that fails here fails again, with its error, when the script runs it.
    """
    library = the_library()
    for name in names:
        parts = name.split(".")
        in_memory = parts[0] in sys.stdlib_module_names or parts[0] in library.bytecode
        if not in_memory and not LEFT_OUT.intersection(parts):
            with contextlib.suppress(BaseException):
                importlib.import_module(name)


def give_out_one_event_loop() -> None:
    """Has asyncio use one event loop, whose descriptors are open already. Python 3.16 has no policies that could do it."""
    loop = asyncio.new_event_loop()
    loops = [loop]

    def new_event_loop() -> asyncio.AbstractEventLoop:
        if not loops:
            raise RuntimeError("a second event loop is not available in this sandbox: it needs descriptors")
        return loops.pop()

    asyncio.new_event_loop = asyncio.events.new_event_loop = new_event_loop
    asyncio.set_event_loop(loop)  # for asyncio.get_event_loop()
