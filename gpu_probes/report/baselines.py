"""Which baseline is hardest to beat."""

from __future__ import annotations

from typing import Any

from gpu_probes.report.load import SavedResults


def strongest(results: SavedResults) -> dict[str, Any] | None:
    """The baseline with the highest test score or, where there are none, the highest CV score."""
    baselines: list[dict[str, Any]] = list(results.part("baselines").values())
    for score in ("test_score", "cv_score"):
        scored = [one for one in baselines if one[score] is not None]
        if scored:
            return max(scored, key=lambda one: one[score])
    return None
