"""Trainings that differ in their seed only: how much their scores differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpu_probes.report.summary import describe_results
from gpu_probes.results.documents import Results

_SCORES = {
    "nested_cv_score": "nested CV, the score to publish",
    "cv_score": "best CV (biased upwards)",
    "test_score": "test",
}


def compare_seeds(results: Mapping[int, Results]) -> dict[str, Any]:
    """Scores of every seed, their mean and standard deviation (``n - 1``), ready for JSON.

    Parameters
    ----------
    results : mapping of Results
        By seed, of one label.

    Returns
    -------
    dict
        A mean and a deviation are None, with a reason, where a seed has no score; a deviation also of a single seed.
    """
    found = {seed: describe_results(one) for seed, one in results.items()}
    best = {seed: one["best"] or {} for seed, one in found.items()}
    scores = {
        "nested_cv_score": {seed: one["nested_cv_score"] for seed, one in found.items()},
        "cv_score": {seed: one.get("cv_score") for seed, one in best.items()},
        "test_score": {seed: one.get("test_score") for seed, one in best.items()},
    }
    return {
        "metric": next(iter(found.values()))["metric"],
        **{name: _spread(values) for name, values in scores.items()},
        "p": [one["p"] for one in found.values()],
        "best": [{name: one.get(name) for name in ("layer", "position", "alpha")} for one in best.values()],
        "folders": [one["folder"] for one in found.values()],
    }


def tabulate_seeds(label: str, seeds: Sequence[int], found: Mapping[str, Any]) -> str:
    """The same as a table."""
    lines = [
        f"{label}: {found['metric']} with seeds {', '.join(map(str, seeds))}",
        f"{'':36}{'mean':>8}{'SD':>8}  by seed",
    ]
    for name, title in _SCORES.items():
        one = found[name]
        by_seed = " ".join(map(_number, one["values"]))
        lines.append(f"{title:36}{_number(one['mean']):>8}{_number(one['sd']):>8}  {by_seed}")
        if one["reason"]:
            lines.append(f"  {one['reason']}")
    places = [
        f"layer {best['layer']}, position {best['position']}" for best in found["best"] if best["layer"] is not None
    ]
    chosen = {place: places.count(place) for place in sorted(set(places), key=places.index)}
    if chosen:
        lines.append("best cell: " + "; ".join(f"{place} ({n} of {len(seeds)})" for place, n in chosen.items()))
    return "\n".join(lines)


def _spread(scores: Mapping[int, float | None]) -> dict[str, Any]:
    values = list(scores.values())
    missing = [seed for seed, score in scores.items() if score is None]
    known = np.array([score for score in values if score is not None])
    reason = None
    if missing:
        reason = f"no mean: seed {missing[0]} has no such score"
    elif len(known) == 1:
        reason = "no SD: there is only one seed"
    return {
        "values": values,
        "mean": None if missing else float(known.mean()),
        "sd": None if missing or len(known) == 1 else float(known.std(ddof=1)),
        "reason": reason,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
