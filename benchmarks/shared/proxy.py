"""A loopback HTTP proxy in front of an object store that makes planned mistakes, and counts requests."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread, local
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

# Of one connection: they are passed on to neither side.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Answer:
    """Answer with this status instead of asking the server."""

    status: int
    code: str = "InternalError"


@dataclass(frozen=True)
class Delay:
    """Ask the server only after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the answer's body.

    Parameters
    ----------
    n_bytes : int
        What is sent of it.
    declared : bool
        Whether Content-Length says how long the body should be. Otherwise it says that it ends where it is cut.
    """

    n_bytes: int
    declared: bool = True


@dataclass(frozen=True)
class LoseAnswer:
    """Ask the server, and close the connection instead of passing on what it answers."""


@dataclass(frozen=True)
class LoseRequest:
    """Close the connection instead of asking the server."""


@dataclass(frozen=True)
class Break:
    """Do something while a request is on its way, such as killing who sent it, and close the connection.

    Parameters
    ----------
    action : callable
        What is done.
    sent : str
        What the server has of the request by then: "nothing", "half" of its body, or "all", which it has answered. Of
        one without a body, half is all.
    """

    action: Callable[[], object]
    sent: Literal["nothing", "half", "all"]


@dataclass(frozen=True)
class Meanwhile:
    """Do something while whoever sent a request waits, and go on as if nothing had happened.

    Parameters
    ----------
    action : callable
        What is done.
    answered : bool
        Whether the server has answered by then, or has not been asked.
    """

    action: Callable[[], object]
    answered: bool


Effect: TypeAlias = Answer | Delay | Cut | LoseAnswer | LoseRequest | Break | Meanwhile


@dataclass(frozen=True)
class Mistake:
    """What is done to some of the requests.

    Parameters
    ----------
    method : str
        Of the requests, such as ``GET``; empty for any.
    key : str
        Regular expression that is searched for in their path, ``/bucket/key``.
    effect : Effect
        What happens.
    first : int
        The first of the matching requests that it happens to, from 1 on.
    count : int
        How many in a row.
    """

    method: str
    key: str
    effect: Effect
    first: int = 1
    count: int = 1

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is of the kind that is counted."""
        return self.method in ("", method) and bool(re.search(self.key, path))


class Proxy:
    """The proxy. Use as a context manager: leaving it closes the port.

    Clients sign what they send with the Host header among it, which is passed on as it came.

    Attributes
    ----------
    endpoint : str
        URL for clients.
    counts : Counter of str
        Requests by method, those that a mistake happened to among them.
    struck : list of str
        Method and path of the requests that a mistake happened to.
    """

    def __init__(self, target: str, mistakes: Iterable[Mistake] = ()) -> None:
        address = urlsplit(target)
        self._target = address.hostname or "", address.port or 80
        self._lock, self._connections = Lock(), local()
        self.plan(*mistakes)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body are two writes: the second must not wait until the first is acknowledged.
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that have gone are no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plan(self, *mistakes: Mistake) -> None:
        """Make these mistakes from now on instead of others, and count from zero."""
        with self._lock:
            self.counts: Counter[str] = Counter()
            self.struck: list[str] = []
            self._plan, self._seen = mistakes, [0] * len(mistakes)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Pass on one request and its answer, or do to it what is planned."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        match self._effect(request.command, unquote(urlsplit(request.path).path)):
            case Answer(status, code):
                _send(request, status, {}, f"<Error><Code>{code}</Code><Message>planned</Message></Error>".encode())
            case LoseRequest():
                _hang_up(request)
            case LoseAnswer():
                self._ask(request, body)
                _hang_up(request)
            case Cut(n_bytes, declared):
                answer, content = self._ask(request, body)
                length = int(answer.headers.get("Content-Length") or len(content))
                # The answer to HEAD tells the length of a body that it has not, which is not there to be cut.
                if not declared and request.command != "HEAD":
                    length = min(n_bytes, length)
                _send(request, answer.status, dict(answer.getheaders()), content[:n_bytes], length)
                _hang_up(request)
            case Break(action, sent):
                if sent == "half" and body:
                    self._ask_half(request, body)
                elif sent != "nothing":
                    self._ask(request, body)
                action()
                _hang_up(request)
            case effect:
                if isinstance(effect, Delay):
                    time.sleep(effect.seconds)
                elif isinstance(effect, Meanwhile) and not effect.answered:
                    effect.action()
                answer, content = self._ask(request, body)
                if isinstance(effect, Meanwhile) and effect.answered:
                    effect.action()
                length = int(answer.headers.get("Content-Length") or len(content))
                _send(request, answer.status, dict(answer.getheaders()), content, length)

    def _effect(self, method: str, path: str) -> Effect | None:
        with self._lock:
            self.counts[method] += 1
            chosen: Effect | None = None
            for number, mistake in enumerate(self._plan):
                if mistake.matches(method, path):
                    self._seen[number] += 1
                    if mistake.first <= self._seen[number] < mistake.first + mistake.count:
                        chosen = chosen or mistake.effect
            if chosen is not None:
                self.struck.append(f"{method} {path}")
            return chosen

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[HTTPResponse, bytes]:
        """What the server answers. Each thread, which serves one client's connection, has one of its own to it."""
        for is_last in (False, True):
            connection = getattr(self._connections, "one", None) or HTTPConnection(*self._target)
            self._connections.one = connection
            try:
                _begin(connection, request)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                return answer, answer.read()
            except (OSError, HTTPException):
                connection.close()
                # The server closes connections that were idle; and it may be gone.
                if is_last:
                    raise
        raise AssertionError

    def _ask_half(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Send the server half of a body, and no more."""
        connection = HTTPConnection(*self._target)
        _begin(connection, request)
        connection.endheaders(body[: len(body) // 2])
        # What was sent is read by the server before it sees the end.
        connection.close()


def _begin(connection: HTTPConnection, request: BaseHTTPRequestHandler) -> None:
    connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() not in _HOP_BY_HOP:
            connection.putheader(name, value)


def _send(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes, length: int | None = None
) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in _HOP_BY_HOP | {"content-length"}:
            request.send_header(name, value)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.wfile.flush()
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)
