"""The JSON of a result: one documented form for each type, strictly RFC 8259.

Plain values pass at the speed of C: a list whose items are all of plain types is looked at as a whole.
"""

import binascii
import contextlib
import enum
import json
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .failure import ScriptFailure

NoneType = type(None)
PLAIN = frozenset({str, int, bool, NoneType})
PLAIN_OR_FLOAT = PLAIN | {float}

encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode


class NotJson(Exception):
    """A value without a JSON form. Its place grows on the way out: the innermost step comes first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def place(self) -> str:
        """Where the value stands, from `result` on."""
        return "result" + "".join(reversed(self.steps))


def to_json(value: object, max_depth: int) -> bytes:
    """The JSON of `value`, or a ScriptFailure that names the place and the type that has none."""
    try:
        text = encode(Former(max_depth).form(value))
    except NotJson as error:
        raise ScriptFailure("not_json", f"{error.place()} {error.reason}") from None
    except RecursionError:
        raise ScriptFailure("not_json", "result is nested too deeply") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Surrogates: pairs become the character that they stand for, lone ones U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Former:
    """Brings a value into the types that the encoder knows."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self.open: set[int] = set()

    def form(self, value: Any) -> object:
        """The form of any value."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else None
        if kind is dict:
            return self.inside(value, self.members)
        if kind is list or kind is tuple:
            return self.inside(value, self.items)
        return self.special(value)

    def inside(self, container: Any, form: Callable[[Any], object]) -> object:
        """Forms a container, guarding against cycles and depth."""
        if id(container) in self.open:
            raise NotJson("contains itself")
        if len(self.open) >= self.max_depth:
            raise ScriptFailure("not_json", f"result is nested deeper than {self.max_depth} levels")
        self.open.add(id(container))
        formed = form(container)
        self.open.discard(id(container))
        return formed

    def items(self, items: Iterable[Any]) -> list[object]:
        """An array."""
        items = items if type(items) is list else list(items)
        kinds = set(map(type, items))
        if kinds <= PLAIN:
            return items
        if kinds <= PLAIN_OR_FLOAT:
            if all(map(math.isfinite, [item for item in items if type(item) is float])):
                return items
            return [None if type(item) is float and not math.isfinite(item) else item for item in items]
        formed = []
        for index, item in enumerate(items):
            try:
                formed.append(self.form(item))
            except NotJson as error:
                error.steps.append(f"[{index}]")
                raise
        return formed

    def members(self, members: dict[Any, Any]) -> dict[str, object]:
        """An object."""
        formed: dict[str, object] = {}
        for key, value in members.items():
            try:
                name = key if type(key) is str else self.key(key)
                if name in formed:
                    raise NotJson("stands for two different keys")
                formed[name] = value if type(value) in PLAIN else self.form(value)
            except NotJson as error:
                error.steps.append(step_of(key))
                raise
        return formed

    def key(self, key: Any) -> str:
        """The name of a member."""
        formed = self.special(key) if type(key) not in PLAIN and type(key) is not float else key
        match formed:
            case str():
                return formed
            case bool():
                return "true" if formed else "false"
            case None:
                return "null"
            case int():
                return int.__repr__(formed)
            case float():
                return float.__repr__(formed)
        raise NotJson(f"has a key of type {name_of(type(key))}, which has no JSON form")

    def special(self, value: Any) -> object:
        """Whatever is not plain, by its documented form."""
        match value:
            case enum.Enum():
                return self.form(value.value)
            case bool() | NoneType():
                return value
            case str():
                return str.__str__(value)
            case int():
                return int(value)
            case float():
                return float(value) if math.isfinite(value) else None
            case dict():
                return self.inside(value, self.members)
            case list() | tuple():
                return self.inside(value, self.items)
            case set() | frozenset():
                return self.inside(value, self.unordered)
            case bytes() | bytearray() | memoryview():
                return binascii.b2a_base64(value, newline=False).decode("ascii")
        return self.of_library(value)

    def of_library(self, value: Any) -> object:
        """A value of a class that is not built in."""
        if is_missing(value):
            return None
        if is_a(value, "decimal", "Decimal"):
            return str(value) if value.is_finite() else None
        if is_a(value, "uuid", "UUID") or is_a(value, "pathlib", "PurePath"):
            return str(value)
        if is_a(value, "datetime", "date", "time"):
            return value.isoformat()
        if is_a(value, "datetime", "timedelta"):
            return value.total_seconds()
        if hasattr(type(value), "__dataclass_fields__"):
            fields = {field.name: getattr(value, field.name) for field in sys.modules["dataclasses"].fields(value)}
            return self.inside(value, lambda _: self.members(fields))
        if is_a(value, "numpy", "generic"):
            return self.numpy_scalar(value, sys.modules["numpy"])
        if is_a(value, "numpy", "ndarray"):
            return self.inside(value, self.array)
        if is_a(value, "pandas", "DataFrame"):
            return self.inside(value, self.data_frame)
        if is_a(value, "pandas", "Series"):
            return self.inside(value, self.series)
        if is_a(value, "pandas", "Index") or is_a(value, "pandas.api.extensions", "ExtensionArray"):
            return self.inside(value, lambda values: self.items(values.tolist()))
        raise NotJson(f"is of type {name_of(type(value))}, which has no JSON form")

    def unordered(self, values: Iterable[Any]) -> list[object]:
        """A set: sorted where its members can be compared."""
        values = list(values)
        with contextlib.suppress(TypeError):
            values.sort()
        return self.items(values)

    def numpy_scalar(self, value: Any, numpy: Any) -> object:
        """A numpy scalar as the Python value that it stands for."""
        if isinstance(value, numpy.timedelta64):
            return float(value / numpy.timedelta64(1, "s"))
        if isinstance(value, numpy.bool_):
            return bool(value)
        if isinstance(value, numpy.integer):
            return int(value)
        if isinstance(value, numpy.floating):
            return self.form(float(value))
        if isinstance(value, numpy.datetime64):
            return str(value)
        if isinstance(value, numpy.void) and value.dtype.names:
            return self.inside(value, lambda fields: self.items(fields.item()))
        raise NotJson(f"is of type {name_of(type(value))}, which has no JSON form")

    def array(self, values: Any) -> object:
        """A numpy array: nested arrays, or its value when it has no dimension."""
        if values.ndim == 0:
            return self.form(values[()])
        if values.dtype.kind in "biufOSU":
            return self.items(values.tolist())
        return self.items(list(values))

    def series(self, series: Any) -> object:
        """A pandas Series: an object from label to value."""
        if not series.index.is_unique:
            raise NotJson("is a Series with two equal labels; return .tolist() or .reset_index() instead")
        return self.members(dict(zip(series.index.tolist(), series.tolist(), strict=True)))

    def data_frame(self, frame: Any) -> object:
        """A pandas DataFrame: an array of one object a row."""
        if not frame.columns.is_unique:
            raise NotJson("is a DataFrame with two equal column labels")
        return self.items(frame.to_dict("records"))


def is_a(value: object, module: str, *classes: str) -> bool:
    """Whether `value` is of one of the `classes` of `module`; without that module, there is no value of them."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, tuple(getattr(found, name) for name in classes))


def is_missing(value: Any) -> bool:
    """NaT and NA: pandas' and numpy's words for nothing."""
    if (pandas := sys.modules.get("pandas")) is not None and (value is pandas.NaT or value is pandas.NA):
        return True
    return is_a(value, "numpy", "datetime64", "timedelta64") and bool(sys.modules["numpy"].isnat(value))


def step_of(key: object) -> str:
    """A key as a step of a place."""
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    try:
        return f"[{repr(key)[:80]}]"
    except Exception:
        return f"[<{type(key).__name__}>]"


def name_of(kind: type) -> str:
    """A type's name, with its module unless that is plain."""
    if kind.__module__ in ("builtins", "script"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
