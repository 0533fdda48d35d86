"""A server that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp, TGI, the clouds."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from activation_store.questions.question import Question, as_messages
from probesweep.errors import RequestError
from probesweep.labelling.engines.engine import STOP, Answer, Batch
from probesweep.labelling.sampling import Sampling, attempt_seed

OPENAI_URL = "https://api.openai.com/v1"
_KEY = "OPENAI_API_KEY"
# The client waits 0.5 s before the first retry and 8 s before the last ones: half a minute in all.
_RETRIES = 6
_SECONDS = 600.0
_N_SHOWN = 5
_AGAIN = "what is done is kept: run the same command again"


@dataclass(frozen=True)
class ServerEngine:
    """A model that a server has. Every attempt is a request of its own, with a seed of its own.

    Parameters
    ----------
    model : str
        Its name there.
    questions : sequence of str or list of dict
        As they are asked; the server applies the chat template.
    sampling : Sampling
    base_url : str
        Of the server, such as ``http://localhost:8000/v1``.
    concurrency : int
        Most requests at once.
    template_kwargs : mapping
        Passed to the chat template, where the server takes ``chat_template_kwargs``.
    """

    model: str
    questions: Sequence[Question]
    sampling: Sampling
    base_url: str = OPENAI_URL
    concurrency: int = 32
    template_kwargs: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Check address and key by themselves.

        Raises
        ------
        RequestError
            The address is none, or holds a secret; the key cannot be one; or the client is not installed.
        """
        _client_library()
        try:
            parts = urlsplit(self.base_url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            # No brackets where there must be some, a port that is none.
            is_address, parts = False, urlsplit("")
        if not is_address:
            raise RequestError(
                f"base_url={self.base_url!r} is no address; write it as http://localhost:8000/v1", argument="base_url"
            )
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise RequestError(
                f"base_url=... has a user, a password, ? or # in it, which would be kept; set {_KEY} in the "
                "environment to the key",
                argument="base_url",
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise RequestError(f"{_KEY} in the environment has characters that no key has; set it again")
        if self.concurrency < 1:
            raise RequestError(f"concurrency={self.concurrency} must be 1 or more", argument="concurrency")

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the answers, as far as it is known: not where the server is, which may move."""
        return {
            "engine": "openai",
            "model": self.model,
            **({"chat_template_kwargs": dict(self.template_kwargs)} if self.template_kwargs else {}),
        }

    @property
    def versions(self) -> Mapping[str, str | None]:
        """Of the client."""
        return {name: version(name) for name in ("probesweep", "openai")}

    @property
    def prompts(self) -> None:
        """Only the server knows."""
        return

    def load(self) -> None:
        """Make sure that the server is there, takes the key and has the model."""
        with self._explaining():
            _result(self._requests.submit(self._look_for_model()))

    async def _look_for_model(self) -> None:
        openai = _client_library()
        try:
            names = [one.id async for one in self._client.models.list()]
        except (openai.NotFoundError, openai.InternalServerError, *_NO_PROTOCOL):
            # Not every server has a list, and not every list has all that a server can load.
            names = []
        if self.model in names:
            return
        try:
            await self._create(0, 0, max_tokens=1)
        except openai.NotFoundError as error:
            shown = ", ".join(names[:_N_SHOWN]) + ", ..." * (len(names) > _N_SHOWN)
            raise RequestError(
                f"{self.base_url} has no model {self.model!r} ({self._line(error.message)})"
                f"{f'; it has {shown}' if names else ''}; correct model=... or base_url=...",
                argument="model",
            ) from None

    def plan(self) -> list[Batch]:
        """Each question by itself: the server batches requests."""
        return [(row,) for row in range(len(self.questions))]

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[list[Answer]]]]:
        """Ask many questions at once, and yield them in order."""
        n_ahead = 2 * -(-self.concurrency // self.sampling.n_attempts)
        waiting: deque[tuple[Batch, list[list[Future[Answer]]]]] = deque()
        try:
            with self._explaining():
                for batch in batches:
                    waiting.append((batch, [self._asked(row) for row in batch]))
                    if len(waiting) > n_ahead:
                        yield _answered(waiting.popleft())
                while waiting:
                    yield _answered(waiting.popleft())
        finally:
            # Nobody waits for what is still on its way.
            for future in (one for _, futures in waiting for of_row in futures for one in of_row):
                future.cancel()

    def _asked(self, row: int) -> list[Future[Answer]]:
        return [self._requests.submit(self._ask(row, attempt)) for attempt in range(self.sampling.n_attempts)]

    async def _ask(self, row: int, attempt: int) -> Answer:
        async with self._requests.slots:
            found = await self._create(row, attempt, self.sampling.max_new_tokens)
        choices: Any = getattr(found, "choices", None)
        usage, message = getattr(found, "usage", None), getattr(choices[0], "message", None) if choices else None
        if message is None:
            error = getattr(found, "error", None)
            raise RequestError(
                f"{self.base_url} answers without choices{f' ({self._line(str(error))})' if error else ''}; {_AGAIN}"
            )
        # A model that only thought, or refused, has said nothing.
        text = (message.content or "").encode(errors="replace").decode()
        return Answer(text, choices[0].finish_reason or STOP, getattr(usage, "completion_tokens", None))

    async def _create(self, row: int, attempt: int, max_tokens: int) -> Any:
        given = self.sampling
        # OpenAI's newer models refuse the name that all other servers know.
        limit = "max_completion_tokens" if self.base_url == OPENAI_URL else "max_tokens"
        beside: dict[str, Any] = {} if given.top_k is None else {"top_k": given.top_k}
        if self.template_kwargs:
            beside["chat_template_kwargs"] = dict(self.template_kwargs)
        create: Any = self._client.chat.completions.create
        return await create(
            model=self.model,
            messages=as_messages(self.questions[row]),
            temperature=given.temperature,
            top_p=given.top_p,
            seed=attempt_seed(given.seed, row, attempt),
            extra_body=beside,
            **{limit: max_tokens},
        )

    @cached_property
    def _requests(self) -> _Requests:
        return _Requests(self.concurrency)

    @cached_property
    def _client(self) -> Any:
        # Servers of one's own take any key.
        return _client_library().AsyncOpenAI(
            base_url=self.base_url, api_key=self._key or "none", max_retries=_RETRIES, timeout=_SECONDS
        )

    @property
    def _key(self) -> str:
        return os.environ.get(_KEY, "").strip()

    def _line(self, text: str) -> str:
        """A server's message in one line, without what is secret."""
        line = " ".join(text.split())
        line = line.replace(self._key, "...") if self._key else line
        return line if len(line) <= 200 else f"{line[:197]}..."

    @contextmanager
    def _explaining(self) -> Generator[None]:
        """Say in one line what the server did not do."""
        openai, where = _client_library(), self.base_url
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise RequestError(
                f"{where} refuses the key; set {_KEY} in the environment, then run the same command again",
                argument="base_url",
            ) from None
        except openai.NotFoundError:
            raise RequestError(
                f"{where} has no model {self.model!r}, or does not speak this protocol; correct model=... or "
                f"base_url=...; {_AGAIN}",
                argument="model",
            ) from None
        except openai.APITimeoutError:
            raise RequestError(f"{where} did not answer within {_SECONDS:g} s; {_AGAIN}") from None
        except openai.APIConnectionError as error:
            raise RequestError(
                f"{where} cannot be reached ({self._line(str(error.__cause__ or error))}), after {_RETRIES} retries; "
                f"{_AGAIN}",
                argument="base_url",
            ) from None
        except openai.APIStatusError as error:
            raise RequestError(f"{where} answers {error.status_code} ({self._line(error.message)}); {_AGAIN}") from None
        except _NO_PROTOCOL as error:
            if isinstance(error, RequestError | openai.APIError):
                raise
            raise RequestError(
                f"{where} answers with something else than this protocol; correct base_url=..., which often ends in "
                "/v1",
                argument="base_url",
            ) from None


# What the client raises where an answer is HTML, not JSON, or JSON of another shape.
_NO_PROTOCOL = (ValueError, AttributeError, TypeError)


class _Requests:
    """Requests in a thread of their own, which ends with its process, whatever is still on its way.

    Attributes
    ----------
    slots : asyncio.Semaphore
        Held by each request while it is on its way.
    """

    def __init__(self, concurrency: int) -> None:
        self._loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(concurrency)
        Thread(target=self._loop.run_forever, daemon=True, name="requests to a server").start()

    def submit(self, request: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin a coroutine; what it raises is its result, as nobody may ask for it any more."""
        return asyncio.run_coroutine_threadsafe(_caught(request), self._loop)


async def _caught(request: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await request
    except Exception as error:
        return error


def _result(future: Future[Any]) -> Any:
    result = future.result()
    if isinstance(result, Exception):
        raise result
    return result


def _client_library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise RequestError(
            "engine='openai' needs the client of that name: pip install \"probesweep[openai]\"", argument="engine"
        ) from error
    return openai


def _answered(waited: tuple[Batch, list[list[Future[Answer]]]]) -> tuple[Batch, list[list[Answer]]]:
    batch, futures = waited
    return batch, [[_result(future) for future in of_row] for of_row in futures]
