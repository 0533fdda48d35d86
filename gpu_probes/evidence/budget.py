"""Memory of a sweep's statistics, planned before the sweep, so that hours of work do not end out of memory."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_probes.evidence.baselines import N_RANDOM
from gpu_probes.search.planner import (
    Work,
    Workload,
    check_budget,
    held_nbytes,
    labels_nbytes,
    least_nbytes,
    plan_later,
    result_nbytes,
)
from gpu_probes.search.storage import Memory

# Bytes of a word in a vocabulary, and of a count in the sparse tables of a fit.
_WORD_NBYTES, _COUNT_NBYTES = 300, 60
# Vectors of one number for each word and output that a solver holds at its peak.
_RIDGE_VECTORS, _LBFGS_VECTORS = 12, 36
_FLOAT = 8


def check_statistics(
    workloads: Sequence[Workload],
    memory: Memory,
    train_prompts: Sequence[str] | None = None,
    test_prompts: Sequence[str] | None = None,
) -> None:
    """Check that everything that `infer` fits stays within the memory that a sweep's plan leaves.

    Parameters
    ----------
    workloads, memory : of a `PlannedSweep`, or from `check_sweep`
    train_prompts, test_prompts : of all rows, for the baseline of their words

    Raises
    ------
    BudgetError
        When something does not; names it and both numbers.
    """
    for workload in workloads:
        for work in plan_later(workload, n_directions=N_RANDOM, n_draws=N_RANDOM):
            check_budget(_needed_nbytes(work, memory), memory.budget_bytes, work.what)
        if train_prompts is not None and (test_prompts is not None or not workload.n_test):
            _check_texts(workload, memory, train_prompts, test_prompts or ())


def _needed_nbytes(work: Work, memory: Memory) -> int:
    results = work.n_cells * work.n_labels * result_nbytes(work.workload)
    held = held_nbytes(results, memory.free_nbytes) + work.n_labels * labels_nbytes(work.workload)
    return memory.held_nbytes + held + least_nbytes(work.workload)


def _check_texts(workload: Workload, memory: Memory, train: Sequence[str], test: Sequence[str]) -> None:
    """Plan the baseline of words; they are only counted where there could be too many."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word has two letters and something after it.
    most_words, most_counts = (sum(map(len, texts)) // 3 + 1 for texts in (train, [*train, *test]))
    if memory.held_nbytes + tfidf_nbytes(workload, most_words, most_counts) <= memory.budget_bytes:
        return
    words_of = TfidfVectorizer().build_analyzer()
    words: set[str] = set()
    n_counts = sum(len(set(words_of(text))) for text in test)
    for text in train:
        held = set(words_of(text))
        words |= held
        n_counts += len(held)
    needed = memory.held_nbytes + tfidf_nbytes(workload, len(words), n_counts)
    check_budget(needed, memory.budget_bytes, f"the baseline of {len(words):,} words (TF-IDF)")


def tfidf_nbytes(workload: Workload, n_words: int, n_counts: int) -> int:
    """Peak memory of scikit-learn's fits to words.

    Parameters
    ----------
    workload : of the sweep on the same rows
    n_words : different words of the training texts
    n_counts : different words of each text, summed over all texts
    """
    vectors = _RIDGE_VECTORS if workload.natural == "ridge" else _LBFGS_VECTORS
    rows = 6 * (workload.n_train + workload.n_test) * workload.n_outputs
    return _WORD_NBYTES * n_words + _COUNT_NBYTES * n_counts + _FLOAT * (vectors * n_words * workload.n_outputs + rows)
