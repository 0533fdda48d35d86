"""Which baseline is hardest to beat."""

from __future__ import annotations

from gpu_probes.report.load import SavedResults
from gpu_probes.results.inference import BaselineScores


def strongest(results: SavedResults) -> BaselineScores | None:
    """The baseline with the highest test score or, where there are none, the highest CV score."""
    baselines = list((results.evidence.baselines or {}).values())
    for name in ("test_score", "cv_score"):
        scored = [(getattr(one, name), one) for one in baselines if getattr(one, name) is not None]
        if scored:
            return max(scored, key=lambda pair: pair[0])[1]
    return None
