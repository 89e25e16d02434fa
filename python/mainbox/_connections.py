"""Keep-alive connections to one service, for any number of threads."""

import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from mainbox._result import MainboxError

# How long a connection may take, seconds.
CONNECT_SECONDS = 10
# The longest answer that is read, bytes: far more than a service sends with its default settings. An answer that comes in
# lines has everything twice.
ANSWER_BYTES = 256 << 20
# What http.client raises for an answer that is none, also for lengths that are no numbers or too large.
BROKEN = (OSError, http.client.HTTPException, ValueError, OverflowError, MemoryError)


class Connections:
    """The connections to the service at `url`, such as `https://example.com/mainbox`."""

    def __init__(self, url: str, api_key: str | None, answer_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL of a service begins with http:// or https://: {url}")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("the URL of a service has neither a user nor a query")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key contains a character that no key has, such as the end of a line")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._seconds = answer_seconds
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()

    def close(self) -> None:
        """Closes the idle connections. Those in use are kept for later requests."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], call: "Call | None" = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Sends a request and yields its response. A connection whose response is read to its end is kept."""
        call = call or Call()
        connection, response = self._send(path, body, headers, call)
        try:
            yield response
        except BROKEN as error:
            raise unreachable(error) from error
        finally:
            call.forget()
            is_whole = response.isclosed() and not response.will_close
            if is_whole and connection.sock is not None and self._process == os.getpid():
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()

    def _send(
        self, path: str, body: bytes, headers: Mapping[str, str], call: "Call"
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        while True:
            connection = self._take()
            is_kept = connection.sock is not None
            try:
                if not is_kept:
                    connection.connect()
                    connection.sock.settimeout(self._seconds)
                call.watch(connection.sock)
                return connection, self._exchange(connection, path, body, headers)
            except BaseException as error:
                connection.close()
                # A service closes kept connections at its own time. A script has no effect but its answer, so a request
                # may be sent again.
                closed = isinstance(error, OSError | http.client.BadStatusLine) and not isinstance(error, TimeoutError)
                if is_kept and closed and not call.is_cancelled:
                    continue
                if isinstance(error, BROKEN):
                    raise unreachable(error) from error
                raise

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        try:
            connection.request("POST", self._path + path, body, {**self._headers, **headers})
        except (ConnectionError, ssl.SSLEOFError) as error:
            # A service that refuses a request because of its size answers before it has read it, and closes.
            try:
                response = connection.getresponse()
            except BROKEN:
                raise error from None
            response.will_close = True
            return response
        return connection.getresponse()

    def _take(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._process != os.getpid():
                # This is a fork of the process that made these connections.
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        if self._tls:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        connection.response_class = _Response
        return connection


class _Response(http.client.HTTPResponse):
    """A response without chunks of a negative size, which `http.client` reads to the end of the connection."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a chunk has a negative size")
        return size


def read_whole(response: http.client.HTTPResponse) -> bytes:
    """Returns the body of a response.

    Raises:
        MainboxError: it is too long.
    """
    content = response.read(ANSWER_BYTES + 1)
    if len(content) > ANSWER_BYTES:
        raise too_long()
    # With a limit, `read` takes an answer that was cut off for a whole one.
    if response.length:
        raise http.client.IncompleteRead(content, response.length)
    return content


def read_lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yields the lines of the body of a response.

    Raises:
        MainboxError: they are too long.
    """
    left = 2 * ANSWER_BYTES
    while line := response.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise too_long()
        yield line


class Call:
    """A request that another thread can cancel. The service ends a script whose client disconnects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_cancelled = False

    def watch(self, connected: socket.socket) -> None:
        with self._lock:
            self._socket = connected
            if self.is_cancelled:
                raise ConnectionAbortedError("cancelled")

    def forget(self) -> None:
        with self._lock:
            self._socket = None

    def cancel(self) -> None:
        with self._lock:
            self.is_cancelled = True
            if self._socket is not None:
                # The service may have closed it before.
                with suppress(OSError):
                    # That of `ssl` would first end the encryption, while another thread may be sending.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def unreachable(error: Exception) -> MainboxError:
    return MainboxError("unreachable", f"mainbox did not answer: {error or type(error).__name__}")


def too_long() -> MainboxError:
    return MainboxError("unreachable", f"the answer has more than {ANSWER_BYTES >> 20} MiB")
