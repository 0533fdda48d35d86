"""Attempts per second against `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.label.subject import BATCH_SIZE, MAX_NEW_TOKENS, Subject
from benchmarks.shared.measure import Contender, Limit, Spread, Table, Target, Timings, WrongResultError, interleave
from probesweep.labelling.sampling import Sampling

SAMPLING = Sampling(n_samples=8, max_new_tokens=MAX_NEW_TOKENS)
OURS, GENERATE = "probesweep", f"generate, {BATCH_SIZE} prompts x 8 sequences"
# About 300 tokens that every prompt begins with.
SHARED = "Read the rules before you answer. " + " ".join(
    f"Rule {number}: answer with one word or one number, and do not explain it." for number in range(1, 17)
)


def measure_speed(subject: Subject, *, n_rounds: int) -> tuple[Sequence[Table], Sequence[Target | Limit]]:
    """Sample 8 attempts at each question with 16 tokens at most, alone and after a long system prompt."""
    tables: list[Table] = []
    targets: list[Target | Limit] = []
    # `generate` runs the long prompts once for each attempt: on two cores, minutes for each batch.
    jobs = ("the questions", None, None, 2.0), ("after a shared prompt", SHARED, BATCH_SIZE, 6.0)
    for title, system_prompt, n_questions, goal in jobs:
        model = subject.model(system_prompt, n_questions)
        n_tokens = model.encoded.n_tokens
        n_attempts = len(model.questions) * SAMPLING.n_attempts
        contenders = [
            _contender(OURS, partial(subject.ours, model, SAMPLING), n_attempts),
            _contender(GENERATE, partial(subject.generated, model, SAMPLING), n_attempts),
        ]
        timings = interleave(contenders, n_rounds=n_rounds, n_bytes=1, n_warm_ups=0)
        about = f"{title}: prompts of {n_tokens.min()} to {n_tokens.max()} tokens, {n_attempts} attempts"
        tables.append(_table(about, timings, n_attempts))
        targets.append(Target(f"{title}: attempts/s / generate", goal, timings.ratio(OURS, GENERATE)))
    return tables, targets


def _contender(name: str, sample: Callable[[], list[list[str]]], n_attempts: int) -> Contender:
    found: list[list[list[str]]] = []

    def check(_round: int) -> None:
        if sum(map(len, found.pop())) != n_attempts:
            raise WrongResultError(f"{name} returned another number of attempts")

    return Contender(name, lambda _: lambda: found.append(sample()), check)


def _table(title: str, timings: Timings, n_attempts: int) -> Table:
    rows = [
        {
            "contender": name,
            "attempts/s": Spread.of([n_attempts / one for one in seconds]),
            "x generate": timings.ratio(name, GENERATE),
        }
        for name, seconds in timings.seconds.items()
    ]
    return Table(title, rows)
