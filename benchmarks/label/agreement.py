"""Whether answers are those of `generate`, and whether they depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from benchmarks.label.subject import MAX_NEW_TOKENS, Subject
from benchmarks.shared.measure import Limit, Spread, Table, Target
from probesweep.labelling.sampling import Sampling
from probesweep.labelling.verifiers import make_verifier

# As the shipped labels were sampled.
SAMPLING = Sampling(n_samples=8, temperature=0.4, max_new_tokens=MAX_NEW_TOKENS)
GREEDY = Sampling(temperature=0, max_new_tokens=MAX_NEW_TOKENS)
BATCH_SIZES = (1, 3, 16)
_N_SIMULATED = 20_000


def measure_agreement(subject: Subject, *, n_compared: int) -> tuple[Sequence[Table], Sequence[Target | Limit]]:
    """Compare rates with those of `generate`, greedy answers token for token, and batch sizes with each other."""
    model = subject.model()
    ours = _n_right(subject, subject.ours(model, SAMPLING))
    theirs = _n_right(subject, subject.generated(model, SAMPLING))
    p = p_same_rates(ours, theirs, SAMPLING.n_attempts)
    greedy, one_by_one = subject.ours(model, GREEDY), subject.generated(model, GREEDY, batch_size=1)
    n_equal = sum(a == b for a, b in zip(greedy, one_by_one, strict=True))
    few = subject.model(n_questions=n_compared)
    by_size = [subject.ours(few, SAMPLING, size) for size in BATCH_SIZES]
    n_attempts = len(few.questions) * SAMPLING.n_attempts
    differing = [
        100
        * sum(a != b for x, y in zip(by_size[0], other, strict=True) for a, b in zip(x, y, strict=True))
        / n_attempts
        for other in by_size[1:]
    ]
    n_questions = len(model.questions)
    share = 1 / (n_questions * SAMPLING.n_attempts)
    rows = [
        {
            "compared": f"rates on {n_questions} questions, 8 attempts at temperature 0.4",
            "ours": f"{ours.sum() * share:.3f}",
            "generate": f"{theirs.sum() * share:.3f}",
            "result": f"p = {p:.2f} that all rates are equal",
        },
        {
            "compared": "greedy answers, one by one by generate",
            "ours": str(n_questions),
            "generate": str(n_questions),
            "result": f"{n_equal} are equal",
        },
        *(
            {
                "compared": f"{n_attempts} attempts in batches of {size} questions and of 1",
                "ours": str(n_attempts),
                "generate": "-",
                "result": f"{percent:.2f} % differ",
            }
            for size, percent in zip(BATCH_SIZES[1:], differing, strict=True)
        ),
    ]
    return [Table("agreement", rows)], [
        Target("p-value of equal rates, ours and generate's", 0.01, Spread.of([p])),
        Target("share of greedy answers that are generate's", 1.0, Spread.of([n_equal / n_questions])),
        Limit("attempts that differ between batch sizes, %", 1.0, Spread.of(differing)),
    ]


def p_same_rates(ours: Int64[np.ndarray, " question"], theirs: Int64[np.ndarray, " question"], k: int) -> float:
    """p-value of two counts of k attempts for each question having the same rates, whatever these are.

    Given what both got right together, one of them is hypergeometric; the statistic is the sum of squared differences.
    """
    total = ours + theirs
    rng = np.random.default_rng(0)
    simulated = rng.hypergeometric(total, 2 * k - total, k, size=(_N_SIMULATED, len(total)))
    statistic = ((2 * simulated - total) ** 2).sum(1)
    return float((1 + (statistic >= ((2 * ours - total) ** 2).sum()).sum()) / (1 + _N_SIMULATED))


def _n_right(subject: Subject, answers: Sequence[Sequence[str]]) -> Int64[np.ndarray, " question"]:
    verifier = make_verifier("contains")
    return np.array(
        [
            sum(verifier.judge(text, right, {}).correct == 1 for text in of_row)
            for of_row, right in zip(answers, subject.answers, strict=True)
        ]
    )
