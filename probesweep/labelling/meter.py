"""A progress bar: questions, attempts per second, and the share that is right so far."""

from __future__ import annotations

from collections.abc import Iterator

from tqdm import tqdm

from activation_store.bars import at_terminal
from probesweep.labelling.columns import Attempt
from probesweep.labelling.engines.engine import Batch

# A batch, and the attempts at each of its questions.
Judged = tuple[Batch, list[list[Attempt]]]


def metered(judged: Iterator[Judged], n_questions: int, n_done: int) -> Iterator[Judged]:
    """The same batches, with a bar at a terminal.

    Parameters
    ----------
    judged : iterator
    n_questions : int
        In all.
    n_done : int
        Those that an earlier run has done.
    """
    n_attempts = n_judged = 0
    n_right = 0.0
    with tqdm(total=n_questions, initial=n_done, unit="question", desc="label", disable=not at_terminal()) as bar:
        for batch, attempts in judged:
            yield batch, attempts
            verdicts = [one.correct for of_row in attempts for one in of_row]
            n_attempts += len(verdicts)
            n_judged += sum(verdict is not None for verdict in verdicts)
            n_right += sum(filter(None, verdicts))
            right = f"{n_right / n_judged:.2f}" if n_judged else "-"
            seconds = bar.format_dict["elapsed"] or 1
            bar.set_postfix_str(f"{n_attempts / seconds:.1f} attempts/s, {right} right", refresh=False)
            bar.update(len(batch))
