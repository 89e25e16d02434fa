"""Encodes results as JSON: one documented form for each type, strictly RFC 8259.

Plain values are encoded in C: a list that contains only plain types is not converted item by item. What is long is encoded
by `long_parts`.
"""

import binascii
import contextlib
import enum
import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from . import library_forms
from .failure import ScriptFailure
from .json_reasons import NotJson, name_of, step
from .long_parts import LONG_LIST, LONG_STRING, LongParts
from .pictures import Pictures

NoneType = type(None)
PLAIN = frozenset({str, int, bool, NoneType})
PLAIN_OR_FLOAT = PLAIN | {float}
FLOAT_OR_NONE = frozenset({float, NoneType})
# A list with more items is not searched for long strings, which takes longer than it saves. `json` encodes all of it.
FEW_ITEMS = 100
VIEWS = (type({}.keys()), type({}.values()), type({}.items()))

# Cycles are detected by Encoder, which can name the place.
dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: object, max_depth: int, max_bytes: int, pictures: Pictures | None = None) -> list[bytes]:
    """Returns `value` as JSON, in pieces. Raises a ScriptFailure that names the path and the type of what has no JSON form.

    Of an iterator, at most as many items are taken as could fit into `max_bytes`. Figures and images become files in
    `pictures`.
    """
    if type(value) is int:
        return [b"%d" % value]  # needs no encoder, whose pages each worker would copy
    encoder = Encoder(max_depth, max_bytes, pictures)
    try:
        text = dumps(encoder.encode(value))
    except NotJson as error:
        raise ScriptFailure("not_json", f"{error.path()} {error.reason}") from None
    except RecursionError:
        raise ScriptFailure("not_json", "result is nested too deeply") from None
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        # UTF-8 has no surrogates: a pair becomes the character that it encodes, a lone one U+FFFD.
        encoded = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return encoder.long_parts.put_into(encoded) if encoder.long_parts else [encoded]


class Encoder:
    """Converts values to the types that `json` knows.

    Types are judged by `type(value)`, since an object can lie about its `__class__`. Numbers and texts of subclasses are read
    by the methods of the built-in type, which a subclass cannot override.
    """

    def __init__(self, max_depth: int, max_bytes: int, pictures: Pictures | None) -> None:
        self.max_depth = max_depth
        self.pictures = pictures
        self.max_items = max_bytes // 2
        """An item of an array takes two bytes or more."""
        self.open: set[int] = set()
        """The ids of the containers around the current value."""
        self.long_parts: LongParts | None = None
        """The long parts so far, if there are any."""
        self.is_in_key = False
        """Whether the current value is a part of a key, where there are no long parts."""

    def encode(self, value: Any) -> object:
        """Converts any value."""
        kind = type(value)
        if kind in PLAIN:
            return self.string(value) if is_long(value) else value
        if kind is float:
            return value if math.isfinite(value) else None
        if kind is dict:
            return self.container(value, self.members)
        if kind is list or kind is tuple:
            return self.container(value, self.items)
        return self.special(value, kind)

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

    def items(self, items: Iterable[Any]) -> object:
        """Converts items to an array."""
        if type(items) is not list or len(items) >= LONG_LIST:
            items = list(items)  # a copy, since a thread may change a list that is encoded in several steps
        kinds = set(map(type, items))
        if kinds <= PLAIN_OR_FLOAT and not (str in kinds and len(items) <= FEW_ITEMS and any(map(is_long, items))):
            return self.plain_items(items, kinds)
        encoded = []
        for index, item in enumerate(items):
            try:
                encoded.append(self.encode(item))
            except NotJson as error:
                error.steps.append(f"[{index}]")
                raise
        return encoded

    def plain_items(self, items: list[Any], kinds: set[type]) -> object:
        """Converts items of plain types to an array. `kinds` is which those are."""
        if float not in kinds:
            return items
        if kinds <= FLOAT_OR_NONE and len(items) >= LONG_LIST and (parts := self.parts()):
            return parts.add_floats(items, has_none=NoneType in kinds)
        if all(map(math.isfinite, [item for item in items if type(item) is float])):
            return items
        return [None if type(item) is float and not math.isfinite(item) else item for item in items]

    def string(self, text: str) -> str:
        """Converts a long string."""
        parts = self.parts()
        return parts.add_string(text) if parts else text

    def parts(self) -> LongParts | None:
        """Returns where long parts go. None if they are encoded like all others."""
        if self.is_in_key:
            return None
        self.long_parts = self.long_parts or LongParts()
        return self.long_parts

    def members(self, members: dict[Any, Any]) -> dict[str, object]:
        """Converts keys and values to an object."""
        return self.pairs(members.items())

    def pairs(self, pairs: Iterable[tuple[Any, Any]]) -> dict[str, object]:
        """Converts pairs of key and value to an object."""
        encoded: dict[str, object] = {}
        for key, value in pairs:
            name = key if type(key) is str else self.key(key)
            try:
                if name in encoded:
                    raise NotJson("stands for two different keys")
                kind = type(value)
                # Without `is_long`, since a call for each member would take a twentieth of the whole.
                is_short = kind in PLAIN and (kind is not str or len(value) < LONG_STRING)
                encoded[name] = value if is_short else self.encode(value)
            except NotJson as error:
                error.steps.append(step(key))
                raise
        return encoded

    def key(self, key: Any) -> str:
        """Converts a key to the name of a member. The names of tuples are JSON arrays, so that they can be told apart."""
        if library_forms.is_a(type(key), "numpy", "floating"):
            key = float(key)
        if issubclass(type(key), float):
            return float.__repr__(key)  # as keys, NaN and infinities have names
        outside, self.is_in_key = self.is_in_key, True
        try:
            encoded = self.encode(key)
        except NotJson:
            encoded = NotImplemented
        finally:
            self.is_in_key = outside
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
            case list() if issubclass(type(key), tuple):
                return dumps(encoded)
        raise NotJson(f"has the key {name_of(key)}, which has no JSON form")

    def special(self, value: Any, kind: type) -> object:
        """Converts a value whose exact type is not plain: subclasses of built-in types, sets, bytes and the rest."""
        if issubclass(kind, enum.Enum):
            return self.encode(value.value)
        if issubclass(kind, str):
            return self.encode(str.__str__(value))
        if issubclass(kind, int):
            return int.__int__(value)
        if issubclass(kind, float):
            return self.encode(float.__float__(value))
        if issubclass(kind, complex):
            return {
                "re": self.encode(complex.__complex__(value).real),
                "im": self.encode(complex.__complex__(value).imag),
            }
        if issubclass(kind, dict):
            return self.container(value, self.members)
        if issubclass(kind, (list, tuple, deque, range, *VIEWS)):
            return self.container(value, self.items)
        if issubclass(kind, (set, frozenset)):
            return self.container(value, self.unordered)
        if issubclass(kind, (bytes, bytearray, memoryview)):
            return self.encode(binascii.b2a_base64(bytes(value), newline=False).decode("ascii"))
        return library_forms.encode(self, value, kind)

    def unordered(self, values: Iterable[Any]) -> object:
        """Converts a set to an array, sorted if its members can be compared."""
        values = list(values)
        with contextlib.suppress(TypeError):
            values.sort()
        return self.items(values)

    def iterator(self, iterator: Any) -> object:
        """Converts what an iterator yields to an array. Infinite ones are refused when no more items could fit."""
        items = []
        for item in iterator:
            if len(items) == self.max_items:
                raise ScriptFailure(
                    "result_too_large", f"An iterator in the result has more than {self.max_items} items"
                )
            items.append(item)
        return self.items(items)


def is_long(value: object) -> bool:
    """Whether a value is a string that is not encoded with the others."""
    return type(value) is str and len(value) >= LONG_STRING
