"""What a finished training found, read from its files, as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_probes.results.documents import Results
from gpu_probes.results.folder import Run
from gpu_probes.results.forms import Best, Performance
from gpu_probes.results.inference import BaselineScores, Evidence, Intervals
from gpu_probes.scores.intervals import Interval

_WIDTH = 36


def summarize(folder: Path) -> str:
    """Tables of the scores by position and of the best probe beside its baselines.

    Parameters
    ----------
    folder : Path
        Of the results.

    Raises
    ------
    ProbeError
        When the folder holds no finished training, or its files are not as they were written.
    """
    results = Results.load(folder)
    performance, evidence = results.performance, results.evidence or Evidence()
    axes = f"{performance.n_layers} layers x {performance.n_positions} positions"
    lines = [
        f"{axes}, {performance.task_type} ({results.probes.header.probe})",
        "layer: index into hidden_states (0 = embeddings, last = after the final norm); position: -1 = last token",
        *_undefined(performance),
        *_rows_that_repeat(evidence),
    ]
    if not performance.k_fold:
        lines += ["", "No best probe is chosen: the only scores to choose by are the test scores. Add --k_fold."]
    elif results.best is None:
        lines += ["", "No best probe: no cell has a CV score."]
    else:
        lines += ["", *_by_position(performance, results.run), "", *_best(results.best, results, evidence)]
    return "\n".join(line.rstrip() for line in [*lines, "", f"results in {folder}: {', '.join(results.files)}"])


def describe(folder: Path) -> dict[str, Any]:
    """What `summarize` says of the best probe and how far to trust it, ready for JSON."""
    return describe_results(Results.load(folder))


def describe_results(results: Results) -> dict[str, Any]:
    """The same of a folder that is read; what folders of earlier versions do not say is None or left out."""
    performance, best, evidence = results.performance, results.best, results.evidence or Evidence()
    intervals = evidence.intervals
    return {
        "folder": str(results.folder),
        "files": results.files,
        "task_type": performance.task_type,
        "metric": performance.metric,
        "best": best
        and {
            "layer": best.best_layer_number,
            "position": best.best_position,
            "alpha": best.selected_alpha,
            "cv_score": best.cv_score,
            "test_score": best.test_score,
        },
        "nested_cv_score": evidence.nested_cv and evidence.nested_cv.score,
        "p": evidence.permutation and evidence.permutation.p_best,
        "intervals": {
            "test_score": _json(intervals and intervals.test_score),
            "nested_cv_score": _json(intervals and intervals.nested_cv_score),
        },
        "baselines": {
            name: {"cv_score": one.cv_score, "test_score": one.test_score}
            for name, one in (evidence.baselines or {}).items()
        },
        "status_counts": performance.status_counts,
    }


def _json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_json()


def _undefined(performance: Performance) -> list[str]:
    reasons = list(performance.undefined.values())
    return [f"{reasons.count(reason)} cells without a score: {reason}" for reason in dict.fromkeys(reasons)]


def _rows_that_repeat(evidence: Evidence) -> list[str]:
    groups, overlap = evidence.groups, evidence.overlap
    lines: list[str] = []
    repeated = None if groups is None else groups.n_repeated_but_for_case_and_whitespace
    if groups is not None and repeated:
        letter = groups.n_repeated_prompts
        lines.append(f"{repeated} training prompts repeat an earlier one ({letter} to the letter): held out together")
    if overlap is None:
        return lines
    if overlap.n_shared is None:
        what = "shared prompts" if repeated is not None else "repeated and shared prompts"
        lines.append(f"{what}, their length and words: not known, {overlap.reason}")
    elif overlap.n_shared:
        what = "scored apart" if overlap.dropped else "scored with the others; --drop_overlap scores them apart"
        lines.append(f"{overlap.n_shared} test prompts are among the training prompts: {what}")
    return lines


def _by_position(performance: Performance, run: Run) -> list[str]:
    """The best layer of each position."""
    scores, layers = performance.layer_performance, performance.layer_indices
    lines = [f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  ({performance.metric})"]
    for index, (position, cv) in enumerate(zip(performance.positions, scores.cv or (), strict=True)):
        defined = [(score, -layer) for layer, score in enumerate(cv) if score is not None]
        if defined:
            score, layer = max(defined)
            label = f"position {position}{_token(run, index)}: layer {layers[-layer]}"
            lines.append(_row(label, score, None if scores.test is None else scores.test[index][-layer]))
    return lines


def _best(best: Best, results: Results, evidence: Evidence) -> list[str]:
    intervals = evidence.intervals or Intervals(test_score=None, nested_cv_score=None, best_minus_cell=())
    where = f"layer {best.best_layer_number}, position {best.best_position}"
    lines = [
        f"best probe by CV: {where}{_token(results.run, best.best_position_idx)}, alpha {best.selected_alpha:g}",
        f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  95 % interval     best minus this, 95 % interval",
        _row("best probe", best.cv_score, best.test_score) + _interval(intervals.test_score),
        *map(_baseline, (evidence.baselines or {}).values()),
    ]
    n_scored = sum(score is not None for row in results.performance.layer_performance.cv or () for score in row)
    lines += ["", f"The best CV score is the highest of {n_scored} cells and the alphas tried, so optimistic."]
    return [*lines, *_honest(evidence, intervals), *_p_value(evidence), "The test score chose nothing."]


def _baseline(one: BaselineScores) -> str:
    scores = _row(one.title, one.cv_score, one.test_score)
    return scores + _interval(one.test_interval) + _interval(one.difference, with_estimate=True)


def _honest(evidence: Evidence, intervals: Intervals) -> list[str]:
    """The nested CV score, and which intervals there are not."""
    nested = evidence.nested_cv
    if nested is None:
        return ["No honest estimate of it: it is not in inference.json."]
    if nested.score is None:
        lines = [f"No honest estimate of it: {nested.reason}."]
    else:
        lines = [
            f"Nested CV, the honest estimate of the choice: {nested.score:.3f}"
            f"{_interval(intervals.nested_cv_score).rstrip()} ({nested.optimism:+.3f} optimism)."
        ]
    named = {"test score": intervals.test_score, "nested CV score": intervals.nested_cv_score}
    known = {name: one for name, one in named.items() if one is not None}
    lines += [f"No interval of the {name}: {one.reason}." for name, one in known.items() if one.reason]
    return lines + [f"Of the interval of the {name}: {one.note}." for name, one in known.items() if one.note]


def _p_value(evidence: Evidence) -> list[str]:
    found = evidence.permutation
    if found is None or found.reason == "permutations were not asked for":
        return []
    if found.p_best is None:
        return [f"No p-value: {found.reason}."]
    return [f"Shuffled labels do as well in some cell: p = {found.p_best:.4g} ({found.n_permutations} shuffles)."]


def _token(run: Run, index: int) -> str:
    tokens = run.position_tokens
    return f" {tokens[index]!r}" if index < len(tokens) and tokens[index] else ""


def _row(label: str, *scores: float | None) -> str:
    return f"{label:{_WIDTH}}" + "".join(f"{'-' if score is None else format(score, '.3f'):>8}" for score in scores)


def _interval(interval: Interval | None, *, with_estimate: bool = False) -> str:
    if interval is None or interval.low is None:
        return f"{'':17}"
    estimate = f"{interval.estimate:7.3f}" if with_estimate else ""
    return f"{estimate}  [{interval.low:.3f}, {interval.high:.3f}]".ljust(17)
