"""`Box` runs scripts on this machine and at a URL."""

import json
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import BARE, in_fork
from mainbox import Box, MainboxError, Result, binary
from mainbox._result import request_bodies
from mainbox._service import Service, running


def failure(box: Box, script: str, **options: float) -> MainboxError:
    with pytest.raises(MainboxError) as caught:
        box.run(script, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_script_returns_its_value_and_what_it_printed(box: Box) -> None:
    result = box.run("def main(x):\n    print('working')\n    return {'twice': x * 2}", 21)
    assert result == Result(value={"twice": 42}, stdout="working\n", stderr="", files={}, truncated=())


def test_an_input_of_none_is_an_input_and_no_input_is_none(box: Box) -> None:
    script = "def main(*arguments): return len(arguments)"
    assert box.run(script, None).value == 1
    assert box.run(script).value == 0


def test_files_go_in_and_come_back(box: Box, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"from a file")
    script = """
def main():
    read = {name: open(name, "rb").read() for name in ("a.txt", "b.bin", "c")}
    open("outputs/text", "w").write("ä")
    open("outputs/bytes", "wb").write(bytes([255, 0]))
    open("more.log", "w").write("more")
    return [read["a.txt"].decode(), list(read["b.bin"]), read["c"].decode()]
"""
    files = {"a.txt": "text", "b.bin": b"\xff\x00", "c": tmp_path / "c"}
    result = box.run(script, files=files, collect=["*.log"])
    assert result.value == ["text", [255, 0], "from a file"]
    assert result.files == {"text": "ä".encode(), "bytes": b"\xff\x00", "more.log": b"more"}


def test_a_program_reads_its_standard_input_and_writes_to_standard_error(box: Box) -> None:
    result = box.run("import sys\nprint(input())\nsys.stderr.write('no')", stdin="yes\n", entry="script")
    assert result == Result(value=None, stdout="yes\n", stderr="no", files={}, truncated=())


def test_a_script_that_raises_is_an_error_with_its_kind_and_output(box: Box) -> None:
    error = failure(box, "def main():\n    print('before')\n    raise ValueError('no')")
    assert (error.kind, error.status, error.stdout, error.line) == ("exception", 400, "before\n", 3)
    assert str(error) == "ValueError: no (exception)"
    assert pickle.loads(pickle.dumps(error)).__dict__ == error.__dict__
    assert error.traceback is not None and error.traceback.endswith("ValueError: no\n")


def test_limits_of_a_request_are_enforced(box: Box) -> None:
    assert failure(box, "def main():\n    while True: pass", timeout_seconds=0.2).kind == "timeout"
    assert failure(box, "def main(): return len(bytes(200 << 20))", memory_mb=50).kind == "memory_limit"


def test_an_input_without_a_json_form_is_refused_before_it_is_sent(box: Box) -> None:
    with pytest.raises(ValueError, match="JSON"):
        box.run("def main(x): return x", float("nan"))


def test_map_yields_results_and_errors_in_the_order_of_the_inputs(box: Box) -> None:
    script = "import time\ndef main(x):\n    time.sleep(0.2 if x == 0 else 0)\n    return 12 // (x - 2)"
    outcomes = list(box.map(script, range(4)))
    found = [outcome.kind if isinstance(outcome, MainboxError) else outcome.value for outcome in outcomes]
    assert found == [-6, -12, "exception", 12]


def test_map_takes_any_number_of_inputs(box: Box) -> None:
    def values() -> list[int]:
        outcomes = box.map("def main(x): return x", iter(range(230)))
        return [outcome.value for outcome in outcomes if isinstance(outcome, Result)]

    assert values() == list(range(230))
    assert list(box.map("def main(x): return x", [])) == []


def test_map_sends_no_more_than_a_request_can_hold(box: Box) -> None:
    outcomes = box.map("def main(x): return len(x)", ("x" * (5 << 20) for _ in range(3)))
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Result)] == [5 << 20] * 3


def test_requests_of_map_are_as_large_as_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b'{"script": "s", "inputs": [1,22]}'
    monkeypatch.setattr("mainbox._result.BODY_BYTES", len(whole))
    last = b'{"script": "s", "inputs": [333]}'
    assert list(request_bodies("s", {}, [1, 22, 333], 9)) == [(whole, 2), (last, 1)]
    monkeypatch.setattr("mainbox._result.BODY_BYTES", len(whole) - 1)
    assert [count for _, count in request_bodies("s", {}, [1, 22, 333], 9)] == [1, 1, 1]
    with pytest.raises(ValueError, match="batch is at least 1, not 0"):
        next(request_bodies("s", {}, [1], 0))


def test_integers_of_a_result_are_exact_up_to_a_length(box: Box) -> None:
    script = "import sys\nsys.set_int_max_str_digits(0)\ndef main(x): return [-(7 ** x), x]"
    assert box.run(script, 90_000).value == [-(7**90_000), 90_000]
    one, long, two = box.map(script, [1, 300_000, 2])
    assert [outcome.value for outcome in (one, two) if isinstance(outcome, Result)] == [[-7, 1], [-49, 2]]
    message = "the result has an integer with more than 100000 digits"
    assert isinstance(long, MainboxError) and (long.kind, long.message) == ("result_too_large", message)
    assert failure(box, "def main(): return 1 << 400_000").kind == "result_too_large"


def test_a_service_that_takes_fewer_inputs_gets_fewer_at_once() -> None:
    few = Box(settings={**BARE, "MAINBOX_MAX_INPUTS": "2"})
    with pytest.raises(MainboxError) as caught:
        list(few.map("def main(x): return x", range(5)))
    assert caught.value.kind == "invalid_request"
    outcomes = few.map("def main(x): return x", range(5), batch=2)
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Result)] == [0, 1, 2, 3, 4]


def test_map_takes_no_more_inputs_than_it_sends(box: Box) -> None:
    inputs = iter(range(5))
    next(box.map("def main(x): return x", inputs, batch=3))
    assert next(inputs) == 3


def test_map_raises_if_the_service_refuses_the_request(box: Box) -> None:
    with pytest.raises(MainboxError) as caught:
        list(box.map("", [1]))
    assert (caught.value.kind, caught.value.status) == ("invalid_request", 400)


def test_a_map_that_is_left_ends_what_still_runs(box: Box) -> None:
    for _ in box.map("import time\ndef main(x): time.sleep(x)", [0, 9, 9, 9, 9]):
        break
    began = time.monotonic()
    assert box.run("def main(): return 1").value == 1
    assert time.monotonic() - began < 8


def test_boxes_share_one_service_that_has_the_interpreter_and_a_key(box: Box) -> None:
    script = "import sys\ndef main(): return sys.executable"
    assert box.run(script).value == sys.executable
    assert Box(settings=BARE).run(script).value == sys.executable
    service = running(BARE)
    assert service is running(dict(BARE))
    assert failure(Box(service.url), script).kind == "unauthorized"
    assert Box(service.url, api_key=service.key).run(script).value == sys.executable


def test_many_threads_can_use_one_box(box: Box) -> None:
    values = []
    threads = [
        threading.Thread(target=lambda n=n: values.append(box.run("def main(x): return x", n).value)) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(values) == list(range(20))


def test_a_box_works_after_its_service_was_killed_and_after_it_was_closed() -> None:
    settings = {**BARE, "MAINBOX_CONCURRENCY": "1"}
    box = Box(settings=settings)
    assert box.run("def main(): return 1").value == 1
    process = running(settings)._process
    process.kill()
    process.wait()
    assert box.run("def main(): return 2").value == 2
    box.close()
    assert box.run("def main(): return 3").value == 3


def test_a_kept_connection_that_the_service_closed_is_replaced(service: Service) -> None:
    box = Box(service.url, api_key=service.key)
    assert box.run("def main(): return 1").value == 1
    (connection,) = box._connections()._idle
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert box.run("def main(): return 2").value == 2


def test_a_fork_gets_a_service_of_its_own() -> None:
    box = Box(settings=BARE)
    assert box.run("def main(): return 1").value == 1
    assert in_fork(lambda: box.run("def main(): return 2").value) == 2
    assert box.run("def main(): return 3").value == 3


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)", "raise SystemExit(3)"])
def test_the_service_ends_with_the_process_that_started_it(end: str) -> None:
    program = f"""
import os
from mainbox import Box
from mainbox._service import running
Box(settings={BARE!r}).run("def main(): return 1")
print(running({BARE!r})._process.pid, flush=True)
{end}
"""
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False).stdout
    began = time.monotonic()
    while Path(f"/proc/{int(output)}").exists() and "Z" not in Path(f"/proc/{int(output)}/stat").read_text():
        assert time.monotonic() - began < 10
        time.sleep(0.05)


def test_ctrl_c_ends_a_program_and_not_its_service_first() -> None:
    # A background job of a shell without job control ignores the signal, and its children do too.
    program = f"""
import signal, time
from mainbox import Box
signal.signal(signal.SIGINT, signal.default_int_handler)
box = Box(settings={BARE!r})
box.run("def main(): return 1")
try:
    print("started", flush=True)
    time.sleep(20)
except KeyboardInterrupt:
    print(box.run("def main(): return 2").value)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[0] == "2\n"


def test_a_service_that_cannot_start_says_why() -> None:
    error = failure(Box(settings={"MAINBOX_MEMORY_MB": "lots"}), "def main(): return 1")
    assert error.kind == "unreachable"
    assert "MAINBOX_MEMORY_MB" in str(error), error


def test_a_service_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = failure(Box(f"http://127.0.0.1:{port}"), "def main(): return 1")
    assert (error.kind, error.status) == ("unreachable", 0)


def answering(head: str, body: str, tls: ssl.SSLContext | None = None) -> str:
    """Returns the URL of a server that gives one answer and closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with (
            # A client that does not know the certificate ends the handshake.
            suppress(ssl.SSLError),
            server,
            server.accept()[0] as plain,
            tls.wrap_socket(plain, server_side=True) if tls else plain as connection,
        ):
            request = connection.makefile("rb")
            lengths = [line for line in iter(request.readline, b"\r\n") if line.lower().startswith(b"content-length:")]
            request.read(int(lengths[0].split(b":")[1]))
            connection.sendall(f"{head}\r\n\r\n{body}".encode())

    threading.Thread(target=serve, daemon=True).start()
    return f"{'https' if tls else 'http'}://localhost:{server.getsockname()[1]}"


def test_a_service_with_an_unknown_certificate_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Path(__file__).with_name("localhost.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    answer = ("HTTP/1.1 200 OK\r\nContent-Length: 25", '{"result":7,"stdout":"a"}', tls)
    error = failure(Box(answering(*answer)), "def main(): return 7")
    assert error.kind == "unreachable" and "certificate verify failed" in error.message, error
    # As one does for a certificate of a company.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Box(answering(*answer)).run("def main(): return 7").value == 7


def test_an_answer_that_is_too_long_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainbox._connections.ANSWER_BYTES", 1 << 20)
    head = "HTTP/1.1 200 OK\r\nContent-Length: 999999999"
    error = failure(Box(answering(head, " " * ((1 << 20) + 1))), "def main(): return 1")
    assert (error.kind, error.message) == ("unreachable", "the answer has more than 1 MiB")
    lines = Box(answering("HTTP/1.1 200 OK", '{"event":"keepalive"}\n' * (1 << 17))).map("def main(x): return x", [1])
    with pytest.raises(MainboxError, match="the answer has more than 1 MiB"):
        next(lines)


def test_a_refusal_before_the_whole_request_was_sent_is_read(box: Box) -> None:
    error = failure(box, "#" * (50 << 20))
    assert (error.kind, error.status) == ("payload_too_large", 413)
    assert box.run("def main(): return 1").value == 1


def test_a_busy_service_says_when_to_try_again() -> None:
    body = '{"kind":"busy","error":"The queue is full"}'
    head = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: {len(body)}"
    error = failure(Box(answering(head, body)), "def main(): return 1")
    assert (error.kind, error.status, error.retry_after) == ("busy", 503, 2)
    assert pickle.loads(pickle.dumps(error)).retry_after == 2
    head = head.replace(": 2", ": Fri, 27 Nov 2026 07:28:00 GMT")
    error = failure(Box(answering(head, body)), "def main(): return 1")
    assert (error.kind, error.retry_after) == ("busy", None)


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "[1]",
        "{}",
        '{"kind": 1}',
        '{"kind": "exception", "error": ["no"]}',
        '{"kind": "exception", "error": "no", "line": "3"}',
        '{"result": 1}',
        '{"result": 1, "stdout": 1}',
        '{"result": 1, "stdout": "", "files": [1]}',
        '{"result": 1, "stdout": "", "truncated": "stdout"}',
    ],
)
def test_an_answer_that_is_not_of_mainbox_is_unreachable(body: str) -> None:
    error = failure(Box(answering("HTTP/1.1 200 OK", body)), "def main(): return 1")
    assert (error.kind, error.status) == ("unreachable", 200)


def test_an_answer_that_ends_too_early_is_unreachable() -> None:
    whole = answering("HTTP/1.1 200 OK\r\nContent-Length: 100", '{"result": 1')
    error = failure(Box(whole), "def main(): return 1")
    assert (error.kind, error.status) == ("unreachable", 0)
    assert "IncompleteRead(12 bytes read, 88 more expected)" in error.message
    item = json.dumps({"event": "item", "index": 0, "status": 200, "result": 1, "stdout": ""})
    results = Box(answering("HTTP/1.1 200 OK", item + "\n")).map("def main(x): return x", [1, 2])
    assert next(results).value == 1  # type: ignore[union-attr]
    with pytest.raises(MainboxError) as caught:
        next(results)
    assert caught.value.kind == "unreachable"


def test_arguments_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="api_key belongs to a url"):
        Box(api_key="0123456789abcdef")
    with pytest.raises(ValueError, match="either url or settings"):
        Box("http://localhost", settings={})
    for url in ("localhost:8080", "http://user:secret@localhost", "http://localhost/?a=b", "http://localhost:port"):
        with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
            Box(url)
    with pytest.raises(ValueError, match="character that no key has") as caught:
        Box("http://localhost", api_key="0123456789abcdef\n")
    assert "0123456789abcdef" not in str(caught.value)
    with pytest.raises(ValueError, match="Box sets these itself: MAINBOX_HOST"):
        Box(settings={"MAINBOX_HOST": "::"}).run("def main(): return 1")
    with pytest.raises(TypeError, match="unknown arguments: timeout"):
        Box(settings=BARE).run("def main(): return 1", timeout=3)  # type: ignore[call-arg]


def test_an_address_of_ipv6_needs_no_port() -> None:
    connections = Box("http://[::1]")._connections()
    assert (connections._host, connections._port) == ("::1", 80)
    assert Box("https://example.com/box/")._connections()._port == 443


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5",
        'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{"result":1,"stdout":""}',
        "SSH-2.0-OpenSSH",
    ],
)
def test_a_broken_answer_is_unreachable(head: str) -> None:
    assert failure(Box(answering(head, "")), "def main(): return 1").kind == "unreachable"


def test_a_process_ends_with_its_service_while_a_fork_of_it_lives_on() -> None:
    program = f"""
import os, time
from mainbox import Box
from mainbox._service import running
Box(settings={BARE!r}).run("def main(): return 1")
process = os.fork()
if process == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(running({BARE!r})._process.pid, process, flush=True)
"""
    began = time.monotonic()
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
    service, fork = map(int, output.split())
    os.kill(fork, signal.SIGKILL)
    assert not Path(f"/proc/{service}").exists()
    assert time.monotonic() - began < 9


def test_variables_for_the_arguments_of_a_box_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINBOX_URL", "https://example.com")
    monkeypatch.setenv("MAINBOX_API_KEY", "0123456789abcdef")
    assert Box(settings={**BARE, "MAINBOX_QUEUE": "8"}).run("def main(): return 1").value == 1


def test_a_service_started_on_lambda_does_not_become_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
    assert Box(settings={**BARE, "MAINBOX_QUEUE": "7"}).run("def main(): return 1").value == 1


def test_the_package_is_the_command_too() -> None:
    told = subprocess.run([binary(), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert told.startswith("mainbox ")
    module = [sys.executable, "-m", "mainbox", "--version"]
    assert subprocess.run(module, stdout=subprocess.PIPE, text=True, check=True).stdout == told
    assert Path(binary()).parent == Path(sys.executable).parent
