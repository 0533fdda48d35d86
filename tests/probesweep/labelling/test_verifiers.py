"""Verifiers against verdicts written by hand, and what is said where they cannot be used."""

import re

import pytest

from probesweep.errors import RequestError, VerifierError
from probesweep.labelling.verdict import Verdict, Verifier, check_answers
from probesweep.labelling.verifiers import make_verifier
from tests.probesweep.labelling.answers import CHOICES, CONTAINS, EXACT, NUMBERS

TABLES = {"number": NUMBERS, "choice": CHOICES, "exact": EXACT, "contains": CONTAINS}
ROWS = [(name, *row) for name, table in TABLES.items() for row in table]


@pytest.mark.parametrize(("name", "answer", "text", "verdict"), ROWS)
def test_verdicts_are_those_written_by_hand(name, answer, text, verdict):
    verifier = make_verifier(name)
    assert verifier.why_unusable(answer) is None
    found = verifier.judge(text, answer, {})
    assert found.correct == verdict, found


def test_the_table_is_long():
    assert len(ROWS) >= 150


@pytest.mark.parametrize("name", ["exact", "contains", "number", "choice", "regex:x(.*)"])
def test_verifiers_keep_the_protocol(name):
    verifier = make_verifier(name)
    assert isinstance(verifier, Verifier)
    assert verifier.name == name


@pytest.mark.parametrize(
    ("name", "answer", "text", "extracted"),
    [
        ("number", 7, "It is 1,000.50 or so.", "1000.5"),
        ("number", 7, "-\\frac{1}{3}", "-1/3"),
        ("number", 7, "−0.05", "-0.05"),
        ("number", 7, "50 percent", "50%"),
        ("number", 7, "none", None),
        ("exact", "Paris", ' "It IS Paris." ', "it is paris"),
        ("exact", "Paris", " ", None),
        ("contains", "New York", "It is new york.", "new york"),
        ("contains", "Paris", "London", None),
        ("choice", "B", "the answer is (c)", "C"),
        ("choice", "B", "A or B", None),
    ],
)
def test_equal_answers_are_extracted_in_one_form(name, answer, text, extracted):
    assert make_verifier(name).judge(text, answer, {}).extracted == extracted


@pytest.mark.parametrize(
    ("pattern", "answer", "text", "expected"),
    [
        (r"Answer: (\w+)", "paris", "Answer: Rome\nAnswer: Paris.", Verdict("paris", 1.0)),
        (r"\d+", 7, "3 and 4 make 7", Verdict("7", 1.0)),
        (r"\d+", 7, "seven", Verdict(None, 0.0)),
        (r"x(\d)?", 7, "x", Verdict(None, 0.0)),
        (r"<a>(.*?)</a>", "Paris", "<a>Rome</a>", Verdict("rome", 0.0)),
    ],
)
def test_the_last_match_of_a_pattern_counts(pattern, answer, text, expected):
    assert make_verifier(f"regex:{pattern}").judge(text, answer, {}) == expected


def test_a_pattern_that_does_not_end_is_not_judged(monkeypatch):
    monkeypatch.setattr("probesweep.labelling.verifiers._PATTERN_SECONDS", 0.1)
    verifier = make_verifier(r"regex:^(a|aa)+$")
    assert verifier.judge("a" * 200 + "!", "a", {}) == Verdict(None, None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "numbers",
            "verifier 'numbers' is not one of exact, contains, number, choice, regex:PATTERN, math, python:FILE",
        ),
        ("regex:", "verifier 'regex:' is not one of"),
        ("regex:(", r"verifier 'regex:\(': missing \) at position 1; fix the pattern"),
        ("python:judge", "give the file and the function as python:FILE:FUNCTION"),
        ("python:no.py:judge", "there is no file no.py"),
    ],
)
def test_a_verifier_that_there_is_not(spec, message):
    with pytest.raises(RequestError, match=message) as raised:
        make_verifier(spec)
    assert raised.value.argument == "verifier"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        (
            "exact",
            ["a", None, None],
            "has 2 answers that the verifier exact cannot use, the first in row 1: None is null",
        ),
        ("exact", ["a", float("nan")], "row 1: nan is null"),
        ("exact", [float("inf")], "row 0: inf is infinite"),
        ("contains", [" "], "row 0: ' ' is empty"),
        ("exact", [["a", ""]], r"row 0: \['a', ''\] has an empty text"),
        ("exact", [[]], r"row 0: \[\] is a list without answers"),
        ("exact", [{"a": 1}], "row 0: {'a': 1} is neither text nor a number nor a list of these, but dict"),
        ("number", [7, "seven"], "row 1: 'seven' has no number, or several and does not say which is the answer"),
        ("number", ["3 or 4"], "row 0: '3 or 4' has no number, or several"),
        ("number", ["3/0"], "row 0: '3/0' has no number"),
        ("number", [True], "row 0: True has no number"),
        ("choice", ["B", "Paris"], "row 1: 'Paris' is no letter from A to J"),
        ("choice", ["K"], "row 0: 'K' is no letter from A to J"),
    ],
)
def test_reference_answers_that_cannot_be_used(name, answers, message):
    with pytest.raises(RequestError, match=message) as raised:
        check_answers(make_verifier(name), answers, "d.parquet: column 'answer'")
    assert raised.value.argument == "answer_column"
    assert str(raised.value).startswith("d.parquet: column 'answer' has ")


def test_numbers_that_would_take_for_ever_are_none():
    verifier = make_verifier("number")
    for text in ("1e999999999", "9" * 100_000, f"1/{'9' * 5000}", "10^999999999", "1,000" * 20_000, "- " * 50_000):
        verdict = verifier.judge(text, 7, {})
        assert verdict.correct == 0.0, (text[:20], verdict)


# A user's function


def function(tmp_path, code: str, name: str = "judge") -> Verifier:
    path = tmp_path / "mine.py"
    path.write_text(code)
    return make_verifier(f"python:{path}:{name}")


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("True", Verdict(None, 1.0)),
        ("False", Verdict(None, 0.0)),
        ("0.25", Verdict(None, 0.25)),
        ("None", Verdict(None, None)),
        ("numpy.bool_(True)", Verdict(None, 1.0)),
        ("numpy.float32(0.5)", Verdict(None, 0.5)),
        ("(True, '7')", Verdict("7", 1.0)),
        ("(None, None)", Verdict(None, None)),
    ],
)
def test_a_users_function_says_what_is_right(tmp_path, returned, expected):
    verifier = function(tmp_path, f"import numpy\ndef judge(text, row):\n    return {returned}\n")
    assert verifier.judge("7", "7", {}) == expected


def test_a_users_function_gets_the_text_and_the_row(tmp_path):
    (tmp_path / "beside.py").write_text("def same(one, other):\n    return one == other\n")
    code = "from beside import same\ndef judge(text, row):\n    return same(text, row['answer'] + row['unit'])\n"
    verifier = function(tmp_path, code)
    assert verifier.why_unusable(None) is None
    assert verifier.judge("7 km", None, {"answer": "7", "unit": " km"}).correct == 1.0


def test_another_content_is_another_verifier(tmp_path):
    one = function(tmp_path, "def judge(text, row):\n    return True\n").name
    assert re.fullmatch(r"python:mine.py:judge sha256:[0-9a-f]{64}", one)
    assert function(tmp_path, "def judge(text, row):\n    return False\n").name != one


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def judge(text, row):\n    return row['no']\n", "python:mine.py:judge raised KeyError: 'no'"),
        ("def judge(text, row):\n    raise ValueError('a\\nb')\n", "raised ValueError: a b"),
        ("def judge(text, row):\n    return 2\n", r"returned 2; return true or false, a share in \[0, 1\], or None"),
        ("def judge(text, row):\n    return float('nan')\n", "returned nan"),
        ("def judge(text, row):\n    return 'yes'\n", "returned 'yes'"),
    ],
)
def test_a_users_function_that_fails(tmp_path, code, message):
    verifier = function(tmp_path, code)
    with pytest.raises(VerifierError, match=message):
        verifier.judge("7", "7", {})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other():\n    pass\n", "mine.py has no function judge"),
        ("judge = 3\n", "mine.py has no function judge"),
        ("def judge(:\n", "mine.py cannot be run: SyntaxError"),
        ("import no_such_package\n", "mine.py cannot be run: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", "mine.py cannot be run: SystemExit: 3"),
    ],
)
def test_a_file_that_has_no_such_function(tmp_path, code, message):
    with pytest.raises(RequestError, match=message) as raised:
        function(tmp_path, code)
    assert raised.value.argument == "verifier"
