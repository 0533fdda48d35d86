"""What a finished training found, read from its files, as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_probes.folder import RUN, Run, read_document

_BEST = "best_probe_predictions.json"
_WIDTH = 36


def summarize(folder: Path) -> str:
    """Tables of the scores by position and of the best probe beside its baselines.

    Parameters
    ----------
    folder : Path
        Of the results.
    """
    run = Run.load(folder)
    performance, inference = (read_document(folder / name) for name in ("performance.json", "inference.json"))
    axes = f"{performance['n_layers']} layers x {performance['n_positions']} positions"
    lines = [
        f"{axes}, {performance['task_type']} ({performance['probe']})",
        "layer: index into hidden_states (0 = embeddings, last = after the final norm); position: -1 = last token",
        *_undefined(performance),
        *_rows_that_repeat(inference),
    ]
    if not performance["k_fold"]:
        lines += ["", "No best probe is chosen: the only scores to choose by are the test scores. Add --k_fold."]
    elif _BEST not in run.files:
        lines += ["", "No best probe: no cell has a CV score."]
    else:
        best = read_document(folder / _BEST)
        lines += ["", *_by_position(performance, run), "", *_best(best, performance, inference, run)]
    return "\n".join(line.rstrip() for line in [*lines, "", f"results in {folder}: {', '.join([*run.files, RUN])}"])


def describe(folder: Path) -> dict[str, Any]:
    """What `summarize` says of the best probe and how far to trust it, ready for JSON."""
    run = Run.load(folder)
    performance, inference = (read_document(folder / name) for name in ("performance.json", "inference.json"))
    best = read_document(folder / _BEST) if _BEST in run.files else None
    return {
        "folder": str(folder),
        "files": [*run.files, RUN],
        "task_type": performance["task_type"],
        "metric": performance["metric"],
        "best": best
        and {
            "layer": best["best_layer_number"],
            "position": best["best_position"],
            "alpha": best["selected_alpha"],
            "cv_score": best["cv_score"],
            "test_score": best["test_score"],
        },
        "nested_cv_score": inference["nested_cv"]["score"],
        "p": inference["permutation"]["p_best"],
        "intervals": {name: inference["intervals"][name] for name in ("test_score", "nested_cv_score")},
        "baselines": {
            name: {"cv_score": one["cv_score"], "test_score": one["test_score"]}
            for name, one in inference["baselines"].items()
        },
        "status_counts": performance["status_counts"],
    }


def _undefined(performance: dict[str, Any]) -> list[str]:
    reasons = list(performance["undefined"].values())
    return [f"{reasons.count(reason)} cells without a score: {reason}" for reason in dict.fromkeys(reasons)]


def _rows_that_repeat(inference: dict[str, Any]) -> list[str]:
    groups, overlap = inference["groups"], inference["overlap"]
    lines: list[str] = []
    repeated = groups["n_repeated_but_for_case_and_whitespace"]
    if repeated:
        letter = groups["n_repeated_prompts"]
        lines.append(f"{repeated} training prompts repeat an earlier one ({letter} to the letter): held out together")
    if overlap["n_shared"] is None:
        what = "shared prompts" if repeated is not None else "repeated and shared prompts"
        lines.append(f"{what}, their length and words: not known, {overlap['reason']}")
    elif overlap["n_shared"]:
        what = "scored apart" if overlap["dropped"] else "scored with the others; --drop_overlap scores them apart"
        lines.append(f"{overlap['n_shared']} test prompts are among the training prompts: {what}")
    return lines


def _by_position(performance: dict[str, Any], run: Run) -> list[str]:
    """The best layer of each position."""
    scores, layers = performance["layer_performance"], performance["layer_indices"]
    lines = [f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  ({performance['metric']})"]
    for index, position in enumerate(performance["positions"]):
        cv = scores["cv"][index]
        defined = [layer for layer, score in enumerate(cv) if score is not None]
        if defined:
            layer = max(defined, key=lambda layer: cv[layer])
            label = f"position {position}{_token(run, index)}: layer {layers[layer]}"
            lines.append(_row(label, cv[layer], scores["test"][index][layer]))
    return lines


def _best(best: dict[str, Any], performance: dict[str, Any], inference: dict[str, Any], run: Run) -> list[str]:
    nested, intervals, permutation = inference["nested_cv"], inference["intervals"], inference["permutation"]
    where = (
        f"layer {best['best_layer_number']}, position {best['best_position']}{_token(run, best['best_position_idx'])}"
    )
    lines = [
        f"best probe by CV: {where}, alpha {best['selected_alpha']:g}",
        f"{'':{_WIDTH}}{'CV':>8}{'test':>8}  95 % interval     best minus this, 95 % interval",
        _row("best probe", best["cv_score"], best["test_score"]) + _interval(intervals["test_score"]),
    ]
    lines += [
        _row(one["title"], one["cv_score"], one["test_score"])
        + _interval(one["test_interval"])
        + _interval(one["difference"], with_estimate=True)
        for one in inference["baselines"].values()
    ]
    scores = performance["layer_performance"]["cv"]
    n_scored = sum(score is not None for row in scores for score in row)
    lines += ["", f"The best CV score is the highest of {n_scored} cells and the alphas tried, so optimistic."]
    if nested["score"] is None:
        lines.append(f"No honest estimate of it: {nested['reason']}.")
    else:
        lines.append(
            f"Nested CV, the honest estimate of the choice: {nested['score']:.3f}"
            f"{_interval(intervals['nested_cv_score']).rstrip()} ({nested['optimism']:+.3f} optimism)."
        )
    missing = {
        name: found["reason"] for name, found in intervals.items() if isinstance(found, dict) and found["reason"]
    }
    lines += [
        f"No interval of the {name.replace('_', ' ').replace('cv', 'CV')}: {reason}."
        for name, reason in missing.items()
    ]
    if permutation["p_best"] is not None:
        n = permutation["n_permutations"]
        lines.append(f"Shuffled labels do as well in some cell: p = {permutation['p_best']:.4g} ({n} shuffles).")
    elif permutation["reason"] != "permutations were not asked for":
        lines.append(f"No p-value: {permutation['reason']}.")
    return [*lines, "The test score chose nothing."]


def _token(run: Run, index: int) -> str:
    tokens = run.position_tokens
    return f" {tokens[index]!r}" if index < len(tokens) and tokens[index] else ""


def _row(label: str, *scores: float | None) -> str:
    return f"{label:{_WIDTH}}" + "".join(f"{'-' if score is None else format(score, '.3f'):>8}" for score in scores)


def _interval(interval: dict[str, Any] | None, *, with_estimate: bool = False) -> str:
    if interval is None or interval["low"] is None:
        return f"{'':17}"
    estimate = f"{interval['estimate']:7.3f}" if with_estimate else ""
    return f"{estimate}  [{interval['low']:.3f}, {interval['high']:.3f}]".ljust(17)
