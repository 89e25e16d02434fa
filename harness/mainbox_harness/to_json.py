"""Encodes results as JSON: one documented form for each type, strictly RFC 8259.

Plain values pass at the speed of C: a list that contains only plain types is checked as a whole.
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

# Cycles are detected by Encoder, which can name the place.
dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode


class NotJson(Exception):
    """A value without a JSON form. On the way out each container adds a step to its path, the innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def path(self) -> str:
        """Returns the path of the value, starting with `result`."""
        return "result" + "".join(reversed(self.steps))


def to_json(value: object, max_depth: int) -> bytes:
    """Returns `value` as JSON. Raises a ScriptFailure that names the path and the type of what has no JSON form."""
    try:
        text = dumps(Encoder(max_depth).encode(value))
    except NotJson as error:
        raise ScriptFailure("not_json", f"{error.path()} {error.reason}") from None
    except RecursionError:
        raise ScriptFailure("not_json", "result is nested too deeply") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # UTF-8 has no surrogates: a pair becomes the character that it encodes, a lone one U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Encoder:
    """Converts values to the types that `json` knows."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self.open: set[int] = set()
        """The ids of the containers around the current value."""

    def encode(self, value: Any) -> object:
        """Converts any value."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else None
        if kind is dict:
            return self.container(value, self.members)
        if kind is list or kind is tuple:
            return self.container(value, self.items)
        return self.special(value)

    def container(self, value: Any, encode: Callable[[Any], object]) -> object:
        """Converts a container with `encode`. Refuses cycles and too many levels."""
        if id(value) in self.open:
            raise NotJson("contains itself")
        if len(self.open) >= self.max_depth:
            raise ScriptFailure("not_json", f"result is nested deeper than {self.max_depth} levels")
        self.open.add(id(value))
        encoded = encode(value)
        self.open.discard(id(value))
        return encoded

    def items(self, items: Iterable[Any]) -> list[object]:
        """Converts items to an array."""
        items = items if type(items) is list else list(items)
        kinds = set(map(type, items))
        if kinds <= PLAIN:
            return items
        if kinds <= PLAIN_OR_FLOAT:
            if all(map(math.isfinite, [item for item in items if type(item) is float])):
                return items
            return [None if type(item) is float and not math.isfinite(item) else item for item in items]
        encoded = []
        for index, item in enumerate(items):
            try:
                encoded.append(self.encode(item))
            except NotJson as error:
                error.steps.append(f"[{index}]")
                raise
        return encoded

    def members(self, members: dict[Any, Any]) -> dict[str, object]:
        """Converts keys and values to an object."""
        encoded: dict[str, object] = {}
        for key, value in members.items():
            try:
                name = key if type(key) is str else self.key(key)
                if name in encoded:
                    raise NotJson("stands for two different keys")
                encoded[name] = value if type(value) in PLAIN else self.encode(value)
            except NotJson as error:
                error.steps.append(step(key))
                raise
        return encoded

    def key(self, key: Any) -> str:
        """Converts a key to the name of a member."""
        encoded = self.special(key) if type(key) not in PLAIN and type(key) is not float else key
        match encoded:
            case str():
                return encoded
            case bool():
                return "true" if encoded else "false"
            case None:
                return "null"
            case int():
                return int.__repr__(encoded)
            case float():
                return float.__repr__(encoded)
        raise NotJson(f"has a key of type {type_name(type(key))}, which has no JSON form")

    def special(self, value: Any) -> object:
        """Converts a value whose exact type is not plain: subclasses of built-in types, sets, bytes and the rest."""
        match value:
            case enum.Enum():
                return self.encode(value.value)
            case bool() | NoneType():
                return value
            case str():
                return str.__str__(value)
            case int():
                return int(value)
            case float():
                return float(value) if math.isfinite(value) else None
            case dict():
                return self.container(value, self.members)
            case list() | tuple():
                return self.container(value, self.items)
            case set() | frozenset():
                return self.container(value, self.unordered)
            case bytes() | bytearray() | memoryview():
                return binascii.b2a_base64(value, newline=False).decode("ascii")
        return self.library_type(value)

    def library_type(self, value: Any) -> object:
        """Converts a value of a class that is not built in."""
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
            return self.container(value, lambda _: self.members(fields))
        if is_a(value, "numpy", "generic"):
            return self.numpy_scalar(value, sys.modules["numpy"])
        if is_a(value, "numpy", "ndarray"):
            return self.container(value, self.array)
        if is_a(value, "pandas", "DataFrame"):
            return self.container(value, self.data_frame)
        if is_a(value, "pandas", "Series"):
            return self.container(value, self.series)
        if is_a(value, "pandas", "Index") or is_a(value, "pandas.api.extensions", "ExtensionArray"):
            return self.container(value, lambda values: self.items(values.tolist()))
        raise NotJson(f"is of type {type_name(type(value))}, which has no JSON form")

    def unordered(self, values: Iterable[Any]) -> list[object]:
        """Converts a set to an array, sorted if its members can be compared."""
        values = list(values)
        with contextlib.suppress(TypeError):
            values.sort()
        return self.items(values)

    def numpy_scalar(self, value: Any, numpy: Any) -> object:
        """Converts a numpy scalar like the Python value that it stands for."""
        # Before the integers: a timedelta64 is one of them.
        if isinstance(value, numpy.timedelta64):
            return float(value / numpy.timedelta64(1, "s"))
        if isinstance(value, numpy.bool_):
            return bool(value)
        if isinstance(value, numpy.integer):
            return int(value)
        if isinstance(value, numpy.floating):
            return self.encode(float(value))
        if isinstance(value, numpy.datetime64):
            return str(value)
        if isinstance(value, numpy.void) and value.dtype.names:
            return self.container(value, lambda fields: self.items(fields.item()))
        raise NotJson(f"is of type {type_name(type(value))}, which has no JSON form")

    def array(self, values: Any) -> object:
        """Converts a numpy array to nested arrays, or to its value if it has no dimension."""
        if values.ndim == 0:
            return self.encode(values[()])
        # tolist() turns these kinds into Python values with the same form; the others keep their numpy scalars.
        if values.dtype.kind in "biufOSU":
            return self.items(values.tolist())
        return self.items(list(values))

    def series(self, series: Any) -> object:
        """Converts a pandas Series to an object from label to value."""
        if not series.index.is_unique:
            raise NotJson("is a Series with two equal labels; return .tolist() or .reset_index() instead")
        return self.members(dict(zip(series.index.tolist(), series.tolist(), strict=True)))

    def data_frame(self, frame: Any) -> object:
        """Converts a pandas DataFrame to an array with one object for each row."""
        if not frame.columns.is_unique:
            raise NotJson("is a DataFrame with two equal column labels")
        return self.items(frame.to_dict("records"))


def is_a(value: object, module: str, *classes: str) -> bool:
    """Whether `value` is an instance of one of the `classes` of `module`. Modules that are not imported have none."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, tuple(getattr(found, name) for name in classes))


def is_missing(value: Any) -> bool:
    """Whether `value` is NaT or NA, with which pandas and numpy mark missing values."""
    if (pandas := sys.modules.get("pandas")) is not None and (value is pandas.NaT or value is pandas.NA):
        return True
    return is_a(value, "numpy", "datetime64", "timedelta64") and bool(sys.modules["numpy"].isnat(value))


def step(key: object) -> str:
    """Returns a key as a step of a path."""
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    try:
        return f"[{repr(key)[:80]}]"
    except Exception:
        return f"[<{type(key).__name__}>]"


def type_name(kind: type) -> str:
    """Returns the name of a type, with its module unless it is built in or of the script."""
    if kind.__module__ in ("builtins", "script"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
