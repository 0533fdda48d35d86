"""Stores and probes on the Hugging Face hub: pushed and pulled completely, and checked both ways.

A store becomes a dataset repository, result folders a model repository. Each push is one commit. A pull is
checked under another name before it gets the requested one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from activation_store.files.durable import fsync_path, hidden_beside, make_folder, rename
from activation_store.files.storage import OpenFile, locate, open_storage
from activation_store.store.integrity import Progress
from gpu_probes.results.folder import RUN, Run
from probesweep.errors import RequestError
from probesweep.outputs import check_on_disk, only_writer
from probesweep.sharing.client import find_files, hub_errors
from probesweep.sharing.parcels import JOURNAL_FILE, SHARD_FILE, STORE_FILE, Parcel, RepoType, files_of_run, pack
from probesweep_errors import ProbesweepError

logger = logging.getLogger(__name__)

_README = "README.md"
# What the client may fetch; files not listed in the journal or run.json are removed again.
_PATTERNS: dict[RepoType, list[str]] = {
    "dataset": ["zarr.json", "*/zarr.json", "activations/journal*", "activations/c/*", "*/c/0", "*/c/0/0"],
    "model": ["*.json", "*.parquet", "*.safetensors"],
}


def push(
    path: str | Path,
    repo_id: str,
    *,
    public: bool = False,
    revision: str | None = None,
    message: str | None = None,
    announce: Callable[[str], None] = logger.info,
    progress: Progress = iter,
) -> str:
    """Upload a finished store, or result folders, to a repository on the Hugging Face hub, created if needed.

    Files of an earlier push are replaced; other files and an existing README.md stay.

    Parameters
    ----------
    path : str or Path
        A store, by its path or its address in an object store, or the results of a training.
    repo_id : str
        Such as ``name/repository``.
    public : bool
        Make a new repository public, and write to one that is. Stores hold the prompts, so the default is private.
    revision : str, optional
        Branch to commit to; created from ``main`` if it does not exist.
    message : str, optional
        Commit message.
    announce : callable
        Called, before anything is sent, with who will see what.
    progress : callable
        Wraps the shard numbers of a store while they are checked, such as `tqdm`.

    Returns
    -------
    str
        What was sent, where it is, and what it shows to whom.

    Raises
    ------
    ProbesweepError
        There is nothing to send, it is incomplete, it would be public without `public`, or the hub rejects it.
    """
    parcel, hub = pack(locate(path), progress), HfApi()
    with hub_errors(repo_id, revision):
        url = hub.create_repo(repo_id, repo_type=parcel.repo_type, private=not public, exist_ok=True)
        private = bool(hub.repo_info(repo_id, repo_type=parcel.repo_type).private)
    if not (private or public):
        raise RequestError(
            f"{repo_id} is public: everyone would see {parcel.shows}. Give public=True if that is intended, or "
            "name another repository",
            argument="public",
        )
    seen = f"{'private' if private else 'public'}, shows {parcel.shows}"
    announce(f"{repo_id}: {seen}")
    with hub_errors(repo_id, revision):
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, repo_type=parcel.repo_type, exist_ok=True)
        sent = _commit(hub, parcel, repo_id, revision, message or f"probesweep push: {parcel.about}")
        left_out = sent - set(hub.list_repo_files(repo_id, repo_type=parcel.repo_type, revision=revision))
    if left_out:
        raise RequestError(f"{repo_id} left out {min(left_out)}; does its .gitignore say so? Fix it, and push again")
    return f"{parcel.about} -> {url} ({seen})"


def _commit(hub: HfApi, parcel: Parcel, repo_id: str, revision: str | None, message: str) -> set[str]:
    """Upload all files in one commit, and delete those of an earlier push; returns the uploaded names."""
    there = set(hub.list_repo_files(repo_id, repo_type=parcel.repo_type, revision=revision))
    stale = _pushed_before(hub, parcel.repo_type, repo_id, revision, there) - set(parcel.files)
    contents = _contents(parcel)
    if _README not in there:
        contents[_README] = parcel.card.encode()
    with warnings.catch_warnings():
        # cells.parquet is not a data set.
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        hub.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in contents.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale)),
            ],
            commit_message=message,
            repo_type=parcel.repo_type,
            revision=revision,
        )
    return set(contents)


def _contents(parcel: Parcel) -> dict[str, Any]:
    """The files of a parcel as the client takes them: by their paths, or open."""
    if isinstance(parcel.place, Path):
        return {name: str(parcel.place / name) for name in parcel.files}
    storage = open_storage(parcel.place)
    # Opening one sends nothing: the client reads one after another.
    return {name: OpenFile(storage.open(name)) for name in parcel.files}


def _pushed_before(hub: HfApi, repo_type: RepoType, repo_id: str, revision: str | None, there: set[str]) -> set[str]:
    """Files of an earlier push; other files, such as a model's own, stay."""
    if repo_type == "dataset":
        is_store = any(map(JOURNAL_FILE.fullmatch, there))
        return {name for name in there if is_store and STORE_FILE.fullmatch(name)}
    found: set[str] = set()
    for run in (name for name in there if name.split("/")[-1] == RUN and name.count("/") < 2):
        file = hub.hf_hub_download(repo_id, run, repo_type=repo_type, revision=revision)
        place = run.removesuffix(RUN)
        try:
            found |= {place + name for name in files_of_run(Run.load(Path(file).parent), run)}
        except ProbesweepError:
            logger.info("%s of %s was written by another program", run, repo_id)
    return found & there


def pull(repo_id: str, path: str | Path, *, revision: str | None = None, progress: Progress = iter) -> str:
    """Download a store, or result folders, from a repository that `push` wrote.

    The files arrive in ``.NAME.partial`` next to the target. When they are complete and checked, it gets the target's
    name. A download that broke off is resumed by the same call.

    Parameters
    ----------
    repo_id : str
        Such as ``name/repository``.
    path : str or Path
        A folder that does not exist yet.
    revision : str, optional
        Branch, tag or commit.
    progress : callable
        Wraps the shard numbers of a store while they are checked, such as `tqdm`.

    Returns
    -------
    str
        What was downloaded.

    Raises
    ------
    RequestError
        `path` exists, the hub has no such repository or cannot be reached, or the download is incomplete.
    """
    check_on_disk(path, "path")
    path, hub = Path(path), HfApi()
    if os.path.lexists(path):
        raise RequestError(f"{path} already exists; give another folder, or remove it")
    repo_type, commit, listed = find_files(hub, repo_id, revision)
    make_folder(path.parent)
    partial = hidden_beside(path, "partial")
    if partial.is_symlink():
        raise RequestError(f"{partial} is a symbolic link where the download is prepared; remove it")
    with only_writer(hidden_beside(path, "pulling"), path):
        try:
            with hub_errors(repo_id, revision):
                hub.snapshot_download(
                    repo_id,
                    repo_type=repo_type,
                    revision=commit,
                    local_dir=partial,
                    allow_patterns=_PATTERNS[repo_type],
                )
        except RequestError as error:
            raise RequestError(
                f"{error}; what was downloaded so far is in {partial}, and the same command resumes it",
                argument=error.argument,
            ) from error
        about = _check(partial, repo_id, listed, progress)
        for written in (*partial.rglob("*"), partial):
            fsync_path(written)
        rename(partial, path)
    return f"{about} -> {path}"


def _check(folder: Path, repo_id: str, listed: Mapping[str, RepoFile], progress: Progress) -> str:
    """Make sure that a folder has a store or results as pushed, and nothing else; or remove it."""
    try:
        parcel = pack(folder, progress)
        _keep_only(folder, parcel.files)
        _check_hashes(folder, parcel.files, listed)
    except ProbesweepError as error:
        shutil.rmtree(folder)
        reason = str(error).replace(str(folder), repo_id)
        raise RequestError(f"{repo_id} was not downloaded: {reason}") from error
    return parcel.about


def _keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove other files, including the client's download notes, and folders that become empty."""
    kept = {folder / name for name in names}
    for place, folders, files in os.walk(folder, topdown=False):
        for file in (Path(place, name) for name in files):
            if file not in kept:
                file.unlink()
        for below in (Path(place, name) for name in folders):
            if below.is_symlink():
                below.unlink()
            elif not any(below.iterdir()):
                below.rmdir()


def _check_hashes(folder: Path, files: Iterable[str], listed: Mapping[str, RepoFile]) -> None:
    """Check files against the hub's hashes; shards were already checked against the journal."""
    for name in files:
        file, expected = folder / name, listed.get(name)
        if file.is_symlink():
            raise RequestError(f"{file} arrived as a link")
        if expected is None or not (SHARD_FILE.fullmatch(name) or _has_hash(file, expected)):
            raise RequestError(f"{file} is not what the hub lists; pull again")


def _has_hash(file: Path, expected: RepoFile) -> bool:
    data = file.read_bytes()
    if expected.lfs is not None:
        return hashlib.sha256(data).hexdigest() == expected.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == expected.blob_id
