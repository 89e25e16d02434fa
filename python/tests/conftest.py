"""What the tests of the installed package share. `make wheel-test` runs them in a fresh environment."""

from collections.abc import Iterator

import pytest
from mainbox import Box
from mainbox._service import Service

# No packages are installed in the environment of the tests, so nothing can be imported before the first request.
BARE = {"MAINBOX_PRELOAD": ""}


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
