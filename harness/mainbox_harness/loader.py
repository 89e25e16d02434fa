"""The program that Python runs first: makes the package importable from memory and starts the zygote.

The boot message arrives on descriptor 3 and contains the source of every module. No file of the harness exists on the
host.
"""

import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

if sys.version_info < (3, 11):
    sys.exit(f"mainbox needs CPython 3.11 or newer; MAINBOX_PYTHON is {sys.version.split()[0]}")

PACKAGE = "mainbox_harness"
CONTROL = 3


class HarnessFinder:
    """Finds and loads the modules of the package."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = {f"{PACKAGE}.{name}": source for name, source in sources.items()} | {PACKAGE: ""}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module, as `sys.meta_path` requires."""
        if name not in self.sources:
            return None
        loader: Any = self  # has the methods of importlib.abc.Loader, which is slow to import
        return ModuleSpec(name, loader, origin=f"<{name}>", is_package=name == PACKAGE)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the creation of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of a module."""
        exec(compile(self.sources[module.__name__], f"<{module.__name__}>", "exec"), module.__dict__)


def read(length: int) -> bytes:
    """Reads from the control socket. The boot message has the form that the module `control` describes."""
    data = b""
    while len(data) < length:
        received = os.read(CONTROL, length - len(data))
        if not received:
            sys.exit()  # the supervisor is gone
        data += received
    return data


def main() -> None:
    """Loads the harness, removes its traces and serves."""
    gc.disable()  # imported objects stay alive, so collecting garbage among them only costs time
    boot = json.loads(read(int.from_bytes(read(4), "little")))
    finder = HarnessFinder(dict(boot["harness"]))
    sys.meta_path.insert(0, finder)
    zygote = importlib.import_module(f"{PACKAGE}.zygote").Zygote(boot)
    # Scripts must not find the harness among the modules.
    sys.meta_path.remove(finder)
    for name in finder.sources:
        sys.modules.pop(name, None)
    zygote.run()


main()
