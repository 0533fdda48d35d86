"""The card of a result folder's best probe, ``probe.json``: what it predicts, and how a prompt gets to it."""

from __future__ import annotations

from typing import Any

from activation_store import ActivationStore
from activation_store.interop import PtActivations
from gpu_probes import BestProbe, SweepResult
from gpu_probes.combine import layers_behind

CARD = "probe.json"
CARD_VERSION = 1


def describe_probe(
    label: str,
    result: SweepResult,
    inference: dict[str, Any],
    store: ActivationStore | PtActivations,
    join: str | None,
) -> dict[str, Any] | None:
    """Describe the best probe; None where there is none.

    Parameters
    ----------
    label : str
    result : SweepResult
    inference : dict
        Of `gpu_probes.infer`.
    store : ActivationStore or PtActivations
        Of the training rows.
    join : str or None
        How its cells were combined.
    """
    best = result.best
    if best is None:
        return None
    return {
        "format_version": CARD_VERSION,
        "label": label,
        "task_type": result.task_type,
        "classes": None if result.classes is None else list(result.classes),
        "probe": result.probe,
        "layer": best.cell.layer,
        "position": best.cell.position,
        "join": join,
        "alpha": best.alpha,
        "scores": _scores(result, best, inference),
        "calibration": _calibration(result.task_type, inference),
        "prompts": _prompts(store, best, join),
    }


def _scores(result: SweepResult, best: BestProbe, inference: dict[str, Any]) -> dict[str, Any]:
    return {
        "metric": result.metric,
        "cv": best.cv_score,
        "nested_cv": inference["nested_cv"]["score"],
        "test": best.test_score,
        "p": inference["permutation"]["p_best"],
    }


def _calibration(task_type: str, inference: dict[str, Any]) -> dict[str, Any]:
    """Fitted on cross-validated predictions: a line for numbers, Platt scaling for two classes."""
    kind, name = ("linear", "calibration") if task_type == "regression" else ("platt", "platt")
    found = {key: inference[name][key] for key in ("slope", "intercept", "reason")}
    return {"kind": kind if found["slope"] is not None else None, **found}


def _prompts(store: ActivationStore | PtActivations, best: BestProbe, join: str | None) -> dict[str, Any] | None:
    """How the training rows' prompts were made and read; None where the store does not say."""
    fingerprint = store.fingerprint
    if not isinstance(store, ActivationStore) or "tokenizer" not in fingerprint:
        return None
    provenance = store.attrs["provenance"]
    return {
        "model": fingerprint["model"],
        "weights": fingerprint["weights"],
        "tokenizer": fingerprint["tokenizer"],
        "dtype": fingerprint["dtype"],
        "layers": layers_behind(store, join, best.cell),
        "positions": list(store.positions),
        "use_chat_template": fingerprint["chat_template"] is not None,
        "chat_template": fingerprint["chat_template"],
        "chat_template_kwargs": fingerprint["chat_template_kwargs"],
        # Where the positions were counted by hand, they are again.
        "eoi_tokens": None if provenance.get("template_tail") else len(store.positions),
        "truncate_to": None if fingerprint["truncation"] is None else fingerprint["truncation"]["max_length"],
        "question_column": fingerprint["question_column"],
    }
