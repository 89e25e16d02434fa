"""What the tests of the installed package share. `make wheel-test` runs them in a fresh environment."""

import os
import select
from collections.abc import Callable, Iterator

import pytest
from mainbox import Box
from mainbox._service import Service

# No packages are installed in the environment of the tests, so nothing can be imported before the first request.
BARE = {"MAINBOX_PRELOAD": ""}


def in_fork(function: Callable[[], object]) -> int:
    """Returns what a function returns in a fork of this process, a number of one digit; or -1 without an answer."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    if not select.select([reader], [], [], 20)[0]:
        os.kill(process, 9)
    answer = os.read(reader, 1)
    os.close(reader)
    os.waitpid(process, 0)
    return int(answer or -1)


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """A box on this machine."""
    with Box(settings=BARE) as box:
        yield box


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A service that is reached by its URL."""
    service = Service(BARE)
    yield service
    service.end()
