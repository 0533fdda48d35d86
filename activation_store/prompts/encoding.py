"""Questions -> prompts -> token ids, with the template's tail found and checked on every sample."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32, Int64, UInt64
from tqdm import tqdm

from activation_store.bars import at_terminal
from activation_store.errors import InputError, PromptError, check_at_least_one, show_rows
from activation_store.prompts.control import ControlStrings
from activation_store.prompts.prompts import ControlRows, PromptFormat, Prompts
from activation_store.prompts.tail import Tail, check_tail_text, check_tail_tokens, find_tail
from activation_store.prompts.template import Pieces, find_pieces, render, render_all
from activation_store.prompts.tokenizer import Tokenizer
from activation_store.prompts.truncation import cut_to_fit
from activation_store.questions.question import Question, other_texts, replace_last, user_texts
from probesweep_errors import naming

_BATCH_ROWS = 1000
_SHOWN_AFTER_S = 2

logger = logging.getLogger(__name__)


def encode_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    prompt_format: PromptFormat,
    *,
    n_embeddings: int | None = None,
    as_trained: bool = False,
    numbers: Sequence[int] | None = None,
) -> Prompts:
    """Turn every question into token ids and settle the positions to store.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    questions : sequence of str or list of dict
        Bare questions or conversations for the chat template, else prompts as the model is to read them.
    prompt_format : PromptFormat
        How one becomes the other. Its `max_length` is the limit; None: there is none.
    n_embeddings : int, optional
        Rows of the model's token embeddings: every token must have one.
    as_trained : bool
        Template and positions are those of a training and cannot be changed: errors advise on the questions alone.
    numbers : sequence of int, optional
        What to call the rows in warnings; by default their places. Empty: no warnings.

    Raises
    ------
    PromptError
        A prompt that does not end in the template's tail, is too long or shorter than the stored positions, or holds a
        token that the model does not know.
    InputError
        There is no template where one is needed, or it has no tail.
    """
    numbers = range(len(questions)) if numbers is None else numbers
    tail, max_length = check_format(tokenizer, prompt_format), prompt_format.max_length
    if prompt_format.use_chat_template:
        encode = _Chat(tokenizer, prompt_format, tail, ControlStrings(tokenizer), as_trained).encode
    else:
        encode = _Plain(tokenizer, tail, as_trained).encode
        if tail is None and numbers:
            _report_appended(tokenizer, questions)
    starts = range(0, len(questions), _BATCH_ROWS)
    if at_terminal():
        starts = tqdm(starts, unit="thousand prompts", desc="tokenize", delay=_SHOWN_AFTER_S)
    batches = [encode(questions[row : row + _BATCH_ROWS], row) for row in starts]
    n_tokens = np.concatenate([batch.n_tokens for batch in batches])
    n_positions = len(tail.token_ids) if tail else int(prompt_format.eoi_tokens or 0)
    _check_cut([row for batch in batches for row in batch.not_cut], max_length)
    _check_lengths(n_tokens, max_length, prompt_format.use_chat_template)
    _check_positions(n_tokens, n_positions, as_trained)
    prompts = Prompts(
        token_ids=np.concatenate([batch.token_ids for batch in batches]),
        starts=np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64),
        text_hash=np.concatenate([batch.text_hash for batch in batches]),
        positions=tuple(range(-n_positions, 0)),
        tail=tail.text if tail else "",
        truncated_rows=tuple(row for batch in batches for row in batch.truncated),
        control_rows=ControlRows(
            as_text=tuple(row for batch in batches for row in batch.as_text),
            as_tokens=tuple(row for batch in batches for row in batch.as_tokens),
        ),
    )
    _check_tokens(tokenizer, prompts, n_embeddings)
    if numbers:
        _report(prompts, max_length, numbers)
    return prompts


def check_format(tokenizer: Tokenizer, prompt_format: PromptFormat) -> Tail | None:
    """Make sure that a tokenizer can make prompts of this format.

    Returns
    -------
    Tail or None
        What stands behind the user's text; None where `eoi_tokens` counts the tokens: then the template may have no
        tail, or one that depends on the text.

    Raises
    ------
    InputError
        There is no template where one is needed, it has no tail, or what is to be cut is unknown.
    """
    _check_template(tokenizer, prompt_format)
    _check_truncation(prompt_format)
    return find_tail(tokenizer, prompt_format.template_kwargs) if prompt_format.eoi_tokens is None else None


@dataclass
class _Batch:
    """Some prompts: what becomes of `Prompts`, and the rows to report."""

    token_ids: Int32[np.ndarray, " token"]
    n_tokens: Int64[np.ndarray, " row"]
    text_hash: UInt64[np.ndarray, " row"]
    truncated: list[int] = field(default_factory=list[int])
    not_cut: list[int] = field(default_factory=list[int])
    as_text: list[int] = field(default_factory=list[int])
    as_tokens: list[int] = field(default_factory=list[int])

    @classmethod
    def of(cls, texts: Sequence[str], rows: Sequence[list[int]]) -> _Batch:
        return cls(
            token_ids=np.concatenate([np.array(ids, dtype=np.int32) for ids in rows]),
            n_tokens=np.array([len(ids) for ids in rows], dtype=np.int64),
            text_hash=np.array([_hash64(text) for text in texts], dtype=np.uint64),
        )


@dataclass(frozen=True)
class _Plain:
    """Encodes prompts that the model is to read as they are: control strings in them are control tokens."""

    tokenizer: Tokenizer
    tail: Tail | None
    as_trained: bool

    def encode(self, questions: Sequence[Question], first_row: int) -> _Batch:
        """Encode some rows; `first_row` is the first one's number in the dataset."""
        texts = [self._require_text(question, row) for row, question in enumerate(questions, first_row)]
        if self.tail:
            way_out = "for bare questions add use_chat_template=True, for another ending give eoi_tokens=N"
            if self.as_trained:
                way_out = "render the questions with the chat template first, as in training"
            with naming("use_chat_template"):
                check_tail_text(texts, self.tail, first_row, way_out)
        # A prompt that comes with its template or its BOS must not get special tokens a second time.
        bare = [self.tail is None and not _starts_with_bos(self.tokenizer, text) for text in texts]
        rows: list[list[int]] = [[] for _ in texts]
        for add_special in (False, True):
            chosen = [row for row, special in enumerate(bare) if special == add_special]
            encoded = _encode(self.tokenizer, [texts[row] for row in chosen], add_special)
            for row, ids in zip(chosen, encoded, strict=True):
                rows[row] = ids
        if self.tail:
            check_tail_tokens(self.tokenizer, rows, self.tail, first_row)
        return _Batch.of(texts, rows)

    def _require_text(self, question: Question, row: int) -> str:
        if isinstance(question, str):
            return question
        way_out = "add use_chat_template=True" if self.tokenizer.chat_template else "this model has none, give text"
        if self.as_trained:
            way_out = "give strings, as in training"
        reason = f"a list of chat messages, which needs a chat template; {way_out}"
        raise PromptError(f"row {row} is {reason}", reason, argument="use_chat_template")


@dataclass(frozen=True)
class _Chat:
    """Encodes questions through the chat template: control strings in a user's text are text."""

    tokenizer: Tokenizer
    prompt_format: PromptFormat
    tail: Tail | None
    control: ControlStrings
    as_trained: bool

    def encode(self, questions: Sequence[Question], first_row: int) -> _Batch:
        """Encode some rows; `first_row` is the first one's number in the dataset."""
        texts = render_all(self.tokenizer, questions, self.prompt_format.template_kwargs, first_row)
        if self.tail:
            way_out = "drop it" if self.as_trained else "give eoi_tokens=N"
            with naming("eoi_tokens"):
                check_tail_text(texts, self.tail, first_row, f"its template depends on the text; {way_out}")
        rows = _encode(self.tokenizer, texts, add_special_tokens=False)
        held = [self.control.inside(user_texts(question)) for question in questions]
        # What other roles say is left to the template, which may take it apart: its control strings stay what they are.
        beyond = [self.control.inside(other_texts(question)) for question in questions]
        changed = [self._keep_text(questions[row], texts[row]) if held[row] else None for row in range(len(rows))]
        rows = [ids or ordinary for ids, ordinary in zip(changed, rows, strict=True)]
        cut_to = self.prompt_format.cut_to
        cuts = {
            row: self._cut(questions[row], texts[row], cut_to, as_text=changed[row] is not None)
            for row, ids in enumerate(rows)
            if cut_to is not None and len(ids) > cut_to
        }
        for row, cut in cuts.items():
            if cut is not None:
                texts[row], rows[row] = cut
        if self.tail:
            check_tail_tokens(self.tokenizer, rows, self.tail, first_row)
        batch = _Batch.of(texts, rows)
        for row, cut in cuts.items():
            (batch.not_cut if cut is None else batch.truncated).append(first_row + row)
        for row in np.flatnonzero(np.logical_or(held, beyond)).tolist():
            (batch.as_tokens if changed[row] is None or beyond[row] else batch.as_text).append(first_row + row)
        return batch

    def _keep_text(self, question: Question, text: str) -> list[int] | None:
        """Token ids with the control strings of the user's text as text; None where that cannot be done exactly."""
        pieces = find_pieces(self.tokenizer, question, text, self.prompt_format.template_kwargs)
        return self.control.encode_as_text(pieces) if pieces else None

    def _cut(self, question: Question, text: str, cut_to: int, *, as_text: bool) -> tuple[str, list[int]] | None:
        """Text and token ids of a prompt that was cut to fit; None where it cannot be."""
        pieces = find_pieces(self.tokenizer, question, text, self.prompt_format.template_kwargs)
        if pieces is None:
            return None

        def encode(pieces: Pieces) -> list[int] | None:
            return self.control.encode_as_text(pieces) if as_text else _encode(self.tokenizer, [pieces.text], False)[0]

        tail_ids = list(self.tail.token_ids) if self.tail else []
        cut = cut_to_fit(pieces, encode, cut_to, tail_ids)
        if cut is None:
            return None
        shortened = replace_last(question, cut[0].user[-1])
        # A template that looks at the text may write something else around a shorter one.
        is_same = render(self.tokenizer, shortened, self.prompt_format.template_kwargs) == cut[0].text
        return (cut[0].text, cut[1]) if is_same else None


def _check_template(tokenizer: Tokenizer, prompt_format: PromptFormat) -> None:
    check_at_least_one(eoi_tokens=prompt_format.eoi_tokens)
    if not tokenizer.chat_template and prompt_format.use_chat_template:
        raise InputError(
            "this model has no chat template; leave out use_chat_template=True and give eoi_tokens=N",
            argument="use_chat_template",
        )
    if not tokenizer.chat_template and prompt_format.eoi_tokens is None:
        raise InputError(
            "this model has no chat template, so the tokens after the instruction are unknown; "
            "give eoi_tokens=N to store the last N tokens of each prompt",
            argument="eoi_tokens",
        )


def _check_truncation(prompt_format: PromptFormat) -> None:
    if prompt_format.truncate and not prompt_format.use_chat_template:
        raise InputError(
            "truncate=True cuts the user's text, and without use_chat_template=True (of extract) it is unknown which "
            "part of a prompt that is; shorten the prompts in the dataset",
            argument="truncate",
        )
    if prompt_format.truncate and prompt_format.max_length is None:
        raise InputError("truncate=True needs max_length=N: this model has no limit of its own", argument="truncate")


def _starts_with_bos(tokenizer: Tokenizer, text: str) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _encode(tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def _check_cut(rows: list[int], max_length: int | None) -> None:
    if rows:
        raise PromptError(
            f"{len(rows)} prompts cannot be cut to max_length={max_length}, {show_rows(rows)}: they are too long "
            "even without the user's text, or the template rewrites it; drop them, or raise max_length=... if the "
            "model allows",
            f"cannot be cut to {max_length} tokens",
            argument="max_length",
        )


def _check_lengths(n_tokens: Int64[np.ndarray, " sample"], max_length: int | None, use_chat_template: bool) -> None:
    if max_length is not None and n_tokens.max() > max_length:
        worst = int(n_tokens.argmax())
        too_long = np.flatnonzero(n_tokens > max_length).tolist()
        cut = ", add truncate=True to cut the end of the user's text" if use_chat_template else ""
        raise PromptError(
            f"{len(too_long)} prompts are longer than max_length={max_length}, {show_rows(too_long)}; the longest is "
            f"row {worst} with {n_tokens[worst]} tokens; shorten or drop them{cut}, or raise max_length=... if the "
            "model allows",
            f"{n_tokens[worst]} tokens, more than the {max_length} allowed",
            argument="max_length",
        )


def _check_positions(n_tokens: Int64[np.ndarray, " sample"], n_positions: int, as_trained: bool) -> None:
    """Refuse prompts without all positions; only `eoi_tokens` can ask for more than the template's tail has."""
    if n_tokens.min() >= n_positions:
        return
    row, longest = int(n_tokens.argmin()), int(n_tokens.max())
    reason = f"{n_tokens[row]} tokens, fewer than the {n_positions} positions"
    ways_out = f"drop it, or give eoi_tokens={n_tokens[row]} at most"
    if longest < n_positions:
        ways_out = f"the longest row has {longest}: give eoi_tokens={n_tokens[row]} at most"
    if as_trained:
        ways_out = "drop it"
    raise PromptError(f"row {row} has {reason} of eoi_tokens=...; {ways_out}", reason, argument="eoi_tokens")


def _check_tokens(tokenizer: Tokenizer, prompts: Prompts, n_embeddings: int | None) -> None:
    """On a GPU a token without an embedding ends in an assertion after which the process can do nothing more."""
    if n_embeddings is None or prompts.token_ids.max() < n_embeddings:
        return
    place = int((prompts.token_ids >= n_embeddings).argmax())
    row, token = int(np.searchsorted(prompts.starts, place, side="right")) - 1, int(prompts.token_ids[place])
    reason = f"token {token} {tokenizer.decode([token])!r} is beyond the model's {n_embeddings} embeddings"
    raise PromptError(
        f"row {row}: {reason}; tokenizer and model do not match: use a model resized for this "
        "tokenizer, or its own tokenizer",
        reason,
    )


def _report_appended(tokenizer: Tokenizer, questions: Sequence[Question]) -> None:
    """Warn if the tokenizer appends a token of its own, such as an end-of-sequence token."""
    text = next((q for q in questions if isinstance(q, str) and q and not _starts_with_bos(tokenizer, q)), None)
    if text is None:
        return
    bare, whole = (_encode(tokenizer, [text], special)[0] for special in (False, True))
    ends = [start + len(bare) for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    appended = whole[ends[0] :] if bare and ends else []
    if appended:
        logger.warning(
            "the tokenizer appends %r to every prompt, so position -1 is that token and %d the prompt's own last one",
            tokenizer.decode(appended),
            -1 - len(appended),
        )


def _report(prompts: Prompts, max_length: int | None, numbers: Sequence[int]) -> None:
    if prompts.truncated_rows:
        logger.warning(
            "%d prompts were longer than %s tokens and the end of their user's text was cut: %s",
            len(prompts.truncated_rows),
            max_length,
            show_rows([numbers[row] for row in prompts.truncated_rows]),
        )
    if prompts.control_rows.as_tokens:
        logger.warning(
            "%d prompts contain control strings of the template in the user's text, which this tokenizer cannot encode "
            "as text, so they act as control tokens: %s",
            len(prompts.control_rows.as_tokens),
            show_rows([numbers[row] for row in prompts.control_rows.as_tokens]),
        )


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")
