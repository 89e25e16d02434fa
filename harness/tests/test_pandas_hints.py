"""Tests of the hints for newer versions of pandas."""

from mainbox_harness.hints import hint_for
from mainbox_harness.pandas_hints import moved


def test_what_pandas_removed_is_told_with_its_replacement() -> None:
    error = AttributeError("'DataFrame' object has no attribute 'applymap'")
    assert hint_for(error) == "; use DataFrame.map instead"
    error = TypeError("NDFrame.fillna() got an unexpected keyword argument 'method'")
    assert hint_for(error) == "; use .ffill() and .bfill() instead"


def test_nothing_is_added_to_other_errors() -> None:
    class Message(str):
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

    for error in (AttributeError(), AttributeError([]), AttributeError(Message("x")), TypeError("x", "y")):
        assert moved(error) == ""
