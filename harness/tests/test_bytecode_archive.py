import marshal
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest
from mainbox_harness import bytecode_archive
from mainbox_harness.bytecode_archive import HEADER, Archive, archived

HARNESS = Path(bytecode_archive.__file__).parents[1]


def python(code: str, *arguments: object) -> str:
    """Runs code in a new interpreter, which can import the harness and nothing else besides the standard library."""
    program = f"import sys; sys.path.insert(0, {str(HARNESS)!r}); {code}"
    command = [sys.executable, "-I", "-B", "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_modules_are_imported_from_the_archive_without_their_files(tmp_path: Path) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("from . import square\nSIDES = square.SIDES\n")
    (package / "square.py").write_text("SIDES = 4\n")
    archive = tmp_path / "archive"
    add_package = f"sys.path.append({str(tmp_path)!r})"
    python(
        f"{add_package}; from mainbox_harness.bytecode_archive import write; write(sys.argv[1], ['shapes'], {{}})",
        archive,
    )
    for file in package.iterdir():
        file.unlink()
    package.rmdir()
    printed = python(
        "from mainbox_harness.bytecode_archive import archived\n"
        "with archived(sys.argv[1]):\n"
        "    import shapes\n"
        "print(shapes.SIDES, shapes.square.__file__, shapes.__path__)\n"
        "print(type(shapes.__spec__.loader).__name__, type(sys.meta_path[0]).__name__)",
        archive,
    )
    assert printed == f"4 {package}/square.py ['{package}']\nArchivedLoader type\n"


def test_the_harness_comes_from_the_archive_if_it_is_the_same(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    sources = {"harness": "", "harness.part": "def answer(): return 42"}
    bytecode_archive.write(str(archive), [], sources)
    loader: dict[str, Any] = {"__name__": "loader"}
    exec((HARNESS / "mainbox_harness" / "loader.py").read_text().removesuffix("main()\n"), loader)
    from_archive = loader["from_archive"]
    compiled = from_archive(str(archive), sources)
    assert set(compiled) == set(sources)
    part: dict[str, Any] = {}
    exec(compiled["harness.part"], part)
    assert (part["answer"](), part["answer"].__code__.co_filename) == (42, "<harness.part>")
    # An archive that an older version wrote.
    assert from_archive(str(archive), sources | {"harness.part": ""}) == {}
    for content in (
        b"",
        b"old\n",
        archive.read_bytes()[:40],
        HEADER.pack(MAGIC_NUMBER, 3) + b"abc",
        HEADER.pack(MAGIC_NUMBER, 1 << 62),
    ):
        archive.write_bytes(content)
        assert from_archive(str(archive), sources) == {}
    assert from_archive(str(tmp_path / "none"), sources) == {}
    assert from_archive(None, sources) == {}


def test_an_archive_of_another_python_ends_the_program(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(HEADER.pack(b"old\n", 0))
    with pytest.raises(SystemExit) as caught:
        Archive(str(file))
    assert caught.value.code == (
        "MAINBOX_ARCHIVE is from another version of Python; write it again with `mainbox archive`"
    )


def test_an_archive_of_another_mainbox_ends_the_program(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    index = marshal.dumps({"a": 1, "b": 2})
    file.write_bytes(HEADER.pack(MAGIC_NUMBER, len(index)) + index)
    with pytest.raises(SystemExit) as caught:
        Archive(str(file))
    assert caught.value.code == (
        "MAINBOX_ARCHIVE is from another version of mainbox; write it again with `mainbox archive`"
    )


def test_an_archive_that_cannot_be_read_ends_the_program(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    with pytest.raises(SystemExit) as caught, archived(str(file)):
        pass
    assert caught.value.code == (
        "cannot read MAINBOX_ARCHIVE, which must be beside the interpreter's libraries: "
        f"[Errno 2] No such file or directory: '{file}'"
    )
