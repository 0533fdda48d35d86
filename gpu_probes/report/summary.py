"""What a finished training found, read from its files, as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_probes.display.wording import AVERAGING, number, one_line, statistic_text
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import Run
from gpu_probes.results.forms import Best, Performance
from gpu_probes.results.inference import BaselineScores, ClassScores, Evidence, Intervals
from gpu_probes.scores.intervals import Interval
from gpu_probes.terms import TaskType

_WIDTH = 36
_MOST_CLASSES = 20


def summarize(folder: Path) -> str:
    """Tables of the scores by position, and of the best probe and its baselines.

    Parameters
    ----------
    folder : Path
        Result folder.

    Raises
    ------
    ProbeError
        When the folder holds no finished training, or its files were changed.
    """
    results = Results.load(folder)
    performance, evidence = results.performance, results.evidence or Evidence()
    axes = f"{performance.n_layers} layers x {performance.n_positions} positions"
    lines = [
        f"{axes}, {performance.task_type} ({results.probes.header.probe}{_weighted(results)})",
        "layer: index into hidden_states (0 = embeddings, last = after the final norm); position: -1 = last token",
        *_undefined(performance),
        *_rows_that_repeat(evidence, has_test=results.run.request.test is not None),
    ]
    if not performance.k_fold:
        lines += ["", "No best probe is chosen: only the test scores are left to choose by. Add k_fold=True."]
    elif results.best is None:
        lines += ["", "No best probe: no cell has a CV score."]
    else:
        lines += ["", *_by_position(performance, results.run), "", *_best(results.best, results, evidence)]
    return "\n".join(line.rstrip() for line in [*lines, "", f"results in {folder}: {', '.join(results.files)}"])


def describe(folder: Path) -> dict[str, Any]:
    """What `summarize` says about the best probe and how far to trust it, ready for JSON."""
    return describe_results(Results.load(folder))


def describe_results(results: Results) -> dict[str, Any]:
    """The same for a folder already read; what folders of earlier versions lack is None or left out."""
    performance, best, evidence = results.performance, results.best, results.evidence or Evidence()
    intervals = evidence.intervals
    return {
        "folder": str(results.folder),
        "files": results.files,
        "task_type": performance.task_type,
        "metric": performance.metric,
        **_about_classes(performance),
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
        "p_statistic": evidence.permutation and evidence.permutation.statistic,
        "intervals": {
            "test_score": _json(intervals and intervals.test_score),
            "nested_cv_score": _json(intervals and intervals.nested_cv_score),
        },
        **_about_ceilings(performance, evidence),
        "baselines": {
            name: {"cv_score": one.cv_score, "test_score": one.test_score}
            for name, one in (evidence.baselines or {}).items()
        },
        "status_counts": performance.status_counts,
    }


def _about_classes(performance: Performance) -> dict[str, Any]:
    """What is said of classes, as far as there is something to say."""
    names = performance.class_names
    about = {
        "class_names": None if names is None else list(names),
        "positive_class": performance.positive_class,
        "averaging": performance.averaging,
    }
    return {name: value for name, value in about.items() if value is not None}


def _about_ceilings(performance: Performance, evidence: Evidence) -> dict[str, Any]:
    """The best scores that any predictor can reach, if labels are shares of attempts."""
    if evidence.ceiling is None:
        return {}
    found = {split: evidence.ceiling_of(split, performance.metric) for split in evidence.ceiling}
    return {"ceiling": {split: _json(one) for split, one in found.items()}}


def _json(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_json()


def _weighted(results: Results) -> str:
    column = results.run.request.options.get("weight_column")
    return f", rows weighted by {one_line(column)}" if column else ""


def _metric(performance: Performance) -> str:
    n_classes = len(performance.classes or ())
    return f"{performance.metric}, {AVERAGING}" if n_classes > 2 else performance.metric


def _classes(performance: Performance, evidence: Evidence) -> list[str]:
    """Each class of the best probe's held-out predictions; the confusion matrix of these is in the report."""
    scores = (evidence.scores or {}).get("cv")
    if not isinstance(scores, ClassScores) or scores.by_class is None:
        return []
    names = ("precision", "recall", "f1", "roc_auc")
    lines = [f"{'class, training rows held out in CV':{_WIDTH}}{'n':>8}" + "".join(f"{name:>11}" for name in names)]
    for one in scores.by_class[:_MOST_CLASSES]:
        values = "".join(f"{number(getattr(one, name)):>11}" for name in names)
        lines.append(f"{one_line(one.name):{_WIDTH}}{one.support:>8}{values}")
    more = len(scores.by_class) - _MOST_CLASSES
    lines += [f"... and {more} more classes, in inference.json"] if more > 0 else []
    if performance.positive_class is not None:
        lines.append(f"positive class, whose probability is scored: {one_line(performance.positive_class)}")
    return ["", *lines]


def _undefined(performance: Performance) -> list[str]:
    reasons = list(performance.undefined.values())
    counts = {reason: reasons.count(reason) for reason in reasons}
    return [f"{n} {'cell has' if n == 1 else 'cells have'} no score: {reason}" for reason, n in counts.items()]


def _rows_that_repeat(evidence: Evidence, *, has_test: bool) -> list[str]:
    groups, overlap = evidence.groups, evidence.overlap
    lines: list[str] = []
    repeated = None if groups is None else groups.n_repeated_but_for_case_and_whitespace
    if groups is not None and repeated:
        exact = groups.n_repeated_prompts
        lines.append(f"training prompts that repeat an earlier one: {repeated} ({exact} verbatim), held out together")
    if overlap is None or not has_test:
        return lines
    if overlap.n_shared is None:
        what = "prompts shared by train and test" if repeated is not None else "repeated and shared prompts"
        lines.append(f"{what}, prompt length and words: unknown, {overlap.reason}")
    elif overlap.n_shared:
        how = "scored separately" if overlap.dropped else "scored as test rows (drop_overlap=True: separately)"
        lines.append(f"test prompts that also occur in training: {overlap.n_shared}, {how}")
    return lines


def _by_position(performance: Performance, run: Run) -> list[str]:
    """The best layer of each position."""
    scores, layers = performance.layer_performance, performance.layer_indices
    lines = [f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  ({_metric(performance)})"]
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
        f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  95 % interval     lead over baseline, 95 % interval",
        _row("best probe", best.cv_score, best.test_score) + _interval(intervals.test_score),
        *map(_baseline, (evidence.baselines or {}).values()),
    ]
    n_scored = sum(score is not None for row in results.performance.layer_performance.cv or () for score in row)
    lines += ["", f"The best CV score is the highest over {n_scored} cells and every alpha, so it is biased upwards."]
    tested = "There is no test set." if best.test_actual is None else "The test set played no part in any choice."
    lines += [
        *_nested(evidence, intervals),
        *_p_value(evidence, results.performance.task_type),
        tested,
        *_ceiling(evidence, best.metric),
    ]
    return [*lines, *_classes(results.performance, evidence)]


def _baseline(one: BaselineScores) -> str:
    scores = _row(one.title, one.cv_score, one.test_score)
    return scores + _interval(one.test_interval) + _interval(one.difference, with_estimate=True)


def _nested(evidence: Evidence, intervals: Intervals) -> list[str]:
    """The nested CV score, and which intervals are missing or doubtful."""
    nested = evidence.nested_cv
    if nested is None:
        return ["No nested CV score: it is not in inference.json."]
    if nested.score is None:
        lines = [f"No nested CV score: {nested.reason}."]
    else:
        lines = [
            f"Nested CV, the score to publish: {nested.score:.3f}"
            f"{_interval(intervals.nested_cv_score).rstrip()} (optimism {nested.optimism:+.3f})."
        ]
    named = {"test score": intervals.test_score, "nested CV score": intervals.nested_cv_score}
    known = {name: one for name, one in named.items() if one is not None}
    lines += [f"No interval for the {name}: {one.reason}." for name, one in known.items() if one.reason]
    return lines + [f"Caution, interval of the {name}: {one.note}." for name, one in known.items() if one.note]


def _ceiling(evidence: Evidence, metric: str) -> list[str]:
    """The best scores that any predictor can reach, or why they are unknown; nothing where labels are no shares."""
    lines: list[str] = []
    for split, found in (evidence.ceiling or {}).items():
        name = "CV" if split == "train" else "test"
        interval = found.scores.get(metric)
        if interval is None or interval.estimate is None:
            lines.append(f"No ceiling of the {name} score: {found.reason or (interval and interval.reason)}.")
            continue
        ends = _interval(interval).rstrip()
        lines.append(f"Ceiling, the best {name} score on labels of {found.attempts}: {interval.estimate:.3f}{ends}.")
        lines += [f"Caution, ceiling of the {name} score: {interval.note}."] if interval.note else []
    return lines


def _p_value(evidence: Evidence, task_type: TaskType) -> list[str]:
    found = evidence.permutation
    if found is None or found.reason == "permutations were not asked for":
        return []
    if found.p_best is None:
        return [f"No p-value: {found.reason}."]
    test = f"Permutation test over all cells{statistic_text(found.statistic, task_type)}"
    return [f"{test}: p = {found.p_best:.4g} ({found.n_permutations} permutations)."]


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
