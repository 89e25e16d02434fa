"""Checks a script before it runs: its syntax, its main and the policy.

The checks give clear errors early. The sandbox does not depend on them.
"""

import ast
import contextlib
import traceback
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

from .failure import SCRIPT, ScriptFailure, fail

NO_MAIN = "Script must contain a main() function; with `entry` set to `script`, it needs none"
FENCED = "The script is in a code fence (```); send the code without it"
NOTEBOOK = "is a command of a notebook, not Python; leave it out"
DEFINITIONS = ("def main(", "async def main(")
LINES = ("\ndef main(", "\nasync def main(")
LONG_STRINGS = ('"""', "'''", "\\\n", "\\\r")
REFUSED_KINDS = ("modules", "os_functions", "builtins")
# Where the zygote keeps them for the usual policy.
WORDS = "words"
# The types of nodes that a policy can refuse. They are few, so the others are dropped before sorting.
POLICY_NODES = frozenset({ast.Import, ast.ImportFrom, ast.Attribute, ast.Name})
READS_WORKBOOKS = ("read_excel", "ExcelFile")
# Formats, and the modules of matplotlib, that need the outlines of fonts.
PRINTED = (".pdf", ".eps", ".ps")
PRINTERS = ("backend_pdf", "backend_ps")


class Checked(NamedTuple):
    """A script that has passed every check."""

    code: CodeType
    tree: ast.Module | None
    """None if nobody needed it."""
    is_program: bool
    """Whether it is run as a program rather than by its main."""


def check(
    source: str, refused: dict[str, Any], entry: str = "main", *, has_input: bool = False, needs_tree: bool = False
) -> Checked:
    """Checks and compiles a script. `refused` is what the policy refuses, and comes from the supervisor.

    `entry` is how to run the script: `main`, `script`, or `auto` to find out. `has_input` says that main gets an argument,
    and `needs_tree` that the caller reads the tree.
    """
    if not needs_tree and is_plain(source, refused, entry):
        # Whatever is wrong with it is found, and told, on the long way.
        with contextlib.suppress(SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return Checked(compile(source, SCRIPT, "exec", dont_inherit=True), None, is_program=False)
    if source.lstrip().startswith("```"):
        fail("syntax_error", FENCED, 1)
    try:
        tree: Any = compile(source, SCRIPT, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        is_program = entry == "script" or (entry == "auto" and is_meant_as_program(tree, has_input=has_input))
        if not is_program and not binds_main(tree):
            fail("missing_main", NO_MAIN)
        check_policy(tree, refused)
        if refused["needs_return"] and not is_program:
            check_return(tree)
        code = compile(tree, SCRIPT, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise syntax_failure(error) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise ScriptFailure("syntax_error", f"The script cannot be compiled: {error}") from None
    except MemoryError:  # raised by the parser when its stack is full
        raise ScriptFailure("syntax_error", "The script cannot be compiled: it is nested too deeply") from None
    return Checked(code, tree, is_program)


def is_plain(source: str, refused: dict[str, Any], entry: str) -> bool:
    """Whether the text alone shows that a script binds main and contains nothing that the policy refuses.

    It then needs no tree, which takes three times as long as compiling. A line that begins with `def main(` is a
    definition, unless it is within a string; such a string has three quotation marks, or a backslash before the line. Names
    that are not ASCII can be the same as others that are (https://docs.python.org/3/reference/lexical_analysis.html#identifiers).
    """
    return (
        entry == "main"
        and not refused["needs_return"]
        and source.isascii()
        and (source.startswith(DEFINITIONS) or any(line in source for line in LINES))
        and not any(mark in source for mark in LONG_STRINGS)
        and not any(word in source for word in refused.get(WORDS) or words_of(refused))
    )


def words_of(refused: dict[str, Any]) -> list[str]:
    """Returns what a script may not contain if it is to run without a tree."""
    return [name.removesuffix("*") for kind in REFUSED_KINDS for name in refused[kind]]


def is_async(tree: ast.Module) -> bool:
    """Whether the script may need an event loop."""
    return any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Yields every name in an import statement that is, or may be, a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield module
                yield from (f"{module}.{name.name}" for name in names)


def implied_modules(tree: ast.Module) -> Iterator[str]:
    """Yields packages of which libraries import modules only when the script calls certain methods."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) if name in READS_WORKBOOKS:
                yield from ("openpyxl", "et_xmlfile")
            # Also a part of an f-string. A script without matplotlib loses a few milliseconds.
            case ast.Constant(value=str(text)) if f".{text.lower()}".endswith(PRINTED):
                yield "fontTools"
            case ast.ImportFrom(module=str(name)) | ast.alias(name=name) if name.endswith(PRINTERS):
                yield "fontTools"


def syntax_failure(error: SyntaxError) -> ScriptFailure:
    """Returns a failure that names the line and shows its text."""
    if error.lineno is None:  # a null byte, which has no line
        return ScriptFailure("syntax_error", f"The script cannot be compiled: {error.msg}")
    text = (error.text or "").strip()
    sentence = f"Syntax error on line {error.lineno}: {error.msg}"
    if text.startswith(("!", "%")):
        sentence = f"Syntax error on line {error.lineno}: `{text}` {NOTEBOOK}"
    elif text:
        sentence += f": {text}"
    frames = "".join(traceback.format_exception_only(error))
    return ScriptFailure("syntax_error", sentence, frames=frames, line=error.lineno)


def binds_main(tree: ast.Module) -> bool:
    """Whether the module may bind `main`. Only running it shows whether that is a function."""
    for node in module_level(tree):
        match node:
            case ast.FunctionDef(name="main") | ast.AsyncFunctionDef(name="main"):
                return True
            case ast.Name(id="main", ctx=ast.Store()):
                return True
            case ast.ImportFrom(names=names) if any((name.asname or name.name) in ("main", "*") for name in names):
                return True
            case ast.Import(names=names) if any((name.asname or name.name) == "main" for name in names):
                return True
            case ast.Global(names=names) if "main" in names:
                return True
    return False


def is_meant_as_program(tree: ast.Module, *, has_input: bool) -> bool:
    """Whether a script of a language model is a program: it has no main, or calls its main itself.

    A call in `if __name__ == "__main__"` does not count: that main can be called for its result. A script with an input is
    no program, since only a main can take it.
    """
    if has_input:
        return False
    if not binds_main(tree):
        return True
    body = [statement for statement in tree.body if not is_name_guard(statement)]
    calls = (node.func for node in module_level(ast.Module(body, [])) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Name) and called.id == "main" for called in calls)


def is_name_guard(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == ...`."""
    match statement:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case _:
            return False


def module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields every node outside function and class bodies, and the `global` statements inside them."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from (inner for inner in ast.walk(node) if isinstance(inner, ast.Global))
        elif not isinstance(node, ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def check_policy(tree: ast.Module, refused: dict[str, Any]) -> None:
    """Raises a failure for the first use of something that the policy refuses."""
    if not any(refused.values()):
        return
    nodes: list[Any] = [node for node in ast.walk(tree) if type(node) in POLICY_NODES]
    nodes.sort(key=lambda node: (node.lineno, node.col_offset))
    aliases = {"os"} | {
        name.asname
        for node in nodes
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name == "os" and name.asname
    }
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for name in names:
                    check_module(name.name, node, refused)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                check_module(module, node, refused)
                if module == "os":
                    for name in names:
                        check_os_function(name.name, node, refused)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in aliases:
                check_os_function(name, node, refused)
            case ast.Name(id=name) if name in refused["builtins"]:
                fail("forbidden", f"Dangerous builtin detected: {name}", node.lineno)


def check_module(name: str, node: ast.stmt, refused: dict[str, Any]) -> None:
    """Raises a failure if the policy refuses the top-level module of an import."""
    top = name.partition(".")[0]
    if top in refused["modules"]:
        fail("forbidden", f"Dangerous import detected: {top}", node.lineno)


def check_os_function(name: str, node: ast.stmt | ast.expr, refused: dict[str, Any]) -> None:
    """Raises a failure if the policy refuses a function of os. A trailing `*` matches any ending."""
    for pattern in refused["os_functions"]:
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            fail("forbidden", f"Dangerous call detected: os.{name}", node.lineno)


def check_return(tree: ast.Module) -> None:
    """Raises a failure if a main has no return statement of its own."""
    for main in module_level(tree):
        if isinstance(main, ast.FunctionDef | ast.AsyncFunctionDef) and main.name == "main" and not returns(main):
            fail("forbidden", "The main() function must contain a return statement", main.lineno)


def returns(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has a return statement outside the functions and classes in it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return False
