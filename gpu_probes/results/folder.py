"""A result folder: ``run.json``, and files that match it.

``run.json`` has the SHA-256 of the other files, so they are complete and belong together; a file that was edited, cut
off or added since is not read.

New results replace old ones as a unit. They are written into a separate folder, which is renamed to ``.new`` once they
are complete: from then on they are the results. Then the old files are deleted, and the new ones move up, ``run.json``
last. Whoever finds a ``.new``, because a process was killed in between, moves the rest up before reading.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from gpu_probes.errors import ProbeError
from gpu_probes.forms import Anything, Count, Sha256, Text, Whole, damaged, read_form
from gpu_probes.results.files import commit_file, fsync_folder

RUN = "run.json"
FORMAT_VERSION = 2
_REMEDY = "remove it and run the same training again"
# Those of a training, where there is something to say.
RESULT_FILES = (
    "performance.json",
    "best_probe_predictions.json",
    "all_predictions.json",
    "cells.parquet",
    "probes.safetensors",
    "inference.json",
    "probe.json",
)
# What is drawn of them, and goes when they are replaced.
PAGE = "report.html"
PICTURES = "figures"
PICTURE_KINDS = ("png", "svg", "pdf")
FIGURE_NAMES = (
    "heatmap",
    "layers",
    "predictions",
    "roc",
    "reliability",
    "comparison",
    "permutations",
    "alphas",
    "learning_curve",
)
# How long to wait for another process to move new results up.
PATIENCE_S = 10.0
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
_NEW = ".new"
_DRAFT = ".draft-"


@dataclass(frozen=True)
class UsedFile:
    """Columns of a file that were used with a store's rows.

    Attributes
    ----------
    paths : list of str
        The file, or several whose rows follow one another.
    joined_by : str
        The column that its rows were joined by, or ``row``: in the store's order.
    columns : list of str
    content : str
        SHA-256 of these columns in the order of the rows that were used.
    """

    paths: list[Text]
    joined_by: Text
    columns: list[Text]
    content: Sha256


@dataclass(frozen=True)
class UsedStore:
    """A store that was trained or tested on.

    Attributes
    ----------
    path : str
    n_samples : int
        Rows that were used.
    content : str
        Tells the store from others.
    rows : list of int or None
        Which rows were used; None: all.
    labels : UsedFile or None
        Where columns came from that are not the store's.
    """

    path: Text
    n_samples: Count
    content: Text
    rows: list[Count] | None = None
    labels: UsedFile | None = None


@dataclass(frozen=True)
class Request:
    """Everything that determines the results; `test` is None where nothing was tested on."""

    probesweep: Text
    train: UsedStore
    test: UsedStore | None
    labels: list[Text]
    options: dict[Text, Anything]

    def differences(self, other: Request) -> list[str]:
        """Names of what differs from another request."""
        mine, theirs = ({**vars(each), **each.options} for each in (self, other))
        names = [name for name in {**mine, **theirs} if name != "options"]
        return [name for name in names if mine.get(name) != theirs.get(name)]


@dataclass(frozen=True)
class Run:
    """What ``run.json`` says.

    Attributes
    ----------
    format_version : int
        Of the folder. 1: none is written, and documents may lack what came later. 2: they have all parts.
    request : Request
    label : str
        The one of the request's labels that is predicted here.
    model, weights : str or None
        Of the activations; None where their file does not say.
    dataset : str or None
        File of the training prompts, as it was given to `extract`; None where that is not known.
    versions : dict of str
        Of the libraries that affect results; empty in folders of earlier versions.
    position_tokens : list of str or None
    files : dict of str
        SHA-256 of the other files by their names.
    origin : dict or None
        Of a sweep that was saved from Python, which writes no card: how the training rows were made, as far as their
        source says, for whoever loads the probe.
    """

    format_version: Whole = field(default=FORMAT_VERSION, kw_only=True)
    request: Request
    label: Text
    model: Text | None
    weights: Text | None
    position_tokens: list[Text | None]
    files: dict[Text, Sha256]
    origin: dict[Text, Anything] | None = None
    dataset: Text | None = field(default=None, kw_only=True)
    versions: dict[Text, Text | None] = field(default_factory=dict, kw_only=True)

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a folder's ``run.json``.

        Raises
        ------
        ProbeError
            When there is none, it is damaged or something else, or a newer version wrote it.
        """
        path = folder / RUN
        if not has_results(folder):
            raise ProbeError(f"{folder} holds no finished training; give an output_dir=... of a training")
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"it is not JSON: {error}", remedy=_REMEDY) from error
        version = document.setdefault("format_version", 1) if isinstance(document, dict) else 1
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ProbeError(
                f"{path} has format {version}, and this probesweep reads formats up to {FORMAT_VERSION}; install the "
                "probesweep that wrote it"
            )
        return read_form(cls, document, path, remedy=_REMEDY)

    def save(self, folder: Path) -> None:
        """Write ``run.json``; the other files are there already."""
        commit_file(folder / RUN, json.dumps(asdict(self), indent=2, allow_nan=False).encode() + b"\n")

    def is_whole(self, folder: Path) -> bool:
        """Whether all files exist unchanged."""
        return all((folder / name).is_file() and hash_file(folder / name) == self.files[name] for name in self.files)


def has_results(folder: Path) -> bool:
    """Whether a folder holds finished results; new ones that were not all in their place yet are now."""
    _move_up(folder)
    return (folder / RUN).is_file()


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """Hand out a folder for new results, ``run.json`` among them, which take the place of the old ones at the end.

    Only one process may do so at a time. A failure before the end leaves the old results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _move_up(folder)
    for left in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(left)
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder))
    try:
        yield draft
        fsync_folder(draft)
        draft.rename(folder / _NEW)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is not None:
            # The draft's name tells users nothing.
            error.filename = str(error.filename).replace(str(draft), str(folder))
        raise
    fsync_folder(folder)
    _move_up(folder)


def clear_results(folder: Path) -> None:
    """Remove a folder's results and what was drawn of them, ``run.json`` first."""
    for name in (RUN, *RESULT_FILES):
        (folder / name).unlink(missing_ok=True)
    remove_drawn(folder)


def remove_drawn(folder: Path) -> None:
    """Remove the page and the figures of a folder's results."""
    for path in drawn(folder):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / PICTURES).rmdir()


def drawn(folder: Path) -> list[Path]:
    """Where the page and the figures of a folder's results are, if they were made."""
    pictures = folder / PICTURES
    return [folder / PAGE, *(pictures / f"{name}.{kind}" for name in FIGURE_NAMES for kind in PICTURE_KINDS)]


def _move_up(folder: Path) -> None:
    """Put the files of ``.new`` in their places; several processes may try."""
    new = folder / _NEW
    if new.is_symlink() or not new.is_dir():
        return
    try:
        with (new / RUN).open("rb+") as locked:
            _wait_for(locked, folder)
            if (new / RUN).exists():
                _replace(folder, new)
    except FileNotFoundError:
        # Another process was faster, or was killed between its last two steps.
        with suppress(OSError):
            new.rmdir()
    except OSError as error:
        raise ProbeError(
            f"{folder}: its new results could not be put in place ({error.strerror}: {error.filename}); fix that and "
            "run the same command again"
        ) from error


def _wait_for(locked: IO[bytes], folder: Path) -> None:
    """Be the only one that moves files up, which takes milliseconds."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                raise ProbeError(
                    f"{folder}: another process started to put new results there and is stuck; end it, and run the "
                    "same command again"
                ) from error
            time.sleep(0.01)


def _replace(folder: Path, new: Path) -> None:
    try:
        listed = json.loads((new / RUN).read_bytes())["files"]
        names = [name for name in RESULT_FILES if name in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProbeError(f"{new / RUN} is damaged ({error}); remove {new} and train again") from error
    # All the old files before the first new one: whoever reads without looking at run.json never has some of each.
    for name in (RUN, *RESULT_FILES):
        if name not in names or (new / name).exists():
            (folder / name).unlink(missing_ok=True)
    fsync_folder(folder)
    for name in (*names, RUN):
        if (new / name).exists():
            (new / name).rename(folder / name)
    fsync_folder(folder)
    new.rmdir()


def library_versions(origin: Mapping[str, Any]) -> dict[str, str | None]:
    """Versions of the libraries that affect results, for `Run.versions`.

    Parameters
    ----------
    origin : mapping
        What a store says of how it was made. If it was imported, the version of transformers is not known.
    """
    made = origin.get("versions", {}) if "dataset_path" in origin else {}
    return {"transformers": made.get("transformers"), **{name: version(name) for name in _LIBRARIES}}


def hash_run(folder: Path) -> str:
    """SHA-256 of a folder's ``run.json``, which tells its results from others.

    Raises
    ------
    ProbeError
        As `Run.load`.
    """
    Run.load(folder)
    return hash_file(folder / RUN)


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by their names, for `Run.files`."""
    return {name: hash_file(folder / name) for name in sorted(names)}


def check_listed(path: Path) -> None:
    """Make sure that a file matches the ``run.json`` next to it.

    Without one there is nothing to hold it against.

    Raises
    ------
    ProbeError
        When it is missing, or is another.
    """
    try:
        found = hash_file(path)
    except OSError as error:
        raise ProbeError(f"{path} cannot be read ({error.strerror}); train again") from error
    if (path.parent / RUN).exists() and found != Run.load(path.parent).files.get(path.name):
        raise ProbeError(
            f"{path} does not match {RUN} next to it: it was changed or cut off, or belongs to another run; train again"
        )


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a result folder.

    Raises
    ------
    ProbeError
        As `check_listed`, or when it is not a JSON object.
    """
    check_listed(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} is not JSON ({error}); train again") from error
    if not isinstance(content, dict):
        raise ProbeError(f"{path} is not a JSON object: it is not from a training; train again")
    return content


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
