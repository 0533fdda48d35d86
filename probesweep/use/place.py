"""Where the model of a probe is. Imports nothing that runs models: what is not there is said at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activation_store.models.source import EMBEDDED_MODELS, ModelKind, ModelSource
from probesweep.errors import RequestError
from probesweep_errors import naming

# What identifies weights begins so.
_STARTS: dict[ModelKind, str] = {"hub": "hub commit", "memory": "in memory"}
# As in gpu_probes.results.forms, which is slow to import.
_CARD = "probe.json"


@dataclass(frozen=True)
class ModelPlace:
    """Where a training's model was.

    Attributes
    ----------
    kind : bundled, gguf, folder, hub or memory
        In a Python package, a file, a folder, a repository of the hub, or given as it was in memory.
    place : str
        The absolute path of a file or folder; otherwise the name, as ``--model`` takes it.
    """

    kind: ModelKind
    place: str

    @classmethod
    def recorded(cls, model: str, weights: str) -> ModelPlace:
        """Tell from what stores of every version record: the name as it was given, and what identifies the weights."""
        if model in EMBEDDED_MODELS:
            return cls("bundled", model)
        for kind, start in _STARTS.items():
            if weights.startswith(start):
                return cls(kind, model)
        path = Path(model).expanduser()
        # A relative path that leads nowhere from here is shown as it was given.
        return cls("gguf" if path.suffix == ".gguf" else "folder", str(path.absolute()) if path.exists() else model)

    def find(self, model: Any, folder: Path) -> Any:
        """Name the model to load: the one given, or the one recorded. The hub is not asked for what was a path.

        Parameters
        ----------
        model : str, PreTrainedModel or None
            As the user gives it; what is in memory is there.
        folder : Path
            The results that record this place, for errors.

        Raises
        ------
        RequestError, InputError
            It is not there.
        """
        if model is not None and not isinstance(model, str):
            return model
        if self.kind == "memory":
            raise RequestError(
                f"the model of the probe in {folder} was in memory ({self.place}); load it and give it in Python, with "
                "model=... and tokenizer=...",
                argument="model",
            )
        name = self.place if model is None else model
        path = Path(name).expanduser()
        is_path = self.kind in ("gguf", "folder") or path.is_absolute() or name.startswith((".", "~"))
        if is_path and name not in EMBEDDED_MODELS and not path.exists():
            raise RequestError(
                f"the model of the probe in {folder} is not at {self.place} any more; give its new place with model=..."
                if model is None
                else f"model={model!r} is neither a folder nor a file; give the place of the model that the probe in "
                f"{folder} was trained on ({self.place})",
                argument="model",
            )
        if is_path or name in EMBEDDED_MODELS:
            with naming("model"):
                ModelSource.parse(name)
        return name


def check_model_is_there(folder: Path, model: str | None) -> None:
    """Refuse a probe whose model is not there, in milliseconds; a folder that cannot be read is for others to refuse.

    Parameters
    ----------
    folder : Path
        Results of a training.
    model : str or None
        Instead of the training's.

    Raises
    ------
    RequestError, InputError
        As `ModelPlace.find`.
    """
    try:
        prompts = json.loads((folder / _CARD).read_bytes())["prompts"]
        recorded = prompts.get("source") or {}
        place = ModelPlace(**recorded) if recorded else ModelPlace.recorded(prompts["model"], prompts["weights"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    place.find(model, folder)
