"""A place to run scripts, for code that awaits its answers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

from mainbox._box import ABSENT, ANSWER_SECONDS, INPUTS, Box, run_body
from mainbox._connections import Call
from mainbox._result import MainboxError, Options, Result, request_bodies

T = TypeVar("T")

# How many requests of a box are sent at once; more wait. A service has a queue of 64 by default.
REQUESTS = 64


class AsyncBox:
    """`Box` with coroutines. Its requests wait in threads, at most 64 at once. A request that is cancelled ends its script."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        settings: Mapping[str, str] | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """The arguments are those of `Box`."""
        self._box = Box(url, api_key=api_key, settings=settings, answer_seconds=answer_seconds)
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    async def run(self, script: str, input: object = ABSENT, **options: Unpack[Options]) -> Result:
        """Runs a script once; see `Box.run`."""
        body = run_body(script, input, options)
        call = Call()
        return await self._in_thread(lambda: self._box.send(body, call), call)

    async def map(
        self, script: str, inputs: Iterable[object], *, batch: int = INPUTS, **options: Unpack[Options]
    ) -> AsyncIterator[Result | MainboxError]:
        """Runs a script once for each input; see `Box.map`."""
        for body, count in request_bodies(script, options, inputs, batch):
            call = Call()
            results = self._box.stream(body, count, call)
            try:
                # One more, which reads the end of the response, so that the connection can be kept.
                for _ in range(count + 1):
                    result = await self._in_thread(partial(next, results, None), call)
                    if result is not None:
                        yield result
            finally:
                # Where the loop was left early, this ends what still runs.
                call.cancel()

    async def _in_thread(self, function: Callable[[], T], call: Call) -> T:
        if self._threads is None or self._process != os.getpid():
            # Threads do not exist in a fork.
            self._process, self._threads = os.getpid(), ThreadPoolExecutor(REQUESTS, thread_name_prefix="mainbox")
        waiting = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            call.cancel()
            # The thread ends with its connection, or has not begun. What it raises then is of no interest.
            waiting.cancel()
            raise

    async def close(self) -> None:
        """Closes the connections and ends the threads of this box. The box can be used again."""
        if self._threads is not None and self._process == os.getpid():
            self._threads.shutdown(wait=False)
        self._threads = None
        self._box.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
