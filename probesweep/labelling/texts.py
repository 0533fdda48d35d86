"""Answers as text: one form for what reads the same, and where a text says what it does not mean."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "′": "'", "″": '"'})
# Marks around an answer: quotes and Markdown on both sides, the end of a sentence behind it.
_BEFORE = "\"'`*_ "
_BEHIND = f"{_BEFORE}.,;:?"
_CLAUSE_ENDS = re.compile(r"[.,;:!?]\s|\n|\b(?:but|and|so|because|since)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|rather than|instead of|unlike|other than|except)|n't)"
    r"(?:\W+\w+){0,3}?[\W_]*\Z",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[\"'`*_)\]}$.]{0,4}\s+(?:is|are|was|were|would be|seems|looks|must be|can)\s*"
    r"(?:(?:not|n't)\s+(?:the|right|correct|it|be)|(?:\w+ly\s+)?(?:wrong|incorrect|false|too))\b",
    re.IGNORECASE,
)
# How far before an answer a denial is looked for, in characters: three words at the most.
_NEAR = 80


def said(text: str) -> str:
    """What a text says in the end: without what stands between ``<think>`` and ``</think>``."""
    text = text.rpartition("</think>")[2]
    # Thoughts without an end: no answer follows them.
    return text.partition("<think>")[0]


def plain(text: str) -> str:
    """One form for what reads the same: NFKC, straight quotes, one space for any, lower case."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).split()).casefold()


def bare(text: str) -> str:
    """`plain` without quotes and Markdown around it, and without what ends a sentence."""
    text = plain(text)
    # A text of nothing but marks is an answer, too.
    return _without_end(text.lstrip(_BEFORE)) or text


def _without_end(text: str) -> str:
    while True:
        text = text.rstrip(_BEHIND)
        shorter = text.rstrip("!")
        # Behind a digit it is a factorial.
        if shorter == text or shorter[-1:].isdigit():
            return text
        text = shorter


def is_denied(text: str, start: int, end: int) -> bool:
    """Whether a text says of a part of it that it is not the answer: "not 7", "7 is wrong"."""
    before = text[max(0, start - _NEAR) : start]
    # Most parts have no denial near them, which is found out faster than where their clause begins.
    if _DENIED_BEFORE.search(before):
        clause = before[max((found.end() for found in _CLAUSE_ENDS.finditer(before)), default=0) :]
        if _DENIED_BEFORE.search(clause):
            return True
    return _DENIED_BEHIND.match(text, end) is not None


def boxed(text: str) -> tuple[int, str] | None:
    r"""Where the last ``\boxed{...}`` begins, and what is in it; of one in another, the inner."""
    boxes = list(re.finditer(r"\\(?:boxed|fbox)\s*(\{|(?=[\w-]))", text))
    if not boxes:
        return None
    found = boxes[-1]
    if not found[1]:
        return found.start(), text[found.end() : found.end() + 1]
    depth, end = 1, found.end()
    while end < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    # Without its closing brace it was cut off.
    return None if depth else (found.start(), text[found.end() : end - 1])
