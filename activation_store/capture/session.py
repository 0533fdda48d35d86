"""A model that gives the hidden states of prompts without storing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, Shaped

from activation_store.bars import bars_at_terminals
from activation_store.capture.batches import BatchPlan, token_budget
from activation_store.capture.footprint import enough_tokens, free_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.reuse import Reuse
from activation_store.capture.splitting import SplittingRunner
from activation_store.errors import InputError, PromptError, check_at_least_one
from activation_store.models.info import ModelInfo, read_model_info
from activation_store.models.loading import load_tokenizer, place_of, resolve_device
from activation_store.models.source import ModelSource
from activation_store.prompts.encoding import check_format, encode_prompts
from activation_store.prompts.prompts import PromptFormat, Prompts
from activation_store.prompts.tokenizer import Tokenizer, chat_template_hash, tokenizer_hash
from activation_store.questions.question import Question
from probesweep_errors import naming

# Prompts are put into batches by length within so many.
_CHUNK_ROWS = 4096
# A batch takes as long as a fraction of the tokens that keep the device busy, whatever it holds: the weights are read.
_BATCHES_OF_ENOUGH = 8


@dataclass(frozen=True)
class KnownModel:
    """A model of which everything is known and checked but the weights, which are not loaded.

    Open with `KnownModel.open`.

    Attributes
    ----------
    source, info
        The model.
    tokenizer : Tokenizer
    prompts : PromptFormat
    device : torch.device
        Where it will run.
    positions : tuple of int
        Those that every prompt has, negative from the last real token: the template's tail, or as many as asked for.
    as_trained : bool
        It is the model of a store, whose template cannot be changed.
    """

    source: ModelSource
    info: ModelInfo
    tokenizer: Tokenizer
    prompts: PromptFormat
    device: torch.device
    positions: tuple[int, ...]
    as_trained: bool

    @classmethod
    def open(
        cls,
        model: Any,
        prompts: PromptFormat,
        *,
        tokenizer: Any = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        expected: Mapping[str, str | None] | None = None,
    ) -> KnownModel:
        """Read configuration and tokenizer, and identify the weights.

        Parameters
        ----------
        model : str or PreTrainedModel
            Hub id, local folder, GGUF file, or "smollm2"; or a model in memory, with its `tokenizer`.
        prompts : PromptFormat
        tokenizer : Tokenizer, optional
        device : str
            "auto", "cpu", "cuda", ...
        trust_remote_code : bool
            Run code that the model's repository brings.
        expected : mapping, optional
            ``weights``, ``tokenizer`` and ``chat_template`` of a store's fingerprint, where the model must be the same.

        Raises
        ------
        InputError
            There is no such model, it is another one than expected, or no prompts can be made with its tokenizer.
        """
        with naming("model"):
            source = ModelSource.of(model, tokenizer, trust_remote_code=trust_remote_code)
        placed = resolve_device(device) if source.held is None else place_of(source.held.model, device)
        with naming("model"), bars_at_terminals():
            info = read_model_info(source)
        check_at_least_one(max_length=prompts.max_length)
        prompts = replace(prompts, max_length=info.most_tokens(prompts.max_length))
        with naming("model"), bars_at_terminals():
            tokenizer = load_tokenizer(source)
        found = {
            "weights": info.weights,
            "tokenizer": tokenizer_hash(tokenizer),
            "chat_template": chat_template_hash(tokenizer) if prompts.use_chat_template else None,
        }
        for name, value in (expected or {}).items():
            if value != found[name]:
                raise InputError(
                    f"model {source.name!r} has another {name.replace('_', ' ')} ({found[name]}) than the probe was "
                    f"trained on ({value}); give the same model with model=...",
                    argument="model",
                )
        tail = check_format(tokenizer, prompts)
        n_positions = int(prompts.eoi_tokens or 0) if tail is None else len(tail.token_ids)
        return cls(source, info, tokenizer, prompts, placed, tuple(range(-n_positions, 0)), bool(expected))

    def load(self, layers: Sequence[int], positions: Sequence[int], *, dtype: str = "auto") -> LoadedModel:
        """Load the weights.

        Parameters
        ----------
        layers : sequence of int
            Indices into ``hidden_states``, ascending.
        positions : sequence of int
            Negative indices from the last real token.
        dtype : str
            "auto" (the checkpoint's), "float32", "float16" or "bfloat16".

        Raises
        ------
        InputError
            The weights cannot be loaded.
        """
        dtype = self.info.dtype if dtype == "auto" else dtype
        with bars_at_terminals():
            states = HiddenStates.load(self.source, self.info, layers, positions, dtype=dtype, device=self.device)
        return LoadedModel(states, self)


class LoadedModel:
    """A model without its head, run up to the highest layer that is wanted.

    Load with `KnownModel.load`. What is learnt of the model and its prompts is kept between calls: that batches give
    what single prompts give, and the tokens that all prompts begin with.
    """

    def __init__(self, states: HiddenStates, known: KnownModel) -> None:
        self._states, self._known = states, known
        self._reuse = Reuse(states)
        self._longest = self._budget = 0

    def encode(self, questions: Sequence[Question], numbers: Sequence[int] | None = None) -> Prompts:
        """Turn questions into prompts.

        Parameters
        ----------
        questions : sequence of str or of chat messages
        numbers : sequence of int, optional
            What to call them in warnings; by default their places. Empty: no warnings.

        Raises
        ------
        InputError
            As `activation_store.prompts.encoding.encode_prompts`.
        """
        return encode_prompts(
            self._known.tokenizer,
            questions,
            self._known.prompts,
            n_embeddings=self._known.info.n_embeddings,
            as_trained=self._known.as_trained,
            numbers=numbers,
        )

    def find_unusable(self, questions: Sequence[Question]) -> dict[int, str]:
        """Which questions no prompt can be made of, and why.

        A list that fails is halved until single questions do.
        """
        try:
            if questions:
                self.encode(questions, numbers=())
        except PromptError as error:
            middle = len(questions) // 2
            if not middle:
                return {0: error.reason}
            behind = self.find_unusable(questions[middle:])
            return self.find_unusable(questions[:middle]) | {middle + row: why for row, why in behind.items()}
        return {}

    def run(
        self, prompts: Prompts, *, max_rows: int | None = None
    ) -> Iterator[tuple[Integer[np.ndarray, " row"], Shaped[np.ndarray, "row layer position feature"]]]:
        """Run prompts in batches of like length.

        Parameters
        ----------
        prompts : Prompts
            Of `encode`.
        max_rows : int, optional
            Most prompts of a batch; by default as many as free memory allows.

        Yields
        ------
        tuple of ndarray [row] and ndarray [row, layer, position, feature]
            Which prompts, and their hidden states, NaN and infinity among them; together all prompts, each once.

        Raises
        ------
        ParityError
            The model returns different values for prompts in a batch than one at a time.
        """
        plan = self._plan(prompts, max_rows)
        runner = SplittingRunner(self._states.start)
        worth = enough_tokens(self._states.device) // _BATCHES_OF_ENOUGH
        for start in range(0, len(prompts.n_tokens), _CHUNK_ROWS):
            chunk = range(start, min(start + _CHUNK_ROWS, len(prompts.n_tokens)))
            for batch in plan.batches(prompts.n_tokens, chunk, worth=worth):
                batch_prompts = [prompts.row(row) for row in batch.tolist()]
                for rows, wait in runner.run(batch, batch_prompts):
                    yield rows, wait()

    def _plan(self, prompts: Prompts, max_rows: int | None) -> BatchPlan:
        prefix_tokens, longest = self._reuse.prepare(prompts, max_rows), int(prompts.n_tokens.max())
        if longest > self._longest:
            # Not for every call: a GPU is asked what it has free only once it has finished everything.
            device, n_bytes = self._states.device, self._states.token_nbytes(longest)
            self._longest, self._budget = longest, token_budget(enough_tokens(device), free_nbytes(device), n_bytes)
        return BatchPlan(self._budget, max_rows, prefix_tokens)
