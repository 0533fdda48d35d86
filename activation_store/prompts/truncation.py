"""Prompts that are too long: only the end of the user's text is cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import regex

from activation_store.prompts.template import Pieces

TRUNCATION_RULE = (
    "the end of the last user message is cut, between characters, so that the prompt fits and no character more would"
)
# What readers see as one character: an emoji with its modifiers, a letter with its accents.
_CHARACTER = regex.compile(r"\X")
_STEPS_BACK = 100


def cut_to_fit(
    pieces: Pieces, encode: Callable[[Pieces], list[int] | None], max_length: int, tail_ids: list[int]
) -> tuple[Pieces, list[int]] | None:
    """Cut the end of the last user message, between characters, so that a prompt fits and no character more would.

    Parameters
    ----------
    pieces : Pieces
        A prompt that is too long.
    encode : callable
        Token ids of such a prompt, None where it has none.
    max_length : int
        Most tokens.
    tail_ids : list of int
        What the tokens must end in.

    Returns
    -------
    tuple of Pieces and list of int, or None
        The cut prompt and its tokens; None where it does not fit without any of the text.
    """
    ends = [0, *(found.end() for found in _CHARACTER.finditer(pieces.user[-1]))]

    def is_too_long(index: int) -> bool:
        ids = encode(pieces.cut(ends[index]))
        return ids is None or len(ids) > max_length

    if is_too_long(0):
        return None
    longest = bisect_left(range(1, len(ends)), True, key=is_too_long)
    # Some ends of a text merge with what follows it.
    for index in range(longest, max(-1, longest - _STEPS_BACK), -1):
        ids = encode(pieces.cut(ends[index]))
        if ids is not None and len(ids) <= max_length and ids[len(ids) - len(tail_ids) :] == tail_ids:
            return pieces.cut(ends[index]), ids
    return None
