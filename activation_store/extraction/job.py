"""One extraction with everything known but the weights: what it reads, what it stores, how it is told from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from activation_store.extraction.model_run import ModelRun
from activation_store.format.dtypes import numpy_dtype
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import COORDINATES, StoreSpec
from activation_store.prompts.prompts import PromptFormat
from activation_store.prompts.tokenizer import Tokenizer, chat_template_hash, tokenizer_hash
from activation_store.prompts.truncation import TRUNCATION_RULE
from activation_store.questions.dataset import Dataset
from activation_store.questions.question import question_text
from activation_store.store.provenance import library_versions

# What a fingerprint says besides hidden states: the model's name is only a spelling, its weights identify it.
BESIDE = ("model", "dataset", "dataset_revisions", "question_column", "label_columns", "group_columns")
_PLACES = ("layers", "positions")


def lacking(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What keeps a store from having all hidden states of a job: other prompts, another model, places, by name.

    Parameters
    ----------
    stored, wanted : mapping
        Fingerprints.
    """
    # Through JSON, because the stored one came from there: tuples are lists.
    wanted = json.loads(json.dumps(wanted))
    keys = [key for key in {**stored, **wanted} if key not in (*BESIDE, *_PLACES)]
    others = [key for key in keys if stored.get(key) != wanted.get(key)]
    return others + [name for name in _PLACES if not set(wanted[name]) <= set(stored.get(name, ()))]


@dataclass(frozen=True)
class Job(ModelRun):
    """One extraction, everything checked but the weights.

    Parameters
    ----------
    source, info, prompts, layers, dtype, device, device_map
        As of `ModelRun`.
    dataset : Dataset
        What was read.
    tokenizer : Tokenizer
        Of the model.
    prompt_format : PromptFormat
        How questions became prompts.
    template_day : str or None
        Today (ISO 8601), where the template can write it into prompts.
    """

    dataset: Dataset
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    template_day: str | None

    @property
    def model_run(self) -> ModelRun:
        """What another process needs, and no more; it may be in another folder."""
        run = ModelRun(**{field.name: getattr(self, field.name) for field in fields(ModelRun)})
        location = Path(run.source.location)
        if not location.is_dir():
            return run
        return replace(run, source=replace(run.source, location=str(location.absolute())))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides which store an extraction may go on with."""
        given = self.prompt_format
        return {
            "model": self.source.name,
            "weights": self.info.weights,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "chat_template": chat_template_hash(self.tokenizer) if given.use_chat_template else None,
            "chat_template_kwargs": given.template_kwargs,
            "n_samples": len(self.dataset.questions),
            "dataset": self.dataset.content_hash,
            **({"dataset_revisions": self.dataset.revisions} if self.dataset.revisions else {}),
            "question_column": self.dataset.question_column,
            "label_columns": list(self.dataset.labels),
            # Stores from before there were groups are taken up as well.
            **({"group_columns": list(self.dataset.groups)} if self.dataset.groups else {}),
            "prompts": hashlib.sha256(self.prompts.token_ids.tobytes() + self.prompts.starts.tobytes()).hexdigest(),
            "layers": list(self.layers),
            "positions": list(self.prompts.positions),
            "dtype": self.dtype,
            "truncation": None if given.cut_to is None else {"max_length": given.cut_to, "rule": TRUNCATION_RULE},
        }

    def spec(self, shard_samples: int | None) -> StoreSpec:
        """Describe the store.

        Parameters
        ----------
        shard_samples : int or None
            Samples of one shard; None: as many as make a file of at most 256 MiB.
        """
        n_samples, prompts = len(self.dataset.questions), self.prompts
        n_values = len(self.layers) * len(prompts.positions) * self.info.n_features
        balanced = balanced_shard_samples(n_samples, n_values * numpy_dtype(self.dtype).itemsize)
        return StoreSpec(
            n_samples=n_samples,
            layers=self.layers,
            positions=prompts.positions,
            n_features=self.info.n_features,
            dtype=self.dtype,
            shard_samples=min(shard_samples or balanced, n_samples),
            coordinates=(*COORDINATES, *self.dataset.groups),
            label_columns=tuple(self.dataset.labels),
            label_classes=self.dataset.label_classes,
            fingerprint=self.fingerprint,
            provenance={
                "model_source": {"kind": self.source.kind, "place": self.source.place},
                "model_revision": self.info.revision,
                "template_tail": prompts.tail,
                "template_day": self.template_day,
                "truncated_rows": list(prompts.truncated_rows),
                "control_strings": {
                    "rows_as_text": len(prompts.control_rows.as_text),
                    "rows_as_tokens": list(prompts.control_rows.as_tokens),
                },
                "padding": "right, without a mask; the last real tokens are gathered",
                "versions": library_versions(),
            },
        )

    def beside(self) -> dict[str, np.ndarray]:
        """Values of the arrays next to the activations."""
        token_ids = self.prompts.tail_ids()
        distinct, place = np.unique(token_ids, return_inverse=True)
        decoded = np.array([self.tokenizer.decode([token]) for token in distinct.tolist()], dtype=object)
        return {
            "n_tokens": self.prompts.n_tokens.astype(np.int32),
            "token_id": token_ids,
            "token": decoded[place].reshape(token_ids.shape),
            "prompt_hash": self.prompts.text_hash,
            "question": np.array([question_text(question) for question in self.dataset.questions], dtype=object),
            **self.dataset.labels,
            **self.dataset.groups,
        }
