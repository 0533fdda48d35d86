"""The card of a result folder's best probe, ``probe.json``: what it predicts, and how a prompt gets to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from activation_store import ActivationStore
from activation_store.interop import PtActivations
from gpu_probes import BestProbe, SweepResult
from gpu_probes.combine import layers_behind
from gpu_probes.files import write_whole
from gpu_probes.folder import first_error, read_document
from probesweep.errors import RequestError

CARD = "probe.json"
CARD_VERSION = 1


@dataclass(frozen=True)
class Scores:
    """Scores of the best probe; None where undefined, as `inference.json` says why."""

    metric: Literal["spearman", "roc_auc"]
    cv: float
    nested_cv: float | None
    test: float | None
    p: float | None


@dataclass(frozen=True)
class Calibration:
    """Fitted on cross-validated predictions: a line for numbers, Platt scaling for two classes."""

    kind: Literal["linear", "platt"] | None
    slope: float | None
    intercept: float | None
    reason: str | None


@dataclass(frozen=True)
class Prompts:
    """How the training rows' prompts were made and read.

    Attributes
    ----------
    model, weights, tokenizer, dtype : str
    layers : list of int
        Indices into ``hidden_states`` that the probe reads.
    positions : list of int
        All of the store's.
    use_chat_template : bool
    chat_template : str or None
        SHA-256.
    chat_template_kwargs : dict
    eoi_tokens : int or None
        Where the positions were counted by hand.
    truncate_to : int or None
        Tokens that longer prompts were cut to.
    question_column : str
    """

    model: str
    weights: str
    tokenizer: str
    dtype: str
    layers: list[int]
    positions: list[int]
    use_chat_template: bool
    chat_template: str | None
    chat_template_kwargs: dict[str, Any]
    eoi_tokens: int | None
    truncate_to: int | None
    question_column: str


@dataclass(frozen=True)
class Card:
    """What ``probe.json`` says.

    Attributes
    ----------
    format_version : int
    label : str
    task_type : regression or classification
    classes : list of float or None
        The labels' classes, ascending; None for numbers.
    probe : str
    layer : int or str
        Index into ``hidden_states``; a name where layers are joined.
    position : int or str
        Negative token position; a name where positions are joined.
    join : str or None
    alpha : float
    scores : Scores
    calibration : Calibration
    prompts : Prompts or None
        None where the activations do not say how they were made.
    """

    format_version: int
    label: str
    task_type: Literal["regression", "classification"]
    classes: list[float] | None
    probe: str
    layer: int | str
    position: int | str
    join: str | None
    alpha: float
    scores: Scores
    calibration: Calibration
    prompts: Prompts | None

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read a folder's card.

        Raises
        ------
        RequestError, ProbeError
            It is damaged, of another format, or something else.
        """
        path = folder / CARD
        document = read_document(path)
        version = document.get("format_version")
        if version != CARD_VERSION:
            raise RequestError(
                f"{path} has format {version} and this is {CARD_VERSION}; install the probesweep that wrote it"
            )
        try:
            return _ADAPTER.validate_python(document)
        except ValidationError as error:
            raise RequestError(f"{path} is not a probe's card ({first_error(error)}); train again") from error

    def save(self, folder: Path) -> None:
        """Write it."""
        content = json.dumps(asdict(self), indent=2, allow_nan=False).encode() + b"\n"
        write_whole(folder / CARD, content)


_ADAPTER = TypeAdapter(Card)


def describe_probe(
    label: str,
    result: SweepResult,
    inference: dict[str, Any],
    store: ActivationStore | PtActivations,
    join: str | None,
) -> Card | None:
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
    return Card(
        format_version=CARD_VERSION,
        label=label,
        task_type=result.task_type,
        classes=None if result.classes is None else list(result.classes),
        probe=result.probe,
        layer=best.cell.layer,
        position=best.cell.position,
        join=join,
        alpha=best.alpha,
        scores=Scores(
            metric=result.metric,
            cv=best.cv_score,
            nested_cv=inference["nested_cv"]["score"],
            test=best.test_score,
            p=inference["permutation"]["p_best"],
        ),
        calibration=_calibration(result.task_type, inference),
        prompts=_prompts(store, best, join),
    )


def _calibration(task_type: str, inference: dict[str, Any]) -> Calibration:
    kind, name = ("linear", "calibration") if task_type == "regression" else ("platt", "platt")
    found = inference[name]
    return Calibration(
        kind=kind if found["slope"] is not None else None,
        slope=found["slope"],
        intercept=found["intercept"],
        reason=found["reason"],
    )


def _prompts(store: ActivationStore | PtActivations, best: BestProbe, join: str | None) -> Prompts | None:
    fingerprint = store.fingerprint
    if not isinstance(store, ActivationStore) or "tokenizer" not in fingerprint:
        return None
    provenance = store.attrs["provenance"]
    return Prompts(
        model=fingerprint["model"],
        weights=fingerprint["weights"],
        tokenizer=fingerprint["tokenizer"],
        dtype=fingerprint["dtype"],
        layers=[int(layer) for layer in layers_behind(store, join, best.cell)],
        positions=list(store.positions),
        use_chat_template=fingerprint["chat_template"] is not None,
        chat_template=fingerprint["chat_template"],
        chat_template_kwargs=fingerprint["chat_template_kwargs"],
        # Where the positions were counted by hand, they are again.
        eoi_tokens=None if provenance.get("template_tail") else len(store.positions),
        truncate_to=None if fingerprint["truncation"] is None else fingerprint["truncation"]["max_length"],
        question_column=fingerprint["question_column"],
    )
