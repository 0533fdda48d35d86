"""The prompts: the embedded questions, a set of skewed lengths made from their text, and sets that share a prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from activation_store.prompts.prompts import ControlRows, Prompts
from activation_store.prompts.template import render
from activation_store.prompts.tokenizer import Tokenizer

DATA = Path(__file__).parents[2] / "data"
# Of the logarithm of a text's length: with it, a hundred texts of 30 tokens in the median reach to 470.
_SIGMA = 1.1


def embedded_questions() -> list[str]:
    """All embedded questions, in the order of their files."""
    files = [DATA / f"success_smollm2_{split}.parquet" for split in ("train", "test")]
    return pd.concat([pd.read_parquet(file, columns=["question"]) for file in files])["question"].tolist()


def skewed_questions(tokenizer: Tokenizer, n_rows: int, *, median_tokens: int, longest_tokens: int) -> list[str]:
    """Texts of log-normal length, in random order, cut out of the embedded questions.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    n_rows : int
        Texts.
    median_tokens, longest_tokens : int
        Of a prompt, what the chat template adds included; met to within a few tokens, as a text that is cut out can be
        split into other tokens than it was made of.
    """
    rng = np.random.default_rng(0)
    n_template = len(tokenizer(render(tokenizer, "", {}), add_special_tokens=False)["input_ids"])
    # Quantiles and not draws: a set of any size has the same shape.
    quantiles = norm.ppf((np.arange(n_rows) + 0.5) / n_rows)
    lengths = (median_tokens - n_template) * np.exp(_SIGMA * quantiles)
    lengths = rng.permutation(lengths.round().clip(1, longest_tokens - n_template).astype(int))
    corpus = _corpus(tokenizer)
    starts = rng.integers(0, len(corpus) - lengths)
    spans = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [tokenizer.decode(corpus[start : start + length]) for start, length in spans]


def sharing_prompts(tokenizer: Tokenizer, n_rows: int, share: float, *, mean_tokens: int, n_positions: int) -> Prompts:
    """Prompts of mixed lengths that begin with the same tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the model.
    n_rows : int
        Prompts.
    share : float
        Part of all tokens that is the common beginning.
    mean_tokens : int
        Of a prompt.
    n_positions : int
        Positions to store, behind the common beginning.
    """
    rng = np.random.default_rng(0)
    corpus = np.array(_corpus(tokenizer), dtype=np.int32)
    n_shared = round(share * mean_tokens)
    # Evenly between half and one and a half times the mean.
    own = np.linspace(0.5, 1.5, n_rows) * (mean_tokens - n_shared)
    lengths = rng.permutation(own.round().astype(int).clip(n_positions + 1))
    starts = rng.integers(n_shared, len(corpus) - lengths)
    rows = [
        np.concatenate([corpus[:n_shared], corpus[start : start + length]])
        for start, length in zip(starts, lengths, strict=True)
    ]
    return Prompts(
        token_ids=np.concatenate(rows),
        starts=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        text_hash=np.arange(n_rows, dtype=np.uint64),
        positions=tuple(range(-n_positions, 0)),
        tail="",
        truncated_rows=(),
        control_rows=ControlRows(),
    )


def _corpus(tokenizer: Tokenizer) -> list[int]:
    """Tokens of all embedded questions, one after another in random order."""
    questions = np.random.default_rng(1).permutation(embedded_questions())
    return tokenizer(" ".join(questions.tolist()), add_special_tokens=False)["input_ids"]
