import subprocess
import sys
from pathlib import Path

from mainbox_harness import frames

HARNESS = Path(frames.__file__).parents[1]

PROGRAM = f"""
import sys
sys.path.insert(0, {str(HARNESS)!r})
import resource
import mimetypes
from mainbox_harness import memory_imports
memory_imports.take_time_zones_into_memory()
mimetypes.knownfiles = [sys.argv[3]]
memory_imports.take_media_types_into_memory()
library = memory_imports.Library()
extensions = library.add(memory_imports.Path(sys.argv[1]))
sys.meta_path.insert(0, library)
sys.path.append(sys.argv[2])
memory_imports.prepare(["shapes"], ["colors", "nowhere"], is_async=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))

import asyncio
import datetime
import zoneinfo
import shapes.square
import colors.red
async def main():
    return 7
print(extensions)
print(shapes.square.SIDES, shapes.__path__, colors.red.CODE)
print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).isoformat())
print(mimetypes.MimeTypes().guess_type("a.mainbox"), mimetypes.guess_type("a.mainbox"))
print(asyncio.get_event_loop().is_running())
print(asyncio.run(main()))
for act in (lambda: zoneinfo.ZoneInfo("Nowhere/None"), lambda: __import__("nowhere"), asyncio.new_event_loop):
    try:
        act()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_modules_time_zones_media_types_and_an_event_loop_need_no_files(tmp_path: Path) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "square.py").write_text("SIDES = 4\n")
    (package / "test.py").write_text("")
    (package / "fast.abi3.so").write_text("")
    (tmp_path / "site" / "colors").mkdir(parents=True)
    (tmp_path / "site" / "colors" / "__init__.py").write_text("")
    (tmp_path / "site" / "colors" / "red.py").write_text("CODE = 'f00'\n")
    (tmp_path / "types").write_text("text/x-box mainbox\n")
    command = [sys.executable, "-I", "-B", "-c", PROGRAM, tmp_path, tmp_path / "site", tmp_path / "types"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['shapes.fast']",
        f"4 ['{package}'] f00",
        "2024-07-01T00:00:00+02:00",
        "(None, None) ('text/x-box', None)",
        "False",
        "7",
        "ZoneInfoNotFoundError 'No time zone found with key Nowhere/None'",
        "ModuleNotFoundError No module named 'nowhere'",
        "RuntimeError a second event loop is not available in this sandbox: it needs descriptors",
    ]
