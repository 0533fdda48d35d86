"""The card of a result folder's best probe, ``probe.json``: what it predicts, and how a prompt reaches it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from activation_store import ActivationStore
from activation_store.prompts.prompts import PromptFormat
from gpu_probes import BestProbe, SweepResult
from gpu_probes.features.combine import layers_behind
from gpu_probes.forms import (
    Anything,
    Count,
    Flag,
    Number,
    Penalty,
    Place,
    Score,
    Share,
    Text,
    Whole,
    damaged,
    read_form,
)
from gpu_probes.results.documents import Results
from gpu_probes.results.files import commit_file
from gpu_probes.results.folder import read_document
from gpu_probes.results.forms import CARD, Metric
from gpu_probes.results.inference import Evidence
from gpu_probes.terms import PermutationStatistic, ProbeKind, TaskType
from probesweep.errors import RequestError
from probesweep.selection import Selection
from probesweep.use.place import ModelPlace

CARD_VERSION = 1


@dataclass(frozen=True)
class BestScores:
    """Scores of the best probe; None if undefined, with the reason in `inference.json`.

    `p_statistic` says whose CV scores the permutations compare: the probe's, or those of least squares.
    """

    metric: Metric
    cv: Score
    nested_cv: Score | None
    test: Score | None
    p: Share | None
    p_statistic: PermutationStatistic = "probe"


@dataclass(frozen=True)
class Calibration:
    """Fitted on cross-validated predictions: a line for regression, Platt scaling for two classes, else a temperature.

    Rates of a binomial probe are scaled as two classes are. Cards of earlier versions have no temperature.
    """

    kind: Literal["linear", "platt", "temperature"] | None
    slope: Penalty | None
    intercept: Number | None
    reason: Text | None
    temperature: Penalty | None = None


@dataclass(frozen=True)
class PromptOrigin:
    """How the training rows' prompts were made and read.

    Attributes
    ----------
    model, weights, tokenizer, dtype : str
        The first as it was given to ``extract``. None for what the activations do not say and nobody compares.
    layers : list of int
        Indices into ``hidden_states`` that the probe reads.
    positions : list of int
        Those that were used of the store's.
    use_chat_template : bool
    chat_template : str or None
        SHA-256.
    chat_template_kwargs : dict
    eoi_tokens : int or None
        If the positions were given as a number of tokens.
    truncate_to : int or None
        Number of tokens that longer prompts were cut to.
    question_column : str
    source : ModelPlace or None
        Where the model was; None in cards of earlier versions.
    """

    model: Text
    weights: Text | None
    tokenizer: Text | None
    dtype: Text
    layers: list[Count]
    positions: list[Whole]
    use_chat_template: Flag
    chat_template: Text | None
    chat_template_kwargs: dict[Text, Anything]
    eoi_tokens: Count | None
    truncate_to: Count | None
    question_column: Text
    source: ModelPlace | None = None

    @property
    def expected(self) -> dict[str, str | None]:
        """What the model must have to be the training's, for `KnownModel.open`."""
        if self.weights is None:
            return {}
        return {name: getattr(self, name) for name in ("weights", "tokenizer", "chat_template")}

    def prompt_format(self, max_length: int | None = None, *, truncate: bool = False) -> PromptFormat:
        """How new questions become prompts: as in training, with another limit if one is given."""
        return PromptFormat(
            use_chat_template=self.use_chat_template,
            template_kwargs=self.chat_template_kwargs,
            eoi_tokens=self.eoi_tokens,
            max_length=self.truncate_to if max_length is None else max_length,
            truncate=truncate or self.truncate_to is not None,
        )


@dataclass(frozen=True)
class Places:
    """Where the probe reads activations that do not record how they were made.

    Attributes
    ----------
    layers : list of int
        Indices into ``hidden_states`` that the probe reads.
    positions : list of int
        All of the activations'.
    """

    layers: list[Count]
    positions: list[Whole]


@dataclass(frozen=True)
class Card:
    """What ``probe.json`` says.

    Attributes
    ----------
    format_version : int
    label : str
    task_type : regression or classification
    classes : list of float or None
        The classes in ascending order; None for regression.
    class_names : list of str or None
        Their names where they are words, and `classes` the places of these; None for numbers, and in cards of earlier
        versions.
    probe : str
    layer : int or str
        Index into ``hidden_states``; a name if layers are joined.
    position : int or str
        Negative token position; a name if positions are joined.
    join : str or None
    alpha : float
    scores : BestScores
    calibration : Calibration
    prompts : PromptOrigin or None
        None if the activations do not record how they were made.
    places : Places or None
        What is known then; also None in cards of earlier versions.
    """

    format_version: Count
    label: Text
    task_type: TaskType
    classes: list[Number] | None
    probe: ProbeKind
    layer: Place
    position: Place
    join: Text | None
    alpha: Penalty
    scores: BestScores
    calibration: Calibration
    prompts: PromptOrigin | None
    places: Places | None = None
    class_names: list[Text] | None = None

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read a folder's card.

        Raises
        ------
        RequestError, ProbeError
            It is damaged, has another format, or is something else.
        """
        return cls.of(Results.load(folder))

    @classmethod
    def of(cls, results: Results) -> Card:
        """Read the card of a folder already read, and make sure that both agree; as `load`."""
        path = results.folder / CARD
        document = read_document(path)
        version = document.get("format_version")
        if isinstance(version, int) and version > CARD_VERSION:
            raise RequestError(
                f"{path} has format {version} and this is {CARD_VERSION}; install the probesweep that wrote it"
            )
        card = read_form(cls, document, path)
        if card.format_version != CARD_VERSION:
            raise damaged(path, "there is no such format", ["format_version"])
        for name, held, expected in card._compared(results):
            if held != expected:
                raise damaged(path, f"it has {held!r} where the other files have {expected!r}", [name])
        return card

    def _compared(self, results: Results) -> Iterator[tuple[str, object, object]]:
        """What the card and the other files say about the same things."""
        best, evidence, options = results.best, results.evidence or Evidence(), results.run.request.options
        if best is None:
            raise damaged(results.folder / CARD, "there is no best probe")
        nested, permutation = evidence.nested_cv, evidence.permutation
        expected = {
            "label": results.run.label,
            "task_type": best.task_type,
            "classes": None if results.performance.classes is None else list(results.performance.classes),
            "class_names": None if results.performance.class_names is None else list(results.performance.class_names),
            "probe": results.probes.header.probe,
            "layer": best.best_layer_number,
            "position": best.best_position,
            "join": options.get("join"),
            "alpha": best.selected_alpha,
        }
        yield from ((name, getattr(self, name), value) for name, value in expected.items())
        yield "scores.metric", self.scores.metric, best.metric
        yield "scores.cv", self.scores.cv, best.cv_score
        yield "scores.test", self.scores.test, best.test_score
        if nested is not None:
            yield "scores.nested_cv", self.scores.nested_cv, nested.score
        if permutation is not None:
            yield "scores.p", self.scores.p, permutation.p_best
            yield "scores.p_statistic", self.scores.p_statistic, permutation.statistic
        if evidence.calibration is not None and evidence.platt is not None:
            yield "calibration", self.calibration, _calibration(self.task_type, self.probe, evidence)
        if self.prompts is not None:
            yield "prompts.weights", self.prompts.weights, results.run.weights
            yield "prompts.model", self.prompts.model, results.run.model
            yield "prompts.chat_template", self.prompts.chat_template is not None, self.prompts.use_chat_template
            if self.prompts.eoi_tokens is not None:
                # Some of the stored positions may have been left out.
                yield "prompts.eoi_tokens", self.prompts.eoi_tokens >= -min(self.prompts.positions), True
        for name, read in (("prompts", self.prompts), ("places", self.places)):
            if read is not None:
                yield from self._read_compared(name, read, results)

    def _read_compared(
        self, name: str, read: PromptOrigin | Places, results: Results
    ) -> Iterator[tuple[str, object, object]]:
        """Layers and positions that are read."""
        if self.join is None or self.join == "layers":
            yield f"{name}.positions", read.positions, list(results.performance.positions)
        else:
            yield f"{name}.positions", len(read.positions), len(results.run.position_tokens)
        if self.join is None or self.join == "mean":
            yield f"{name}.layers", read.layers, [self.layer]

    def save(self, folder: Path) -> None:
        """Write it."""
        content = json.dumps(asdict(self), indent=2, allow_nan=False).encode() + b"\n"
        commit_file(folder / CARD, content)


def describe_probe(
    label: str,
    result: SweepResult,
    evidence: Evidence,
    used: Selection | None,
    join: str | None,
) -> Card | None:
    """Describe the best probe; None where there is none.

    Parameters
    ----------
    label : str
    result : SweepResult
    evidence : Evidence
        Of `gpu_probes.infer`.
    used : Selection or None
        The training rows; None where nothing is known of them.
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
        scores=BestScores(
            metric=result.metric,
            cv=best.cv_score,
            nested_cv=None if evidence.nested_cv is None else evidence.nested_cv.score,
            test=best.test_score,
            p=None if evidence.permutation is None else evidence.permutation.p_best,
            p_statistic=result.permutation_statistic,
        ),
        calibration=_calibration(result.task_type, result.probe, evidence),
        **_reading(used, best, join),
        class_names=None if result.class_names is None else list(result.class_names),
    )


def describe_saved(results: Results) -> Card:
    """Describe the best probe of a sweep that was saved from Python, which leaves no card.

    Parameters
    ----------
    results : Results
        With a best probe.
    """
    best, evidence, origin = results.best, results.evidence or Evidence(), results.run.origin or {}
    assert best is not None
    performance, nested, tested = results.performance, evidence.nested_cv, evidence.permutation
    prompts = None
    if isinstance(best.best_layer_number, int):
        positions = [int(position) for position in performance.positions]
        prompts = _prompts(
            origin.get("fingerprint", {}), origin.get("provenance", {}), positions, [best.best_layer_number]
        )
    return Card(
        format_version=CARD_VERSION,
        label=results.run.label,
        task_type=best.task_type,
        classes=None if performance.classes is None else list(performance.classes),
        probe=results.probes.header.probe,
        layer=best.best_layer_number,
        position=best.best_position,
        join=None,
        alpha=best.selected_alpha,
        scores=BestScores(
            metric=best.metric,
            cv=best.cv_score,
            nested_cv=None if nested is None else nested.score,
            test=best.test_score,
            p=None if tested is None else tested.p_best,
            p_statistic="probe" if tested is None else tested.statistic,
        ),
        calibration=_calibration(best.task_type, results.probes.header.probe, evidence),
        prompts=prompts,
        class_names=None if performance.class_names is None else list(performance.class_names),
    )


def _calibration(task_type: str, probe: str, evidence: Evidence) -> Calibration:
    if evidence.temperature is not None:
        scaling = evidence.temperature
        kept = None if scaling.temperature is None else "temperature"
        return Calibration(kept, None, None, scaling.reason, scaling.temperature)
    kind: Literal["linear", "platt"] = "linear" if task_type == "regression" and probe != "binomial" else "platt"
    found = evidence.calibration if kind == "linear" else evidence.platt
    assert found is not None, "there is a best probe"
    fitted = found.slope is not None
    return Calibration(kind if fitted else None, found.slope, found.intercept, found.reason)


def _reading(used: Selection | None, best: BestProbe, join: str | None) -> dict[str, Any]:
    """How a prompt reaches the probe, or at least which places it reads."""
    if used is None:
        return {"prompts": None}
    store = used.store
    layers, positions = [int(layer) for layer in layers_behind(used.cells, join, best.cell)], list(used.positions)
    provenance = store.attrs["provenance"] if isinstance(store, ActivationStore) else {}
    prompts = _prompts(store.fingerprint, provenance, positions, layers)
    return {"prompts": prompts, "places": Places(layers, positions) if prompts is None else None}


def _prompts(
    fingerprint: Mapping[str, Any], provenance: Mapping[str, Any], positions: list[int], layers: list[int]
) -> PromptOrigin | None:
    if "tokenizer" not in fingerprint:
        return None
    return PromptOrigin(
        model=fingerprint["model"],
        weights=fingerprint["weights"],
        tokenizer=fingerprint["tokenizer"],
        dtype=fingerprint["dtype"],
        layers=layers,
        positions=positions,
        use_chat_template=fingerprint["chat_template"] is not None,
        chat_template=fingerprint["chat_template"],
        chat_template_kwargs=fingerprint["chat_template_kwargs"],
        # If the positions were given as a number of tokens, they are again.
        eoi_tokens=None if provenance.get("template_tail") else len(fingerprint["positions"]),
        truncate_to=None if fingerprint["truncation"] is None else fingerprint["truncation"]["max_length"],
        question_column=fingerprint["question_column"],
        source=_source(provenance, fingerprint),
    )


def _source(provenance: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> ModelPlace:
    recorded = provenance.get("model_source")
    return ModelPlace(**recorded) if recorded else ModelPlace.recorded(fingerprint["model"], fingerprint["weights"])
