"""What goes to the hub from a folder: only the files of its format, what they show, and a card.

A store's files are those that its journal names, a result folder's those that its ``run.json`` names. Anything else
there (locks, unfinished files, reports with prompts, trackers' files) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from activation_store import ActivationStore
from activation_store.files.storage import Location
from activation_store.format.journal import CREATED, FINISHED, JOURNAL
from activation_store.format.spec import ARRAY, COORDINATES
from activation_store.store.documents import is_store
from activation_store.store.integrity import Progress
from gpu_probes.results.folder import RUN, Run, check_listed
from gpu_probes.results.forms import CARD
from gpu_probes.results.transfer import FinishedTraining, find_trainings
from probesweep.errors import RequestError
from probesweep.sharing.hub_cards import results_card, store_card
from probesweep.use.card import Card

RepoType = Literal["dataset", "model"]
SHARD_FILE = re.compile(rf"{ARRAY}/c/\d+/0/0/0")
JOURNAL_FILE = re.compile(rf"{ARRAY}/{JOURNAL}(/({CREATED}|{FINISHED}|\d+))?")
STORE_FILE = re.compile(rf"zarr\.json|[^/]+/zarr\.json|[^/]+/c/0(/0)?|{JOURNAL_FILE.pattern}|{SHARD_FILE.pattern}")
# No pickles and no pages with scripts: nothing that runs when it is opened.
_RESULT_FILE = re.compile(r"[^/\\]+\.(json|parquet|safetensors)")


@dataclass(frozen=True)
class Parcel:
    """A complete store or result folders.

    Attributes
    ----------
    repo_type : dataset or model
        A store is data, to be read by zarr and xarray, too; probes are weights that predict.
    place : Path or str
        Where it is: a folder, or the address of a store.
    files : tuple of str
        Paths below it.
    about : str
        What it is.
    shows : str
        What everyone with access to the repository will see.
    card : str
        README.md for the hub, without a licence: whoever pushes chooses one.
    """

    repo_type: RepoType
    place: Location
    files: tuple[str, ...]
    about: str
    shows: str
    card: str


def pack(place: Location, progress: Progress = iter) -> Parcel:
    """Read and check a store, every byte of it, or result folders.

    Parameters
    ----------
    place : Path or str
        A store, by its path or its address, or the folder of a training's results.
    progress : callable
        Wraps the shard numbers of a store while they are checked, such as `tqdm`.

    Raises
    ------
    StoreError
        The store is unfinished, or cannot be read.
    ProbeError
        There is neither a store nor a finished training, or its probes cannot be read.
    RequestError
        Bytes of the store are damaged, or files of the results are missing.
    """
    # At an address there is a store, or the error says that there is none.
    if not isinstance(place, Path) or is_store(place):
        return _pack_store(place, progress)
    return _pack_results(place)


def _pack_store(place: Location, progress: Progress) -> Parcel:
    store = ActivationStore.open(place)
    store.require_complete()
    if not store.health:
        raise RequestError(f"{place} lacks its last file; run the same extract (or import) again, which writes it")
    problems = store.verify(progress)
    if problems:
        raise RequestError(f"{place} is damaged: {problems[0]} (probesweep verify lists all damage)")
    return Parcel(
        repo_type="dataset",
        place=place,
        files=tuple(store.files()),
        about=f"{len(store)} samples of {store.fingerprint.get('model')}",
        shows=_seen_in_store(store),
        card=store_card(store),
    )


def _seen_in_store(store: ActivationStore) -> str:
    groups = [name for name in store.spec.coordinates if name not in COORDINATES]
    prompts = "no prompts" if store.questions is None else f"{len(store)} prompts"
    columns = _listed("label column", store.spec.label_columns) + (
        _listed(" and group column", groups) if groups else ""
    )
    return f"{prompts}, {columns}, the paths of model and dataset"


def _listed(noun: str, names: Iterable[str]) -> str:
    found = list(names)
    return f"{noun}{'s' * (len(found) != 1)} {', '.join(found) or 'none'}"


def _pack_results(folder: Path) -> Parcel:
    trainings = find_trainings(folder)
    files = [file for training in trainings for file in _result_files(folder, training)]
    for training in trainings:
        for name in training.run.files:
            check_listed(training.folder / name)
        if CARD in training.run.files:
            Card.of(training.results)
    labels = _listed("label", dict.fromkeys(training.label for training in trainings))
    first = trainings[0].run
    tested = first.request.test
    rows = f"{first.request.train.n_samples} train and {tested.n_samples if tested else 'no'} test"
    return Parcel(
        repo_type="model",
        place=folder,
        files=tuple(files),
        about=f"probes of {first.model or 'an unknown model'}, {labels}",
        shows=f"{labels} and predictions of {rows} rows, the paths of stores; no prompts",
        card=results_card(trainings),
    )


def _result_files(folder: Path, training: FinishedTraining) -> list[str]:
    place = training.folder.relative_to(folder)
    return [(place / name).as_posix() for name in files_of_run(training.run, str(training.folder / RUN))]


def files_of_run(run: Run, where: str) -> list[str]:
    """Names of a training's files as listed in its ``run.json``, including that file.

    Raises
    ------
    RequestError
        They are not names of result files: it was not written by this program.
    """
    if not all(_RESULT_FILE.fullmatch(name) for name in run.files):
        raise RequestError(f"{where}: its files are not those of a training; train again")
    return [*run.files, RUN]
