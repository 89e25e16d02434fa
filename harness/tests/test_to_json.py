import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import itertools
import pathlib
import re
import sqlite3
import sys
import types
import uuid
from typing import Any, NamedTuple

import pytest
from mainbox_harness.failure import ScriptFailure
from mainbox_harness.to_json import to_json


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Shade(enum.StrEnum):
    DARK = "dark"


class Text(str):
    def __str__(self) -> str:
        return "not this"


class Pair(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Point:
    x: int
    tags: set[int]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def encoded(value: object, max_depth: int = 100) -> str:
    return b"".join(to_json(value, max_depth, max_bytes=1000)).decode()


def error_of(value: object, max_depth: int = 100) -> str:
    with pytest.raises(ScriptFailure) as caught:
        to_json(value, max_depth, max_bytes=1000)
    assert caught.value.kind == "not_json"
    return caught.value.error


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        (2**70, "1180591620717411303424"),
        (0.5, "0.5"),
        (1e300, "1e+300"),
        ("é\n", '"é\\n"'),
        ([], "[]"),
        ({}, "{}"),
        ((1, "a"), '[1,"a"]'),
        ({"a": [1, {"b": None}]}, '{"a":[1,{"b":null}]}'),
        ([1, 2.5], "[1,2.5]"),
        (datetime.datetime(2024, 1, 2, 3, 4, 5), '"2024-01-02T03:04:05"'),
        (datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), '"2024-01-02T00:00:00+00:00"'),
        (datetime.date(2024, 1, 2), '"2024-01-02"'),
        (datetime.time(3, 4), '"03:04:00"'),
        (datetime.timedelta(minutes=1, milliseconds=500), "60.5"),
        (decimal.Decimal("1.10"), '"1.10"'),
        (decimal.Decimal("NaN"), "null"),
        (decimal.Decimal("-Infinity"), "null"),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (pathlib.PurePosixPath("a/b"), '"a/b"'),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"abc"), '"YWJj"'),
        (memoryview(b"abc"), '"YWJj"'),
        (Color.RED, '"red"'),
        (Level.HIGH, "3"),
        (Shade.DARK, '"dark"'),
        (Text("this"), '"this"'),
        (Pair(1, 2), "[1,2]"),
        (Point(1, {2}), '{"x":1,"tags":[2]}'),
        (collections.OrderedDict(a=1), '{"a":1}'),
        (collections.Counter("aab"), '{"a":2,"b":1}'),
        (collections.defaultdict(list, a=[1]), '{"a":[1]}'),
    ],
)
def test_each_type_has_one_form(value: object, form: str) -> None:
    assert encoded(value) == form
    assert encoded([value]) == f"[{form}]"
    assert encoded({"k": value}) == f'{{"k":{form}}}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_floats_that_json_does_not_have_become_null(value: float) -> None:
    assert encoded(value) == "null"
    assert encoded([value, 1.5, "a"]) == '[null,1.5,"a"]'
    assert encoded({"a": value}) == '{"a":null}'


def test_a_set_that_cannot_be_sorted_has_any_order() -> None:
    assert sorted(encoded({1, "a"})) == sorted('[1,"a"]')


def test_keys_become_strings() -> None:
    assert encoded({1: "a", 2.5: "b"}) == '{"1":"a","2.5":"b"}'
    assert encoded({None: 1, False: 2, True: 3}) == '{"null":1,"false":2,"true":3}'
    assert encoded({datetime.date(2024, 1, 2): 1}) == '{"2024-01-02":1}'
    assert encoded({Color.RED: 1, Level.HIGH: 2, Text("t"): 3}) == '{"red":1,"3":2,"t":3}'
    assert encoded({2**70: 1}) == '{"1180591620717411303424":1}'


def test_a_key_without_a_form_is_an_error() -> None:
    assert error_of({frozenset({1}): 3}) == "result has the key frozenset({1}), which has no JSON form"
    assert error_of([{"a": {1j: 2}}]) == "result[0].a has the key 1j, which has no JSON form"
    assert error_of({(1, print): 2}) == "result has the key (1, <built-in function print>), which has no JSON form"


def test_keys_of_several_parts_are_json_arrays() -> None:
    assert encoded({(1, "a"): 1, ("b", None): 2, ("x", datetime.date(2024, 1, 2)): 3}) == (
        '{"[1,\\"a\\"]":1,"[\\"b\\",null]":2,"[\\"x\\",\\"2024-01-02\\"]":3}'
    )
    assert encoded({float("nan"): 1, float("inf"): 2}) == '{"nan":1,"inf":2}'


class Lying(int):
    """Claims to be a string of another value, and fails when it is asked."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return str

    def __int__(self) -> int:
        raise RuntimeError("asked")

    __index__ = __repr__ = __str__ = __int__  # type: ignore[assignment]


class Shouting(str):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __len__(self) -> int:
        return 0

    def __format__(self, spec: str) -> str:
        return "not this"


def test_classes_of_the_script_cannot_lie_about_their_values() -> None:
    assert encoded([Lying(7), {Lying(8): Shouting("a")}]) == '[7,{"8":"a"}]'
    assert encoded({Shouting("a"): 1, "b": 2}) == '{"a":1,"b":2}'
    assert encoded(type("Odd", (float,), {"__float__": lambda _: 9.0})(0.5)) == "0.5"


def test_collections_and_iterators_are_arrays() -> None:
    assert encoded([collections.deque([1, 2]), range(3), {"a": 1}.items()]) == '[[1,2],[0,1,2],[["a",1]]]'
    assert (
        encoded([map(str, [1]), zip("a", [2], strict=True), iter({3}), enumerate("b")])
        == '[["1"],[["a",2]],[3],[[0,"b"]]]'
    )
    with pytest.raises(ScriptFailure) as caught:
        encoded(itertools.count())
    assert caught.value.kind == "result_too_large"
    assert caught.value.error == "An iterator in the result has more than 500 items"


def test_numbers_without_a_json_number_have_one_form_each() -> None:
    assert encoded([1j, fractions.Fraction(1, 3)]) == '[{"re":0.0,"im":1.0},"1/3"]'


def test_rows_and_models_are_objects() -> None:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    assert encoded(connection.execute("select 1 as a, 'x' as b").fetchall()) == '[{"a":1,"b":"x"}]'
    assert error_of(connection.execute("select 1 as a, 2 as a").fetchone()) == "result.a stands for two different keys"
    connection.close()
    model = type("Model", (), {"__pydantic_serializer__": 1, "model_dump": lambda _, mode: {"mode": mode}})
    assert encoded(model()) == '{"mode":"json"}'
    attrs = type("Attrs", (), {"__attrs_attrs__": (types.SimpleNamespace(name="x"),), "x": {2}})
    assert encoded(attrs()) == '{"x":[2]}'


def test_two_keys_with_the_same_name_are_an_error() -> None:
    assert error_of({1: "a", "1": "b"}) == "result['1'] stands for two different keys"
    assert error_of([{None: 1, "null": 2}]) == "result[0].null stands for two different keys"


def test_the_error_names_the_place_and_the_type() -> None:
    assert error_of(object()) == "result is of type object, which has no JSON form"
    assert error_of(Point) == ("result is of type type, which has no JSON form; return an instance of it, or its name")
    assert error_of({"rows": [0, 1, {"fn": print}]}) == (
        "result.rows[2].fn is of type builtin_function_or_method, which has no JSON form; call it and return its result"
    )
    assert error_of({"a b": re.compile("x")}) == (
        "result['a b'] is of type re.Pattern, which has no JSON form; return .pattern"
    )
    assert error_of({1: {"x": object()}}) == "result[1].x is of type object, which has no JSON form"
    assert error_of(Pair(1, object())) == "result[1] is of type object, which has no JSON form"
    assert error_of(item for item in [1]) == (
        "result is of type generator, which has no JSON form; return a list, as list(...) makes one"
    )
    assert error_of(io.StringIO("text")) == (
        "result is of type _io.StringIO, which has no JSON form; return .read(), or write the file to outputs/"
    )


def test_long_keys_are_cut_and_keys_without_a_repr_are_named_by_type() -> None:
    assert error_of({"- " * 100: object()}) == (
        "result['" + ("- " * 100)[:79] + "] is of type object, which has no JSON form"
    )
    assert error_of({Unprintable(): 1}) == "result has the key <Unprintable>, which has no JSON form"


def test_a_type_of_the_script_is_named_without_a_module() -> None:
    kind = type("Thing", (), {"__module__": "script"})
    assert error_of(kind()) == "result is of type Thing, which has no JSON form"


def test_a_cycle_is_an_error() -> None:
    items: list[Any] = []
    items.append(items)
    assert error_of(items) == "result[0] contains itself"
    members: dict[str, Any] = {"a": []}
    members["a"].append(members)
    assert error_of(members) == "result.a[0] contains itself"


def test_the_same_value_twice_is_not_a_cycle() -> None:
    shared = [[1]]
    assert encoded([shared, shared, {"a": shared}]) == '[[[1]],[[1]],{"a":[[1]]}]'


def test_the_depth_has_a_limit() -> None:
    assert encoded(nested(3), max_depth=3) == "[[[]]]"
    assert error_of(nested(4), max_depth=3) == "result is nested deeper than 3 levels"
    assert error_of({"a": {"b": ({"c": 1},)}}, max_depth=3) == "result is nested deeper than 3 levels"


def test_a_value_that_exhausts_the_stack_is_an_error() -> None:
    assert error_of(nested(100_000), max_depth=1_000_000) == "result is nested too deeply"


def test_surrogate_pairs_become_characters_and_lone_surrogates_are_replaced() -> None:
    assert encoded("\ud83d\ude00") == '"😀"'
    assert encoded(["a\ud800b", "\udfff"]) == '["a\ufffdb","\ufffd"]'
    assert encoded({"\udfff": 1}) == '{"\ufffd":1}'


class FakeNumpy(types.ModuleType):
    """The classes of numpy with just enough behavior for the encoder."""

    class generic:  # noqa: N801
        def __init__(self, value: Any) -> None:
            self.value = value

    class bool_(generic):  # noqa: N801
        def __bool__(self) -> bool:
            return self.value

    class integer(generic):  # noqa: N801
        def __int__(self) -> int:
            return self.value

    class timedelta64(integer):  # noqa: N801
        def __init__(self, value: Any, unit: str) -> None:
            super().__init__(value)

        def __truediv__(self, other: "FakeNumpy.timedelta64") -> float:
            return self.value / other.value

    class floating(generic):  # noqa: N801
        def __float__(self) -> float:
            return self.value

    class datetime64(generic):  # noqa: N801
        def __str__(self) -> str:
            return self.value

    class void(generic):  # noqa: N801
        dtype = types.SimpleNamespace(names=("n", "s"))

        def item(self) -> tuple[Any, ...]:
            return self.value

    class complexfloating(generic):  # noqa: N801
        @property
        def real(self) -> float:
            return self.value.real

        @property
        def imag(self) -> float:
            return self.value.imag

    class ndarray:  # noqa: N801
        def __init__(self, items: Any, kind: str, ndim: int = 1) -> None:
            self.content = items
            self.ndim = ndim
            self.dtype = types.SimpleNamespace(kind=kind)

        def __getitem__(self, index: tuple[()]) -> Any:
            return self.content

        def __iter__(self) -> Any:
            return iter(self.content)

        def tolist(self) -> Any:
            assert self.dtype.kind in "biufcOSU"
            return self.content

    @staticmethod
    def isnat(value: Any) -> bool:
        return value.value == "NaT"


@pytest.fixture
def numpy(monkeypatch: pytest.MonkeyPatch) -> FakeNumpy:
    module = FakeNumpy("numpy")
    monkeypatch.setitem(sys.modules, "numpy", module)
    return module


def test_numpy_scalars_have_the_form_of_their_python_values(numpy: FakeNumpy) -> None:
    assert encoded([numpy.bool_(True), numpy.integer(3), numpy.floating(0.5)]) == "[true,3,0.5]"
    assert encoded(numpy.floating(float("nan"))) == "null"
    assert encoded(numpy.timedelta64(90, "s")) == "90.0"
    assert encoded([numpy.datetime64("2024-01-02T03:04"), numpy.datetime64("NaT")]) == '["2024-01-02T03:04",null]'
    assert encoded(numpy.void((1, "a"))) == '[1,"a"]'
    assert encoded({numpy.integer(7): 1}) == '{"7":1}'
    assert encoded(numpy.complexfloating(1 - 2j)) == '{"re":1.0,"im":-2.0}'


def test_numpy_arrays_are_nested_arrays(numpy: FakeNumpy) -> None:
    assert encoded(numpy.ndarray([[0, 1], [2, 3]], "i", ndim=2)) == "[[0,1],[2,3]]"
    assert encoded(numpy.ndarray(numpy.integer(5), "i", ndim=0)) == "5"
    assert encoded(numpy.ndarray([numpy.datetime64("2024"), numpy.datetime64("NaT")], "M")) == '["2024",null]'


class FakePandas(types.ModuleType):
    """The classes of pandas with just enough behavior for the encoder."""

    NaT = object()
    NA = object()

    class Index:
        nlevels = 1

        def __init__(self, labels: list[Any], name: str | None = None) -> None:
            self.labels = labels
            self.name = name
            self.dtype = types.SimpleNamespace(kind="i" if all(type(label) is int for label in labels) else "O")
            self.is_unique = len(set(labels)) == len(labels)

        def __contains__(self, label: object) -> bool:
            return label in self.labels

        def tolist(self) -> list[Any]:
            return self.labels

    class Series:
        def __init__(self, labels: list[Any], values: list[Any]) -> None:
            self.index = FakePandas.Index(labels)
            self.values = values

        def tolist(self) -> list[Any]:
            return self.values

    class DataFrame:
        def __init__(self, columns: list[Any], rows: list[list[Any]], index: Any = None) -> None:
            self.columns = FakePandas.Index(columns)
            self.rows = rows
            self.index = index or FakePandas.Index(list(range(len(rows))))

        def to_dict(self, orient: str) -> list[dict[Any, Any]]:
            assert orient == "records"
            return [dict(zip(self.columns.labels, row, strict=True)) for row in self.rows]


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> FakePandas:
    module = FakePandas("pandas")
    monkeypatch.setitem(sys.modules, "pandas", module)
    return module


def test_pandas_objects_have_one_form_each(pandas: FakePandas) -> None:
    assert encoded([pandas.NaT, pandas.NA]) == "[null,null]"
    assert encoded(pandas.DataFrame(["a", "b"], [[1, "x"], [2, None]])) == '[{"a":1,"b":"x"},{"a":2,"b":null}]'
    assert encoded(pandas.DataFrame([], [])) == "[]"
    labels = pandas.Index(["Oslo", "Rome"], "town")
    assert encoded(pandas.DataFrame(["v"], [[3], [4]], labels)) == '[{"town":"Oslo","v":3},{"town":"Rome","v":4}]'
    assert encoded(pandas.DataFrame(["v"], [[3]], pandas.Index([7]))) == '[{"index":7,"v":3}]'
    assert error_of(pandas.DataFrame(["v"], [[3]], pandas.Index([7], "v"))) == (
        "result is a DataFrame whose index and column are both called 'v'; "
        "return .reset_index(drop=True), or name the index by .rename_axis(...)"
    )
    assert encoded(pandas.Series(["x", 1], [0.5, pandas.NA])) == '{"x":0.5,"1":null}'
    assert encoded(pandas.Index([1, 2])) == "[1,2]"


def test_equal_labels_of_pandas_objects_are_an_error(pandas: FakePandas) -> None:
    assert error_of({"s": pandas.Series(["a", "a"], [1, 2])}) == (
        "result.s is a Series with duplicate labels; return .tolist() or .reset_index() instead"
    )
    assert error_of([pandas.DataFrame(["a", "a"], [[1, 2]])]) == (
        "result[0] is a DataFrame with duplicate column labels"
    )
