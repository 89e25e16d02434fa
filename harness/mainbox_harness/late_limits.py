"""The tier `rlimits`: limits of zero descriptors, processes and file bytes, set just before the first line of a script.

After that no file can be opened, so files and modules are in memory.
"""

import sys
from collections.abc import Iterable

from . import memory_fs, memory_imports
from .audit_hook import explain_late_limits
from .limits import set_limits
from .outputs import OUTPUTS, WorkDir
from .validation import Checked, implied_modules, imported_modules, is_async


class LateLimits:
    """The limits, and what must be done before they are set."""

    def __init__(self, limits: list[dict[str, int]]) -> None:
        self.limits = limits

    def take_into_memory(self, preloaded: Iterable[str]) -> None:
        """In the zygote: makes imports, time zones and fonts independent of files."""
        memory_imports.take_into_memory(preloaded)

    def work_dir(self) -> WorkDir:
        """In a worker: returns a working directory in memory, from which modules can be imported."""
        directory = memory_fs.MemoryDir(OUTPUTS)
        sys.meta_path.append(memory_imports.FilesOfRequest(directory))
        return directory

    def set(self, checked: Checked) -> None:
        """In a worker: imports what the script names while files can be opened, then sets the limits."""
        tree = checked.tree
        if tree is None:
            raise TypeError("BUG: the imports of a script are read from its tree")
        memory_imports.prepare(list(imported_modules(tree)), set(implied_modules(tree)), is_async(tree))
        set_limits(self.limits)
        explain_late_limits()
