"""A home directory during imports: some packages write to one when they are imported."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .libc import mount, unmount

OPTIONS = "mode=0700,size=16m"
VARIABLES = ("HOME", "TMPDIR")


@contextmanager
def import_home(mount_point: str | None) -> Iterator[None]:
    """Provides a home at `mount_point`, or else in /tmp or the root. If that fails, imports run without one."""
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
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None  # it caches the directory
        remove(path, mount_point)


def make(mount_point: str | None) -> str:
    """Makes an empty directory that no other process uses."""
    if mount_point is not None:
        mount(mount_point, OPTIONS)
        return mount_point
    parent = "/tmp" if os.path.isdir("/tmp") else "/"
    # Named like a scratch root: if this process is killed, the next service removes it with those.
    path = os.path.join(parent, f"mainbox-{os.getppid()}-home-{os.urandom(8).hex()}")
    os.mkdir(path, 0o700)
    return path


def remove(path: str, mount_point: str | None) -> None:
    """Removes the directory with everything in it."""
    if mount_point is not None:
        unmount(mount_point)
        return
    import shutil  # here, since it is slow to import; most preloaded packages have imported it

    shutil.rmtree(path, ignore_errors=True)
