"""Tables of a page: largest errors, all scores, provenance. All cells are strings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpu_probes.display.wording import AVERAGING, number, one_line, visible
from gpu_probes.errors import ProbeError
from gpu_probes.forms import plain
from gpu_probes.report.load import SavedFiles
from gpu_probes.report.predictions import (
    HELD_OUT_TITLE,
    TEST_TITLE,
    Predicted,
    classes_of,
    held_out,
    names_of,
    wrongness,
)
from gpu_probes.results.inference import ClassScores

N_ERRORS = 12
_MOST_CHARACTERS = 600
_NAMES = {
    "spearman": "Spearman",
    "pearson": "Pearson",
    "roc_auc": "ROC-AUC",
    "r2": "R²",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "kendall": "Kendall's tau-b",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "recall_at_1pct_fpr": "recall at 1 % false positives",
}
# What has a table of its own.
_BY_CLASS = ("by_class", "confusion")
_SPLITS = {
    "train": "train",
    "cv": "CV, pooled",
    "test": "test",
    "platt": "test, Platt scaled",
    "temperature": "test, temperature scaled",
}


@dataclass(frozen=True)
class Table:
    """A heading for each column, and rows of as many strings; `note` goes below."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def largest_errors(results: SavedFiles, prompts: Mapping[str, Sequence[str]] | None) -> list[Table]:
    """The rows that the best probe gets most wrong, one table per split, with their prompts if given.

    Parameters
    ----------
    prompts : mapping of "train" and "test" to texts, optional
        Prompts of all rows of the stores, in order.

    Raises
    ------
    ProbeError
        When the number of prompts is not the number of rows.
    """
    return [_errors_of(results, part, _texts(results, part, prompts)) for part in held_out(results)]


def all_scores(results: SavedFiles) -> Table | None:
    """Every score of the best probe, one column per split."""
    scores: dict[str, dict[str, Any]] = {name: plain(one) for name, one in (results.evidence.scores or {}).items()}
    platt = results.evidence.platt
    if platt is not None and platt.test_scores is not None:
        scores["platt"] = plain(platt.test_scores)
    temperature = results.evidence.temperature
    if temperature is not None and temperature.test_scores is not None:
        scores["temperature"] = plain(temperature.test_scores)
    splits = [split for split in _SPLITS if split in scores]
    if not splits:
        return None
    flat = {split: dict(_flatten(scores[split])) for split in splits}
    names = list(dict.fromkeys(name for one in flat.values() for name in one))
    rows = [[_NAMES.get(name, name.replace("_", " ")), *(number(flat[s].get(name)) for s in splits)] for name in names]
    reasons = {
        f"{_NAMES.get(name, name.replace('_', ' '))}: {reason}"
        for split in splits
        for name, reason in scores[split]["undefined"].items()
        if name not in _BY_CLASS
    }
    note = "" if not reasons else f"Undefined: {'; '.join(sorted(reasons))}."
    if len(classes_of(results)) > 2:
        note = f"ROC-AUC and average precision: {AVERAGING}. {note}".strip()
    return Table("", ["score", *(_SPLITS[split] for split in splits)], rows, note)


def by_class(results: SavedFiles) -> list[Table]:
    """Scores of each class against all others, and how often it is taken for which: held-out rows, then test rows."""
    found: list[Table] = []
    held = results.evidence.scores or {}
    for scores, title in ((held.get("cv"), HELD_OUT_TITLE), (held.get("test"), TEST_TITLE)):
        if not isinstance(scores, ClassScores) or scores.by_class is None or scores.confusion is None:
            continue
        names = names_of(results)
        rows = [
            [
                name,
                f"{one.support:,}",
                *map(number, (one.precision, one.recall, one.f1, one.roc_auc)),
                *(f"{count:,}" for count in counts),
            ]
            for name, one, counts in zip(names, scores.by_class, scores.confusion, strict=True)
        ]
        reasons = {
            f"{name}, {_NAMES.get(score, score)}: {reason}"
            for name, one in zip(names, scores.by_class, strict=True)
            for score, reason in one.undefined.items()
        }
        header = ["class", "n", "precision", "recall", "F1", "ROC-AUC", *(f"predicted {name}" for name in names)]
        note = f"Undefined: {'; '.join(sorted(reasons))}." if reasons else ""
        found.append(Table(title[0].upper() + title[1:], header, rows, note))
    return found


def nested_folds(results: SavedFiles) -> Table | None:
    """What nested cross-validation chose for each fold."""
    nested = results.evidence.nested_cv
    if nested is None or nested.score is None:
        return None
    rows = [
        [
            str(fold + 1),
            one_line(choice.layer),
            one_line(choice.position),
            number(choice.alpha, "g"),
            number(choice.inner_score),
            number(choice.score),
        ]
        for fold, choice in enumerate(nested.folds or ())
    ]
    header = ["held-out fold", "layer", "position", "alpha", "CV score on the other folds", "score on this fold"]
    return Table("Choices of nested cross-validation", header, rows)


def provenance(results: SavedFiles) -> Table:
    """What run.json says about the request, the stores and the versions."""
    run = asdict(results.run)
    request: dict[str, Any] = run.pop("request")
    del run["format_version"]
    rows = [[name, visible(value)] for name, value in _leaves(request | run | {"files": list(results.run.files)})]
    return Table("", ["item", "value"], rows)


def _errors_of(results: SavedFiles, part: Predicted, texts: list[str] | None) -> Table:
    wrong = wrongness(results, part)
    places = np.argsort(-wrong, kind="stable")[:N_ERRORS]
    classes, names = classes_of(results), names_of(results)
    predicted = "predicted" if not classes else "probability of the actual class"
    header = ["row", "actual", predicted, *(["prompt"] if texts is not None else [])]
    rows = [
        [
            str(part.rows[place]),
            names[classes.index(float(part.actual[place]))] if classes else number(float(part.actual[place]), "g"),
            number(float(1 - wrong[place] if classes else part.predictions[place])),
            *([_shortened(texts[place])] if texts is not None else []),
        ]
        for place in places.tolist()
    ]
    return Table(part.title[0].upper() + part.title[1:], header, rows)


def _texts(results: SavedFiles, part: Predicted, prompts: Mapping[str, Sequence[str]] | None) -> list[str] | None:
    if prompts is None or part.split not in prompts:
        return None
    given = list(prompts[part.split])
    request = results.run.request
    used = request.train if part.split == "train" else request.test
    assert used is not None, "there are predictions for its rows"
    expected = used.n_samples
    if len(given) != expected:
        raise ProbeError(
            f"{len(given)} {part.split} prompts were given for the {expected} rows of the {part.split} store; give "
            "the prompts of the stores that the probes were trained and tested on"
        )
    place_of = {row: place for place, row in enumerate(range(expected) if used.rows is None else used.rows)}
    return [given[place_of[row]] for row in part.rows.tolist()]


def _shortened(text: object) -> str:
    written = visible(text if isinstance(text, str) else json.dumps(text))
    if len(written) <= _MOST_CHARACTERS:
        return written
    return f"{written[:_MOST_CHARACTERS]} … ({len(written) - _MOST_CHARACTERS:,} more characters)"


def _flatten(scores: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Scores by name; a score with parts becomes one entry per part. Curves are drawn, not listed."""
    for name, value in scores.items():
        if isinstance(value, dict) and name != "undefined":
            yield from ((f"{name}, {part}", one) for part, one in value.items())
        elif not isinstance(value, (dict, list)) and name not in _BY_CLASS:
            yield name, value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Values of nested mappings, with joined names."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, f"{name} {one_line(key)}".strip())
    elif isinstance(value, list):
        yield name, ", ".join(one_line(one) for one in value)
    else:
        yield name, "not given" if value is None else str(value)
