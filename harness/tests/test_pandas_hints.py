"""Tests of the hints for pandas 3."""

from mainbox_harness.hints import hint_for
from mainbox_harness.pandas_hints import moved


def test_what_pandas_3_removed_is_told_with_its_replacement() -> None:
    error = AttributeError("'DataFrame' object has no attribute 'applymap'")
    assert hint_for(error) == "; pandas 3 has DataFrame.map"
    error = TypeError("NDFrame.fillna() got an unexpected keyword argument 'method'")
    assert hint_for(error) == "; pandas 3 has .ffill() and .bfill()"


def test_nothing_is_added_to_other_errors() -> None:
    class Message(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    for error in (AttributeError(), AttributeError([]), AttributeError(Message("x")), TypeError("x", "y")):
        assert moved(error) == ""
