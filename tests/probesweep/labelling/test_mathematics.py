"""math-verify in processes: its verdicts, and that nothing it meets stops a run."""

import os
import signal
import sys
import time

import pytest

from probesweep.errors import RequestError
from probesweep.labelling.mathematics import MathVerifier
from probesweep.labelling.verdict import Verdict, Verifier, check_answers
from probesweep.labelling.verifiers import make_verifier
from tests.probesweep.labelling.answers import FORMULAS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verifier():
    pytest.importorskip("math_verify")
    return make_verifier("math")


@pytest.mark.parametrize(("answer", "text", "verdict"), FORMULAS)
def test_verdicts_are_those_written_by_hand(verifier, answer, text, verdict):
    assert verifier.why_unusable(answer) is None
    assert verifier.judge(text, answer, {}).correct == verdict


def test_it_keeps_the_protocol(verifier):
    assert isinstance(verifier, Verifier)
    assert verifier.name == "math"
    assert verifier.judge("\\boxed{\\frac{2}{4}}", "0.5", {}) == Verdict("1/2", 1.0)


def test_reference_answers_without_a_formula(verifier):
    with pytest.raises(RequestError, match="row 1: None is null"):
        check_answers(verifier, ["7", None], "d.parquet: column 'answer'")


def test_what_takes_too_long_is_null_and_the_next_answer_is_judged():
    pytest.importorskip("math_verify")
    verifier = MathVerifier.start(limit_s=1.0)
    begun = time.monotonic()
    assert verifier.judge("$10^{10^{10^{10}}} - 3^{3^{3^{3^{3}}}}$", "\\sin(7^{7^{7^{7}}})", {}) == Verdict(None, None)
    assert time.monotonic() - begun < 5
    assert verifier.judge("$x + 1$", "1 + x", {}).correct == 1.0


def test_a_process_that_dies_is_replaced():
    pytest.importorskip("math_verify")
    verifier = MathVerifier.start()
    [worker] = verifier._idle
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    assert verifier.judge("$7$", "7", {}) == Verdict(None, None)
    assert verifier.judge("$7$", "7", {}).correct == 1.0


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RequestError, match=r"math-verify is not installed; pip install 'probesweep\[math\]'"):
        make_verifier("math")
