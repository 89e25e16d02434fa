"""What imported modules want to be called at a fork. Workers are forked without Python, so the zygote must know."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

# Modules whose functions need not be called. They forget other threads and make their locks anew, but a zygote has no
# other thread that could hold one. `random` is seeded by `process_state`.
NEEDLESS = {"threading", "logging", "concurrent.futures.thread", "asyncio.events", "random"}


class ForkHooks:
    """Records what is registered with `os.register_at_fork` while it is entered."""

    def __init__(self) -> None:
        self.in_child: list[Callable[[], object]] = []
        """What must be called in a worker."""
        self.around: list[str] = []
        """The modules that must be called in the zygote too, before or after a fork."""
        self.register = os.register_at_fork

    def __enter__(self) -> Self:
        """Begins to record."""
        os.register_at_fork = self.record
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        os.register_at_fork = self.register

    def record(self, **functions: Any) -> None:
        """Stands in for `os.register_at_fork`."""
        self.register(**functions)
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module in NEEDLESS:
            return
        if "before" in functions or "after_in_parent" in functions:
            self.around.append(module)
        if "after_in_child" in functions:
            self.in_child.append(functions["after_in_child"])
