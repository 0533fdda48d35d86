"""What a training needs from its stores: that they belong together, and their columns by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from activation_store.opening import open_activations
from gpu_probes import shared_prompts
from gpu_probes.results.folder import Run
from gpu_probes.samples.attempts import COUNTS, N_CORRECT, N_SAMPLES
from probesweep.errors import RequestError
from probesweep.labels_file import Activations
from probesweep.selection import Selection

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def another_model(run: Run, store: Activations) -> str | None:
    """Say that probes were trained on another model's activations; None where they were not, or nobody knows."""
    trained, here = run.weights, store.fingerprint.get("weights")
    if None in (trained, here) or trained == here:
        return None
    return f"the probes were trained on another model than that of {store.path} (weights differ)"


def check_same_origin(train: Activations, test: Activations | None) -> None:
    """Refuse to test on another model's activations."""
    if test is None:
        return
    for field in ("weights", "tokenizer", "chat_template_kwargs"):
        values = [store.fingerprint.get(field) for store in (train, test)]
        if None not in values and values[0] != values[1]:
            raise RequestError(
                f"{train.path} and {test.path} differ in {field}: {values[0]} and {values[1]}; "
                "extract both with the same model and template",
                argument="test_activations",
            )


def check_unchanged(store: Activations) -> None:
    """Make sure that what was opened is still there.

    Raises
    ------
    RequestError
        It was replaced.
    """
    if open_activations(store.path).journal_hash != store.journal_hash:
        raise RequestError(f"{store.path} was replaced in the meantime; run the same command again")


def origin_of(store: Activations) -> dict[str, Any]:
    """What a store says of how it was made; empty for a ``.pt``."""
    return dict(getattr(store, "attrs", {}).get("provenance", {}))


def warn_of_another_day(train: Activations, test: Activations) -> None:
    """Warn if the template inserts the date into prompts and the stores have different dates."""
    days = [origin_of(store).get("template_day") for store in (train, test)]
    if days[0] != days[1]:
        logger.warning(
            "the chat template can insert the date into prompts: %s in the training rows', %s in the test rows'", *days
        )


def choose_labels(
    wanted: Sequence[str],
    *,
    weights: str | None,
    groups: str | None,
    split: str | None,
    train: Selection,
    test: Selection | None,
) -> list[str]:
    """The labels to predict: all in the training store but weights, groups and split, unless some are named.

    Counts of attempts are predicted only if they are named, or nothing else is there: they say how far another label
    is known.
    """
    held = [name for name in train.stored_labels if name not in (weights, groups, split)]
    held = [name for name in held if name not in COUNTS] or held
    if not train.names_labels and (weights or len(set(wanted)) > 1):
        raise RequestError(
            f"{train.path} has one label without a name; label_column=... can be given once", argument="label_column"
        )
    needed: list[tuple[Selection, Sequence[str]]] = [(train, [*wanted, *filter(None, [weights])])]
    if test is not None:
        needed.append((test, wanted or held))
    for side, names in needed:
        missing = [name for name in names if name not in side.label_names]
        if missing and side.names_labels:
            raise RequestError(
                f"{side.path} has no label {missing[0]!r}; it holds {', '.join(side.label_names)}. Join it from a file "
                f"(labels=...), extract it with label_column={missing[0]!r}, or choose another label_column=...",
                argument="weight_column" if missing[0] == weights and missing[0] not in wanted else "label_column",
            )
    if not (wanted or held):
        taken = {"weights (weight_column=...)": weights, "groups (groups=...)": groups}
        used = " and ".join(role for role, name in taken.items() if name in train.stored_labels)
        raise RequestError(
            f"{train.path} holds no label besides the {used}; extract it with another one", argument="label_column"
        )
    chosen = list(dict.fromkeys(wanted or held))
    if train.joined is not None and not train.from_file(
        [*chosen, *filter(None, [weights, groups]), N_SAMPLES, N_CORRECT]
    ):
        raise RequestError(
            f"{train.joined.columns.path}: nothing of it is used; name one of its columns "
            f"({', '.join(train.joined.names)}) as label_column=..., groups=... or weight_column=...",
            argument="labels",
        )
    return chosen


def label(store: Activations, name: str) -> pd.Series:
    """Values of a label; that of a ``.pt`` file has any name."""
    return Selection.of(store).label(name)


def shared_rows(train: Selection, test: Selection, *, dropped: bool) -> Bool[np.ndarray, " test_sample"]:
    """Which test prompts also occur in training; none if a ``.pt`` does not contain them."""
    if train.questions is None or test.questions is None:
        if dropped:
            raise RequestError(
                "drop_overlap=True needs prompts, and a .pt holds none, imported or not; extract both stores",
                argument="drop_overlap",
            )
        return np.zeros(test.n_samples, dtype=bool)
    shared = shared_prompts(train.questions, test.questions)
    if dropped and shared.all():
        raise RequestError(
            f"every prompt of {test.path} also occurs in {train.path}: nothing is left to test on after "
            "drop_overlap=True; give other test_activations=...",
            argument="drop_overlap",
        )
    return shared
