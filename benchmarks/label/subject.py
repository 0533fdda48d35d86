"""The model, the questions, and the two ways to sample answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from activation_store.models.loading import load_causal_lm
from activation_store.prompts.prompts import PromptFormat
from activation_store.questions.question import Question
from benchmarks.shared.prompts import DATA
from probesweep.labelling.engines.local import LocalEngine
from probesweep.labelling.engines.prompted import PromptedModel
from probesweep.labelling.sampling import Sampling

MAX_NEW_TOKENS = 16
# The batches of `generate`.
BATCH_SIZE = 16


@dataclass(frozen=True)
class Subject:
    """A model in float32 and the embedded test questions.

    Parameters
    ----------
    name : str
        As ``--model`` takes it.
    device : str
    loaded : PreTrainedModel
    questions, answers : list of str
    """

    name: str
    device: str
    loaded: Any
    questions: list[str]
    answers: list[str]

    @classmethod
    def load(cls, name: str, device: str, n_questions: int) -> Subject:
        """Load the model once for everybody."""
        frame = pd.read_parquet(DATA / "success_smollm2_test.parquet")[:n_questions]
        questions: list[Question] = frame["question"].tolist()
        model = _prompted(name, device, questions)
        loaded = load_causal_lm(model.known.source, model.known.info, dtype="float32", device=model.known.device)
        return cls(name, device, loaded, frame["question"].tolist(), frame["answer"].tolist())

    def model(self, system_prompt: str | None = None, n_questions: int | None = None) -> PromptedModel:
        """The prompts: the questions, perhaps after a system prompt."""
        asked: list[Question] = list(self.questions[:n_questions])
        if system_prompt is not None:
            asked = [
                [{"role": "system", "content": system_prompt}, {"role": "user", "content": str(question)}]
                for question in asked
            ]
        return _prompted(self.name, self.device, asked)

    def ours(self, model: PromptedModel, sampling: Sampling, batch_size: int | None = None) -> list[list[str]]:
        """Answers by this package, in the order of the questions."""
        engine = LocalEngine(model, sampling, batch_size)
        engine.use(self.loaded)
        found = {}
        for batch, answers in engine.answer(engine.plan()):
            found |= dict(zip(batch, answers, strict=True))
        return [[answer.text for answer in found[row]] for row in range(len(found))]

    @torch.inference_mode()
    def generated(self, model: PromptedModel, sampling: Sampling, batch_size: int = BATCH_SIZE) -> list[list[str]]:
        """Answers by `generate`, several sequences for each prompt of a batch."""
        prompts = [model.encoded.row(row) for row in range(len(model.questions))]
        answers: list[list[str]] = []
        for start in range(0, len(prompts), batch_size):
            answers += self._batch(prompts[start : start + batch_size], model, sampling)
        return answers

    def _batch(self, prompts: Sequence[Any], model: PromptedModel, sampling: Sampling) -> list[list[str]]:
        width, tokenizer = max(map(len, prompts)), model.known.tokenizer
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, -len(prompt) :], mask[row, -len(prompt) :] = torch.from_numpy(prompt.astype("int64")), 1
        drawing = {"do_sample": False} if sampling.is_greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
        if not sampling.is_greedy:
            drawing |= {"temperature": sampling.temperature, "num_return_sequences": sampling.n_attempts}
        out = self.loaded.generate(
            ids.to(self.loaded.device),
            attention_mask=mask.to(self.loaded.device),
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=model.end_tokens,
            pad_token_id=model.end_tokens[0],
            **drawing,
        )
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in out[:, width:].tolist()]
        n_attempts = sampling.n_attempts
        return [texts[n * n_attempts : (n + 1) * n_attempts] for n in range(len(prompts))]


def _prompted(name: str, device: str, questions: Sequence[Question]) -> PromptedModel:
    return PromptedModel.open(
        name, questions, PromptFormat(), max_new_tokens=MAX_NEW_TOKENS, device=device, dtype="float32"
    )
