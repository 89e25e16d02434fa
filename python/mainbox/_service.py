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
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from mainbox._result import MainboxError

# How many lines of its log a service that fails to start is reported with.
LAST_LINES = 5


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
        environment = {
            "MAINBOX_PYTHON": sys.executable,
            **os.environ,
            **settings,
            "PORT": "0",
            "MAINBOX_HOST": "127.0.0.1",
            "MAINBOX_API_KEYS": self.key,
            "MAINBOX_LOG": "info",
            # Its standard input is a pipe, which the kernel closes however this process ends.
            "MAINBOX_END_WITH_STDIN": "on",
        }
        self._process = subprocess.Popen(
            [binary()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._address: str | None = None
        self._serves = threading.Event()
        threading.Thread(target=self._read_log, name="mainbox-log", daemon=True).start()
        self._serves.wait()
        if self._address is None:
            self._process.wait()
            raise MainboxError("unreachable", "mainbox did not start: " + "".join(self._last_lines).strip())
        self.url = f"http://{self._address}"

    def _read_log(self) -> None:
        assert self._process.stderr
        with self._process.stderr as log:
            for line in log:
                self._last_lines.append(line)
                if self._address is None and '"address"' in line:
                    self._address = json.loads(line)["address"]
                    self._serves.set()
        self._serves.set()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Ends the service. It answers what it has received before, for at most 8 seconds."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# By the process that started it and its settings. A fork has no services of its own.
_services: dict[tuple[int, frozenset[tuple[str, str]]], Service] = {}
_lock = threading.Lock()
# A thread that holds the lock does not exist in a fork.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def running(settings: Mapping[str, str]) -> Service:
    """Returns the service with these settings. Starts it if no other `Box` of this process did."""
    key = os.getpid(), frozenset(settings.items())
    with _lock:
        service = _services.get(key)
        if service is None or not service.runs:
            service = _services[key] = Service(settings)
        return service


@atexit.register
def _end_all() -> None:
    for (process, _), service in _services.items():
        if process == os.getpid():
            service.end()
