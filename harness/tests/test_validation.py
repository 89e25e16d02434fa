import ast
from typing import Any

import pytest
from mainbox_harness.failure import ScriptFailure
from mainbox_harness.validation import check, implied_modules, imported_modules, is_async, is_plain

# The same as in src/sandbox/policy.rs.
OS = ["system", "popen", "fork", "forkpty", "exec*", "spawn*", "posix_spawn*"]
OFF = {"modules": [], "os_functions": [], "builtins": [], "needs_return": False}
STANDARD = OFF | {"modules": ["subprocess", "pty", "multiprocessing"], "os_functions": OS}
STRICT = {
    "modules": ["subprocess", "pty", "multiprocessing", "os", "sys", "ctypes", "socket", "importlib"],
    "os_functions": OS,
    "builtins": ["eval", "exec", "compile", "__import__"],
    "needs_return": True,
}

MAIN = "\ndef main(): return 1"


def refused(source: str, policy: dict[str, Any] = OFF) -> tuple[str, str, int | None]:
    with pytest.raises(ScriptFailure) as caught:
        check(source, policy)
    return caught.value.kind, caught.value.error, caught.value.line


@pytest.mark.parametrize(
    "source",
    [
        "def main(): return 1",
        "import math\n\ndef main(x):\n    return math.sqrt(x)",
        "async def main(): pass",
        "# -*- coding: utf-8 -*-\ndef main(): return '\\n'",
    ],
)
def test_a_plain_script_needs_no_tree(source: str) -> None:
    checked = check(source, STANDARD)
    assert (checked.tree, checked.is_program) == (None, False)
    namespace: dict[str, Any] = {}
    exec(checked.code, namespace)
    assert callable(namespace["main"])
    assert check(source, STANDARD, needs_tree=True).tree is not None


@pytest.mark.parametrize(
    "source",
    [
        "main = print",
        " def main(): pass",
        "'''\ndef main(): pass\n'''",
        'x = """\ndef main(): pass\n"""',
        "x = '\\\ndef main(): pass'",
        "x = '\\\r\ndef main(): pass'",
        "def main(): return 'é'",
        "import subprocess\ndef main(): pass",
        "import os\ndef main(): os.system('')",
        "def main(): return frame.empty",
    ],
)
def test_a_script_that_its_text_does_not_show_to_be_plain_takes_the_long_way(source: str) -> None:
    assert not is_plain(source, STANDARD, "main")
    assert not is_plain("def main(): return 1", STRICT, "main")
    assert not is_plain("def main(): return 1", OFF, "auto")


def accepted(source: str, policy: dict[str, Any] = OFF) -> bool:
    return check(source, policy).code.co_filename == "script.py"


@pytest.mark.parametrize(
    "source",
    [
        "def main(): pass",
        "async def main(): pass",
        "main = lambda: 1",
        "main: object = print",
        "(other, main) = 1, 2",
        "if True:\n    def main(): pass",
        "try:\n    from a import main\nexcept ImportError:\n    main = None",
        "import main",
        "import a as main",
        "from a import b as main",
        "from a import *",
        "def start():\n    global main\n    main = 1\nstart()",
        "with open('f') as main: pass",
    ],
)
def test_a_script_that_may_bind_main_is_accepted(source: str) -> None:
    assert accepted(source)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = 1",
        "main()",
        "main.x = 1",
        "import main.part as part",
        "from main import start",
        "def start():\n    def main(): pass",
        "class A:\n    def main(self): pass",
        "class main: pass",
        "f = lambda main: 1",
    ],
)
def test_a_script_without_main_is_refused(source: str) -> None:
    assert refused(source) == (
        "missing_main",
        "Script must contain a main() function; with `entry` set to `script`, it needs none",
        None,
    )


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "def other(): return 1",
        "def main(): print(1)\nmain()",
        "async def main(): print(1)\nimport asyncio\nasyncio.run(main())",
        "def main(): return 1\nx = [main()]",
        "def main(): return 1\nif True:\n    main()",
        "def main(): return 1\nimport sys\nsys.exit(main())",
    ],
)
def test_auto_runs_a_script_that_calls_its_main_as_a_program(source: str) -> None:
    assert check(source, OFF, "auto").is_program
    assert check(source, STANDARD, "script").is_program


@pytest.mark.parametrize(
    "source",
    [
        "def main(): return 1",
        "def main(): return 1\nif __name__ == '__main__':\n    print(main())",
        "def main(): return 1\ndef other(): main()",
        "def main(n): return main(n - 1) if n else 0",
        "def main(): return 1\nf = lambda: main()",
        "def main(): return 1\nx.main()",
    ],
)
def test_auto_calls_a_main_that_the_script_does_not_call(source: str) -> None:
    assert not check(source, OFF, "auto").is_program


def test_auto_calls_main_if_there_is_an_input() -> None:
    assert not check("def main(x): return x\nmain(1)", OFF, "auto", has_input=True).is_program
    with pytest.raises(ScriptFailure, match="must contain a main"):
        check("print(1)", OFF, "auto", has_input=True)


def test_strict_wants_a_return_of_a_main_that_is_called_only() -> None:
    source = "def main(): print(1)\nmain()"
    assert check(source, STRICT, "auto").is_program
    with pytest.raises(ScriptFailure, match="must contain a return statement"):
        check(source, STRICT, "main")


def test_a_syntax_error_has_the_line_and_its_text() -> None:
    assert refused("def main() return 1") == (
        "syntax_error",
        "Syntax error on line 1: expected ':': def main() return 1",
        1,
    )
    assert refused("x = 1\n\ndef main(:\n    pass")[1:] == ("Syntax error on line 3: invalid syntax: def main(:", 3)
    assert refused("def main():\n    return (1")[1:] == (
        "Syntax error on line 2: '(' was never closed: return (1",
        2,
    )


def test_a_syntax_error_of_the_compiler_has_the_line_too() -> None:
    assert refused("def main(): pass\nreturn 1")[1:] == ("Syntax error on line 2: 'return' outside function", 2)


def test_a_syntax_error_has_a_traceback_without_frames() -> None:
    with pytest.raises(ScriptFailure) as caught:
        check("1 +", OFF)
    assert caught.value.frames == '  File "script.py", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax\n'


def test_a_null_byte_is_a_syntax_error_without_a_line() -> None:
    assert refused("def main(): pass\0") == (
        "syntax_error",
        "The script cannot be compiled: source code string cannot contain null bytes",
        None,
    )


def test_a_script_that_is_nested_too_deeply_is_a_syntax_error() -> None:
    kind, error, _ = refused("def main(): return " + "-" * 100_000 + "1")
    assert kind == "syntax_error"
    assert error.startswith("The script cannot be compiled: ")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import subprocess", "Dangerous import detected: subprocess"),
        ("import json, pty", "Dangerous import detected: pty"),
        ("import subprocess as s", "Dangerous import detected: subprocess"),
        ("from multiprocessing.pool import Pool", "Dangerous import detected: multiprocessing"),
        ("from subprocess import *", "Dangerous import detected: subprocess"),
        ("import os; os.system('ls')", "Dangerous call detected: os.system"),
        ("import os as o; o.popen('ls')", "Dangerous call detected: os.popen"),
        ("import os as o; os.fork()", "Dangerous call detected: os.fork"),
        ("from os import fork", "Dangerous call detected: os.fork"),
        ("from os import path, execv as e", "Dangerous call detected: os.execv"),
        ("import os; os.execv('a', [])", "Dangerous call detected: os.execv"),
        ("import os; f = os.spawnlp", "Dangerous call detected: os.spawnlp"),
        ("import os; os.posix_spawn", "Dangerous call detected: os.posix_spawn"),
    ],
)
def test_the_standard_policy_refuses_other_programs(source: str, error: str) -> None:
    assert refused(source + MAIN, STANDARD) == ("forbidden", error, 1)
    assert refused(source + MAIN, STRICT)[0] == "forbidden"
    assert accepted(source + MAIN, OFF)


@pytest.mark.parametrize(
    "source",
    [
        "import os, sys, ctypes, socket",
        "import subprocesses",
        "from . import subprocess",
        "import os; os.getcwd()",
        "import os as o; x.popen",
        "from os import *",
        "eval('1')",
        "system = 1",
    ],
)
def test_the_standard_policy_accepts_the_rest(source: str) -> None:
    assert accepted(source + MAIN, STANDARD)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os" + MAIN, "Dangerous import detected: os"),
        ("import os.path" + MAIN, "Dangerous import detected: os"),
        ("from sys import path" + MAIN, "Dangerous import detected: sys"),
        ("import importlib.util" + MAIN, "Dangerous import detected: importlib"),
        ("eval('1')" + MAIN, "Dangerous builtin detected: eval"),
        ("e = exec" + MAIN, "Dangerous builtin detected: exec"),
        ("def main(): print(1)", "The main() function must contain a return statement"),
        ("async def main(): pass", "The main() function must contain a return statement"),
    ],
)
def test_the_strict_policy_refuses_more(source: str, error: str) -> None:
    assert refused(source, STRICT) == ("forbidden", error, 1)
    assert accepted(source, STANDARD)


def test_the_first_use_in_the_script_is_reported() -> None:
    source = "def main():\n    def inner():\n        import pty\n    import subprocess\nimport multiprocessing"
    assert refused(source, STANDARD) == ("forbidden", "Dangerous import detected: pty", 3)


def test_a_script_is_async_if_it_has_a_coroutine_function() -> None:
    assert is_async(ast.parse("def main():\n    async def inner(): pass"))
    assert not is_async(ast.parse("def main(): pass"))


def test_every_name_that_may_be_a_module_is_an_imported_module() -> None:
    tree = ast.parse("import a, b.c as d\nfrom e import f, g\nfrom . import h\ndef i(): import j")
    assert sorted(imported_modules(tree)) == ["a", "b.c", "e", "e.f", "e.g", "j"]


@pytest.mark.parametrize(
    "source",
    [
        "pd.read_excel('a.xlsx')",
        "from pandas import read_excel",
        "pd.ExcelFile('a.xlsx').parse()",
    ],
)
def test_reading_a_workbook_implies_its_packages(source: str) -> None:
    assert set(implied_modules(ast.parse(source))) == {"openpyxl", "et_xmlfile"}


@pytest.mark.parametrize(
    "source",
    [
        "plt.savefig('a.pdf')",
        "plt.savefig(fname='A.PDF')",
        "plt.savefig(f'{n}.pdf')",
        "plt.savefig(buffer, format='eps')",
        "from matplotlib.backends.backend_pdf import PdfPages",
        "import matplotlib.backends.backend_ps",
    ],
)
def test_printing_a_figure_implies_the_package_for_fonts(source: str) -> None:
    assert set(implied_modules(ast.parse(source))) == {"fontTools"}


def test_other_scripts_imply_no_package() -> None:
    assert list(implied_modules(ast.parse("pd.read_csv('a.csv')\nplt.savefig('a.png')"))) == []
