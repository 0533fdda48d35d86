"""A model without its weights, and the questions as the prompts that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import GenerationConfig

from activation_store.capture.session import KnownModel
from activation_store.prompts.encoding import encode_prompts
from activation_store.prompts.prompts import PromptFormat, Prompts
from activation_store.prompts.template import render_all
from activation_store.prompts.tokenizer import chat_template_hash, tokenizer_hash
from activation_store.questions.question import Question, question_text
from probesweep.errors import RequestError


@dataclass(frozen=True)
class PromptedModel:
    """A model of which everything is known but the weights, and the prompts for it.

    Open with `PromptedModel.open`.

    Attributes
    ----------
    known : KnownModel
    questions : sequence of str or list of dict
        As they are asked.
    dtype : str
        That the model computes in.
    """

    known: KnownModel
    questions: Sequence[Question]
    dtype: str

    @classmethod
    def open(
        cls,
        model: Any,
        questions: Sequence[Question],
        prompts: PromptFormat,
        *,
        max_new_tokens: int,
        tokenizer: Any = None,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> PromptedModel:
        """Read configuration and tokenizer, and make the prompts.

        Raises
        ------
        RequestError, InputError
            There is no such model, or it cannot be asked one of the questions.
        """
        # An answer begins where the prompt ends, whatever the template has there.
        prompts = replace(prompts, eoi_tokens=1)
        known = KnownModel.open(model, prompts, tokenizer=tokenizer, device=device, trust_remote_code=trust_remote_code)
        limit = known.info.max_length
        if limit is not None:
            if limit <= max_new_tokens:
                raise RequestError(
                    f"max_new_tokens={max_new_tokens}: the model takes {limit} tokens at most, prompt and answer "
                    "together; ask for shorter answers",
                    argument="max_new_tokens",
                )
            most = min(prompts.max_length or limit, limit - max_new_tokens)
            known = replace(known, prompts=replace(known.prompts, max_length=most))
        opened = cls(known, questions, known.info.dtype if dtype == "auto" else dtype)
        # What cannot be asked is said before the weights are loaded.
        _ = opened.encoded
        return opened

    @cached_property
    def encoded(self) -> Prompts:
        """Token ids of the prompts."""
        known = self.known
        return encode_prompts(known.tokenizer, self.questions, known.prompts, n_embeddings=known.info.n_embeddings)

    @cached_property
    def texts(self) -> list[str | None]:
        """The prompts; None where no text gives the same tokens, because the user's has control strings in it."""
        if not self.known.prompts.use_chat_template:
            return [question_text(question) for question in self.questions]
        texts: list[str | None] = [
            *render_all(self.known.tokenizer, self.questions, self.known.prompts.template_kwargs)
        ]
        for row in self.encoded.control_rows.as_text:
            texts[row] = None
        return texts

    @cached_property
    def end_tokens(self) -> list[int]:
        """Tokens that end an answer: those that the checkpoint names, or else the tokenizer's."""
        source = self.known.source
        if source.held is not None:
            generation = source.held.model.generation_config
        else:
            try:
                generation = GenerationConfig.from_pretrained(source.location)
            except OSError:
                # As when a model is loaded: not every checkpoint has one.
                generation = GenerationConfig.from_model_config(self.known.info.config)
        given: Any = getattr(generation, "eos_token_id", None)
        given = getattr(self.known.tokenizer, "eos_token_id", None) if given is None else given
        return sorted(given) if isinstance(given, list | tuple) else [] if given is None else [given]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides what the model answers, as JSON."""
        known, given = self.known, self.known.prompts
        return {
            "model": known.source.name,
            "weights": known.info.weights,
            "tokenizer": tokenizer_hash(known.tokenizer),
            "chat_template": chat_template_hash(known.tokenizer) if given.use_chat_template else None,
            "chat_template_kwargs": given.template_kwargs,
            "end_tokens": self.end_tokens,
            "dtype": self.dtype,
        }
