"""A place to run scripts, for code that waits for its answers."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self, Unpack

from mainbox import _service
from mainbox._connections import Call, Connections, read_lines, read_whole
from mainbox._result import (
    MainboxError,
    Options,
    Result,
    long_integer,
    not_of_mainbox,
    outcome,
    parse,
    request_bodies,
    request_body,
    typed,
)

# How many inputs go into one request at most: what a service accepts by default.
INPUTS = 100
# The longest wait for the next byte of an answer, seconds: the longest time limit and the longest usual wait in the queue.
ANSWER_SECONDS = 330.0


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


# Stands for an input that was not given, since `None` is one.
ABSENT = _Absent()


def run_body(script: str, input: object, options: Options) -> bytes:
    """Returns the body of a request with at most one input."""
    return request_body(script, options) if input is ABSENT else request_body(script, options, input=input)


class Box:
    """Runs scripts at the service at `url`, or on this machine.

    Without a `url`, the first run starts the command `mainbox` with the interpreter of this process, so scripts can import
    the packages that are installed here. It serves until this process ends. Boxes with the same `settings` share it.

    A box can be used by several threads at once.

    Args:
        url: the address of a service, such as `https://example.com`.
        api_key: one of its keys.
        settings: settings of the local service, such as `{"MAINBOX_MEMORY_MB": "512"}`; see docs/configuration.md. They
            come before those of the environment.
        answer_seconds: the longest wait for the next byte of an answer, seconds.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        settings: Mapping[str, str] | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        if url is None and api_key is not None:
            raise ValueError("a local mainbox has a key of its own: api_key belongs to a url")
        if url is not None and settings is not None:
            raise ValueError("only a local mainbox has settings; give either url or settings")
        self._settings = dict(settings or {})
        self._answer_seconds = answer_seconds
        self._remote = Connections(url, api_key, answer_seconds) if url is not None else None
        self._local: tuple[_service.Service, Connections] | None = None

    def run(self, script: str, input: object = ABSENT, **options: Unpack[Options]) -> Result:
        """Runs a script once.

        Args:
            script: Python source that defines `main`.
            input: the argument of `main`, any JSON value; without it, `main()` gets none.
            options: see `Options`.

        Raises:
            MainboxError: the script failed, or was not run.
        """
        return self.send(run_body(script, input, options), Call())

    def map(
        self, script: str, inputs: Iterable[object], *, batch: int = INPUTS, **options: Unpack[Options]
    ) -> Iterator[Result | MainboxError]:
        """Runs a script once for each input, in fresh processes, as many at once as the service allows.

        Yields a `Result` or the `MainboxError` of each input, in their order, as soon as it and those before it are there.
        Leaving the loop ends what still runs.

        Args:
            script: Python source that defines `main`.
            inputs: the arguments of `main`.
            batch: how many inputs are sent together at most: what the service has as `MAINBOX_MAX_INPUTS`.
            options: see `Options`. They apply to each input.

        Raises:
            MainboxError: the service refused a request, or did not answer it to the end.
        """
        for body, count in request_bodies(script, options, inputs, batch):
            yield from self.stream(body, count, Call())

    def close(self) -> None:
        """Closes the connections of this box. It can be used again. A local service ends with this process."""
        for connections in (self._remote, self._local and self._local[1]):
            if connections is not None:
                connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, body: bytes, call: Call) -> Result:
        """Sends a request that `request_body` made. `call` cancels it."""
        with self._connections().post("/execute", body, {"Content-Type": "application/json"}, call) as response:
            result = outcome(response.status, read_whole(response), response.getheader("Retry-After"))
        if isinstance(result, MainboxError):
            raise result
        return result

    def stream(self, body: bytes, count: int, call: Call) -> Generator[Result | MainboxError, None, None]:
        """Sends a request with `count` inputs. Yields their results in order."""
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        early: dict[int, Result | MainboxError] = {}
        following = 0
        with self._connections().post("/execute", body, headers, call) as response:
            if response.status != 200:
                refusal = outcome(response.status, read_whole(response), response.getheader("Retry-After"))
                raise refusal if isinstance(refusal, MainboxError) else not_of_mainbox(response.status)
            for line in read_lines(response):
                try:
                    event, has_long = parse(line)
                    if event["event"] == "item":
                        if event["index"] not in range(following, count):
                            raise LookupError(event["index"])
                        status = typed(int, event["status"])
                        early[event["index"]] = long_integer(status) if has_long else outcome(status, event)
                except (ValueError, LookupError, TypeError, RecursionError):
                    raise not_of_mainbox(response.status) from None
                while following in early:
                    yield early.pop(following)
                    following += 1
        if following < count:
            raise MainboxError("unreachable", "the answer of mainbox ended too early")

    def _connections(self) -> Connections:
        if self._remote is not None:
            return self._remote
        service = _service.running(self._settings)
        if self._local is None or self._local[0] is not service:
            self._local = service, Connections(service.url, service.key, self._answer_seconds)
        return self._local[1]
