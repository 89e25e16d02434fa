#!/usr/bin/env python3
"""Runs CPython's own tests in the sandbox and outside of it, and compares what fails in the sandbox only with a list.

Usage: compare.py [MODULE ...]    without modules, those in modules.txt

The list names the absence that explains each test. A test that fails and is not listed is an error, and so is a listed
one that passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PYTHON = os.environ.get("MAINBOX_PYTHON", str(ROOT / ".venv/bin/python3"))
SCRIPT = HERE / "in_box.py"
# The slowest module takes half of it.
SECONDS = 120
SETTINGS = {
    "PORT": "0", "MAINBOX_HOST": "127.0.0.1", "MAINBOX_PYTHON": PYTHON, "MAINBOX_PRELOAD": "", "MAINBOX_POLICY": "off",
    "MAINBOX_TIMEOUT_SECONDS": str(SECONDS), "MAINBOX_MEMORY_MB": "2048", "MAINBOX_SCRATCH_MB": "512",
    "MAINBOX_CONCURRENCY": "2",
}  # fmt: skip


def start() -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server. Returns it and its URL."""
    log = ROOT / "target/cpython.log"
    with log.open("wb") as file:
        server = subprocess.Popen([ROOT / "target/release/mainbox"], env=os.environ | SETTINGS, stderr=file)
    for _ in range(300):
        if found := re.search(r'"address":"[^"]*:(\d+)"', log.read_text()):
            return server, f"http://127.0.0.1:{found[1]}"
        time.sleep(0.1)
    server.terminate()
    raise SystemExit(f"the server does not start:\n{log.read_text()}")


def post(url: str, module: str) -> dict[str, object]:
    """Runs a module in the sandbox."""
    body = json.dumps({"script": SCRIPT.read_text(), "input": module, "collect": []}).encode()
    request = urllib.request.Request(f"{url}/execute", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS + 60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def inside(url: str, module: str) -> tuple[int, dict[str, str]]:
    """Returns the number of tests that ran in the sandbox, and why some failed."""
    answer = post(url, module)
    if "result" in answer:
        return answer["result"]["ran"], answer["result"]["failed"]  # type: ignore[index]
    last = (str(answer["stdout"]).splitlines() or [module])[-1]
    return str(answer["stdout"]).count("\n"), {last: f"{answer['kind']}: {answer['error']}"}


def outside(module: str) -> dict[str, str]:
    """Returns why tests fail outside of the sandbox."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        command = [PYTHON, "-B", SCRIPT, module, results]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, cwd=folder, capture_output=True, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL
            )
        return json.loads(results.read_text())["failed"] if results.exists() else {module: "did not end"}


def listed(path: Path) -> dict[str, str]:
    """Returns the tests of the list, each with the absence that explains it."""
    tests, absence = {}, ""
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("# "):
            absence = line[2:]
        elif line and not line.startswith("##"):
            tests[line] = absence
    return tests


def main() -> int:
    """Returns the exit code."""
    modules = sys.argv[1:] or (HERE / "modules.txt").read_text().split()
    version = subprocess.check_output(
        [PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True
    ).strip()
    path = HERE / f"namespaces-{version}.txt"
    known = listed(path)
    server, url = start()
    ran, failed = 0, {}
    try:
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda name: (name, *inside(url, name), outside(name)), modules)
            for module, count, why, other in both:
                only = {name: reason for name, reason in why.items() if name not in other}
                print(f"{module}: {count} tests, {len(only)} fail in the sandbox only", flush=True)
                ran += count
                failed |= only
    finally:
        server.terminate()
        server.wait()
    new = {name: why for name, why in failed.items() if name not in known}
    gone = [name for name in known if name not in failed and any(name_in(name, module) for module in modules)]
    for name, why in sorted(new.items()):
        print(f"not in {path.name}: {name}: {why}")
    for name in gone:
        print(f"in {path.name}, but passes: {name}")
    print(f"{len(modules)} modules: of {ran} tests, {len(failed)} fail in the sandbox only")
    return 1 if new or gone else 0


def name_in(name: str, module: str) -> bool:
    """Whether a test, or the set-up of a class, is of a module."""
    return f"({module}." in name or name.startswith(f"{module}.")


sys.exit(main())
