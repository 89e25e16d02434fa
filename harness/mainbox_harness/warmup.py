"""The warm-up: small typical scripts through the real path, so that a request finds caches filled and pages copied."""

import sys
from typing import Any

from .outputs import WorkDir
from .pictures import PYPLOT
from .script import Request, forget, run
from .validation import check

# The environment in which libraries are imported.
LIBRARIES = {
    "MPLBACKEND": "agg",  # otherwise matplotlib first tries to import toolkits for windows
    "JOBLIB_MULTIPROCESSING": "0",  # otherwise joblib, and so scikit-learn, warns that there are no processes
}

OPTIONS: dict[str, Any] = {
    "entry": "main",
    "refused": {"modules": ["no"], "os_functions": ["no"], "builtins": [], "needs_return": False},
    "max_depth": 9,
    "max_result_bytes": 1 << 20,
    "collect": ["*.png"],
    "outputs": {"max_bytes": 0, "max_files": 0, "max_name_bytes": 0, "max_parts": 1},
}

PLAIN = """
import json, math
class Thing:
    def __init__(self, name): self.name = name
def main(x):
    print(end="")
    things = [Thing(f"{n}") for n in range(3)]
    kinds = {thing.name: [len(thing.name), math.sqrt(2), None, True] for thing in things}
    return json.loads(json.dumps({"kinds": kinds, "text": "a b".split()}))
"""

NUMPY = """
import numpy as np
def main(x): return [np.mean([1, 2, 3]), np.std(np.array([1.0, 2.0])), np.arange(4).reshape(2, 2)]
"""

PANDAS = """
import pandas as pd
def main(x):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "x"]})
    return [int(frame["a"].sum()), frame.groupby("b")["a"].sum()]
"""

# Loads what matplotlib imports only when it draws, and fills its caches.
PLOT = """
import matplotlib.pyplot as plt
def main(x):
    plt.plot([1, 2, 3], [1, 4, 9], label="a")
    plt.legend()
    plt.show()
"""


def warm_up(work_dir: WorkDir | None) -> None:
    """Runs a script for each preloaded package, and removes every trace that a later script could see.

    A plot takes as long as many requests, so only the zygote draws one. It has no working directory.
    """
    scripts = [(None, PLAIN), ("numpy", NUMPY), ("pandas", PANDAS)]
    if work_dir is None:
        scripts.append((PYPLOT, PLOT))
        # What other scripts need is loaded, but its pages are not copied for each worker.
        check(PLAIN, OPTIONS["refused"], needs_tree=True)
    for package, script in scripts:
        if package is None or package in sys.modules:
            run(Request(script, [b"[1]"], []), OPTIONS, work_dir, late_limits=None)
    forget()
    if work_dir is None:
        close_fonts()


def close_fonts() -> None:
    """Closes the fonts of the plot. matplotlib does so in each worker too, where it takes as long as a small script."""
    fonts: Any = sys.modules.get("matplotlib.font_manager")
    clear = getattr(getattr(fonts, "_get_font", None), "cache_clear", None)
    if clear is not None:
        clear()
