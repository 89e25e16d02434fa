"""Why a value has no JSON form, in a sentence that names its place, and what to return instead."""

# Longer keys are cut, characters.
MAX_KEY = 80

# What to return instead of a value of a type, by its name or by the beginning of its name.
HINTS = {
    "generator": "return a list, as list(...) makes one",
    "async_generator": "return a list of what it yields",
    "coroutine": "await it, or return it from main itself",
    "function": "call it and return its result",
    "builtin_function_or_method": "call it and return its result",
    "method": "call it and return its result",
    "type": "return an instance of it, or its name",
    "module": "return its name",
    "re.Match": "return .group() or .groups()",
    "re.Pattern": "return .pattern",
    "_io.": "return .read(), or write the file to outputs/",
    "matplotlib.axes": "return .figure",
    "scipy.sparse": "return .toarray()",
    # Groups, windows and resamplers of pandas 3, and of pandas 2.
    "pandas.api.typing": "return an aggregate, such as .sum()",
    "pandas.core": "return an aggregate, such as .sum()",
}


class NotJson(Exception):
    """A value without a JSON form. While it propagates, each container adds a step to its path, the innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def path(self) -> str:
        """Returns the path of the value, starting with `result`."""
        return "result" + "".join(reversed(self.steps))


def no_form(kind: type) -> NotJson:
    """Returns the reason for a value of a type without a JSON form."""
    name = type_name(kind)
    hint = next((hint for start, hint in HINTS.items() if name == start or is_inside(name, start)), None)
    return NotJson(f"is of type {name}, which has no JSON form" + (f"; {hint}" if hint else ""))


def is_inside(name: str, start: str) -> bool:
    """Whether `start` is a module, and `name` is in it."""
    return "." in start and name.startswith(start.rstrip(".") + ".")


def step(key: object) -> str:
    """Returns a key as a step of a path."""
    if type(key) is str and key.isidentifier():
        return f".{key}"
    return f"[{name_of(key)}]"


def name_of(key: object) -> str:
    """Returns the repr of a key, or its type if its repr fails."""
    try:
        return repr(key)[:MAX_KEY]
    except Exception:
        return f"<{type(key).__name__}>"


def type_name(kind: type) -> str:
    """Returns the name of a type, with its module unless the type is built in or defined by the script."""
    if kind.__module__ in ("builtins", "script"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
