#!/usr/bin/env python3
"""Runs CPython's own tests in the sandbox and outside of it, and compares what fails in the sandbox only with a list.

Usage: compare.py [--lambda TESTS] [MODULE ...]    without modules, those in modules.txt

By default, the sandbox is that of this host, as root. With --lambda it is that of the Lambda image (`docker build -f
Dockerfile.lambda -t mainbox-lambda .`), where mechanisms are refused as on AWS Lambda, so that the tier is `rlimits`.
TESTS is the directory `test` of the standard library of the image's version of Python, which the image does not have.

The list names the absence that explains each test; `Class.*` stands for all tests of a class. A test that fails and is
not listed is an error, and so is a listed one that passes.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SCRIPT = HERE / "in_box.py"
LOG = ROOT / "target/cpython.log"
# As in in_box.py.
PREFIX = "test: "
# The slowest module takes half of it.
SECONDS = 120
SETTINGS = {
    "PORT": "0", "MAINBOX_HOST": "127.0.0.1", "MAINBOX_POLICY": "off", "MAINBOX_TIMEOUT_SECONDS": str(SECONDS),
    "MAINBOX_MEMORY_MB": "2048", "MAINBOX_SCRATCH_MB": "512", "MAINBOX_CONCURRENCY": "2",
    "MAINBOX_QUEUE_SECONDS": "600",
}  # fmt: skip
# What tests/worlds/run gives the Lambda image.
LAMBDA = [
    "--network", "host", "--user", "993", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp", "--ipc", "none",
    "--security-opt", "no-new-privileges",
    "--security-opt", f"seccomp={ROOT}/tests/worlds/lambda-like.json",
]  # fmt: skip
LAMBDA_PYTHON = "/var/lang/bin/python3.13"


class Place(NamedTuple):
    """Where the tests run."""

    tier: str
    serve: list[str]
    """Starts mainbox."""
    python: list[str]
    """Starts Python outside the sandbox; `{folder}` is a directory that it may write to."""
    script: str
    """The path of the script there."""
    folder: str
    """The path of that directory there."""


def host() -> Place:
    """Returns the sandbox of this host."""
    python = os.environ.get("MAINBOX_PYTHON", str(ROOT / ".venv/bin/python3"))
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    serve = ["env", *settings, f"MAINBOX_PYTHON={python}", "MAINBOX_PRELOAD=", str(ROOT / "target/release/mainbox")]
    return Place("namespaces", serve, [python], str(SCRIPT), "{folder}")


def lambda_image(tests: str) -> Place:
    """Returns the sandbox of the Lambda image. There, what a script imports late must be preloaded."""
    run = ["docker", "run", "--rm", "--volume", f"{tests}:/var/lang/lib/python3.13/test:ro"]
    # MAINBOX_CONCURRENCY is 1 there.
    settings = SETTINGS | {"MAINBOX_FLOOR": "rlimits", "MAINBOX_PRELOAD": "test"}
    variables = [f"--env={name}={value}" for name, value in settings.items()]
    outside = ["--volume", f"{SCRIPT}:/in_box.py:ro", "--volume", "{folder}:/results", "--workdir", "/tmp"]
    python = [*run, *outside, "--entrypoint", LAMBDA_PYTHON, "mainbox-lambda"]
    return Place("rlimits", [*run, *LAMBDA, *variables, "mainbox-lambda"], python, "/in_box.py", "/results")


@contextmanager
def server(place: Place) -> Iterator[str]:
    """Runs a server. Yields its URL."""
    with LOG.open("wb") as file:
        process = subprocess.Popen(place.serve, stderr=file)
    try:
        for _ in range(600):
            if found := re.search(r'"address":"[^"]*:(\d+)"', LOG.read_text()):
                yield f"http://127.0.0.1:{found[1]}"
                return
            time.sleep(0.1)
        raise SystemExit(f"the server does not start:\n{LOG.read_text()}")
    finally:
        process.terminate()
        process.wait()


class Outcome(NamedTuple):
    """What became of the tests of a module."""

    started: list[str]
    """The names of the tests."""
    failed: dict[str, str]
    """Why tests failed."""


def inside(url: str, module: str) -> Outcome:
    """Runs a module in the sandbox."""
    body = json.dumps({"script": SCRIPT.read_text(), "input": module, "collect": []}).encode()
    request = urllib.request.Request(f"{url}/execute", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        answer = json.load(error)
    lines = answer["stdout"].splitlines()
    started = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if "result" in answer:
        skipped = set(answer["result"]["skipped"])
        return Outcome([test for test in started if test not in skipped], answer["result"]["failed"])
    # A test that never ends is the last one.
    return Outcome(started, {(started or [module])[-1]: f"{answer['kind']}: {answer['error']}"})


def outside(place: Place, module: str) -> dict[str, str]:
    """Returns why tests of a module fail outside of the sandbox."""
    with tempfile.TemporaryDirectory() as folder:
        python = [word.replace("{folder}", folder) for word in place.python]
        results = f"{place.folder.replace('{folder}', folder)}/results.json"
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*python, "-B", place.script, module, results],
                cwd=folder, capture_output=True, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        file = Path(folder, "results.json")
        return json.loads(file.read_text())["failed"] if file.exists() else {module: "did not end"}


class Known:
    """The list of a tier and a version of Python."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines = {line for line in lines if line and not line.startswith("#")}

    def line_of(self, test: str) -> str | None:
        """Returns the line that lists a test."""
        of_class = f"{test.rpartition('.')[0]}.*"
        return next((line for line in (test, of_class) if line in self.lines), None)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lambda", metavar="TESTS", dest="tests")
    parser.add_argument("modules", metavar="MODULE", nargs="*")
    arguments = parser.parse_args()
    modules = arguments.modules or (HERE / "modules.txt").read_text().split()
    place = lambda_image(arguments.tests) if arguments.tests else host()
    version = [*place.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    with tempfile.TemporaryDirectory() as folder:
        version = [word.replace("{folder}", folder) for word in version]
        known = Known(HERE / f"{place.tier}-{subprocess.check_output(version, text=True).strip()}.txt")
    started: list[str] = []
    passed: list[str] = []
    failed: dict[str, str] = {}
    with server(place) as url, ThreadPoolExecutor(2) as pool:
        for module, outcome, other in pool.map(lambda name: (name, inside(url, name), outside(place, name)), modules):
            only = {name: why for name, why in outcome.failed.items() if name not in other}
            print(f"{module}: {len(outcome.started)} tests, {len(only)} fail in the sandbox only", flush=True)
            started += outcome.started
            passed += [
                name for name in outcome.started if name not in outcome.failed and known.line_of(name) is not None
            ]
            failed |= only
    new = {name: why for name, why in failed.items() if known.line_of(name) is None}
    for name, why in sorted(new.items()):
        print(f"not in {known.path.name}: {name}: {why}")
    for name in sorted(passed):
        print(f"in {known.path.name}, but passes: {name}")
    print(f"{len(modules)} modules: of {len(started)} tests, {len(failed)} fail in the sandbox only")
    return 1 if new or passed else 0


sys.exit(main())
