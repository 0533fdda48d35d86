"""The tokens that a chat template puts after the user's text, the same for every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from activation_store.errors import InputError, PromptError
from activation_store.prompts.template import SENTINEL, render
from activation_store.prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tail:
    """What the chat template puts after the user's text: its text, and its tokens as counted on a rendered whole."""

    text: str
    token_ids: tuple[int, ...]


def find_tail(tokenizer: Tokenizer, template_kwargs: dict[str, Any]) -> Tail:
    """Find the template's tail by rendering a sentinel and reading the tokens that start behind it.

    Counted on the tokens of the rendered whole: tokenizing the tail alone can split it otherwise.

    Raises
    ------
    InputError
        The template drops or changes the user's text, or puts nothing behind it.
    """
    whole = render(tokenizer, SENTINEL, template_kwargs)
    head, found, text = whole.rpartition(SENTINEL)
    if not found or not text:
        raise InputError(
            "the chat template puts no tokens after the user's text; give eoi_tokens=N instead", argument="eoi_tokens"
        )
    if not getattr(tokenizer, "is_fast", False):
        return Tail(text=text, token_ids=_common_end(tokenizer, head, text))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    boundary = len(head) + len(SENTINEL)
    ids = [
        token
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if start >= boundary
    ]
    if not ids:
        raise InputError(
            f"the chat template's tail {text!r} merges with the user's text; give eoi_tokens=N instead",
            argument="eoi_tokens",
        )
    return Tail(text=text, token_ids=tuple(ids))


def _common_end(tokenizer: Tokenizer, head: str, tail: str) -> tuple[int, ...]:
    """Tokens of the tail where the tokenizer does not say which characters a token stands for."""
    # They end in different letters, so that what the two have in common is what stands behind them.
    one, other = (
        tokenizer(head + user + tail, add_special_tokens=False)["input_ids"] for user in (SENTINEL, SENTINEL + "Q")
    )
    n_common = next(n for n in range(len(one) + 1) if n in (len(one), len(other)) or one[-n - 1] != other[-n - 1])
    ids = tuple(one[len(one) - n_common :])
    if "".join(tokenizer.decode(list(ids)).split()) != "".join(tail.split()):
        raise InputError(
            f"the tokens of the chat template's tail {tail!r} cannot be told from those of the user's text with this "
            "tokenizer; give eoi_tokens=N instead",
            argument="eoi_tokens",
        )
    return ids


def check_tail_text(texts: Sequence[str], tail: Tail, first_row: int, way_out: str) -> None:
    """Refuse texts that do not end as the template's tail says."""
    row = next((row for row, text in enumerate(texts) if not text.endswith(tail.text)), None)
    if row is not None:
        reason = (
            f"does not end in the chat template's tail: expected {tail.text!r}, found "
            f"{texts[row][-len(tail.text) :]!r}; {way_out}"
        )
        raise PromptError(f"row {first_row + row} {reason}", reason)


def check_tail_tokens(tokenizer: Tokenizer, rows: Sequence[list[int]], tail: Tail, first_row: int) -> None:
    """Refuse token ids that do not end with the tail's."""
    expected = list(tail.token_ids)
    row = next((row for row, ids in enumerate(rows) if ids[len(ids) - len(expected) :] != expected), None)
    if row is not None:
        wanted, found = (
            [tokenizer.decode([token]) for token in ids] for ids in (expected, rows[row][-len(expected) :])
        )
        reason = f"the last {len(expected)} tokens are not the template's tail: expected {wanted}, found {found}"
        raise PromptError(f"row {first_row + row}: {reason}; its text merges with the tail: change its end", reason)
