"""A result folder: ``run.json``, and files that are as it says.

``run.json`` is written last and holds the SHA-256 of the other files. Where it stands, they are whole and belong
together; a file that was edited, cut off or put there since is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpu_probes.errors import ProbeError
from gpu_probes.files import write_whole

RUN = "run.json"


@dataclass(frozen=True)
class UsedStore:
    """A store that was trained or tested on; `content` tells its rows from others."""

    path: str
    n_samples: int
    content: str


@dataclass(frozen=True)
class Request:
    """What decides the results."""

    probesweep: str
    train: UsedStore
    test: UsedStore
    labels: list[str]
    options: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What ``run.json`` says.

    Attributes
    ----------
    request : Request
    label : str
        The one of the request's labels that is predicted here.
    model, weights : str or None
        Of the activations; None where their file does not say.
    position_tokens : list of str or None
    files : dict of str
        SHA-256 of the other files by their names.
    """

    request: Request
    label: str
    model: str | None
    weights: str | None
    position_tokens: list[str | None]
    files: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a folder's ``run.json``.

        Raises
        ------
        ProbeError
            When there is none, or it is damaged or something else.
        """
        path = folder / RUN
        if not path.is_file():
            raise ProbeError(f"{folder} holds no finished training; give an --output_dir of probesweep train")
        try:
            return _ADAPTER.validate_python(json.loads(path.read_bytes()))
        except (ValueError, RecursionError) as error:
            reason = first_error(error) if isinstance(error, ValidationError) else f"it is not JSON: {error}"
            raise ProbeError(
                f"{path} is damaged or not from probesweep train ({reason}); remove it and run probesweep train again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write ``run.json``; the other files are there already."""
        write_whole(folder / RUN, json.dumps(asdict(self), indent=2, allow_nan=False).encode() + b"\n")

    def is_whole(self, folder: Path) -> bool:
        """Whether all files are there as they were written."""
        return all((folder / name).is_file() and _hash(folder / name) == self.files[name] for name in self.files)


_ADAPTER = TypeAdapter(Run)


def first_error(error: ValidationError) -> str:
    """What is wrong in a document, and where."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def hash_run(folder: Path) -> str:
    """SHA-256 of a folder's ``run.json``, which tells its results from others.

    Raises
    ------
    ProbeError
        As `Run.load`.
    """
    Run.load(folder)
    return _hash(folder / RUN)


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by their names, for `Run.files`."""
    return {name: _hash(folder / name) for name in sorted(names)}


def check_file(path: Path) -> None:
    """Make sure that a file is as the ``run.json`` beside it says.

    Without one, as `SweepResult.save` leaves a folder, there is nothing to hold it against.

    Raises
    ------
    ProbeError
        When it is missing, or is another.
    """
    try:
        found = _hash(path)
    except OSError as error:
        raise ProbeError(f"{path} cannot be read ({error.strerror}); run probesweep train again") from error
    if (path.parent / RUN).exists() and found != Run.load(path.parent).files.get(path.name):
        raise ProbeError(
            f"{path} is not as {RUN} beside it says: it was changed or cut off, or is of another run; run probesweep "
            "train again"
        )


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a result folder.

    Raises
    ------
    ProbeError
        As `check_file`, or when it is not a JSON object.
    """
    check_file(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} is not JSON ({error}); run probesweep train again") from error
    if not isinstance(content, dict):
        raise ProbeError(f"{path} is not a JSON object: it is not from probesweep train; run that again")
    return content


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
