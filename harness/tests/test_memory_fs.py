import builtins
import csv
import errno
import io
import os
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mainbox_harness.failure import ScriptFailure
from mainbox_harness.memory_fs import FUNCTIONS, MemoryDir, install
from mainbox_harness.patterns import Patterns


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryDir:
    """Installs the working directory in memory. At the end everything that `install` replaces is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "open", builtins.open)
    monkeypatch.setattr(io, "open", io.open)
    for name in FUNCTIONS:
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr(MemoryDir, "current", None)
    install()
    return MemoryDir("outputs")


def write(name: str, content: str) -> None:
    with open(name, "w") as file:
        file.write(content)


def read(name: str | bytes) -> str:
    with open(name) as file:
        return file.read()


def error_of(act: Callable[..., Any], *arguments: Any) -> tuple[int | None, Any]:
    with pytest.raises(OSError) as caught:
        act(*arguments)
    return caught.value.errno, caught.value.filename


def test_a_file_of_the_request_can_be_read(memory: MemoryDir) -> None:
    memory.write("data/a.bin", memoryview(b"\xff\x00"))
    with open("data/a.bin", "rb") as file:
        assert file.read() == b"\xff\x00"
    assert os.listdir("data") == ["a.bin"]


def test_nothing_is_written_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a", "x")
    os.mkdir("b")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_file_on_the_disk_is_opened_by_the_kernel() -> None:
    with open(__file__) as file:
        assert file.read().startswith("import builtins\n")
        assert file.fileno() > 2
    assert os.stat(__file__).st_size > 1000
    assert "test_memory_fs.py" in os.listdir(os.path.dirname(__file__))


def test_w_replaces_the_content() -> None:
    write("a", "long content")
    write("a", "x")
    assert read("a") == "x"


def test_a_appends_wherever_the_position_is() -> None:
    write("a", "one")
    with open("a", "a+") as file:
        assert file.tell() == 3
        file.seek(0)
        file.write("two")
        file.seek(0)
        assert file.read() == "onetwo"


def test_x_refuses_a_file_that_exists() -> None:
    with open("a", "x") as file:
        file.write("1")
    assert error_of(open, "a", "x") == (errno.EEXIST, "a")
    assert read("a") == "1"


def test_r_plus_reads_and_writes() -> None:
    write("a", "abcdef")
    with open("a", "r+") as file:
        assert file.read(2) == "ab"
        file.seek(2)
        file.write("X")
    assert read("a") == "abXdef"


def test_w_plus_can_read_what_it_wrote() -> None:
    with open("a", "w+b") as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc"


def test_a_file_that_is_open_for_one_thing_refuses_the_other() -> None:
    write("a", "abc")
    with open("a") as file, pytest.raises(io.UnsupportedOperation, match="not writable"):
        file.write("x")
    with open("a", "ab") as file, pytest.raises(io.UnsupportedOperation, match="read"):
        file.read()
    with open("a", "rb", buffering=0) as file, pytest.raises(io.UnsupportedOperation, match="not writable"):
        file.write(b"x")
    with open("a", "ab", buffering=0) as file, pytest.raises(io.UnsupportedOperation, match="not readable"):
        file.read()


@pytest.mark.parametrize("mode", ["", "z", "rw", "rbt", "b"])
def test_an_invalid_mode_is_an_error(mode: str) -> None:
    with pytest.raises(ValueError, match=f"^invalid mode: '{mode}'$"):
        open("a", mode)  # noqa: SIM115


def test_text_must_be_buffered() -> None:
    with pytest.raises(ValueError, match="can't have unbuffered text"):
        open("a", "w", buffering=0)  # noqa: SIM115


def test_an_unbuffered_file_is_written_at_once() -> None:
    with open("a", "wb", buffering=0) as file:
        file.write(b"abc")
        assert read("a") == "abc"


def test_encoding_errors_and_newline_apply() -> None:
    with open("a", "w", encoding="latin-1", newline="\r\n") as file:
        file.write("é\n")
    with open("a", "rb") as file:
        assert file.read() == b"\xe9\r\n"
    with open("a", encoding="utf-8", errors="replace") as file:
        assert (file.encoding, file.errors, file.mode, file.name) == ("utf-8", "replace", "r", "a")
        assert file.read() == "\ufffd\n"


def test_seek_truncate_and_holes_are_as_on_the_disk() -> None:
    with open("a", "w+b") as file:
        file.write(b"abc")
        assert file.seek(0, io.SEEK_END) == 3
        assert file.seek(-1, io.SEEK_CUR) == 2
        assert file.seek(5) == 5
        file.write(b"z")
        file.seek(0)
        assert file.read() == b"abc\0\0z"
        assert file.truncate(2) == 2
        assert file.truncate(4) == 4
        file.seek(0)
        assert file.read() == b"ab\0\0"
        assert error_of(file.seek, -1)[0] == errno.EINVAL


def test_two_open_files_share_the_content() -> None:
    with open("a", "wb", buffering=0) as writer, open("a", "rb", buffering=0) as reader:
        writer.write(b"abc")
        assert reader.read() == b"abc"


def test_an_open_file_outlives_its_name() -> None:
    write("a", "abc")
    with open("a") as file:
        os.remove("a")
        assert file.read() == "abc"
    assert not os.path.exists("a")


def test_opening_fails_as_on_the_disk() -> None:
    os.mkdir("d")
    assert error_of(open, "a") == (errno.ENOENT, "a")
    assert error_of(open, "d") == (errno.EISDIR, "d")
    assert error_of(open, "none/a", "w") == (errno.ENOENT, "none/a")


def test_stat_has_kind_size_and_owner() -> None:
    write("a", "abc")
    status = os.stat("a")
    assert (stat.S_ISREG(status.st_mode), status.st_size, status.st_uid) == (True, 3, os.getuid())
    assert stat.S_ISDIR(os.stat("outputs").st_mode)
    assert os.stat("a").st_ino == os.lstat("a").st_ino
    assert error_of(os.stat, "b") == (errno.ENOENT, "b")
    assert (os.path.isfile("a"), os.path.isdir("a"), os.path.exists("b")) == (True, False, False)
    assert os.path.getsize("a") == 3


def test_listdir_is_sorted_and_has_only_direct_entries() -> None:
    write("b", "")
    write("a", "")
    write("outputs/c", "")
    assert os.listdir() == ["a", "b", "outputs"]
    assert os.listdir(".") == ["a", "b", "outputs"]
    assert os.listdir("outputs") == ["c"]
    assert error_of(os.listdir, "a") == (errno.ENOTDIR, "a")
    assert error_of(os.listdir, "d") == (errno.ENOENT, "d")


def test_scandir_describes_the_entries() -> None:
    write("outputs/a", "abc")
    os.mkdir("outputs/d")
    with os.scandir("outputs") as entries:
        found = [(entry.name, entry.path, entry.is_file(), entry.is_dir(), entry.is_symlink()) for entry in entries]
    assert found == [("a", "outputs/a", True, False, False), ("d", "outputs/d", False, True, False)]
    (entry, _) = os.scandir("outputs")
    assert (entry.stat().st_size, os.fspath(entry), entry.inode()) == (3, "outputs/a", os.stat("outputs/a").st_ino)


def test_walk_finds_all_files() -> None:
    os.makedirs("outputs/d/e")
    write("outputs/d/e/f", "")
    assert list(os.walk("outputs")) == [
        ("outputs", ["d"], []),
        ("outputs/d", ["e"], []),
        ("outputs/d/e", [], ["f"]),
    ]


def test_directories_can_be_made_and_removed() -> None:
    os.makedirs("d/e", exist_ok=True)
    os.makedirs("d/e", exist_ok=True)
    assert error_of(os.mkdir, "d") == (errno.EEXIST, "d")
    assert error_of(os.rmdir, "d") == (errno.ENOTEMPTY, "d")
    os.rmdir("d/e")
    os.rmdir("d")
    assert os.listdir() == ["outputs"]
    assert error_of(os.rmdir, "d") == (errno.ENOTDIR, "d")
    assert error_of(os.rmdir, ".") == (errno.EBUSY, ".")


def test_files_can_be_removed() -> None:
    write("a", "")
    os.unlink("a")
    assert error_of(os.remove, "a") == (errno.ENOENT, "a")
    assert error_of(os.remove, "outputs") == (errno.EISDIR, "outputs")


def test_rename_replaces_a_file() -> None:
    write("a", "new")
    write("outputs/b", "old")
    os.rename("a", "outputs/b")
    assert (read("outputs/b"), os.path.exists("a")) == ("new", False)
    os.replace(src="outputs/b", dst="c")
    assert read("c") == "new"
    assert error_of(os.rename, "a", "b") == (errno.ENOENT, "a")
    assert error_of(os.rename, "c", "/nowhere/c") == (errno.EXDEV, "c")
    assert error_of(os.rename, "c", "outputs") == (errno.EXDEV, "c")


def test_everything_can_be_read_and_written_but_not_executed() -> None:
    write("a", "")
    assert os.access("a", os.R_OK | os.W_OK)
    assert not os.access("a", os.X_OK)
    assert os.access("outputs", mode=os.X_OK)
    assert not os.access("b", os.F_OK)


def test_chmod_and_utime_need_a_file() -> None:
    write("a", "")
    os.chmod("a", 0o400)
    os.utime("a", (1, 1))
    assert error_of(os.chmod, "b", 0o400) == (errno.ENOENT, "b")


def test_absolute_paths_below_the_working_directory_are_in_memory() -> None:
    write(os.path.abspath("a"), "abc")
    assert read("a") == "abc"
    assert read("outputs/../a") == "abc"
    assert read(os.fsencode("a")) == "abc"


def test_pathlib_works(monkeypatch: pytest.MonkeyPatch) -> None:
    # Imported after `install`, as in the zygote: with Python 3.13, glob keeps functions of os when it is imported.
    for name in list(sys.modules):
        if name.partition(".")[0] in ("glob", "pathlib"):
            monkeypatch.delitem(sys.modules, name)
    from pathlib import Path

    path = Path("outputs") / "d"
    path.mkdir(parents=True, exist_ok=True)
    file = path / "a.txt"
    assert file.write_text("abc\n") == 4
    assert (file.read_text(), file.read_bytes(), file.exists(), file.is_file()) == ("abc\n", b"abc\n", True, True)
    assert file.stat().st_size == 4
    assert [str(found) for found in path.iterdir()] == ["outputs/d/a.txt"]
    assert [str(found) for found in Path().rglob("*.txt")] == ["outputs/d/a.txt"]
    with file.open("a") as stream:
        stream.write("d")
    file.rename("b.txt")
    assert Path("b.txt").read_text() == "abc\nd"
    Path("b.txt").unlink()
    Path("b.txt").unlink(missing_ok=True)
    path.rmdir()
    assert not path.is_dir()


def test_csv_works() -> None:
    with open("a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["x", "y"], [1, "a,b"]])
    with open("a.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"x": "1", "y": "a,b"}]


def test_zipfile_and_shutil_work() -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("inside", "abc")
    shutil.copy("a.zip", "outputs/b.zip")
    with zipfile.ZipFile("outputs/b.zip") as archive:
        assert archive.read("inside") == b"abc"
    shutil.move("a.zip", "c.zip")
    assert os.listdir() == ["c.zip", "outputs"]


def test_outputs_are_the_files_below_outputs(memory: MemoryDir) -> None:
    write("a", "not an output")
    write("outputs/b", "2")
    os.makedirs("outputs/d")
    write("outputs/d/c", "3")
    assert [(name, file.read()) for name, file in memory.outputs(2)] == [("b", b"2"), ("d/c", b"3")]


def test_files_that_match_come_back_if_the_script_made_or_changed_them(memory: MemoryDir) -> None:
    for name in ("kept.csv", "changed.csv", "outputs/kept.csv"):
        memory.write(name, memoryview(b"old"))
    with pytest.raises(FileExistsError):
        memory.write("kept.csv", memoryview(b"new"))
    for name in ("changed.csv", "new.csv", "outputs/new.csv"):
        write(name, "new")
    os.makedirs("d/e")
    write("d/e/deep.csv", "")
    assert [name for name, _ in memory.made(Patterns(["*.csv"]), 1)] == ["changed.csv", "new.csv"]
    assert [name for name, _ in memory.made(Patterns(["**/deep.csv"]), 3)] == ["d/e/deep.csv"]
    assert list(memory.made(Patterns(["**/deep.csv"]), 2)) == []
    assert [name for name, _ in memory.outputs(1)] == ["new.csv"]
    with pytest.raises(FileExistsError):
        memory.write("d", memoryview(b""))


def test_outputs_that_are_nested_too_deeply_are_an_error(memory: MemoryDir) -> None:
    os.makedirs("outputs/d/e")
    write("outputs/d/e/f", "")
    assert [name for name, _ in memory.outputs(3)] == ["d/e/f"]
    with pytest.raises(ScriptFailure) as caught:
        list(memory.outputs(2))
    assert (caught.value.kind, caught.value.error) == ("result_too_large", "outputs/d/e is nested too deeply")
