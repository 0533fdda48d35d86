"""The README.md of a push."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from activation_store import ActivationStore
from gpu_probes.display.wording import statistic_text
from gpu_probes.report.summary import describe_results
from gpu_probes.results.transfer import FinishedTraining


def store_card(store: ActivationStore) -> str:
    """The README.md of a store."""
    tokens = [
        f"{position} {json.dumps(token, ensure_ascii=False)}" if token else f"{position}"
        for position, token in _positions(store)
    ]
    lines = [
        f"Hidden states of {_code(store.fingerprint.get('model'))} at the tokens after each prompt, as a Zarr store.",
        "",
        _table(
            {
                "axes": ", ".join(f"{n} {axis}s" for axis, n in zip(store.dims, store.shape, strict=True)),
                "data type": store.spec.dtype,
                "layers (indices into `hidden_states`)": ", ".join(map(str, store.layers)),
                "positions (-1 = last token)": ", ".join(map(_code, tokens)),
                "labels": ", ".join(map(_code, store.spec.label_columns)) or "none",
                "prompts": "not in the store" if store.questions is None else f"{len(store)}, in `question`",
                "weights": store.fingerprint.get("weights"),
                "dataset, SHA-256": store.fingerprint.get("dataset"),
            }
        ),
    ]
    opening = 'from activation_store import ActivationStore\n\nstore = ActivationStore.open("FOLDER")'
    return _card(("zarr", "hidden-states"), "Hidden states", lines, opening)


def _positions(store: ActivationStore) -> Iterable[tuple[int, str]]:
    return zip(store.positions, store.position_tokens, strict=True)


def results_card(trainings: list[FinishedTraining]) -> str:
    """The README.md of one or several trainings."""
    first = trainings[0]
    layers, positions = (", ".join(map(str, axis)) for axis in (first.probes.layers, first.probes.positions))
    tested = first.run.request.test
    about = {
        "weights": first.run.weights,
        "layers (indices into `hidden_states`)": layers,
        "positions (-1 = last token)": positions,
        "training rows, SHA-256 of the store's journal": first.run.request.train.content,
        "test rows, SHA-256 of the store's journal": tested.content if tested else "none: there is no test set",
    }
    lines = [f"Linear probes on hidden states of {_code(first.run.model)}.", "", _table(about)]
    for training in trainings:
        lines += ["", f"## {_code(training.label)}", "", _table(_found(training))]
    opening = 'from probesweep import Probe\n\nProbe.load("FOLDER").score(["..."])'
    return _card(("linear-probe", "hidden-states"), "Linear probes", lines, opening)


def _found(training: FinishedTraining) -> dict[str, str]:
    """The best probe and its defined scores."""
    found = describe_results(training.results)
    best, metric = found["best"], found["metric"]
    metric += f" ({found['averaging']})" if "averaging" in found else ""
    about = {"task": found["task_type"]}
    if best is None:
        return {**about, "best probe": "none: there is no cross-validation to choose one"}
    intervals, by = found["intervals"], statistic_text(found["p_statistic"] or "probe", found["task_type"])
    scores = {
        f"{metric}, CV (the highest of all cells, so biased upwards)": _number(best["cv_score"]),
        f"{metric}, nested CV": _number(found["nested_cv_score"], intervals["nested_cv_score"]),
        f"{metric}, test": _number(best["test_score"], intervals["test_score"]),
        f"p, permutation test over all cells{by}": _number(found["p"]),
    }
    scores |= {
        f"{metric}, test, baseline {name}": _number(one["test_score"]) for name, one in found["baselines"].items()
    }
    where = f"layer {best['layer']}, position {best['position']}, alpha {best['alpha']:g}"
    return {**about, "best probe": where} | {name: score for name, score in scores.items() if score is not None}


def _number(score: float | None, interval: Mapping[str, Any] | None = None) -> str | None:
    if score is None:
        return None
    if interval is None or interval["low"] is None:
        return f"{score:.4g}"
    return f"{score:.4g}, 95 % interval [{interval['low']:.3f}, {interval['high']:.3f}]"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {'unknown' if value is None else value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _code(text: object) -> str:
    """As code, so that names and tokens appear verbatim in a table."""
    plain = str(text).replace("`", "'").replace("|", "\\|").replace("\n", " ")
    return f"`{plain}`"


def _card(tags: Iterable[str], title: str, lines: list[str], opening: str) -> str:
    front = ["---", "library_name: probesweep", "tags:", *(f"- {tag}" for tag in ("probesweep", *tags)), "---"]
    steps = ["", "After `probesweep pull NAME/REPOSITORY FOLDER`:", "", "```python", opening, "```", ""]
    return "\n".join([*front, "", f"# {title}", "", *lines, *steps])
