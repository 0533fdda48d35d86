"""A model in this process, run by vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import Any

from probesweep.errors import RequestError
from probesweep.labelling.engines.engine import STOP, Answer, Batch
from probesweep.labelling.engines.prompted import PromptedModel
from probesweep.labelling.plan import plan_batches
from probesweep.labelling.sampling import Sampling, attempt_seed

# vLLM fills its own batches; these are what is kept together.
_ENOUGH_QUESTIONS = 256


@dataclass
class VllmEngine:
    """A model in this process, run by vLLM, which draws in its own way from a seed for each attempt.

    Parameters
    ----------
    model : PromptedModel
    sampling : Sampling
    batch_size : int or None
        Most questions that are given to it at once.
    """

    model: PromptedModel
    sampling: Sampling
    batch_size: int | None = None
    _llm: Any = field(default=None, init=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the answers."""
        return {"engine": "vllm", **self.model.identity}

    @property
    def versions(self) -> Mapping[str, str | None]:
        """Of the libraries."""
        return {name: version(name) for name in ("probesweep", "torch", "transformers", "vllm")}

    @property
    def prompts(self) -> list[str | None]:
        """As the model reads them."""
        return self.model.texts

    def check(self) -> None:
        """Raise `RequestError` if vLLM is not installed, or cannot be given this model."""
        _library()
        if self.model.known.source.held is not None:
            raise RequestError(
                "engine='vllm' loads the model itself; give its name or folder as model=...", argument="model"
            )

    def load(self) -> None:
        """Start vLLM."""
        source = self.model.known.source
        path = source.location if source.gguf_file is None else f"{source.location}/{source.gguf_file}"
        self._llm = _library().LLM(
            model=path,
            dtype=self.model.dtype,
            seed=attempt_seed(self.sampling.seed, 0, 0),
            trust_remote_code=source.trust_remote_code,
        )

    def plan(self) -> list[Batch]:
        """Questions of like length together."""
        n_tokens = self.model.encoded.n_tokens
        return plan_batches(n_tokens, max_rows=self.batch_size or _ENOUGH_QUESTIONS, max_tokens=2**62)

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[list[Answer]]]]:
        """Give batches to vLLM one after another."""
        for batch in batches:
            asked = [(row, attempt) for row in batch for attempt in range(self.sampling.n_attempts)]
            prompts = [{"prompt_token_ids": self.model.encoded.row(row).tolist()} for row, _ in asked]
            found = self._llm.generate(prompts, [self._parameters(*each) for each in asked], use_tqdm=False)
            answers = iter([_answer(one.outputs[0]) for one in found])
            yield batch, [list(islice(answers, self.sampling.n_attempts)) for _ in batch]

    def _parameters(self, row: int, attempt: int) -> Any:
        given = self.sampling
        return _library().SamplingParams(
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k or -1,
            max_tokens=given.max_new_tokens,
            # Of its own: those that vLLM gives to the sequences of one request count up from that of the request.
            seed=attempt_seed(given.seed, row, attempt),
        )


def _library() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise RequestError(
            "engine='vllm' needs vLLM (pip install vllm, in an environment of its own), or a server of it and "
            "engine='openai'",
            argument="engine",
        ) from error
    return vllm


def _answer(one: Any) -> Answer:
    return Answer(one.text, one.finish_reason or STOP, len(one.token_ids))
