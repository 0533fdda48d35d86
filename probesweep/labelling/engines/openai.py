"""A server that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp, TGI, the clouds."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from activation_store.questions.question import Question, as_messages
from probesweep.errors import RequestError
from probesweep.labelling.engines.engine import STOP, Answer, Batch
from probesweep.labelling.sampling import Sampling

_KEY = "OPENAI_API_KEY"
# The client waits 0.5 s before the first retry and 8 s before the last ones: half a minute in all.
_RETRIES = 6
_SECONDS = 600.0
_N_SHOWN = 5


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
    base_url : str, optional
        Of the server, such as ``http://localhost:8000/v1``; by default OpenAI's.
    concurrency : int
        Most requests at once.
    template_kwargs : mapping
        Passed to the chat template, where the server takes ``chat_template_kwargs``.
    """

    model: str
    questions: Sequence[Question]
    sampling: Sampling
    base_url: str | None = None
    concurrency: int = 32
    template_kwargs: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise `RequestError` for an address that is none or holds a password, or if the client is not installed."""
        _client_library()
        parts = urlsplit(self.base_url or "https://api.openai.com/v1")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(
                f"base_url={self.base_url!r} is no address; write it as http://localhost:8000/v1", argument="base_url"
            )
        if parts.username is not None or parts.password is not None:
            raise RequestError(
                f"base_url=... has a user or a password in it, which would be kept; set {_KEY} in the environment",
                argument="base_url",
            )
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
        openai = _client_library()
        with self._explaining():
            try:
                names = [one.id for one in self._client.models.list()]
            except (openai.NotFoundError, openai.InternalServerError):
                # Not every server has a list, and not every list has all that a server can load.
                names = []
            if self.model in names:
                return
            try:
                self._create(0, 0, max_tokens=1)
            except (openai.NotFoundError, openai.BadRequestError) as error:
                shown = ", ".join(names[:_N_SHOWN]) + ", ..." * (len(names) > _N_SHOWN)
                raise RequestError(
                    f"{self._where} has no model {self.model!r} ({_line(error.message)})"
                    f"{f'; it has {shown}' if names else ''}; correct model=... or base_url=...",
                    argument="model",
                ) from None

    def plan(self) -> list[Batch]:
        """Each question by itself: the server batches requests."""
        return [(row,) for row in range(len(self.questions))]

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[list[Answer]]]]:
        """Ask many questions at once, and yield them in order."""
        n_ahead = 2 * -(-self.concurrency // self.sampling.n_attempts)
        pool = ThreadPoolExecutor(self.concurrency)
        waiting: deque[tuple[Batch, list[list[Future[Answer]]]]] = deque()
        try:
            with self._explaining():
                for batch in batches:
                    waiting.append((batch, [self._asked(pool, row) for row in batch]))
                    if len(waiting) > n_ahead:
                        yield _answered(waiting.popleft())
                while waiting:
                    yield _answered(waiting.popleft())
        except BaseException:
            # Nobody waits for what is on its way.
            self._client.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _asked(self, pool: ThreadPoolExecutor, row: int) -> list[Future[Answer]]:
        return [pool.submit(self._ask, row, attempt) for attempt in range(self.sampling.n_attempts)]

    def _ask(self, row: int, attempt: int) -> Answer:
        found = self._create(row, attempt, self.sampling.max_new_tokens)
        choice, usage = found.choices[0], getattr(found, "usage", None)
        # A model that only thought, or refused, has said nothing.
        text = (choice.message.content or "").encode(errors="replace").decode()
        return Answer(text, choice.finish_reason or STOP, getattr(usage, "completion_tokens", None))

    def _create(self, row: int, attempt: int, max_tokens: int) -> Any:
        given = self.sampling
        # OpenAI's newer models refuse the name that all other servers know.
        limit = "max_completion_tokens" if self.base_url is None else "max_tokens"
        beside: dict[str, Any] = {} if given.top_k is None else {"top_k": given.top_k}
        if self.template_kwargs:
            beside["chat_template_kwargs"] = dict(self.template_kwargs)
        create: Any = self._client.chat.completions.create
        return create(
            model=self.model,
            messages=as_messages(self.questions[row]),
            temperature=given.temperature,
            top_p=given.top_p,
            seed=_seed(given.seed, row, attempt),
            extra_body=beside,
            **{limit: max_tokens},
        )

    @cached_property
    def _client(self) -> Any:
        # Servers of one's own take any key.
        key = os.environ.get(_KEY) or "none"
        return _client_library().OpenAI(base_url=self.base_url, api_key=key, max_retries=_RETRIES, timeout=_SECONDS)

    @property
    def _where(self) -> str:
        return self.base_url or "OpenAI"

    @contextmanager
    def _explaining(self) -> Generator[None]:
        """Say in one line what the server did not do."""
        openai, again = _client_library(), "what is done is kept: run the same command again"
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise RequestError(
                f"{self._where} refuses the key; set {_KEY} in the environment, then run the same command again",
                argument="base_url",
            ) from None
        except openai.NotFoundError:
            raise RequestError(
                f"{self._where} has no model {self.model!r}, or does not speak this protocol; correct model=... or "
                f"base_url=...; {again}",
                argument="model",
            ) from None
        except openai.APITimeoutError:
            raise RequestError(f"{self._where} did not answer within {_SECONDS:g} s; {again}") from None
        except openai.APIConnectionError as error:
            raise RequestError(
                f"{self._where} cannot be reached ({_line(str(error.__cause__ or error))}), after {_RETRIES} retries; "
                f"{again}",
                argument="base_url",
            ) from None
        except openai.APIStatusError as error:
            raise RequestError(f"{self._where} answers {error.status_code} ({_line(error.message)}); {again}") from None


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
    return batch, [[future.result() for future in of_row] for of_row in futures]


def _seed(seed: int, row: int, attempt: int) -> int:
    """31 bits, which every server takes."""
    digest = hashlib.sha256(f"{seed} {row} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
