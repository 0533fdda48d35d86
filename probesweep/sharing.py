"""Stores and probes on the Hugging Face hub: pushed whole, pulled whole, checked on both ways.

A store becomes a dataset repository, result folders a model repository. Only the files of the formats are sent and
taken: no pickle, no page, no lock. Stores hold the prompts, so a repository is private unless it is asked to be public.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from activation_store import ActivationStore, StoreError
from activation_store.metadata import is_store
from gpu_probes import ProbeError
from gpu_probes.transfer import Training, find_trainings
from probesweep.errors import RequestError

_STORE_FILES = ["zarr.json", "*/zarr.json", "*/c/*", "activations/journal"]
_RESULT_FILES = ["*.json", "*.parquet", "*.safetensors"]


@dataclass(frozen=True)
class _Shared:
    """What is sent or taken: its kind of repository, its files, what is said of it."""

    repo_type: str
    patterns: list[str]
    card: str
    about: str


def push(path: str | Path, repo_id: str, *, public: bool = False, revision: str | None = None) -> str:
    """Send a finished store, or result folders, to a repository of the Hugging Face hub, which is made if need be.

    Parameters
    ----------
    path : str or Path
        A store, or an ``--output_dir`` of ``probesweep train``.
    repo_id : str
        Such as ``name/repository``.
    public : bool
        Make a new repository public; one that is there stays as it is.
    revision : str, optional
        Branch that takes the files.

    Returns
    -------
    str
        What was sent, and where it is.

    Raises
    ------
    RequestError
        There is nothing to send, it is not whole, or the hub does not take it.
    """
    path = Path(path)
    shared = _describe_store(path) if is_store(path) else _describe_results(path)
    api = HfApi()
    with _hub_errors(repo_id):
        url = api.create_repo(repo_id, repo_type=shared.repo_type, private=not public, exist_ok=True)
        if not api.file_exists(repo_id, "README.md", repo_type=shared.repo_type, revision=revision):
            api.upload_file(
                path_or_fileobj=shared.card.encode(),
                path_in_repo="README.md",
                repo_id=repo_id,
                repo_type=shared.repo_type,
                revision=revision,
                commit_message="Card",
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            repo_type=shared.repo_type,
            revision=revision,
            allow_patterns=shared.patterns,
            # What was taken away here goes there as well: a mixture of two trainings is none.
            delete_patterns=shared.patterns,
            commit_message="probesweep push",
        )
    return f"{shared.about} -> {url}"


def pull(repo_id: str, path: str | Path, *, revision: str | None = None) -> str:
    """Take a store, or result folders, from a repository that `push` filled.

    Everything comes into a folder beside the target, is checked, and then gets the target's name.

    Parameters
    ----------
    repo_id : str
        Such as ``name/repository``.
    path : str or Path
        A folder that is not there yet.
    revision : str, optional
        Branch, tag or commit.

    Returns
    -------
    str
        What was taken.

    Raises
    ------
    RequestError
        `path` is there, the hub has no such repository, or what it holds is not whole.
    """
    path = Path(path)
    if path.exists():
        raise RequestError(f"{path} is there already; give another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    api = HfApi()
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        with _hub_errors(repo_id):
            is_dataset = api.repo_exists(repo_id, repo_type="dataset")
            api.snapshot_download(
                repo_id,
                repo_type="dataset" if is_dataset else "model",
                revision=revision,
                local_dir=temporary,
                allow_patterns=_STORE_FILES if is_dataset else _RESULT_FILES,
            )
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
        about = _check(temporary, repo_id)
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{about} -> {path}"


def _check(folder: Path, repo_id: str) -> str:
    links = [file for file in folder.rglob("*") if file.is_symlink()]
    if links:
        raise RequestError(f"{repo_id} came with a link ({links[0].name}); it was not taken")
    try:
        return (_describe_store(folder) if is_store(folder) else _describe_results(folder)).about
    except (StoreError, ProbeError, RequestError) as error:
        reason = str(error).replace(str(folder), repo_id)
        raise RequestError(f"{repo_id} holds nothing that can be used: {reason}") from error


def _describe_store(path: Path) -> _Shared:
    store = ActivationStore.open(path)
    store.require_complete()
    problems = store.verify()
    if problems:
        raise RequestError(f"{path} is damaged: {problems[0]}; probesweep verify lists all of it")
    prompts = "the prompts" if store.questions is not None else "no prompts"
    about = f"{len(store)} samples of {store.fingerprint.get('model')}, with {prompts} and {', '.join(store.labels)}"
    axes = ", ".join(f"{n} {axis}s" for axis, n in zip(store.dims, store.shape, strict=True))
    lines = [
        f"- axes: {axes}, {store.spec.dtype}",
        f"- layers (`hidden_states` indices): {', '.join(map(str, store.layers))}",
        f"- positions (-1 = last token): {', '.join(map(str, store.positions))}",
        f"- labels: {', '.join(store.labels)}; the prompts are in `question`",
        f"- weights: {store.fingerprint.get('weights')}; dataset: {store.fingerprint.get('dataset')}",
    ]
    title = f"Hidden states of {store.fingerprint.get('model')}"
    how = 'ActivationStore.open("FOLDER")` after `probesweep pull'
    return _Shared("dataset", _STORE_FILES, _card(title, "zarr", lines, how), about)


def _describe_results(path: Path) -> _Shared:
    trainings = find_trainings(path)
    missing = [
        f"{training.folder}/{name}"
        for training in trainings
        for name in training.run["files"]
        if not (training.folder / name).exists()
    ]
    if missing:
        raise RequestError(f"{missing[0]} is missing; train again")
    lines = [_line(training) for training in trainings]
    title = f"Linear probes of {trainings[0].run.get('model')}"
    how = 'Probe.load("FOLDER").score(["..."])` after `probesweep pull'
    about = f"probes of {', '.join(training.label for training in trainings)}"
    return _Shared("model", _RESULT_FILES, _card(title, "linear-probe", lines, how), about)


def _line(training: Training) -> str:
    best = training.probes.best
    where = "no best probe" if best is None else f"best at layer {best.layer}, position {best.position}"
    return f"- {training.label}: {training.probes.task.task_type}, {where}"


def _card(title: str, tag: str, lines: list[str], how: str) -> str:
    """A page for the hub; whoever pushes adds the licence."""
    front = f"---\nlibrary_name: probesweep\ntags:\n- probesweep\n- {tag}\n---\n"
    return "\n".join([f"{front}# {title}\n", *lines, f"\nOpen with `{how}`.\n"])


@contextmanager
def _hub_errors(repo_id: str) -> Generator[None]:
    """What the hub's client raises, in one line with the way out."""
    try:
        yield
    except HFValidationError as error:
        raise RequestError(f"{repo_id!r} is no repository's name: write it as name/repository") from error
    except OfflineModeIsEnabled as error:
        raise RequestError("the hub is switched off by HF_HUB_OFFLINE; unset it") from error
    except LocalTokenNotFoundError as error:
        raise RequestError("the hub needs to know who you are: run `hf auth login`, or set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"the hub shows no repository {repo_id}; check its name, and `hf auth login` where it is private"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise RequestError(
                f"the hub refuses this for {repo_id} ({status}): `hf auth login` with a token that may write"
            ) from error
        raise RequestError(f"the hub answered {str(error).splitlines()[0]} for {repo_id}; try again later") from error
    except Exception as error:  # The client's own for networks and disks; they change with its version.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(
            f"the hub could not be used for {repo_id}: {reason}; check network and disk, try again"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
