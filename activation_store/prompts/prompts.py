"""Encoded prompts, and how they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt64

# One prompt; an alias, because prompts of several lengths in one call would not share an axis name.
TokenIds = Int[np.ndarray, "..."]


@dataclass(frozen=True)
class Prompts:
    """Token ids of all prompts, one after another.

    Parameters
    ----------
    token_ids : ndarray [token]
    starts : ndarray [sample + 1]
        Prompt i is ``token_ids[starts[i] : starts[i + 1]]``.
    text_hash : ndarray [sample]
        First 64 bits of the SHA-256 of each prompt's text.
    positions : tuple of int
        Positions to store, ascending, -1 last.
    tail : str
        What the chat template puts after the user's text; empty without a template.
    truncated_rows : tuple of int
        Prompts that lost the end of their user's text.
    control_rows : ControlRows
        Prompts whose user's text holds control strings.
    """

    token_ids: Int32[np.ndarray, " token"]
    starts: Int64[np.ndarray, " boundary"]
    text_hash: UInt64[np.ndarray, " sample"]
    positions: tuple[int, ...]
    tail: str
    truncated_rows: tuple[int, ...]
    control_rows: ControlRows

    @property
    def n_tokens(self) -> Int64[np.ndarray, " sample"]:
        return np.diff(self.starts)

    def row(self, sample: int) -> Int32[np.ndarray, " token"]:
        """Token ids of one prompt."""
        return self.token_ids[self.starts[sample] : self.starts[sample + 1]]

    def tail_ids(self) -> Int32[np.ndarray, "sample position"]:
        """Token at every stored position of every prompt."""
        return self.token_ids[self.starts[1:, None] + np.array(self.positions)]


@dataclass(frozen=True)
class ControlRows:
    """Prompts whose user's text holds control strings such as ``<|im_end|>``.

    Parameters
    ----------
    as_text : tuple of int
        Rows in which they are the text that they are.
    as_tokens : tuple of int
        Rows in which they are control tokens: this tokenizer cannot encode them as text.
    """

    as_text: tuple[int, ...] = ()
    as_tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptFormat:
    """How a question becomes a prompt.

    Parameters
    ----------
    use_chat_template : bool
        Render each question with the chat template; control strings in the user's text are encoded as text.
    template_kwargs : dict
        Passed to the template.
    eoi_tokens : int or None
        Number of last tokens that have a position; None: as many as the template's tail has.
    max_length : int or None
        Most tokens of a prompt; None: the model's limit.
    truncate : bool
        Cut the end of the user's text of a longer prompt, by `activation_store.prompts.truncation.TRUNCATION_RULE`;
        otherwise it is an error.
    """

    use_chat_template: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    eoi_tokens: int | None = None
    max_length: int | None = None
    truncate: bool = False

    @property
    def cut_to(self) -> int | None:
        """Tokens that longer prompts are cut to; None: nothing is cut."""
        return self.max_length if self.truncate else None
