"""A home directory for the time of imports: some packages want to write to one, and none may outlive it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mainbox_lockdown import mount, unmount

OPTIONS = "mode=0700,size=16m"
VARIABLES = ("HOME", "TMPDIR")


@contextmanager
def home(mount_point: str | None) -> Iterator[None]:
    """Has one at `mount_point`, or else in /tmp or the root; where none can be, imports do without."""
    try:
        path = make(mount_point)
    except OSError:
        yield
        return
    os.environ.update(dict.fromkeys(VARIABLES, path))
    try:
        yield
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)
        if (tempfile := sys.modules.get("tempfile")) is not None:
            tempfile.tempdir = None  # it remembers the directory that it found
        remove(path, mount_point)


def make(mount_point: str | None) -> str:
    """An empty directory that nobody else has."""
    if mount_point is not None:
        mount(mount_point, OPTIONS)
        return mount_point
    parent = "/tmp" if os.path.isdir("/tmp") else "/"
    # Named as scratch roots are: should we be killed, the next service removes it with those.
    path = os.path.join(parent, f"mainbox-{os.getppid()}-home-{os.urandom(8).hex()}")
    os.mkdir(path, 0o700)
    return path


def remove(path: str, mount_point: str | None) -> None:
    """Takes it away with all that is in it."""
    if mount_point is not None:
        unmount(mount_point)
        return
    import shutil  # only here: it is slow to import, and what is preloaded mostly has

    shutil.rmtree(path, ignore_errors=True)
