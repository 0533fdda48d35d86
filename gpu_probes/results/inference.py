"""Everything about a finished sweep besides its scores: ``inference.json`` as a frozen object.

Undefined values are None, with a reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Tag, TypeAdapter

from gpu_probes.forms import (
    OMITTED,
    Columns,
    Count,
    Flag,
    Json,
    Number,
    Penalty,
    Place,
    Score,
    Share,
    Text,
    plain,
    read_form,
)
from gpu_probes.results.files import commit_file
from gpu_probes.results.folder import read_document
from gpu_probes.scores.intervals import Interval
from gpu_probes.terms import PermutationStatistic

INFERENCE = "inference.json"
Grid = tuple[tuple[Share | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class FoldChoice:
    """What the other folds choose for one fold, and its score on that fold."""

    layer: Place
    position: Place
    alpha: Penalty
    inner_score: Score
    score: Score


@dataclass(frozen=True, kw_only=True)
class NestedScore:
    """The nested CV score of the choice of cell and alpha."""

    score: Score | None
    best_cv_score: Score | None = field(default=None, metadata=OMITTED)
    optimism: Number | None = field(default=None, metadata=OMITTED)
    folds: tuple[FoldChoice, ...] | None = field(default=None, metadata=OMITTED)
    predictions: Columns | None = field(default=None, metadata=OMITTED)
    reason: Text | None


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """The permutation test; `p` and `p_uncorrected` are [position][layer].

    `statistic` says whose CV scores are compared. The probe's own are in ``performance.json``; `observed` has those of
    least squares on class indicators, [position][layer].
    """

    statistic: PermutationStatistic = "probe"
    p_best: Share | None
    p: Grid | None
    p_uncorrected: Grid | None = field(default=None, metadata=OMITTED)
    n_permutations: Count | None = field(default=None, metadata=OMITTED)
    shuffled: Text | None = field(default=None, metadata=OMITTED)
    observed: tuple[tuple[Score | None, ...], ...] | None = field(default=None, metadata=OMITTED)
    observed_max: Score | None = field(default=None, metadata=OMITTED)
    null_max: tuple[Score, ...] | None = field(default=None, metadata=OMITTED)
    reason: Text | None

    @property
    def smallest_p(self) -> float | None:
        """The smallest p that so many permutations can give."""
        return None if self.n_permutations is None else 1 / (1 + self.n_permutations)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """Lead of the best probe's test score over another cell's."""

    layer: Place
    position: Place
    test_score: Interval


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals of the best probe's test score, the nested CV score, and the lead over other positions' best cells."""

    test_score: Interval | None
    nested_cv_score: Interval | None
    best_minus_cell: tuple[Lead, ...]


@dataclass(frozen=True, kw_only=True)
class BaselineScores:
    """A baseline's scores, the interval of its test score, and the best probe's lead over it."""

    title: Text
    cv_score: Score | None
    test_score: Score | None
    note: Text
    test_interval: Interval | None
    difference: Interval | None


@dataclass(frozen=True, kw_only=True)
class Learnability:
    """Mean p(1-p) of a selection by predicted success rates, of the best selection and of a random one."""

    selected: Number
    best: Number
    random: Number
    ratio: Number | None


@dataclass(frozen=True, kw_only=True)
class RegressionScores:
    """All regression scores; `undefined` has reasons by name."""

    spearman: Score | None
    pearson: Score | None
    kendall: Score | None
    r2: Number | None
    mse: Penalty | None
    mae: Penalty | None
    learnability: Learnability | None
    undefined: dict[Text, Text]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose predicted probability is between `low` and `high`, and the observed frequency."""

    low: Share
    high: Share
    count: Count
    mean_predicted: Share | None
    fraction_positive: Share | None


@dataclass(frozen=True, kw_only=True)
class OneClass:
    """Scores of one class against all others; `support` is the number of its rows, `undefined` has reasons by name."""

    name: Text
    support: Count
    precision: Share | None
    recall: Share | None
    f1: Share | None
    roc_auc: Share | None
    undefined: dict[Text, Text]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """All classification scores; `undefined` has reasons by name.

    `roc_auc` and `average_precision` of more than two classes are the mean over the classes, each against all others,
    with equal weights (one-vs-rest, macro). The rows of `confusion` are the actual classes, its columns the most
    probable ones, both in the order of `by_class`. Folders of earlier versions lack these two.
    """

    roc_auc: Share | None
    average_precision: Share | None
    accuracy: Share | None
    log_loss: Penalty | None
    brier: Penalty | None
    ece: Share | None
    recall_at_1pct_fpr: Share | None
    reliability: tuple[Bin, ...] | None
    by_class: tuple[OneClass, ...] | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None
    undefined: dict[Text, Text]


def _kind_of_scores(value: object) -> str:
    named = "roc_auc" in value if isinstance(value, dict) else isinstance(value, ClassScores)
    return "classes" if named else "numbers"


AllScores = Annotated[
    Annotated[RegressionScores, Tag("numbers")] | Annotated[ClassScores, Tag("classes")],
    Discriminator(_kind_of_scores),
]


@dataclass(frozen=True, kw_only=True)
class Platt:
    """Platt scaling on held-out decision values, and the test scores after it."""

    slope: Penalty | None
    intercept: Number | None
    reason: Text | None
    test_scores: AllScores | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """One temperature for more than two classes, fitted to held-out decision values, and the test scores after it."""

    temperature: Penalty | None
    reason: Text | None
    test_scores: AllScores | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Least-squares line from held-out predictions to the labels."""

    slope: Penalty | None
    intercept: Number | None
    reason: Text | None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Scores of the best cell with a share of its training rows."""

    share: Share
    n_rows: Count
    cv_score: Score | None
    test_score: Score | None
    alpha: Penalty | None


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What is held out together; counts of prompts are None if prompts are unknown or may be split."""

    n_groups: Count
    column: Flag
    test_rows_grouped: Flag
    n_repeated_prompts: Count | None
    n_repeated_but_for_case_and_whitespace: Count | None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Test rows that also occur in training, and the best probe's scores on these and on the others.

    `n_shared` is None with a reason if prompts are unknown. `n_unscored` is None if there was nothing to score.
    """

    n_shared: Count | None
    reason: Text | None = field(default=None, metadata=OMITTED)
    rows: tuple[Count, ...] | None = field(default=None, metadata=OMITTED)
    dropped: Flag | None = field(default=None, metadata=OMITTED)
    scores_of_shared: AllScores | None = None
    scores_of_others: AllScores | None = None
    n_unscored: Count | None = field(default=None, metadata=OMITTED)

    def to_json(self) -> dict[str, Json]:
        """As in the file."""
        content = plain(self)
        unscored = ("scores_of_shared", "scores_of_others") if self.n_unscored is None else ()
        return {name: value for name, value in content.items() if name not in unscored}


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The best scores that any predictor can reach on labels that are shares of attempts.

    Attributes
    ----------
    fewest_samples, most_samples : int or None
        Attempts per question.
    threshold : float or None
        The label is whether the share is above this number; None where it is the share itself.
    scores : dict of Interval
        By name: ``spearman``, ``pearson`` and ``r2``, or ``roc_auc`` with a threshold.
    reason : str or None
        Why there are none at all.
    """

    fewest_samples: Count | None = None
    most_samples: Count | None = None
    threshold: Number | None = None
    scores: dict[Text, Interval] = field(default_factory=dict)
    reason: Text | None = None

    @property
    def attempts(self) -> str:
        """How many there are per question, in words."""
        few, many = self.fewest_samples, self.most_samples
        number = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        return f"{number} attempt{'' if many == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How far the scores of a sweep can be trusted, and what they beat.

    Some parts are None in folders of earlier versions. `scores`, `platt` and `calibration` are None if there is no best
    probe; `temperature` also if there are not more than two classes; `overlap` if rows were not compared.

    Attributes
    ----------
    baselines : dict of BaselineScores
        By name.
    scores : dict of RegressionScores or ClassScores
        Of the best probe, by split: ``train``, ``cv`` (of the pooled predictions) and ``test``.
    ceiling : dict of Ceiling or None
        Of the labels of the training rows, which CV and nested CV scores are of, and of the test rows. None where the
        label is no share of attempts as far as is known, and in folders of earlier versions.
    """

    nested_cv: NestedScore | None = None
    permutation: Permutation | None = None
    intervals: Intervals | None = None
    baselines: dict[Text, BaselineScores] | None = None
    scores: dict[Literal["train", "cv", "test"], AllScores] | None = None
    platt: Platt | None = None
    temperature: Temperature | None = field(default=None, metadata=OMITTED)
    calibration: Line | None = None
    learning_curve: tuple[CurvePoint, ...] | None = None
    groups: Groups | None = None
    overlap: Overlap | None = None
    ceiling: dict[Literal["train", "test"], Ceiling] | None = field(default=None, metadata=OMITTED)

    def ceiling_of(self, split: Literal["train", "test"], metric: str) -> Interval | None:
        """The ceiling of a score; None where there is none, or it is undefined."""
        found = (self.ceiling or {}).get(split)
        interval = None if found is None else found.scores.get(metric)
        return None if interval is None or interval.estimate is None else interval

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read a folder's ``inference.json``.

        Raises
        ------
        ProbeError
            When it is missing, changed, or something else.
        """
        path = folder / INFERENCE
        return read_form(cls, read_document(path), path)

    def save(self, folder: Path) -> None:
        """Write ``inference.json``."""
        commit_file(folder / INFERENCE, json.dumps(self.to_json(), indent=2, allow_nan=False).encode() + b"\n")

    def to_json(self) -> dict[str, Json]:
        """As in the file."""
        content = plain(self)
        del content["overlap"]
        return content if self.overlap is None else {**content, "overlap": self.overlap.to_json()}


_SCORES: TypeAdapter[RegressionScores | ClassScores] = TypeAdapter(AllScores)


def read_scores(values: dict[str, Json], undefined: dict[str, str]) -> RegressionScores | ClassScores:
    """Scores by name as an object."""
    return _SCORES.validate_python({**values, "undefined": undefined})
