"""A trained probe on new prompts: the model runs up to the probe's layer, and every prompt gets a score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from activation_store.errors import NonFiniteError, PromptError, check_at_least_one, show_rows
from activation_store.prompts.prompts import Prompts
from activation_store.questions.dataset import read_question
from activation_store.questions.question import Question
from gpu_probes import ArrayCellSource, Cell, SavedProbes
from gpu_probes.errors import ProbeWarning
from gpu_probes.features.combine import combine
from gpu_probes.forms import damaged
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import RUN, has_results
from gpu_probes.results.forms import CARD
from gpu_probes.scores.calibration import PlattScaling, TemperatureScaling
from gpu_probes.scores.decisions import one_column, predictions_of, probabilities_of
from gpu_probes.solvers.deciding import decide
from probesweep.errors import RequestError
from probesweep.use.card import Card, PromptOrigin, describe_saved
from probesweep.use.place import ModelPlace
from probesweep.use.told import Told

if TYPE_CHECKING:
    # transformers takes seconds to import, which a model that is not there need not wait for.
    from activation_store.capture.session import KnownModel, LoadedModel

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Probe:
    """The best probe of a training, with the model that it reads.

    Open with `Probe.load`. The model's weights are loaded when the first prompt is scored, and kept.

    Attributes
    ----------
    card : Card
        What ``probe.json`` says.
    coef : ndarray [output, feature]
        In raw features; one output for regression and two classes, otherwise one per class.
    intercept : ndarray [output]
    prompts : PromptOrigin
        How prompts are made and read: the card's or, for a probe of a ``.pt``, as `load` was told.
    model : str or PreTrainedModel
        Where the model is loaded from, or itself.
    tokenizer : PreTrainedTokenizer or None
        Of a model in memory.
    device : str
    batch_size : int or None
        Most prompts in a batch.
    trust_remote_code : bool
    max_length : int or None
        Most tokens of a prompt; None: what training prompts were cut to, or else the model's limit.
    truncate : bool
        Cut the end of the user's text of longer prompts; always done if the training's prompts were cut.
    """

    card: Card
    coef: Float64[np.ndarray, "output feature"]
    intercept: Float64[np.ndarray, " output"]
    prompts: PromptOrigin
    model: Any
    tokenizer: Any = None
    device: str = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False
    max_length: int | None = None
    truncate: bool = False

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: Any = None,
        tokenizer: Any = None,
        device: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        truncate: bool = False,
        use_chat_template: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        eoi_tokens: int | None = None,
        dtype: str | None = None,
        preload: bool = False,
    ) -> Probe:
        """Open the best probe of a result folder, and make sure that its model is there and the same.

        Parameters
        ----------
        folder : str or Path
            The results of a training.
        model : str or PreTrainedModel, optional
            New location of the same model, or the model in memory, with its `tokenizer`; by default the training's.
        tokenizer : PreTrainedTokenizer, optional
            Of a model in memory.
        device : str
            "auto", "cpu", "cuda", ...
        batch_size : int, optional
            Most prompts in a batch; by default what fits into free memory.
        trust_remote_code : bool
            Run code from the model's repository.
        max_length : int, optional
            Most tokens of a prompt; by default what training prompts were cut to, or else the model's limit.
        truncate : bool
            Cut the end of the user's text of longer prompts instead of raising an error.
        use_chat_template, chat_template_kwargs, eoi_tokens, dtype : optional
            How the prompts of a ``.pt`` were made, as `activation_store.Extraction` takes it; only for a probe that was
            trained on one, with `model`. Layers and positions are those of the ``.pt``.
        preload : bool
            Load the weights, too, instead of with the first prompt.

        Raises
        ------
        RequestError, ProbeError
            There is no probe, or it was trained on activations that do not record how their prompts were made, and
            nothing says so.
        InputError
            The model is missing or another one, or makes no such prompts.
        """
        check_at_least_one(batch_size=batch_size, max_length=max_length)
        folder, told = Path(folder), Told(use_chat_template, chat_template_kwargs, eoi_tokens, dtype)
        results = _read_results(folder)
        card = _read_card(results)
        if card.prompts is None:
            prompts = told.prompts(card, results, model)
        else:
            told.check_silent(folder)
            prompts = card.prompts
        where = (prompts.source or ModelPlace.recorded(prompts.model, prompts.weights or "")).find(model, folder)
        _warn_uncalibrated(card, folder)
        saved = SavedProbes.of(results)
        at = saved.positions.index(card.position), saved.layers.index(card.layer)
        options = (tokenizer, device, batch_size, trust_remote_code, max_length, truncate)
        probe = cls(card, saved.coef[at], saved.intercept[at], prompts, where, *options)
        probe._check_places()
        if preload:
            _ = probe._loaded
        return probe

    @property
    def layer(self) -> int | str:
        """Index into ``hidden_states``; a name if layers are joined."""
        return self.card.layer

    @property
    def position(self) -> int | str:
        """Negative token position; a name if positions are joined."""
        return self.card.position

    @property
    def classes(self) -> tuple[float, ...] | None:
        """The classes in ascending order, of words their places in `class_names`; None for regression."""
        return None if self.card.classes is None else tuple(self.card.classes)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes that are words, in their order; None where labels were numbers."""
        return None if self.card.class_names is None else tuple(self.card.class_names)

    @property
    def question_column(self) -> str:
        """The training's column of prompts."""
        return self.prompts.question_column

    @property
    def direction(self) -> Float64[np.ndarray, "output feature"]:
        """Coefficients scaled to length 1, in raw features."""
        return self.coef / np.linalg.norm(self.coef, axis=1, keepdims=True)

    def direction_tensor(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`direction` as a tensor, to add to hidden states or to project them on.

        Parameters
        ----------
        device : str
        dtype : torch.dtype

        Returns
        -------
        Tensor [feature], or [class, feature] for more than two classes
            Of length 1, in the units of ``hidden_states[layer]``: of the residual stream behind block ``layer - 1``,
            except for the last layer, which transformers gives after the final norm.
        """
        direction = self.direction[0] if len(self.coef) == 1 else self.direction
        return torch.tensor(direction, device=device, dtype=dtype)

    def score(self, prompts: Sequence[Question]) -> Shaped[np.ndarray, "prompt ..."]:
        """Calibrated scores of prompts.

        Parameters
        ----------
        prompts : sequence of str or of chat messages
            As in the training's dataset: bare questions if it was extracted with a chat template.

        Returns
        -------
        ndarray [prompt], or [prompt, class] for more than two classes
            Regression: the prediction, calibrated by a line fitted to cross-validated predictions. Two classes: the
            probability of the second one, by Platt scaling on cross-validated predictions; the rate of a binomial
            probe likewise. More: the probability of
            each class, by a temperature fitted to cross-validated predictions.
        """
        return one_column(self.calibrate(self.decide(prompts)))

    def predict(self, prompts: Sequence[Question]) -> Shaped[np.ndarray, "prompt ..."]:
        """Predictions as in the result files: numbers, the second class's probability, or one for every class."""
        return one_column(predictions_of(self.decide(prompts), self.card.task_type, self.card.probe))

    def decide(
        self, prompts: Sequence[Question | PromptError], progress: Callable[[Batches, int], Batches] | None = None
    ) -> Float64[np.ndarray, "prompt output"]:
        """Decision values: what ROC-AUC ranks, for several classes through `gpu_probes.scores.decisions.ranked`.

        Parameters
        ----------
        prompts : sequence of str or of chat messages
            May be empty. The first error given instead of a prompt is raised.
        progress : callable, optional
            Called with the batches and the number of prompts; yields the batches.

        Raises
        ------
        InputError
            A prompt cannot be used.
        NonFiniteError
            The model returns NaN or infinity for some.
        RequestError
            A single prompt is given, not a list.
        """
        questions = _usable(_read_questions(prompts))
        if not questions:
            return np.zeros((0, len(self.coef)))
        return self._decide_encoded(self._loaded.encode(questions), progress, stop=True)

    def decide_usable(
        self, prompts: Sequence[Question | PromptError], progress: Callable[[Batches, int], Batches] | None = None
    ) -> tuple[Float64[np.ndarray, "prompt output"], dict[int, str]]:
        """Decision values, NaN for prompts that cannot be used, and why those cannot.

        Parameters
        ----------
        prompts : sequence of str, of chat messages, or of the error that explains why there is no prompt
        progress : callable, optional
            As in `decide`.

        Returns
        -------
        tuple of ndarray [prompt, output] and dict
            The reasons by row.

        Raises
        ------
        RequestError
            A single prompt is given, not a list.
        """
        questions = _read_questions(prompts)
        reasons = {row: prompt.reason for row, prompt in enumerate(questions) if isinstance(prompt, PromptError)}
        read = {row: prompt for row, prompt in enumerate(questions) if not isinstance(prompt, PromptError)}
        rows = list(read)
        if read:
            reasons |= {rows[place]: why for place, why in self._loaded.find_unusable(list(read.values())).items()}
        usable = [row for row in rows if row not in reasons]
        decision = np.full((len(questions), len(self.coef)), np.nan)
        if usable:
            encoded = self._loaded.encode([read[row] for row in usable], numbers=usable)
            decision[usable] = self._decide_encoded(encoded, progress, stop=False)
        for row in usable:
            if not np.isfinite(decision[row]).all():
                reasons[row], decision[row] = "the model returns NaN or infinity", np.nan
        return decision, dict(sorted(reasons.items()))

    def _decide_encoded(
        self, encoded: Prompts, progress: Callable[[Batches, int], Batches] | None, *, stop: bool
    ) -> Float64[np.ndarray, "prompt output"]:
        """Decision values; NaN and infinity in hidden states are an error if `stop`."""
        given, join = self.prompts, self.card.join
        decision = np.zeros((len(encoded.n_tokens), len(self.coef)))
        batches = self._loaded.run(encoded, max_rows=self.batch_size)
        for rows, states in batches if progress is None else progress(batches, len(decision)):
            source = combine(ArrayCellSource(states, given.layers, self._read_positions), join)
            decision[rows] = decide(source, Cell(self.layer, self.position), self.coef, self.intercept)
            if stop and not np.isfinite(decision[rows]).all():
                bad = rows[~np.isfinite(decision[rows]).all(1)].tolist()
                raise NonFiniteError(f"the model returns NaN or infinity for {show_rows(bad)}; drop these prompts")
        return decision

    def calibrate(self, decision: Float64[np.ndarray, "prompt output"]) -> Float64[np.ndarray, "prompt output"]:
        """Map decision values to the scale of the labels, as fitted on held-out ones; without a fit, predictions."""
        found = self.card.calibration
        if found.temperature is not None:
            return probabilities_of(TemperatureScaling(found.temperature).scale(decision))
        if found.slope is None or found.intercept is None:
            return predictions_of(decision, self.card.task_type, self.card.probe)
        if found.kind == "linear":
            return found.slope * decision + found.intercept
        return PlattScaling(found.slope, found.intercept).apply(decision)

    @property
    def _read_positions(self) -> list[int]:
        """Negative indices of the tokens whose hidden states the probe reads."""
        return [at for at in self.prompts.positions if self.card.join or at == self.position]

    @cached_property
    def _known(self) -> KnownModel:
        from activation_store.capture.session import KnownModel

        return KnownModel.open(
            self.model,
            self.prompts.prompt_format(self.max_length, truncate=self.truncate),
            tokenizer=self.tokenizer,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            expected=self.prompts.expected,
        )

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self._known.load(self.prompts.layers, self._read_positions, dtype=self.prompts.dtype)

    def _check_places(self) -> None:
        """Make sure that the model's prompts and hidden states have the places that the probe reads."""
        given, known = self.prompts, self._known
        # The template of a .pt is not compared: that it has as many tokens behind the question says at least something.
        fits = set(given.positions) <= set(known.positions)
        if given.weights is None:
            fits = given.positions == list(known.positions)
        if given.eoi_tokens is None and not fits:
            way_out = "load the same tokenizer and template"
            if given.weights is None:
                way_out = "give the template that the .pt was made with, or eoi_tokens=N to read the last N tokens"
            raise RequestError(
                f"the template's tail has positions {list(known.positions)}, in training {given.positions}; {way_out}"
            )
        info = known.info
        cells = np.zeros((1, len(given.layers), len(given.positions), info.n_features))
        n_features = combine(ArrayCellSource(cells, given.layers, given.positions), self.card.join).n_features
        if max(given.layers) > info.n_blocks or n_features != self.coef.shape[1]:
            raise RequestError(
                f"the model {known.source.name} has layers 0 to {info.n_blocks} of {info.n_features} features, and the "
                f"probe reads {self.coef.shape[1]} features of layers {given.layers}; give the model that it was "
                "trained on",
                argument="model",
            )


def _read_questions(prompts: object) -> list[Question | PromptError]:
    """Each prompt as a question, or why it is not one; for any Python value."""
    if not isinstance(prompts, Iterable) or isinstance(prompts, str | bytes | Mapping):
        raise RequestError(f"{prompts!r} is not a list of prompts; put a single one in brackets: probe.score([text])")
    return [
        prompt if isinstance(prompt, PromptError) else read_question(prompt, f"row {row}")
        for row, prompt in enumerate(prompts)
    ]


def _usable(questions: Sequence[Question | PromptError]) -> list[Question]:
    """The questions; raises an error given instead of one."""
    usable: list[Question] = []
    for question in questions:
        if isinstance(question, PromptError):
            raise question
        usable.append(question)
    return usable


def _read_results(folder: Path) -> Results:
    if not has_results(folder):
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{RUN}"))
        hint = f"give one of {', '.join(inside)}" if inside else "give an output_dir=... of a training"
        raise RequestError(f"{folder} holds no finished training; {hint}", argument="folder")
    return Results.load(folder)


def _read_card(results: Results) -> Card:
    folder = results.folder
    if results.best is None:
        raise RequestError(
            f"{folder} has no best probe: it was trained without k_fold=True, or no cell has a CV score",
            argument="folder",
        )
    if results.run.origin is not None:
        return describe_saved(results)
    if CARD not in results.run.files:
        raise damaged(folder / RUN, f"it does not name {CARD}", ["files"])
    return Card.of(results)


def _warn_uncalibrated(card: Card, folder: Path) -> None:
    """Warn if scores are uncalibrated."""
    if card.calibration.kind is None:
        message = f"{folder}: scores are not calibrated: {card.calibration.reason}"
        warnings.warn(message, ProbeWarning, stacklevel=3)
