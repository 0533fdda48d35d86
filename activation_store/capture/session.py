"""A loaded model that gives the hidden states of prompts without storing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Integer, Shaped

from activation_store.capture.batches import BatchPlan, token_budget, useful_prefix
from activation_store.capture.footprint import enough_tokens, free_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import first_rows
from activation_store.capture.splitting import SplittingRunner
from activation_store.errors import InputError, PromptError, check_at_least_one
from activation_store.models.info import ModelInfo, read_model_info
from activation_store.models.loading import load_tokenizer, resolve_device
from activation_store.models.source import ModelSource
from activation_store.prompts.encoding import encode_prompts
from activation_store.prompts.prompts import PromptFormat, Prompts
from activation_store.prompts.tokenizer import Tokenizer, chat_template_hash, tokenizer_hash
from activation_store.questions.question import Question
from probesweep_errors import naming

# Prompts are put into batches by length within so many.
_CHUNK_ROWS = 4096


class LoadedModel:
    """A model without its head, run up to the highest layer that is wanted.

    Open with `LoadedModel.load`.
    """

    def __init__(self, states: HiddenStates, tokenizer: Tokenizer, info: ModelInfo, prompts: PromptFormat) -> None:
        self._states, self._tokenizer, self._info, self._format = states, tokenizer, info, prompts
        self._checked = False

    @classmethod
    def load(
        cls,
        model: str,
        layers: Sequence[int],
        positions: Sequence[int],
        prompts: PromptFormat,
        *,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        expected: dict[str, str | None] | None = None,
    ) -> LoadedModel:
        """Load the weights.

        Parameters
        ----------
        model : str
            Hub id, local folder, GGUF file, or "smollm2".
        layers : sequence of int
            Indices into ``hidden_states``, ascending.
        positions : sequence of int
            Negative indices from the last real token.
        prompts : PromptFormat
        dtype : str
            "auto" (the checkpoint's), "float32", "float16" or "bfloat16".
        device : str
            "auto", "cpu", "cuda", ...
        trust_remote_code : bool
            Run code that the model's repository brings.
        expected : dict, optional
            ``weights``, ``tokenizer`` and ``chat_template`` of a store's fingerprint, where the model must be the same.

        Raises
        ------
        InputError
            The model cannot be loaded, or is another one than expected.
        """
        with naming("model"):
            source = ModelSource.parse(model, trust_remote_code=trust_remote_code)
        placed = resolve_device(device)
        with naming("model"):
            info = read_model_info(source)
        check_at_least_one(max_length=prompts.max_length)
        prompts = replace(prompts, max_length=info.most_tokens(prompts.max_length))
        with naming("model"):
            tokenizer = load_tokenizer(source)
        found = {
            "weights": info.weights,
            "tokenizer": tokenizer_hash(tokenizer),
            "chat_template": chat_template_hash(tokenizer) if prompts.use_chat_template else None,
        }
        for name, value in (expected or {}).items():
            if value != found[name]:
                raise InputError(
                    f"model {model!r} has another {name.replace('_', ' ')} ({found[name]}) than the probe was trained "
                    f"on ({value}); give the same model with model=...",
                    argument="model",
                )
        dtype = info.dtype if dtype == "auto" else dtype
        return cls(
            HiddenStates.load(source, info, layers, positions, dtype=dtype, device=placed), tokenizer, info, prompts
        )

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
            self._tokenizer,
            questions,
            self._format,
            n_embeddings=self._info.n_embeddings,
            as_trained=True,
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
        for start in range(0, len(prompts.n_tokens), _CHUNK_ROWS):
            chunk = range(start, min(start + _CHUNK_ROWS, len(prompts.n_tokens)))
            for batch in plan.batches(prompts.n_tokens, chunk):
                batch_prompts = [prompts.row(row) for row in batch.tolist()]
                for rows, wait in runner.run(batch, batch_prompts):
                    yield rows, wait()

    def _plan(self, prompts: Prompts, max_rows: int | None) -> BatchPlan:
        states, longest = self._states, int(prompts.n_tokens.max())
        prefix = useful_prefix(prompts.token_ids, prompts.starts, len(prompts.positions))
        states.use_prefix(prompts.row(0)[:prefix])
        if prefix or not self._checked:
            first = [prompts.row(row) for row in first_rows(prompts.n_tokens)]
            states.check(first, max_rows=max_rows or len(first))
            self._checked = True
        n_tokens = token_budget(enough_tokens(states.device), free_nbytes(states.device), states.token_nbytes(longest))
        return BatchPlan(n_tokens, max_rows, states.n_prefix)
