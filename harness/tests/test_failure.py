import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mainbox_harness.failure import SCRIPT, ScriptFailure, cut, fail, of_exception, of_exit


def failure_of(source: str) -> ScriptFailure:
    try:
        exec(compile(source, SCRIPT, "exec"), {})
    except BaseException as error:
        return of_exception(error)
    raise AssertionError("the script did not fail")


def payload(failure: ScriptFailure) -> dict[str, Any]:
    return json.loads(failure.to_json())


def test_a_text_within_its_limit_is_not_cut() -> None:
    assert cut("a" * 10, 10) == "a" * 10


def test_a_long_text_keeps_its_beginning_and_end() -> None:
    assert cut("a" * 10 + "b" * 10, 8) == "aaaa\n[... 12 characters left out ...]\nbbbb"


def test_an_exception_has_its_text_line_and_frames() -> None:
    failure = failure_of("\nraise ValueError('no')")
    assert (failure.kind, failure.error, failure.line) == ("exception", "ValueError: no", 2)
    assert failure.frames == (
        'Traceback (most recent call last):\n  File "script.py", line 2, in <module>\nValueError: no\n'
    )


def test_frames_of_libraries_are_left_out() -> None:
    failure = failure_of("import json\ndef main():\n    json.loads('[1,')\nmain()")
    assert (failure.error, failure.line) == (
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 4 (char 3)",
        3,
    )
    assert failure.frames == (
        "Traceback (most recent call last):\n"
        '  File "script.py", line 4, in <module>\n'
        '  File "script.py", line 3, in main\n'
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 4 (char 3)\n"
    )


def test_frames_of_libraries_are_left_out_of_causes() -> None:
    failure = failure_of(
        "import json\ntry:\n    json.loads('')\nexcept ValueError as e:\n    raise KeyError('k') from e"
    )
    assert (failure.error, failure.line) == ("KeyError: 'k'", 5)
    assert failure.frames == (
        "Traceback (most recent call last):\n"
        '  File "script.py", line 3, in <module>\n'
        "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)\n"
        "\nThe above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        '  File "script.py", line 5, in <module>\n'
        "KeyError: 'k'\n"
    )


def test_frames_of_libraries_are_left_out_of_groups() -> None:
    failure = failure_of(
        "import json\n"
        "errors = []\n"
        "for text in ('', '['):\n"
        "    try: json.loads(text)\n"
        "    except ValueError as error: errors.append(error)\n"
        "raise ExceptionGroup('two', errors)"
    )
    assert (failure.kind, failure.error, failure.line) == (
        "exception",
        "ExceptionGroup: two (2 sub-exceptions); the first is JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        6,
    )
    assert failure.frames == (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "script.py", line 6, in <module>\n'
        "  | ExceptionGroup: two (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "script.py", line 4, in <module>\n'
        "    | json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)\n"
        "    +---------------- 2 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "script.py", line 4, in <module>\n'
        "    | json.decoder.JSONDecodeError: Expecting value: line 1 column 2 (char 1)\n"
        "    +------------------------------------\n"
    )


def test_a_cause_that_is_its_own_context_ends() -> None:
    failure = failure_of("a, b = ValueError('a'), ValueError('b')\na.__context__ = b\nb.__context__ = a\nraise a")
    assert (failure.error, failure.line) == ("ValueError: a", 4)


def test_a_message_may_have_several_lines() -> None:
    assert failure_of("raise ValueError('one\\ntwo')").error == "ValueError: one\ntwo"
    bad = "raise ValueError('bad config:\\n  - name is missing\\n  - size is 0')"
    assert failure_of(bad).error == "ValueError: bad config:\n  - name is missing\n  - size is 0"
    noted = "error = ValueError('no')\nerror.add_note('  at the door')\nraise error"
    assert failure_of(noted).error == "ValueError: no\n  at the door"


def test_python_suggests_what_was_meant() -> None:
    assert failure_of("lenght = 1\nlength").error == "NameError: name 'length' is not defined. Did you mean: 'lenght'?"
    meant = "mean '.append' instead of '.apend'" if sys.version_info >= (3, 15) else "mean: 'append'"
    expected = f"AttributeError: 'list' object has no attribute 'apend'. Did you {meant}?"
    assert failure_of("[].apend(1)").error == expected


def test_the_middle_of_a_deep_recursion_is_left_out() -> None:
    limit = sys.getrecursionlimit()
    try:
        failure = failure_of("import sys\nsys.setrecursionlimit(20_000)\ndef f():\n    f()\nf()")
    finally:
        sys.setrecursionlimit(limit)
    assert failure.frames is not None
    assert failure.frames == (
        "Traceback (most recent call last):\n"
        '  File "script.py", line 5, in <module>\n'
        '  File "script.py", line 4, in f\n'
        '  File "script.py", line 4, in f\n'
        '  File "script.py", line 4, in f\n'
        "  [Previous line repeated 996 more times]\n"
        "  [The frames in the middle are left out]\n"
        '  File "script.py", line 4, in f\n'
        '  File "script.py", line 4, in f\n'
        '  File "script.py", line 4, in f\n'
        "  [Previous line repeated 997 more times]\n"
        "RecursionError: maximum recursion depth exceeded\n"
    )
    assert failure.line == 4


def test_a_long_chain_of_causes_is_reported() -> None:
    chain = "def f(n):\n    try:\n        return f(n + 1)\n    except Exception as error:\n        raise ValueError(n) from error\nf(0)"
    failure = failure_of(chain)
    assert (failure.kind, failure.error) == ("exception", "ValueError: 0")


def test_hostile_exceptions_are_reported() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        def __hash__(self) -> int:
            return 1

    for error in (RuntimeError(Array()), EOFError(Array()), OSError(Array(), "x")):
        assert of_exception(error).kind == "exception"
    odd = type("Odd", (SyntaxError,), {"__str__": lambda self: self.nothing})
    assert of_exception(odd()).error == "Odd"


def test_what_the_sandbox_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = "raise PermissionError(13, 'Permission denied', '/data/x')"
    assert failure_of(refused).error == (
        "PermissionError: [Errno 13] Permission denied: '/data/x'; "
        "a script can create files in its working directory only, by a relative path"
    )
    inside = f"raise PermissionError(13, 'Permission denied', '{tmp_path}/x')"
    assert failure_of(inside).error == f"PermissionError: [Errno 13] Permission denied: '{tmp_path}/x'"
    assert failure_of("raise EOFError('EOF when reading a line')").error == (
        "EOFError: EOF when reading a line; "
        "the standard input of this script has ended; input() reads the `stdin` of the request"
    )
    assert failure_of('raise RuntimeError("can\'t start new thread")').error == (
        "RuntimeError: can't start new thread; a script can have 64 threads, or fewer with little memory"
    )


def test_a_syntax_error_while_the_script_runs_is_named() -> None:
    failure = failure_of("x = 1\neval('1 +')")
    assert (failure.kind, failure.error, failure.line) == (
        "exception",
        "SyntaxError: invalid syntax (<string>, line 1)",
        2,
    )


def test_a_memory_error_is_the_memory_limit() -> None:
    failure = failure_of("raise MemoryError")
    assert (failure.kind, failure.error, failure.line) == (
        "memory_limit",
        "The script needed more memory than its limit",
        1,
    )


def test_an_exit_shows_its_code() -> None:
    failure = of_exit(SystemExit(3))
    assert (failure.kind, failure.error, failure.line) == (
        "exit",
        "The script called sys.exit(3) before main returned",
        None,
    )
    try:
        exec(compile("import sys\n\nsys.exit('bad input')", SCRIPT, "exec"), {})
    except SystemExit as error:
        assert of_exit(error).line == 3
    assert of_exit(SystemExit()).error == "The script called sys.exit(None) before main returned"
    assert of_exit(SystemExit("x" * 300)).error == (
        f"The script called sys.exit('{'x' * 99}\n[... 102 characters left out ...]\n{'x' * 99}') before main returned"
    )


def test_an_exit_with_a_value_without_repr_shows_its_type() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert of_exit(SystemExit(Broken())).error == "The script called sys.exit(<Broken>) before main returned"


def test_the_payload_has_only_what_is_known() -> None:
    assert payload(ScriptFailure("exit", "gone")) == {"kind": "exit", "error": "gone"}
    assert payload(ScriptFailure("exception", "no", frames="f", line=3)) == {
        "kind": "exception",
        "error": "no",
        "traceback": "f",
        "line": 3,
    }


def test_the_payload_is_cut() -> None:
    sent = payload(ScriptFailure("exception", "e" * 5_000, frames="f" * 40_000))
    assert sent["error"] == "e" * 2_000 + "\n[... 1000 characters left out ...]\n" + "e" * 2_000
    assert sent["traceback"] == "f" * 16_000 + "\n[... 8000 characters left out ...]\n" + "f" * 16_000


def test_lone_surrogates_are_replaced() -> None:
    assert payload(ScriptFailure("exception", "a\ud800b")) == {"kind": "exception", "error": "a?b"}


def test_fail_raises_a_failure() -> None:
    with pytest.raises(ScriptFailure) as caught:
        fail("forbidden", "no", 7)
    assert (caught.value.kind, caught.value.error, caught.value.line) == ("forbidden", "no", 7)
