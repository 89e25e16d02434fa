"""`AsyncBox` does what `Box` does, and ends scripts whose requests are cancelled."""

import asyncio
import time

import pytest
from conftest import BARE, in_fork
from mainbox import AsyncBox, MainboxError, Result


def test_requests_run_at_the_same_time() -> None:
    async def both() -> tuple[Result, Result]:
        async with AsyncBox(settings={**BARE, "MAINBOX_CONCURRENCY": "2"}) as box:
            await box.run("def main(): return 0")
            script = "import time\ndef main(x):\n    time.sleep(1)\n    return x"
            return await asyncio.gather(box.run(script, 1), box.run(script, 2))

    began = time.monotonic()
    assert [result.value for result in asyncio.run(both())] == [1, 2]
    assert time.monotonic() - began < 10


def test_an_error_is_raised() -> None:
    async def fails() -> None:
        async with AsyncBox(settings=BARE) as box:
            await box.run("def main(): return 1 / 0")

    with pytest.raises(MainboxError) as caught:
        asyncio.run(fails())
    assert (caught.value.kind, caught.value.line) == ("exception", 1)


def test_map_yields_results_and_errors_in_order() -> None:
    async def outcomes() -> list[object]:
        async with AsyncBox(settings=BARE) as box:
            found = [outcome async for outcome in box.map("def main(x): return 6 // x", range(120))]
            # Both requests used one connection, which is kept.
            assert len(box._box._connections()._idle) == 1
        return [outcome.kind if isinstance(outcome, MainboxError) else outcome.value for outcome in found]

    assert asyncio.run(outcomes()) == ["exception", *(6 // x for x in range(1, 120))]


def test_a_cancelled_request_ends_its_script() -> None:
    async def cancelled() -> Result:
        async with AsyncBox(settings={**BARE, "MAINBOX_CONCURRENCY": "1", "MAINBOX_TIMEOUT_SECONDS": "60"}) as box:
            await box.run("def main(): return 0")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(box.run("import time\ndef main(): time.sleep(60)"), 0.5)
            # It runs one script at a time, so this one waits for the end of the other.
            return await asyncio.wait_for(box.run("def main(): return 1"), 9)

    assert asyncio.run(cancelled()).value == 1


def test_a_map_that_is_left_ends_what_still_runs() -> None:
    async def left() -> Result:
        async with AsyncBox(settings={**BARE, "MAINBOX_CONCURRENCY": "1", "MAINBOX_TIMEOUT_SECONDS": "60"}) as box:
            async for _ in box.map("import time\ndef main(x): time.sleep(x)", [0, 60]):
                break
            return await asyncio.wait_for(box.run("def main(): return 1"), 9)

    assert asyncio.run(left()).value == 1


def test_a_closed_box_and_one_in_a_fork_can_be_used() -> None:
    box = AsyncBox(settings=BARE)

    async def run() -> object:
        return (await box.run("def main(): return 1")).value

    async def run_and_close() -> object:
        async with box:
            return await run()

    assert asyncio.run(run()) == 1
    assert in_fork(lambda: asyncio.run(run_and_close())) == 1
    assert [asyncio.run(run_and_close()) for _ in range(2)] == [1, 1]
