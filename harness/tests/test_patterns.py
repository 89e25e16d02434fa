"""Tests of the patterns for files that come back."""

import pytest
from mainbox_harness.patterns import Patterns


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.csv", "a.csv"),
        ("*.csv", "A.CSV"),
        ("a[12].txt", "a2.txt"),
        ("d/*.csv", "d/a.csv"),
        ("*/a.csv", "d/a.csv"),
        ("**/a.csv", "a.csv"),
        ("**/a.csv", "d/e/a.csv"),
        ("d/**/a.csv", "d/a.csv"),
        ("d/**/**/*", "d/e/f/a.csv"),
        ("d/**", "d/e/a.csv"),
        ("**", "a.csv"),
    ],
)
def test_a_pattern_matches_a_path(pattern: str, path: str) -> None:
    assert Patterns(["nothing", pattern]).match_path(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.csv", "a.txt"),
        ("*.csv", "d/a.csv"),
        ("d*a.csv", "d/a.csv"),
        ("*/*", "a.csv"),
        ("d/*.csv", "e/a.csv"),
        ("d/**/a.csv", "a.csv"),
        ("d", "d/a.csv"),
    ],
)
def test_a_wildcard_stays_in_its_directory(pattern: str, path: str) -> None:
    assert not Patterns([pattern]).match_path(path)


def test_a_directory_in_which_nothing_can_match_leaves_no_pattern() -> None:
    patterns = Patterns(["*.csv", "d/*.csv", "e/**/f/*"])
    assert patterns.within("d").patterns == [("*.csv",)]
    assert patterns.within("e").patterns == [("**", "f", "*")]
    assert not patterns.within("f")
