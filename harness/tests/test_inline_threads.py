import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from mainbox_harness import inline_threads


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ThreadPoolExecutor.submit)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    inline_threads.install()
    yield


def test_a_pool_runs_its_work_in_order_in_the_calling_thread() -> None:
    order: list[object] = []
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda n: order.append(n) or threading.get_ident(), n) for n in range(3)]
        assert list(pool.map(str, [1, 2])) == ["1", "2"]
    assert order == [0, 1, 2]
    assert {future.result() for future in futures} == {threading.get_ident()}
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_an_error_is_kept_for_the_result() -> None:
    future = ThreadPoolExecutor(1).submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result()


def test_asyncio_uses_the_pool() -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        return [await asyncio.to_thread(int, "1"), *await asyncio.gather(loop.run_in_executor(None, int, "2"))]

    assert asyncio.run(main()) == [1, 2]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()
