"""Pictures: figures that the script shows, leaves open or returns come back as files.

Nothing is imported for this. If the script has not imported matplotlib or Pillow, it has no pictures.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from .patterns import Patterns

OUTPUTS = "outputs"
# Where the zygote keeps the pictures of a run with the usual options.
PICTURES = "pictures"
PYPLOT = "matplotlib.pyplot"
NAME = "figure-{}.png"


class Pictures:
    """The pictures of a script, in the order in which it showed them."""

    current: ClassVar[Pictures | None] = None
    """Those of the script that runs."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        """Those of the files that come back. A figure that is shown comes back only if its name matches."""
        self.files: list[tuple[str, bytes]] = []
        self.names: dict[int, str] = {}
        """The names of pictures that are saved, by the ids of their objects."""
        self.kept: list[object] = []
        """Keeps these objects alive, so that no other gets the same id."""

    def add(self, picture: Any, save: Any) -> str:
        """Saves a picture once, by calling `save` with a file and the format. Returns its name."""
        name = self.names.get(id(picture))
        if name is None:
            name = self.free_name()
            content = io.BytesIO()
            save(content, format="png")
            self.files.append((name, content.getvalue()))
            self.names[id(picture)] = name
            self.kept.append(picture)
        return name

    def free_name(self) -> str:
        """Returns a name that no file in the working directory or in the directory of outputs has."""
        number = len(self.files) + 1
        while any(os.path.lexists(os.path.join(folder, NAME.format(number))) for folder in (".", OUTPUTS)):
            number += 1
        return NAME.format(number)

    def add_open_figures(self) -> None:
        """Saves the figures that are open."""
        pyplot: Any = sys.modules.get(PYPLOT)
        if not hasattr(pyplot, "get_fignums") or not self.patterns.match(NAME.format(1)):
            return
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            self.add(figure, figure.savefig)

    def name_of(self, value: Any, kind: type) -> str | None:
        """Saves a matplotlib Figure or a PIL image. Returns its name; None for anything else."""
        figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        if isinstance(figure, type) and issubclass(kind, figure):
            return self.add(value, value.savefig)
        image = getattr(sys.modules.get("PIL.Image"), "Image", None)
        if isinstance(image, type) and issubclass(kind, image):
            return self.add(value, value.save)
        return None

    def install(self) -> None:
        """Has show of pyplot save its figures here."""
        Pictures.current = self


def show(*_: object, **__: object) -> None:
    """Stands in for show of pyplot: saves the open figures and closes them."""
    if Pictures.current is not None:
        Pictures.current.add_open_figures()
    pyplot: Any = sys.modules.get(PYPLOT)
    if pyplot is not None:
        pyplot.close("all")


def replace_show() -> None:
    """In the zygote: replaces show of pyplot, now or when a script imports pyplot."""
    pyplot: Any = sys.modules.get(PYPLOT)
    if pyplot is None:
        finder: Any = PyplotFinder()
        sys.meta_path.insert(0, finder)
    else:
        pyplot.show = show


class PyplotFinder:
    """Finds nothing by itself, but has show replaced when pyplot is imported.

    A plain class, since importing importlib.abc imports pathlib, which must not be imported before `memory_fs` replaces
    functions of os.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds pyplot by the other finders and wraps its loader."""
        if name != PYPLOT:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                loader: Any = ShowingLoader(spec.loader)
                spec.loader = loader
                return spec
        return None


class ShowingLoader:
    """Loads pyplot and then replaces its function show."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Creates the module as its own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of the module, and then replaces the function."""
        self.loader.exec_module(module)
        pyplot: Any = module
        pyplot.show = show
