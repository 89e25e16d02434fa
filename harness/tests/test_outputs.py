import gc
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mainbox_harness.failure import ScriptFailure
from mainbox_harness.outputs import Directory, collect, opened, regular_files
from mainbox_harness.patterns import Patterns

LIMITS = {"max_bytes": 100, "max_files": 10, "max_name_bytes": 50, "max_parts": 3}
PICTURES = Patterns(["*.png"])


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directory:
    monkeypatch.chdir(tmp_path)
    return Directory(str(tmp_path))


def test_a_file_system_without_a_further_file_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 98
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=100, f_ffree=free))
    directory = Directory(str(tmp_path), is_file_system=True)
    assert directory.is_empty()
    free = 97
    assert not directory.is_empty()
    # A file in place of the directory: as many as before.
    free = 98
    (tmp_path / "outputs").rmdir()
    (tmp_path / "figure.png").touch()
    assert not directory.is_empty()


def test_a_directory_among_others_is_always_searched(directory: Directory) -> None:
    assert not directory.is_empty()


def write(name: str, content: str = "") -> None:
    path = Path("outputs", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def failure_of(directory: Directory, **limits: int) -> tuple[str, str]:
    with pytest.raises(ScriptFailure) as caught:
        collect(directory, PICTURES, LIMITS | limits, [])
    return caught.value.kind, caught.value.error


def test_a_file_of_the_request_is_written_with_its_directories(directory: Directory) -> None:
    directory.write("a", memoryview(b"1"))
    directory.write("d/e/b", memoryview(b"2"))
    directory.write("d/e/c", memoryview(b"3"))
    assert [Path(name).read_bytes() for name in ("a", "d/e/b", "d/e/c")] == [b"1", b"2", b"3"]


def test_a_file_of_the_request_replaces_no_other(directory: Directory) -> None:
    directory.write("a", memoryview(b"1"))
    with pytest.raises(FileExistsError):
        directory.write("a", memoryview(b"2"))


def test_outputs_are_collected_in_order_with_relative_names(directory: Directory) -> None:
    write("b", "2")
    write("a", "1")
    write("d/e/c", "3")
    Path("elsewhere").write_text("not an output")
    assert collect(directory, PICTURES, LIMITS, []) == [(b"a", b"1"), (b"b", b"2"), (b"d/e/c", b"3")]


def test_without_files_there_are_no_outputs(directory: Directory) -> None:
    os.makedirs("outputs/d/e")
    assert collect(directory, PICTURES, LIMITS, []) == []


def test_links_and_pipes_are_skipped(directory: Directory) -> None:
    write("a", "1")
    os.symlink("/etc/passwd", "outputs/link")
    os.symlink("/etc", "outputs/directory_link")
    os.symlink("nowhere", "outputs/broken_link")
    os.mkfifo("outputs/pipe")
    assert collect(directory, PICTURES, LIMITS, []) == [(b"a", b"1")]


def test_outputs_that_were_removed_or_replaced_are_empty(directory: Directory) -> None:
    os.rmdir("outputs")
    assert collect(directory, PICTURES, LIMITS, []) == []
    Path("outputs").write_text("a file")
    assert collect(directory, PICTURES, LIMITS, []) == []
    os.remove("outputs")
    os.symlink("/etc", "outputs")
    assert collect(directory, PICTURES, LIMITS, []) == []


def test_outputs_are_found_from_another_working_directory(directory: Directory) -> None:
    write("a", "1")
    os.chdir("/")
    assert collect(directory, PICTURES, LIMITS, []) == [(b"a", b"1")]


def test_files_that_are_nested_too_deeply_are_an_error(directory: Directory) -> None:
    write("d/e/f", "")
    assert failure_of(directory, max_parts=2) == ("result_too_large", "outputs/d/e is nested too deeply")


def test_too_many_files_are_an_error(directory: Directory) -> None:
    for name in "abc":
        write(name)
    assert len(collect(directory, PICTURES, LIMITS | {"max_files": 3}, [])) == 3
    assert failure_of(directory, max_files=2) == ("result_too_large", "outputs/c exceeds the limit of 2 files")


def test_the_files_together_have_a_limit(directory: Directory) -> None:
    write("a", "12345")
    write("b", "12345")
    assert len(collect(directory, PICTURES, LIMITS | {"max_bytes": 10}, [])) == 2
    assert failure_of(directory, max_bytes=9) == (
        "result_too_large",
        "outputs/b does not fit; the limit for all files together is 9 bytes",
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\\b", "a\\b"),
        ("a\nb", "a\nb"),
        ("a\x7f", "a\x7f"),
        ("a\x85", "a\x85"),
        (b"a\xff", "a\udcff"),
        ("C:x", "C:x"),
        ("what?", "what?"),
        ("\u202egnp.exe", "\u202egnp.exe"),
        (" a", " a"),
        ("a ", "a "),
        ("a.", "a."),
        ("...", "..."),
        ("NUL", "NUL"),
        ("con.txt", "con.txt"),
        ("aux .c", "aux .c"),
        ("Com1", "Com1"),
    ],
)
def test_a_name_that_is_not_valid_everywhere_is_an_error(directory: Directory, name: Any, shown: str) -> None:
    os.close(os.open(os.path.join(b"outputs", os.fsencode(name)), os.O_CREAT | os.O_WRONLY))
    assert failure_of(directory) == ("not_json", f"outputs/{shown} has a name that cannot be returned")


@pytest.mark.parametrize("name", [".hidden", "con1", "COM0", "x.nul", "a b", "é"])
def test_a_name_that_every_system_can_write_is_returned(directory: Directory, name: str) -> None:
    write(name)
    assert collect(directory, PICTURES, LIMITS, []) == [(name.encode(), b"")]


def test_a_name_has_a_limit_of_bytes(directory: Directory) -> None:
    write("é")
    assert collect(directory, PICTURES, LIMITS | {"max_name_bytes": 2}, []) == [("é".encode(), b"")]
    assert failure_of(directory, max_name_bytes=1) == ("not_json", "outputs/é has a name that cannot be returned")


def test_files_that_were_not_closed_are_flushed(directory: Directory) -> None:
    text = open("outputs/a", "w")  # noqa: SIM115
    binary = open("outputs/b", "wb")  # noqa: SIM115
    text.write("text")
    binary.write(b"bytes")
    assert collect(directory, PICTURES, LIMITS, []) == [(b"a", b"text"), (b"b", b"bytes")]
    text.close()
    binary.close()


def test_a_file_that_cannot_be_written_is_named_with_the_reason(directory: Directory) -> None:
    file = open("outputs/log", "wb", buffering=2000)  # noqa: SIM115
    file.write(b"x" * 1500)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        failure = failure_of(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
        file.close()
    assert failure == ("exception", "outputs/log could not be written: File too large")


def test_another_file_that_cannot_be_written_does_not_matter(directory: Directory) -> None:
    write("a", "1")
    with suppress(OSError), open("/dev/full", "wb") as full:
        full.write(b"x")
        assert collect(directory, PICTURES, LIMITS, []) == [(b"a", b"1")]


def test_a_file_that_cannot_be_opened_is_the_fault_of_the_script(directory: Directory) -> None:
    outputs = os.open("outputs", os.O_RDONLY)
    with pytest.raises(ScriptFailure) as caught:
        opened("gone", 0, outputs, "outputs/d/")
    assert (caught.value.kind, caught.value.error) == (
        "exception",
        "outputs/d/gone cannot be read: No such file or directory",
    )
    os.close(outputs)


def test_no_descriptor_stays_open(directory: Directory) -> None:
    write("d/a")
    gc.collect()  # earlier tests left files in tracebacks
    before = os.listdir("/proc/self/fd")
    collect(directory, PICTURES, LIMITS, [])
    failure_of(directory, max_parts=1)
    for _, file in regular_files(os.open("outputs", os.O_RDONLY), "", 3, Patterns(["**"])):
        file.close()
    assert os.listdir("/proc/self/fd") == before


def test_files_that_match_come_back_if_the_script_made_or_changed_them(directory: Directory) -> None:
    for name in ("kept.csv", "d/changed.csv", "outputs/kept.csv", "outputs/changed.csv"):
        directory.write(name, memoryview(b"old"))
    for name in ("new.csv", "d/changed.csv", "d/new.txt", "outputs/changed.csv"):
        Path(name).write_text("new!")
    os.symlink("/etc/passwd", "link.csv")
    files = dict(collect(directory, Patterns(["*.csv", "d/*.csv"]), LIMITS, []))
    assert files == dict.fromkeys((b"changed.csv", b"new.csv", b"d/changed.csv"), b"new!")
    assert collect(directory, Patterns([]), LIMITS, []) == [(b"changed.csv", b"new!")]


def test_a_file_of_the_request_that_changed_within_the_resolution_of_its_times_comes_back(directory: Directory) -> None:
    for name in ("changed.csv", "kept.csv"):
        directory.write(name, memoryview(b"old"))
        times = os.stat(name).st_mtime_ns
        Path(name).write_text("new" if name == "changed.csv" else "old")
        os.utime(name, ns=(times, times))
    assert collect(directory, Patterns(["*.csv"]), LIMITS, []) == [(b"changed.csv", b"new")]


def test_directories_that_are_nested_too_deeply_are_skipped(directory: Directory) -> None:
    os.makedirs("a/b/c/d")
    Path("a/b/c/d/e.png").touch()
    Path("a/b/c.png").touch()
    assert collect(directory, Patterns(["**/*.png"]), LIMITS, []) == [(b"a/b/c.png", b"")]
