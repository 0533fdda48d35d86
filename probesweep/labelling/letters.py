"""Which option of a multiple choice a text chooses."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left

from probesweep.labelling.texts import boxed, is_denied

# A letter by itself. A and I before a small letter are words, unless what follows goes on about an option.
_LETTER = re.compile(
    r"(?<![\w'\\])(?:(?P<capital>[A-J])(?![\w'’])|(?<=\()(?P<small>[a-j])(?=\)))"
    r"(?!(?<=[AI])\s+(?!(?:because|since|as|and|or|is|was|but|due|which|not|with)\b)[a-z])"
)
_SMALL_AT_END = re.compile(r"[\s(\[\"']*([a-j])(?=[)\]\"'.,;:!?]*(?:\s*\n|\s*\Z))")
_STATEMENT = re.compile(
    r"\b(?:answer|option|choice|letter)s?\b(?:[^\n.!?:=]|\.\d){0,60}?(?:\b(?:is|was|would be)\b|[:=])[\s:]*"
    r"|\b(?:choose|chose|pick|picked|select|selected|go with|going with)\b"
    r"|####\s*",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"[)\]\"'.]{0,2}\s+(?:is|was|would be|must be|seems)\s+(?:\w+ly\s+)?"
    r"(?:the\s+)?(?:most\s+)?(?:right|correct|best|answer|true|accurate)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]\s(?!\s*\Z)|\n")
_LINE_START = re.compile(r"^[ \t(\[]*([A-J])[.):\]](?=\s|\Z)(?!\s+(?:and|or)\b)", re.MULTILINE)
_ALONE = re.compile(r"\W*(?:option|choice|answer)?\W*([A-Ja-j])\W*", re.IGNORECASE)
_LONGEST_SENTENCE = 500
_LONGEST_ALONE = 40
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def letter_of(answer: object) -> str | None:
    """The letter of a reference answer such as "B", "(b)" or "B. Paris"; None if it is none."""
    found = re.fullmatch(r"\s*[(\[]?([A-Ja-j])(?:[)\].:](?:\s.*)?)?\s*", str(answer), re.DOTALL)
    return found[1].upper() if found else None


def letter_in(text: str) -> list[str]:
    r"""The letters that a text may mean: one if it chooses, several if that is not clear, none if it has none.

    The last of these counts: ``\boxed{B}``, "the answer is B", "B is correct", a last line that is only a letter. Else
    the letter that the text begins with ("B. Paris"), unless other lines begin with others; else all letters.
    """
    text = _MARKUP.sub(r"\1", unicodedata.normalize("NFKC", text).replace("’", "'"))
    text = re.sub(r"[*_`$]", "", text)
    letters = {
        match.start(): match[match.lastgroup or 0].upper()
        for match in _LETTER.finditer(text)
        if not is_denied(text, *match.span())
    }
    stated = _stated(text, letters)
    if stated:
        return [stated[max(stated)]]
    begun = [match[1] for match in _LINE_START.finditer(text) if match.start(1) in letters]
    if len(set(begun)) == 1 and re.match(rf"[\s(\[]*{begun[0]}", text):
        return begun[:1]
    return sorted(set(letters.values()))


def _stated(text: str, letters: dict[int, str]) -> dict[int, str]:
    """Letters that the text says are the answer, by where they stand."""
    stated = {place: letter for place, letter in letters.items() if _IS_RIGHT.match(text, place + 1)}
    in_box = boxed(text)
    if in_box is not None and letter_of(in_box[1]):
        stated[in_box[0]] = letter_of(in_box[1]) or ""
    places = list(letters)
    for statement in _STATEMENT.finditer(text):
        limit = statement.end() + _LONGEST_SENTENCE
        end = _SENTENCE_END.search(text, statement.end(), limit)
        first = bisect_left(places, statement.end())
        inside = places[first : first + 1]
        small = _SMALL_AT_END.match(text, statement.end())
        if inside and inside[0] < (end.start() if end else limit):
            stated[inside[0]] = letters[inside[0]]
        elif small:
            stated[small.start(1)] = small[1].upper()
    lines = text.rstrip().split("\n")
    alone = [found and found[1].upper() for found in map(_alone, lines)]
    # Not where each of several lines is an option.
    if alone[-1] and len({letter for letter in alone if letter}) == 1:
        stated[len(text.rstrip()) - 1] = alone[-1]
    return stated


def _alone(line: str) -> re.Match[str] | None:
    return _ALONE.fullmatch(line) if len(line) <= _LONGEST_ALONE else None
