"""Verifiers by their names: what a user asks for becomes what judges answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from probesweep.errors import RequestError
from probesweep.labelling.letters import letter_in, letter_of
from probesweep.labelling.mathematics import MathVerifier
from probesweep.labelling.numerals import answer_in, number_of
from probesweep.labelling.texts import bare, is_denied, plain, said
from probesweep.labelling.user_function import FunctionVerifier
from probesweep.labelling.verdict import Verdict, Verifier, acceptable, as_text, why_no_answer
from probesweep_errors import naming

VERIFIERS = ("exact", "contains", "number", "choice", "regex:PATTERN", "math", "python:FILE:FUNCTION")
# A pattern that takes longer on one answer goes back and forth in it.
_PATTERN_SECONDS = 5.0
NO_ANSWER = Verdict(None, 0.0)
NOT_JUDGED = Verdict(None, None)


def make_verifier(spec: str) -> Verifier:
    """The verifier of a specification, such as ``number`` or ``regex:Answer: (.*)``.

    Raises
    ------
    RequestError
        There is none, its pattern or the user's file cannot be used, or a package is missing.
    """
    kind, _, rest = spec.partition(":")
    with naming("verifier"):
        if spec in _PLAIN:
            return _PLAIN[spec]()
        if kind == "regex" and rest:
            return RegexVerifier.parse(rest)
        if kind == "python" and rest:
            return FunctionVerifier.load(rest)
        raise RequestError(f"verifier {spec!r} is not one of {', '.join(VERIFIERS)}")


@dataclass(frozen=True)
class ExactVerifier:
    """The whole text is the answer, apart from case, spaces, quotes, Markdown and a sentence's end."""

    name: str = "exact"

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del row
        return _verdict_on_text(said(text), answer)

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        return why_no_answer(answer)


@dataclass(frozen=True)
class ContainsVerifier:
    """The answer is somewhere in the text, as whole words, and the text does not deny it."""

    name: str = "contains"

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del row
        # What ends sentences and lines says how far a denial reaches.
        text = "\n".join(map(plain, said(text).splitlines()))
        for each in map(bare, map(as_text, acceptable(answer))):
            found = _whole_words(each).finditer(text)
            if any(not is_denied(text, *match.span()) for match in found):
                return Verdict(each, 1.0)
        return NO_ANSWER

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        return why_no_answer(answer)


def _whole_words(answer: str) -> re.Pattern[str]:
    """A pattern for an answer that is not part of a longer word or number: no 7 in 17, 7.5, -7 and 7/8."""
    before, behind = "", ""
    if re.match(r"\w", answer):
        before = r"(?<!\w)" + (r"(?<!\d[.,/])(?<!(?<!\w)[-−])(?<!\.)" if answer[0].isdigit() else "")
    if re.search(r"\w\Z", answer):
        behind = r"(?!\w)" + (r"(?![.,/]\d)" if answer[-1].isdigit() else "")
    return re.compile(before + re.escape(answer).replace(r"\ ", r"\s+") + behind)


@dataclass(frozen=True)
class NumberVerifier:
    """The number that the text gives as its answer is the answer's number."""

    name: str = "number"

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del row
        number = answer_in(said(text))
        if number is None:
            return NO_ANSWER
        right = (number_of(each) for each in acceptable(answer))
        return Verdict(str(number), float(any(one is not None and number.equals(one) for one in right)))

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        if why_no_answer(answer):
            return why_no_answer(answer)
        if all(number_of(each) is not None for each in acceptable(answer)):
            return None
        return "has no number, or several and does not say which is the answer"


@dataclass(frozen=True)
class ChoiceVerifier:
    """The option that the text chooses, A to J, is the answer's letter."""

    name: str = "choice"

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer."""
        del row
        letters = letter_in(said(text))
        if len(letters) != 1:
            return NOT_JUDGED if letters else NO_ANSWER
        return Verdict(letters[0], float(letters[0] in map(letter_of, acceptable(answer))))

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        if why_no_answer(answer):
            return why_no_answer(answer)
        return None if all(map(letter_of, acceptable(answer))) else "is no letter from A to J"


@dataclass(frozen=True)
class RegexVerifier:
    """What a pattern matches last in the text is the answer, compared as `ExactVerifier` does.

    Parameters
    ----------
    pattern : regex.Pattern
        Its first group is what is compared, or all of it.
    """

    pattern: Any

    @classmethod
    def parse(cls, pattern: str) -> RegexVerifier:
        """The verifier of a pattern.

        Raises
        ------
        RequestError
            It is no regular expression.
        """
        try:
            return cls(regex.compile(pattern))
        except regex.error as error:
            raise RequestError(f"verifier {f'regex:{pattern}'!r}: {error}; fix the pattern") from error

    @property
    def name(self) -> str:
        """Its specification."""
        return f"regex:{self.pattern.pattern}"

    def judge(self, text: str, answer: Any, row: Mapping[str, Any]) -> Verdict:
        """Judge one answer; null if the pattern takes too long on it."""
        del row
        try:
            matches = list(self.pattern.finditer(text, timeout=_PATTERN_SECONDS))
        except TimeoutError:
            return NOT_JUDGED
        if not matches:
            return NO_ANSWER
        return _verdict_on_text(matches[-1][1 if self.pattern.groups else 0] or "", answer)

    def why_unusable(self, answer: Any) -> str | None:
        """Why a reference answer cannot be used."""
        return why_no_answer(answer)


def _verdict_on_text(text: str, answer: Any) -> Verdict:
    extracted = bare(text)
    if not extracted:
        return NO_ANSWER
    return Verdict(extracted, float(extracted in (bare(as_text(each)) for each in acceptable(answer))))


_PLAIN: dict[str, Callable[[], Verifier]] = {
    "exact": ExactVerifier,
    "contains": ContainsVerifier,
    "number": NumberVerifier,
    "choice": ChoiceVerifier,
    "math": MathVerifier.start,
}
