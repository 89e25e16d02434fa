"""Tests of the limit of threads."""

import subprocess
import sys
from pathlib import Path

from mainbox_harness import frames

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from mainbox_harness import thread_limit
thread_limit.install(4)
import _thread, threading
stop = threading.Event()
threads = []
try:
    while True:
        threads.append(threading.Thread(target=stop.wait))
        threads[-1].start()
except RuntimeError as error:
    print(threading.active_count(), error)
try:
    _thread.start_new_thread(print, ())
except RuntimeError as error:
    print(error)
stop.set()
for thread in threads[:-1]:
    thread.join()
again = threading.Thread(target=print, args=("again",))
again.start()
again.join()
"""


def test_a_thread_too_many_is_refused_as_the_kernel_refuses_it() -> None:
    command = [sys.executable, "-I", "-B", "-c", PROGRAM, str(Path(frames.__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["4 can't start new thread", "can't start new thread", "again"]
