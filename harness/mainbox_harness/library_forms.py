"""The JSON forms of classes that are not built in. A library that is not imported costs nothing here."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .json_reasons import NotJson, no_form

if TYPE_CHECKING:
    from .to_json import Encoder

MODULES = sys.modules


def encode(encoder: Encoder, value: Any, kind: type) -> object:
    """Converts a value of a class that is not built in. Raises NotJson if it has no JSON form."""
    if is_missing(value):
        return None
    if is_a(kind, "decimal", "Decimal"):
        return str(value) if value.is_finite() else None
    if is_a(kind, "uuid", "UUID") or is_a(kind, "pathlib", "PurePath") or is_a(kind, "fractions", "Fraction"):
        return str(value)
    if is_a(kind, "pandas", "Period", "Interval"):
        return str(value)
    if is_a(kind, "datetime", "date", "time"):
        return value.isoformat()
    if is_a(kind, "datetime", "timedelta"):
        return value.total_seconds()
    if encoder.pictures is not None and (name := encoder.pictures.name_of(value, kind)) is not None:
        return {"file": name}
    if (fields := fields_of(value, kind)) is not None:
        return encoder.container(value, lambda _: encoder.members(fields))
    if is_a(kind, "sqlite3", "Row"):
        return encoder.container(value, lambda row: encoder.pairs(zip(row.keys(), tuple(row), strict=True)))
    if is_a(kind, "numpy", "generic"):
        return numpy_scalar(encoder, value, kind)
    if is_a(kind, "numpy", "ndarray"):
        return encoder.container(value, lambda values: array(encoder, values))
    if is_a(kind, "pandas", "DataFrame"):
        return encoder.container(value, lambda frame: data_frame(encoder, frame))
    if is_a(kind, "pandas", "Series"):
        return encoder.container(value, lambda values: series(encoder, values))
    if is_a(kind, "pandas", "Index") or is_a(kind, "pandas.api.extensions", "ExtensionArray"):
        return encoder.container(value, lambda values: encoder.items(values.tolist()))
    if issubclass(kind, Iterator) and kind.__name__ != "generator" and not issubclass(kind, io.IOBase):
        return encoder.container(value, encoder.iterator)
    raise no_form(kind)


def is_a(kind: type, module: str, *classes: str) -> bool:
    """Whether `kind` is one of the `classes` of `module` or below. Modules that are not imported have none."""
    found = MODULES.get(module)
    if found is None:
        return False
    # A file of the request can be a module with the name of a library.
    known = (getattr(found, name, None) for name in classes)
    return issubclass(kind, tuple(known_class for known_class in known if isinstance(known_class, type)))


def is_missing(value: Any) -> bool:
    """Whether `value` is NaT or NA, with which pandas and numpy mark missing values."""
    if (pandas := MODULES.get("pandas")) is not None and (value is pandas.NaT or value is pandas.NA):
        return True
    if (masked := getattr(MODULES.get("numpy.ma"), "masked", None)) is not None and value is masked:
        return True
    return is_a(type(value), "numpy", "datetime64", "timedelta64") and bool(MODULES["numpy"].isnat(value))


def fields_of(value: Any, kind: type) -> dict[Any, Any] | None:
    """Returns the fields of a dataclass, an attrs class or a pydantic model; None for any other class."""
    if hasattr(kind, "__dataclass_fields__"):
        return values_of(value, MODULES["dataclasses"].fields(value))
    if hasattr(kind, "__attrs_attrs__"):
        return values_of(value, kind.__attrs_attrs__)
    if hasattr(kind, "__pydantic_serializer__"):
        return value.model_dump(mode="json")
    if hasattr(kind, "__fields__") and is_a(kind, "pydantic", "BaseModel"):  # version 1
        return value.dict()
    return None


def values_of(value: Any, fields: Any) -> dict[Any, Any]:
    """Returns the values of the fields of an object."""
    try:
        return {field.name: getattr(value, field.name) for field in fields}
    except AttributeError as error:
        raise NotJson(f"has a field without a value: {error}") from None


def numpy_scalar(encoder: Encoder, value: Any, kind: type) -> object:
    """Converts a numpy scalar like the Python value that it stands for."""
    numpy: Any = MODULES["numpy"]
    # Before the integers: a timedelta64 is one of them.
    if issubclass(kind, numpy.timedelta64):
        try:
            return float(value / numpy.timedelta64(1, "s"))
        except TypeError:  # numpy cannot divide a calendar unit
            raise NotJson("is a timedelta64 in months or years, which have no length in seconds") from None
    if issubclass(kind, numpy.bool_):
        return bool(value)
    if issubclass(kind, numpy.integer):
        return int(value)
    if issubclass(kind, numpy.floating):
        return encoder.encode(float(value))
    if issubclass(kind, numpy.complexfloating):
        return encoder.encode(complex(value.real, value.imag))
    if issubclass(kind, numpy.datetime64):
        return str(value)
    if issubclass(kind, numpy.void) and value.dtype.names:
        return encoder.container(value, lambda fields: encoder.items(fields.item()))
    raise no_form(kind)


def array(encoder: Encoder, values: Any) -> object:
    """Converts a numpy array to nested arrays, or to its value if it is zero-dimensional."""
    if values.ndim == 0:
        return encoder.encode(values[()])
    # tolist() turns these kinds into Python values with the same form; the others keep their numpy scalars.
    if values.dtype.kind in "biufcOSU":
        return encoder.items(values.tolist())
    return encoder.items(list(values))


def series(encoder: Encoder, values: Any) -> object:
    """Converts a pandas Series to an object that maps labels to values."""
    if not values.index.is_unique:
        raise NotJson("is a Series with duplicate labels; return .tolist() or .reset_index() instead")
    return encoder.pairs(zip(values.index.tolist(), values.tolist(), strict=True))


def data_frame(encoder: Encoder, frame: Any) -> object:
    """Converts a pandas DataFrame to an array with one object for each row. An index that says something comes first."""
    if not frame.columns.is_unique:
        raise NotJson("is a DataFrame with duplicate column labels")
    rows = frame.to_dict("records")
    labels = index_columns(frame)
    columns = frame.columns.tolist()
    for name in labels:
        if name in columns:
            raise NotJson(
                f"is a DataFrame whose index and column are both called {name!r}; "
                "return .reset_index(drop=True), or name the index by .rename_axis(...)"
            )
    if labels:
        values = zip(*labels.values(), strict=True)
        rows = [dict(zip(labels, row, strict=True)) | record for row, record in zip(values, rows, strict=True)]
    return encoder.items(rows)


def index_columns(frame: Any) -> dict[Any, list[Any]]:
    """Returns name and labels of each level of an index; nothing for the default one, 0 to n-1 without a name."""
    index = frame.index
    if index.nlevels > 1:
        names = [f"level_{level}" if name is None else name for level, name in enumerate(index.names)]
        if len(set(names)) < len(names):
            raise NotJson("is a DataFrame with two index levels of one name; name them by .rename_axis([...])")
        return {name: index.get_level_values(level).tolist() for level, name in enumerate(names)}
    labels = index.tolist()
    if index.name is None and all(type(label) is int for label in labels) and labels == list(range(len(labels))):
        return {}
    # An empty frame has an index of no particular type.
    if index.name is None and not labels:
        return {}
    return {"index" if index.name is None else index.name: labels}
