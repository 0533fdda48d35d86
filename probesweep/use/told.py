"""How prompts are made for a probe that was trained on a ``.pt``, which does not say so: as the user tells."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from activation_store.errors import check_at_least_one
from activation_store.extraction.arguments import check_template_kwargs
from activation_store.format.dtypes import numpy_dtype
from gpu_probes.results.documents import Results
from probesweep.errors import RequestError
from probesweep.use.card import Card, Places, PromptOrigin
from probesweep.use.place import ModelPlace

# That of extract.
_QUESTION_COLUMN = "question"


@dataclass(frozen=True)
class Told:
    """What the user says of prompts; None: nothing.

    Attributes
    ----------
    use_chat_template : bool, optional
    chat_template_kwargs : dict, optional
    eoi_tokens : int, optional
    dtype : str, optional
        As of `activation_store.Extraction`.
    """

    use_chat_template: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    eoi_tokens: int | None = None
    dtype: str | None = None

    def check_silent(self, folder: Path) -> None:
        """Refuse to be told what the results say themselves.

        Raises
        ------
        RequestError
            Something is told.
        """
        for name in (option.name for option in fields(self)):
            value = getattr(self, name)
            if value is not None:
                raise RequestError(
                    f"{name}={value!r} is for probes that were trained on a .pt; {folder} says itself how its prompts "
                    "were made: leave it out",
                    argument=name,
                )

    def prompts(self, card: Card, results: Results, model: Any) -> PromptOrigin:
        """Describe the prompts; layers and positions are those of the ``.pt``.

        Raises
        ------
        ProbesweepError
            Something is missing or invalid.
        """
        if not (results.run.origin or {}).get("knows_places", True):
            raise RequestError(
                f"the probe in {results.folder} was fitted to an array, which does not say which layers and positions "
                "it holds; fit it to a store, or to ArrayCellSource(array, layers, positions)"
            )
        if model is None:
            named = f" (the file names {results.run.model!r})" if results.run.model else ""
            raise RequestError(
                f"the probe in {results.folder} was trained on a .pt or an imported store, which does not say how its "
                f"prompts were made; give the model with model=...{named}, and if the prompts are bare questions, "
                "use_chat_template=True",
                argument="model",
            )
        check_at_least_one(eoi_tokens=self.eoi_tokens)
        check_template_kwargs(self.chat_template_kwargs or {})
        if self.dtype not in (None, "auto"):
            numpy_dtype(self.dtype)
        places = card.places or _places_of(card, results)
        first = min(places.positions)
        if max(places.positions) >= 0:
            raise RequestError(
                f"the probe in {results.folder} was trained on positions {places.positions}, which do not count from "
                "the end of a prompt; train on activations whose positions do"
            )
        if self.eoi_tokens is not None and -first > self.eoi_tokens:
            raise RequestError(
                f"eoi_tokens={self.eoi_tokens} is too few: the .pt has positions {places.positions}; give {-first} or "
                "more",
                argument="eoi_tokens",
            )
        name = model if isinstance(model, str) else type(model).__name__
        return PromptOrigin(
            model=name,
            weights=None,
            tokenizer=None,
            dtype=self.dtype or "auto",
            layers=places.layers,
            positions=places.positions,
            use_chat_template=bool(self.use_chat_template),
            chat_template=None,
            chat_template_kwargs=self.chat_template_kwargs or {},
            eoi_tokens=self.eoi_tokens,
            truncate_to=None,
            question_column=_QUESTION_COLUMN,
            source=ModelPlace("hub", name),
        )


def _places_of(card: Card, results: Results) -> Places:
    """Of a card of earlier versions, which name them where no cells were joined."""
    positions = [position for position in results.performance.positions if isinstance(position, int)]
    if card.join is not None or not isinstance(card.layer, int) or not positions:
        raise RequestError(
            f"{results.folder} was written by an earlier version and does not say which cells its probe reads; run the "
            "same training again"
        )
    return Places([card.layer], positions)
