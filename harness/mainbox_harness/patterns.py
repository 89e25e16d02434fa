"""Patterns for the paths of files, relative to the working directory. They tell which files come back."""

from __future__ import annotations

from fnmatch import fnmatchcase

# A part of a pattern that stands for any number of directories.
ANY_DEPTH = "**"


class Patterns:
    """Patterns such as `*.csv` and `data/**/*.csv`. A wildcard does not match `/`, and case is ignored.

    Directories are entered one by one, so that those in which no file can match are never read.
    """

    def __init__(self, texts: list[str]) -> None:
        self.patterns = [tuple(text.lower().split("/")) for text in texts]

    def __bool__(self) -> bool:
        """Whether any file can match."""
        return bool(self.patterns)

    def match(self, name: str) -> bool:
        """Whether a file of this name, directly in the directory that the patterns are relative to, matches."""
        return any(matches(pattern, name.lower()) for pattern in self.patterns)

    def match_path(self, path: str) -> bool:
        """Whether a file matches, whose path is relative to that directory."""
        *folders, name = path.split("/")
        patterns = self
        for folder in folders:
            patterns = patterns.within(folder)
        return patterns.match(name)

    def within(self, folder: str) -> Patterns:
        """Returns the patterns relative to a directory in that directory."""
        inner = Patterns([])
        rests = {rest for pattern in self.patterns for rest in entered(pattern, folder.lower())}
        inner.patterns = sorted(rests)
        return inner


def matches(pattern: tuple[str, ...], name: str) -> bool:
    """Whether a pattern matches a name without directories."""
    while len(pattern) > 1 and pattern[0] == ANY_DEPTH:
        pattern = pattern[1:]
    return len(pattern) == 1 and part_matches(pattern[0], name)


def part_matches(pattern: str, name: str) -> bool:
    """Whether a part of a pattern matches a part of a path."""
    ending = pattern.removeprefix("*")
    if not any(wildcard in ending for wildcard in "*?["):
        # The common patterns, for which fnmatch would compile a regular expression in 0.1 ms.
        return name.endswith(ending) if ending != pattern else name == pattern
    return fnmatchcase(name, pattern)


def entered(pattern: tuple[str, ...], folder: str) -> list[tuple[str, ...]]:
    """Returns what may remain of a pattern inside a directory."""
    if pattern[0] == ANY_DEPTH:
        further = entered(pattern[1:], folder) if len(pattern) > 1 else []
        return [pattern, *further]
    return [pattern[1:]] if len(pattern) > 1 and part_matches(pattern[0], folder) else []
