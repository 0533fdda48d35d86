r"""Numbers in text, as exact fractions: separators, units, fractions, LaTeX, and which of several is the answer."""

from __future__ import annotations

import re
import string
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from probesweep.labelling.texts import boxed, is_denied

# Numbers that are not whole may differ by this share: 0.333333 is 1/3.
TOLERANCE = Fraction(1, 10**6)
_LONGEST_CLAUSE = 500
# What stands before a number says whether it is part of something else, in so many characters.
_NEAR = 12
# Beyond so many digits and such powers of ten a number is a mistake, and exact fractions are slow.
_MOST_DIGITS = 400
# Stands for a formula that is no number by itself: a root, a fraction with letters.
_FORMULA = "\ue000"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SIGNS = str.maketrans(dict.fromkeys("−﹣－‐‑", "-") | {"⁄": "/", "∕": "/", "’": "'", "∙": "·"})
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_DIGITS = r"""(?:
    [1-9]\d{0,2}(?:,\d{3}){1,9}(?:\.\d+)?(?!,?\d)                           # 1,000 and 1,000.5
  | [1-9]\d{0,2}(?:(?:\.\d{3}){2,9}(?:,\d+)?|(?:\.\d{3}){1,9},\d+)(?![.,]?\d)  # 1.000.000 and 1.000,5
  | [1-9]\d{0,2}(?:[ '_]\d{3}){1,9}(?:[.,]\d+)?(?!\d)                       # 1 000 and 1'000
  | \d+,\d+(?!,?\d)                                                     # 0,5
  | \d*\.\d+
  | \d+
)"""
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+])?[ ]?(?P<currency>[$€£¥₹])?[ ]?(?P<inner_sign>(?<=[$€£¥₹])-)?
    (?:
        10\^(?P<power_alone>[-+]?\d+)
      | (?:(?P<whole>\d{{1,3}})[ ])?(?P<above>\d+)[ ]?/[ ]?(?P<below>\d+)     # 3/4 and 1 1/2
      | (?P<number>{_DIGITS})
        (?:[ ]?[×x*·][ ]?10\^(?P<power>[-+]?\d+)|[eE](?P<exponent>[-+]?\d+))?
    )
    (?:[ ](?P<scale>{"|".join(_SCALES)})\b)?
    (?P<percent>[ ]?(?:%|percent\b|per[ ]cent\b))?
    """,
    re.VERBOSE,
)
# Part of something else: a word, a power, a date, a time, a version, a sum. What is added is a number or a variable.
_OPERAND = rf"(?:[\d)%}}{_FORMULA}]|\b[b-zB-HJ-Z])"
_PART_BEFORE = re.compile(
    rf"(?:[^\W\d]|[_^\d]|±[ ]?|\d[.,:/]|{_OPERAND}[ ]*(?:\*\*|[-+×*·÷/]|\b[xX]\b)[ ]*[$€£(]?|{_FORMULA}[ ]*)\Z"
)
_PART_BEHIND = re.compile(
    rf"[ ]*(?:\*\*|[-+×*·÷/^]|[xX](?=[ ]?\d))[ ]*[-$€£(]?[\d.{_FORMULA}]"
    rf"|\^|[:.,/]\d|[xyzXYZ]\b|[ ]*[*×·]?[ ]*{_FORMULA}"
)
_JOINED_BEFORE = re.compile(rf"(?:[^\W_]|[)\]}}%]|{_OPERAND}[ ]+)\Z")
_AFTER_EQUALS = re.compile(r"[=≈][\s$(\[{]*\Z")
_STATEMENT = re.compile(
    r"\b(?:answer|result|solution)s?\b(?:[^\n.!?=:,]|\.\d){0,60}?(?:\b(?:is|was|equals|would be)\b|[:=])[\s:]*|####\s*",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[,;!?]\s|\.(?:\s|\Z)|\n|\b(?:because|since|so)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")


@dataclass(frozen=True)
class Number:
    """A number as it is written.

    Parameters
    ----------
    value : Fraction
        Of a percentage the number before the sign.
    is_percentage : bool
    """

    value: Fraction
    is_percentage: bool = False

    def __str__(self) -> str:
        return f"{_written(self.value)}{'%' if self.is_percentage else ''}"

    def equals(self, other: Number) -> bool:
        """Whether two numbers are the same.

        Whole ones exactly, others up to `TOLERANCE`. 50% is 50 as well as 0.5, since people write either.
        """
        if _close(self.value, other.value):
            return True
        if self.is_percentage == other.is_percentage:
            return False
        percentage, number = (self, other) if self.is_percentage else (other, self)
        return _close(percentage.value / 100, number.value)


@dataclass(frozen=True)
class _Found:
    """A number in a text, and where it begins and ends there."""

    number: Number
    start: int
    end: int


def number_of(answer: str | float | Decimal) -> Number | None:
    """The number that a reference answer is; None if it is none, or holds several and does not say which counts."""
    if isinstance(answer, bool):
        return None
    if not isinstance(answer, str):
        decimal = Decimal(str(answer))
        return Number(Fraction(decimal)) if decimal.is_finite() else None
    text = readable(answer)
    numbers = _numbers(text)
    stated = _boxed_number(text) or _stated_number(text, numbers)
    if stated:
        return stated
    if numbers and all(one.number == numbers[0].number for one in numbers):
        return numbers[0].number
    return _number_of(_behind_equals(text, numbers))


def answer_in(text: str) -> Number | None:
    r"""The number that a text gives as its answer.

    In this order: the last ``\boxed{}``; behind the last "answer is", "answer:" or "####"; in the last sentence that
    has a number, the one behind the last "=", else the last. Numbers that are denied ("not 7"), and those that are part
    of a word, a sum, a power, a date or a time, are none.
    """
    text = readable(text)
    numbers = _numbers(text)
    return _boxed_number(text) or _stated_number(text, numbers) or _last_number(text, numbers)


def readable(text: str) -> str:
    """A text with numbers in plain characters: no LaTeX, no Markdown, no superscripts, one minus sign."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    # NFKC would make 1½ the fraction 11/2.
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = re.sub(r"(?<![\w)])–(?=[\d.$])|(?<=\d)–(?=\d)", "-", text)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _fraction(found: re.Match[str]) -> str:
    above, below = (part.strip("{} ") for part in found.group("above", "below"))
    if not re.fullmatch(r"-?\d+", above) or not re.fullmatch(r"-?\d+", below):
        return _FORMULA
    sign = "-" * ((above + below).count("-") % 2)
    return f"{found['digit'] or ''}{' ' if found['digit'] else ''}{sign}{above.lstrip('-')}/{below.lstrip('-')}"


_LATEX = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<!\d)\*\*|\*\*(?!\d)|__|`", ""),
        (r"\\(?:left|right|displaystyle|!|big|Big)(?![a-zA-Z])", ""),
        (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),
        (r"\\([%$#])", r"\1"),
        (r"\^\{?\\?circ\b\}?|°", " degrees"),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\[,;: ]|~", " "),
        (r"\\(?:times|cdot|ast)(?![a-zA-Z])", "×"),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\approx(?![a-zA-Z])", "≈"),
        (r"\^\{\s*([-+]?\d+)\s*\}", r"^\1"),
        (
            r"(?:(?P<digit>\d)\s?)?\\[dtc]?frac\s*(?P<above>\{[^{}]*\}|\d)\s*(?P<below>\{[^{}]*\}|\d)",
            _fraction,
        ),
        (r"\\pm(?![a-zA-Z])", "±"),
        (r"(?<!\d)(?<!\d )\b(?:minus|negative|Minus|Negative) (?=[\d.$])", "-"),
        (
            r"\\sqrt(?:\[[^\]]*\])?\s*(?:\{[^{}]*\}|\d)|(?:√|sqrt)\s?\(?[\d.]+\)?|\\(?:pi|infty)(?![a-zA-Z])|[π∞]",
            _FORMULA,
        ),
    )
]


def _numbers(text: str) -> list[_Found]:
    """All numbers of a readable text that stand for themselves and are not denied."""
    found: list[_Found] = []
    for match in _NUMBER.finditer(text):
        start, end = match.span()
        start += len(match[0]) - len(match[0].lstrip())
        before, signed = text[max(0, start - _NEAR) : start], match["sign"] is not None
        if match["currency"]:
            # US$5 is no part of a word.
            before = before.rstrip(string.ascii_letters)
        is_part = (_JOINED_BEFORE if signed else _PART_BEFORE).search(before) or _PART_BEHIND.match(text, end)
        if is_part or is_denied(text, start, end):
            continue
        # With a space behind it, it is a dash or the mark of an item.
        is_dash = match[0].lstrip()[1:2] == " " and not _AFTER_EQUALS.search(before)
        number = _read(match, is_negative=match["inner_sign"] is not None or (match["sign"] == "-" and not is_dash))
        if number is not None:
            found.append(_Found(number, start, end))
    return found


def _read(match: re.Match[str], *, is_negative: bool) -> Number | None:
    parts = [match[name] or "0" for name in ("whole", "above", "below", "number")]
    if any(len(part) > _MOST_DIGITS for part in parts):
        return None
    if match["below"]:
        if not int(match["below"]):
            return None
        value = int(match["whole"] or 0) + Fraction(int(match["above"]), int(match["below"]))
    else:
        power = match["power"] or match["exponent"] or match["power_alone"] or "0"
        if len(power) > _MOST_DIGITS or abs(int(power)) > _MOST_DIGITS:
            return None
        value = Fraction(_without_separators(match["number"] or "1")) * Fraction(10) ** int(power)
    value *= 10 ** _SCALES.get(match["scale"] or "", 0)
    return Number(-value if is_negative else value, match["percent"] is not None)


def _without_separators(digits: str) -> str:
    """Digits with a decimal point and nothing else between them."""
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?", digits):
        return digits.replace(",", "")
    if re.search(r"\.\d{3}[.,]", digits):
        return digits.replace(".", "").replace(",", ".")
    return re.sub("[ '_]", "", digits).replace(",", ".")


def _boxed_number(text: str) -> Number | None:
    found = boxed(text)
    return None if found is None else _last_number(found[1].replace("\n", " "), _numbers(found[1]))


def _stated_number(text: str, numbers: Sequence[_Found]) -> Number | None:
    """What the last sentence that says what the answer is says it is."""
    places = [one.start for one in numbers]
    for statement in reversed(list(_STATEMENT.finditer(text))):
        limit = statement.end() + _LONGEST_CLAUSE
        end = _CLAUSE_END.search(text, statement.end(), limit)
        first, behind = (bisect_left(places, place) for place in (statement.end(), end.start() if end else limit))
        inside = numbers[first:behind]
        if inside:
            return (_behind_equals(text, inside) or inside[0]).number
    return None


def _last_number(text: str, numbers: Sequence[_Found]) -> Number | None:
    """Of the last sentence with a number, the one behind its last "=", else the last."""
    if not numbers:
        return None
    last = numbers[-1]
    begin = max((end.end() for end in _SENTENCE_END.finditer(text, 0, last.start)), default=0)
    return (_behind_equals(text, [one for one in numbers if one.start >= begin]) or last).number


def _number_of(found: _Found | None) -> Number | None:
    return found.number if found else None


def _behind_equals(text: str, numbers: Sequence[_Found]) -> _Found | None:
    behind = [one for one in numbers if _AFTER_EQUALS.search(text[max(0, one.start - _NEAR) : one.start])]
    return behind[-1] if behind else None


def _close(one: Fraction, other: Fraction) -> bool:
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))


def _written(value: Fraction) -> str:
    """A whole number or a decimal where it is one, else a fraction."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    if not places:
        return str(value.numerator)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
