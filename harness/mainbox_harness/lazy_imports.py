"""Loads what the preloaded modules import lazily (`lazy import`, Python 3.15): a worker would load it for each request."""

import sys
import types
from contextlib import suppress


def load_pending() -> None:
    """Resolves every lazy import of the loaded modules. One that fails stays lazy, and fails again where it is used."""
    lazy_import = getattr(types, "LazyImportType", None)
    if lazy_import is None:
        return
    tried: set[tuple[str, str]] = set()
    # What a module loads can import lazily itself.
    while pending := find_pending(lazy_import) - tried:
        for module, name in pending:
            with suppress(BaseException):  # as in an import, a module may also call sys.exit()
                getattr(sys.modules[module], name)
        tried |= pending


def find_pending(lazy_import: type) -> set[tuple[str, str]]:
    """Returns the modules and names that hold a lazy import. Values are local here, since reading a global loads it."""
    return {
        (module, name)
        for module, loaded in list(sys.modules.items())
        for name, value in list(getattr(loaded, "__dict__", {}).items())
        if type(value) is lazy_import
    }
