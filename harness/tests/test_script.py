import linecache
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mainbox_harness.failure import SCRIPT, ScriptFailure
from mainbox_harness.outputs import Directory
from mainbox_harness.script import MODULE, Answer, Request, run
from mainbox_harness.warmup import OPTIONS, warm_up


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    yield
    sys.modules.pop(MODULE, None)
    linecache.cache.pop(SCRIPT, None)


def answer(source: str, *arguments: bytes) -> Answer:
    return run(Request(source, list(arguments), []), OPTIONS, None, None)


def result(source: str, *arguments: bytes) -> bytes:
    return b"".join(answer(source, *arguments).result)


def failure(source: str, *arguments: bytes) -> ScriptFailure:
    with pytest.raises(ScriptFailure) as caught:
        answer(source, *arguments)
    return caught.value


def test_main_is_called_with_the_input() -> None:
    assert result("def main(): return 1") == b"1"
    assert result("def main(x): return [x, __name__]", b'{"a": 2}') == b'[{"a":2},"script"]'


def test_an_async_main_and_any_awaitable_are_awaited() -> None:
    assert result("async def main(): return 2") == b"2"
    assert result("class A:\n    def __await__(self):\n        return 3\n        yield\ndef main(): return A()") == b"3"


def test_threads_are_joined() -> None:
    source = (
        "import threading, time\n"
        "def work():\n    time.sleep(0.01)\n    done.append(1)\n"
        "done = []\n"
        "def main():\n    threading.Thread(target=work).start()\n    return 1"
    )
    assert result(source) == b"1"
    assert sys.modules[MODULE].done == [1]


def test_a_main_that_is_not_a_function_is_missing() -> None:
    for source in ("main = 1", "main = int", "if False:\n    def main(): pass"):
        assert (
            failure(source).error
            == "Script must contain a main() function; with `entry` set to `script`, it needs none"
        )


def test_failures_have_a_kind() -> None:
    assert failure("import sys\ndef main(): sys.exit(2)").error == "The script called sys.exit(2) before main returned"
    assert failure("def main(): return {object()}").kind == "not_json"
    assert failure("def main(): raise KeyboardInterrupt").error == "KeyboardInterrupt"
    raised = failure("def main():\n    1 / 0")
    assert (raised.kind, raised.error, raised.line) == ("exception", "ZeroDivisionError: division by zero", 2)
    assert raised.frames is not None
    assert raised.frames.startswith(
        'Traceback (most recent call last):\n  File "script.py", line 2, in main\n    1 / 0\n'
    )


def test_a_result_has_a_limit() -> None:
    large = failure("def main(): return 'x' * (1 << 20)")
    assert (large.kind, large.error) == ("result_too_large", "The result has 1048578 bytes; the limit is 1048576")


def test_files_are_written_before_and_collected_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        "def main():\n"
        "    with open('in/a') as source, open('outputs/b', 'w') as target:\n"
        "        return target.write(source.read() * 2)"
    )
    options = OPTIONS | {"outputs": {"max_bytes": 10, "max_files": 1, "max_name_bytes": 10, "max_parts": 1}}
    request = Request(source, [], [("in/a", memoryview(b"ab"))])
    assert run(request, options, Directory(str(tmp_path)), None) == Answer([b"4"], [(b"b", b"abab")])


def test_the_warm_up_leaves_no_trace() -> None:
    warm_up(None)
    assert (MODULE in sys.modules, SCRIPT in linecache.cache) == (False, False)
