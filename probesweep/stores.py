"""What a training needs from its stores: that they belong together, and their columns by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Shaped

from activation_store import ActivationStore
from activation_store.opening import open_activations
from activation_store.pt.activations import PtActivations
from gpu_probes import shared_prompts
from gpu_probes.results.folder import Run
from probesweep.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
Activations: TypeAlias = ActivationStore | PtActivations


def another_model(run: Run, store: Activations) -> str | None:
    """Say that probes were trained on another model's activations; None where they were not, or nobody knows."""
    trained, here = run.weights, store.fingerprint.get("weights")
    if None in (trained, here) or trained == here:
        return None
    return f"the probes were trained on another model than that of {store.path} (weights differ)"


def check_same_origin(train: Activations, test: Activations) -> None:
    """Refuse to test on another model's activations."""
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
    wanted: Sequence[str], *, weights: str | None, groups: str | None, train: Activations, test: Activations
) -> list[str]:
    """The labels to predict: all in the training store except weights and groups, unless some are named."""
    held = [name for name in train.labels if name not in (weights, groups)]
    if not _names_labels(train) and (weights or len(set(wanted)) > 1):
        raise RequestError(
            f"{train.path} has one label without a name; label_column=... can be given once", argument="label_column"
        )
    needed = ((train, [*wanted, *filter(None, [weights])]), (test, wanted or held))
    for store, names in needed:
        missing = [name for name in names if name not in store.labels]
        if missing and _names_labels(store):
            raise RequestError(
                f"{store.path} has no label {missing[0]!r}; it holds {', '.join(store.labels)}. Extract it with "
                f"label_column={missing[0]!r}, or choose another label_column=...",
                argument="weight_column" if missing[0] == weights and missing[0] not in wanted else "label_column",
            )
    if not (wanted or held):
        taken = {"weights (weight_column=...)": weights, "groups (groups=...)": groups}
        used = " and ".join(role for role, name in taken.items() if name in train.labels)
        raise RequestError(
            f"{train.path} holds no label besides the {used}; extract it with another one", argument="label_column"
        )
    return list(dict.fromkeys(wanted or held))


def label(store: Activations, name: str) -> pd.Series:
    """Values of a label; that of a ``.pt`` file has any name."""
    labels = store.labels
    if _names_labels(store) and name not in labels:
        raise RequestError(
            f"{store.path} has no label {name!r}; it holds {', '.join(labels)} (label_column=...)",
            argument="label_column",
        )
    return labels.iloc[:, list(labels).index(name) if _names_labels(store) else 0]


def has_column(store: Activations, name: str) -> bool:
    """Whether a store has a column that can say which samples belong together."""
    return name in _columns(store)


def group_column(store: Activations, name: str) -> Shaped[np.ndarray, " sample"]:
    """Values of a column that says which samples belong together."""
    if name in store.labels:
        return store.labels[name].to_numpy()
    if not has_column(store, name) or not isinstance(store, ActivationStore):
        raise RequestError(
            f"{store.path} has no column {name!r} to group by (groups=...); it holds {', '.join(_columns(store))}. "
            f"Extract it with group_column={name!r}",
            argument="groups",
        )
    return store.coordinate(name)


def shared_rows(train: Activations, test: Activations, *, dropped: bool) -> Bool[np.ndarray, " test_sample"]:
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


def _names_labels(store: Activations) -> bool:
    return store.fingerprint.get("label_columns") is not None


def _columns(store: Activations) -> list[str]:
    return [*store.labels, *(store.fingerprint.get("group_columns") or ())]
