"""Predictions of the best probe as tidy tables: all rows, the ROC curve, and a subset that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from gpu_probes.display.wording import number, one_line
from gpu_probes.report.load import SavedFiles
from gpu_probes.results.folder import UsedStore

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 2000
MOST_CURVE_POINTS = 250
MOST_CLASSES = 8
TEST_TITLE, HELD_OUT_TITLE = "test rows", "training rows, held out in CV"


@dataclass(frozen=True)
class Predicted:
    """Rows of a split, and what the best probe predicted for them without having been fitted to them.

    `rows` are their indices in the store: a training can leave out some rows. `predictions` is ``[sample]``:
    a number, or the probability of the second of two classes; with more classes it is ``[sample, class]``. `ranked`
    orders rows as predictions do, and separates those that round to 1.
    """

    split: str
    title: str
    rows: Int64[np.ndarray, " sample"]
    actual: Float64[np.ndarray, " sample"]
    predictions: Shaped[np.ndarray, "sample ..."]
    ranked: Shaped[np.ndarray, "sample ..."]


def held_out(results: SavedFiles) -> list[Predicted]:
    """The test rows, and the training rows as predicted in cross-validation, where they exist."""
    best = results.best
    if best is None:
        return []
    request, overlap = results.run.request, results.evidence.overlap
    dropped = overlap.rows or () if overlap is not None and overlap.dropped else ()
    test_rows = np.delete(_rows_of(request.test), np.array(dropped, dtype=np.int64))
    splits = [
        ("test", TEST_TITLE, test_rows, best.test_actual, best.test_predictions, best.test_ranked),
        (
            "train",
            HELD_OUT_TITLE,
            _rows_of(request.train),
            best.train_actual,
            best.cv_predictions,
            best.cv_ranked,
        ),
    ]
    return [
        # For regression, and in folders of earlier versions, the predictions themselves are ranked.
        Predicted(split, title, rows, *map(_column, (actual, predicted, predicted if ranked is None else ranked)))
        for split, title, rows, actual, predicted, ranked in splits
        if actual is not None and predicted is not None
    ]


def _rows_of(used: UsedStore | None) -> Int64[np.ndarray, " sample"]:
    """Indices in the store of the rows that were used."""
    if used is None:
        return np.arange(0)
    return np.arange(used.n_samples) if used.rows is None else np.array(used.rows, dtype=np.int64)


def _column(values: Sequence[Any]) -> Shaped[np.ndarray, "sample ..."]:
    return np.asarray(values, dtype=np.float64)


def thinned(n_rows: int, most: int = MOST_POINTS) -> Int64[np.ndarray, " kept"]:
    """Indices of at most `most` evenly spaced rows, including the first and the last."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, most)).round().astype(np.int64))


def classes_of(results: SavedFiles) -> list[float]:
    """The sorted classes; empty for regression."""
    return list(results.performance.classes or ())


def names_of(results: SavedFiles) -> tuple[str, ...]:
    """How the classes are called, in their order, for readers; empty for regression."""
    return tuple(map(one_line, results.performance.names_of_classes))


def wrongness(results: SavedFiles, rows: Predicted) -> Float64[np.ndarray, " sample"]:
    """How far off each prediction is: the distance; for classes, 1 minus the probability of the actual class."""
    if rows.predictions.ndim == 1:
        second = classes_of(results)[1:2]
        actual = (rows.actual == second[0]).astype(np.float64) if second else rows.actual
        return np.abs(rows.predictions - actual)
    chosen = np.searchsorted(classes_of(results), rows.actual)
    return 1 - rows.predictions[np.arange(len(chosen)), chosen]


def roc_table(results: SavedFiles) -> pd.DataFrame:
    """False and true positive rates, one series per split or, with more than two classes, per class of the first split.

    A split that lacks a class has no curve.
    """
    import pandas as pd

    classes, names, parts = classes_of(results), names_of(results), held_out(results)
    if len(classes) == 2:
        curves = [(one.title, one.actual == classes[1], one.ranked, one.predictions) for one in parts]
    else:
        curves = [
            (f"class {names[k]}", one.actual == classes[k], one.ranked[:, k], one.predictions[:, k])
            for one in parts[:1]
            for k in range(min(len(classes), MOST_CLASSES))
        ]
    found = [_roc(name, right, *scores) for name, right, *scores in curves if right.any() and not right.all()]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _roc(
    name: str,
    right: Bool[np.ndarray, " sample"],
    ranked: Float64[np.ndarray, " sample"],
    probabilities: Float64[np.ndarray, " sample"],
) -> pd.DataFrame:
    """Rates at every threshold, which is shown as a probability."""
    import pandas as pd
    from sklearn import metrics

    fpr, tpr, thresholds = metrics.roc_curve(right, ranked)
    kept = thinned(len(fpr), MOST_CURVE_POINTS)
    probability = dict(zip(ranked.tolist(), probabilities.tolist(), strict=True))
    texts: dict[str, Any] = {
        "threshold": [
            number(probability[value]) if np.isfinite(value) else "above all" for value in thresholds[kept].tolist()
        ],
        "false positives": [number(value) for value in fpr[kept]],
        "true positives": [number(value) for value in tpr[kept]],
    }
    return pd.DataFrame({"series": name, "row": name, "order": kept, "fpr": fpr[kept], "tpr": tpr[kept], **texts})
