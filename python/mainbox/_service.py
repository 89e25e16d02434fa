"""mainbox on this machine: one process for each set of settings, which ends with this one."""

import atexit
import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from mainbox._result import MainboxError

# How many lines of its log a service that fails to start is reported with.
LAST_LINES = 5
# How long a service may take until it listens, which comes before it imports anything.
LISTEN_SECONDS = 30
# On AWS Lambda and Cloud Run, the service must not take itself for the function or the instance. Programs keep the
# arguments of a `Box` in the other two. They are not settings.
NOT_INHERITED = ("AWS_LAMBDA_", "K_SERVICE", "MAINBOX_URL", "MAINBOX_API_KEY")
# How long services may take to end: they answer for at most 8 seconds.
END_SECONDS = 10


def binary() -> str:
    """Returns the path of the command `mainbox`: that of this package, or one on PATH."""
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    user = sysconfig.get_preferred_scheme("user")
    scripts.append(sysconfig.get_path("scripts", user))
    for folder in scripts:
        program = Path(folder, "mainbox")
        if program.is_file():
            return str(program)
    found = shutil.which("mainbox")
    if found is None:
        raise MainboxError("unreachable", "there is no program mainbox; give Box the URL of a service")
    return found


class Service:
    """A running service that listens on loopback and accepts a key that only this process knows."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.key = secrets.token_urlsafe(24)
        own = {"PORT": "0", "MAINBOX_HOST": "127.0.0.1", "MAINBOX_API_KEYS": self.key, "MAINBOX_LOG": "info"}
        # Its standard input is a pipe, which the kernel closes however this process ends.
        own["MAINBOX_END_WITH_STDIN"] = "on"
        if taken := sorted(own.keys() & settings.keys()):
            raise ValueError(f"Box sets these itself: {', '.join(taken)}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        self._process = subprocess.Popen(
            [binary()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"MAINBOX_PYTHON": sys.executable, **inherited, **settings, **own},
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._address: str | None = None
        self._serves = threading.Event()
        threading.Thread(target=self._read_log, name="mainbox-log", daemon=True).start()
        try:
            self._serves.wait(LISTEN_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        if self._address is None:
            self._process.kill()
            self._process.wait()
            raise MainboxError("unreachable", "mainbox did not start: " + "".join(self._last_lines).strip())
        self.url = f"http://{self._address}"

    def _read_log(self) -> None:
        assert self._process.stderr
        try:
            with self._process.stderr as log:
                for line in log:
                    self._last_lines.append(line)
                    if not self._serves.is_set() and '"message":"serving"' in line:
                        self._address = json.loads(line)["address"]
                        self._serves.set()
        finally:
            self._serves.set()

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def leave(self) -> None:
        """In a fork: lets go of the pipe, so that the service ends with the process that started it."""
        assert self._process.stdin
        self._process.stdin.close()

    def end(self) -> None:
        """Asks the service to end. It answers what it has received before, for at most 8 seconds."""
        assert self._process.stdin
        self._process.stdin.close()
        # A fork may still hold its copy of the pipe.
        self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Waits for the end until a time of `time.monotonic`, and then kills the service."""
        try:
            self._process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# The services that this process started, by their settings.
_services: dict[frozenset[tuple[str, str]], Service] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    for service in _services.values():
        service.leave()
    _services.clear()
    _lock.release()


# A thread that holds the lock does not exist in a fork.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)


def running(settings: Mapping[str, str]) -> Service:
    """Returns the service with these settings. Starts it if no other `Box` of this process did."""
    key = frozenset(settings.items())
    with _lock:
        service = _services.get(key)
        if service is None or not service.runs:
            service = _services[key] = Service(settings)
        return service


@atexit.register
def _end_all() -> None:
    for service in _services.values():
        service.end()
    deadline = time.monotonic() + END_SECONDS
    for service in _services.values():
        service.wait(deadline)
