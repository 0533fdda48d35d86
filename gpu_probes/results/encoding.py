"""JSON that is written a piece at a time: what a file holds may be many times what fits in memory as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

# Anything that json takes; also arrays, and functions of nothing, which are asked when their turn comes.
Json = Any
_PIECE_VALUES = 2**14
_PIECE_LETTERS = 2**18


def null_if_nan(value: float) -> float | None:
    """A number as JSON has it."""
    return None if np.isnan(value) else float(value)


def nulls_if_nan(grid: Float64[np.ndarray, "position layer"]) -> list[list[float | None]]:
    """A grid of numbers as JSON has it."""
    return [[null_if_nan(value) for value in row] for row in grid]


def encode_json(content: Json, indent: int | None = None) -> Iterator[bytes]:
    """Yield what ``json.dumps`` gives, and a newline.

    Raises
    ------
    ValueError
        When a number is not finite.
    """
    encoder = json.JSONEncoder(indent=indent, allow_nan=False, default=_default)
    texts = _compact(content) if indent is None else encoder.iterencode(content)
    yield from (text.encode() for text in _joined(texts))
    yield b"\n"


def _default(value: Json) -> Json:
    if isinstance(value, np.ndarray):
        # The rows of a table are made lists one by one.
        return value.tolist() if value.ndim < 2 else list(value)
    return value()


def _compact(content: Json) -> Iterator[str]:
    if callable(content):
        yield from _compact(content())
    elif isinstance(content, dict):
        for index, (key, value) in enumerate(content.items()):
            yield f"{', ' if index else '{'}{json.dumps(key)}: "
            yield from _compact(value)
        yield "}" if content else "{}"
    elif isinstance(content, np.ndarray):
        yield "["
        for index, piece in enumerate(_pieces(content)):
            yield f"{', ' if index else ''}{_dumps(piece.tolist())[1:-1]}"
        yield "]"
    else:
        yield _dumps(content)


def _dumps(content: Json) -> str:
    return json.dumps(content, allow_nan=False)


def _pieces(values: Shaped[np.ndarray, "row ..."]) -> Iterable[Shaped[np.ndarray, "piece ..."]]:
    at_once = max(_PIECE_VALUES * len(values) // max(values.size, 1), 1)
    return (values[start : start + at_once] for start in range(0, len(values), at_once))


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """The same text in fewer pieces."""
    held: list[str] = []
    n_letters = 0
    for text in texts:
        held.append(text)
        n_letters += len(text)
        if n_letters >= _PIECE_LETTERS:
            yield "".join(held)
            held.clear()
            n_letters = 0
    yield "".join(held)
