"""Questions -> prompts -> token ids, with the template's tail found and checked on every sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jinja2
import numpy as np
from jaxtyping import Int, Int32, Int64, UInt64

from activation_store.errors import InputError

# Stands for the user's text while the template's tail is looked for: letters, so that no template strips or escapes it.
SENTINEL = "PROBESWEEPSENTINEL"
_ENCODE_ROWS = 1000
# One prompt; an alias, because prompts of several lengths in one call would not share an axis name.
TokenIds = Int[np.ndarray, "..."]


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    bos_token: Any

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Any, **kwargs: Any) -> Any: ...


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
    """

    token_ids: Int32[np.ndarray, " token"]
    starts: Int64[np.ndarray, " boundary"]
    text_hash: UInt64[np.ndarray, " sample"]
    positions: tuple[int, ...]
    tail: str

    @property
    def n_tokens(self) -> Int64[np.ndarray, " sample"]:
        return np.diff(self.starts)

    def row(self, sample: int) -> Int32[np.ndarray, " token"]:
        """Token ids of one prompt."""
        return self.token_ids[self.starts[sample] : self.starts[sample + 1]]

    def tail_ids(self) -> Int32[np.ndarray, "sample position"]:
        """Token at every stored position of every prompt."""
        return self.token_ids[self.starts[1:, None] + np.array(self.positions)]


def render(tokenizer: Tokenizer, question: str, template_kwargs: dict[str, Any]) -> str:
    """One user turn through the chat template, generation prompt on."""
    messages = [{"role": "user", "content": question}]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_kwargs)
    except (jinja2.TemplateError, TypeError) as error:
        raise InputError(f"the chat template refuses {question[:40]!r} with {template_kwargs}: {error}") from error


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
        raise InputError("the chat template puts no tokens after the user's text; give --eoi_tokens N instead")
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    boundary = len(head) + len(SENTINEL)
    ids = [
        token
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if start >= boundary
    ]
    return Tail(text=text, token_ids=tuple(ids))


def encode_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    *,
    use_chat_template: bool,
    template_kwargs: dict[str, Any],
    eoi_tokens: int | None,
    max_length: int | None,
) -> Prompts:
    """Turn every question into token ids and settle the positions to store.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    questions : sequence of str
        Bare questions with `use_chat_template`, else prompts as the model is to read them.
    use_chat_template : bool
        Put each question through the chat template as one user turn.
    template_kwargs : dict
        Passed on to the template.
    eoi_tokens : int or None
        Number of last tokens to store; None: as many as the template's tail has.
    max_length : int or None
        Most tokens of a prompt.

    Raises
    ------
    InputError
        No template where one is needed, a prompt that does not end in the template's tail, one that is too long or
        shorter than the stored positions.
    """
    _check_template(tokenizer, use_chat_template, eoi_tokens)
    # Whoever counts the tokens himself may have a template without a tail, or one that depends on the text.
    checked_tail = find_tail(tokenizer, template_kwargs) if eoi_tokens is None else None
    texts = [render(tokenizer, question, template_kwargs) for question in questions] if use_chat_template else questions
    if checked_tail:
        _check_tail_text(texts, checked_tail, use_chat_template)
    # A prompt that comes with its template or its BOS must not get special tokens a second time.
    templated = use_chat_template or checked_tail is not None
    bare = [not (templated or _starts_with_bos(tokenizer, text)) for text in texts]
    rows = _encode(tokenizer, texts, bare)
    n_positions = len(checked_tail.token_ids) if checked_tail and eoi_tokens is None else int(eoi_tokens or 0)
    _check_lengths(rows, n_positions, max_length)
    if checked_tail:
        _check_tail_tokens(tokenizer, rows, checked_tail, n_positions)
    return Prompts(
        token_ids=np.concatenate(rows),
        starts=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        text_hash=np.array([_hash64(text) for text in texts], dtype=np.uint64),
        positions=tuple(range(-n_positions, 0)),
        tail=checked_tail.text if checked_tail else "",
    )


def _check_template(tokenizer: Tokenizer, use_chat_template: bool, eoi_tokens: int | None) -> None:
    if eoi_tokens is not None and eoi_tokens < 1:
        raise InputError(f"--eoi_tokens {eoi_tokens}: must be at least 1")
    if not tokenizer.chat_template and use_chat_template:
        raise InputError("this model has no chat template; leave out --use_chat_template and give --eoi_tokens N")
    if not tokenizer.chat_template and eoi_tokens is None:
        raise InputError(
            "this model has no chat template, so the tokens after the instruction are not known; "
            "give --eoi_tokens N to store the last N tokens of each prompt"
        )


def _check_tail_text(texts: Sequence[str], tail: Tail, use_chat_template: bool) -> None:
    row = next((row for row, text in enumerate(texts) if not text.endswith(tail.text)), None)
    if row is not None:
        way_out = (
            "its template depends on the text; give --eoi_tokens N"
            if use_chat_template
            else "for bare questions add --use_chat_template, for another ending give --eoi_tokens N"
        )
        raise InputError(
            f"row {row} does not end in the chat template's tail: expected {tail.text!r}, "
            f"found {texts[row][-len(tail.text) :]!r}; {way_out}"
        )


def _starts_with_bos(tokenizer: Tokenizer, text: str) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _encode(tokenizer: Tokenizer, texts: Sequence[str], add_special: Sequence[bool]) -> list[TokenIds]:
    rows: list[TokenIds] = [np.empty(0, dtype=np.int32)] * len(texts)
    for add in (False, True):
        chosen = [row for row, special in enumerate(add_special) if special == add]
        for start in range(0, len(chosen), _ENCODE_ROWS):
            part = chosen[start : start + _ENCODE_ROWS]
            encoded = tokenizer([texts[row] for row in part], add_special_tokens=add, verbose=False)["input_ids"]
            for row, ids in zip(part, encoded, strict=True):
                rows[row] = np.asarray(ids, dtype=np.int32)
    return rows


def _check_lengths(rows: list[TokenIds], n_positions: int, max_length: int | None) -> None:
    lengths = np.array([len(row) for row in rows])
    if max_length is not None and lengths.max() > max_length:
        worst = int(lengths.argmax())
        raise InputError(
            f"{int((lengths > max_length).sum())} prompts are longer than --max_length {max_length}, the longest is "
            f"row {worst} with {lengths[worst]} tokens; shorten or drop them, or raise --max_length if it can"
        )
    if lengths.min() < n_positions:
        row = int(lengths.argmin())
        raise InputError(
            f"row {row} has {lengths[row]} tokens, fewer than the {n_positions} positions to store; drop it"
        )


def _check_tail_tokens(tokenizer: Tokenizer, rows: list[TokenIds], tail: Tail, n_positions: int) -> None:
    n_checked = min(n_positions, len(tail.token_ids))
    expected = list(tail.token_ids[-n_checked:])
    row = next((row for row, ids in enumerate(rows) if ids[-n_checked:].tolist() != expected), None)
    if row is not None:
        raise InputError(
            f"row {row}: the last {n_checked} tokens are not the template's tail: expected "
            f"{[tokenizer.decode([token]) for token in expected]}, found "
            f"{[tokenizer.decode([token]) for token in rows[row][-n_checked:].tolist()]}; "
            "its text merges with the tail: change its end"
        )


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")
