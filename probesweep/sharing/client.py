"""The Hugging Face hub's client: its errors in one line, and the repository that a name refers to."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from activation_store.hub_client import no_visible, reason_of
from probesweep.errors import RequestError
from probesweep.sharing.parcels import RepoType

# Files that identify each.
_MARKERS: dict[RepoType, re.Pattern[str]] = {
    "dataset": re.compile(r"activations/journal(/created)?"),
    "model": re.compile(r"([^/]+/)?run\.json"),
}


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Generator[None]:
    """Turn the client's exceptions into a `RequestError` that says how to fix it."""
    try:
        yield
    except HFValidationError as error:
        raise RequestError(
            f"{repo_id!r} is not a repository name; write it as NAME/REPOSITORY", argument="repo_id"
        ) from error
    except RevisionNotFoundError as error:
        raise RequestError(
            f"{repo_id} has no branch, tag or commit {revision!r}; check revision=...", argument="revision"
        ) from error
    except Exception as error:  # Networks, disks, Xet: the client does not catch what the libraries below it raise.
        raise RequestError(reason_of(error, repo_id)) from error


def find_files(hub: HfApi, repo_id: str, revision: str | None) -> tuple[RepoType, str, dict[str, RepoFile]]:
    """Find the repository that a store or probes were pushed to: its type, commit and files.

    A dataset and a model may have the same name: the one that contains a store or probes is used.

    Raises
    ------
    RequestError
        There is none, or the hub cannot be reached.
    """
    with hub_errors(repo_id, revision):
        commits: dict[RepoType, str | None] = {
            repo_type: _commit(hub, repo_id, repo_type, revision) for repo_type in _MARKERS
        }
        for repo_type, commit in commits.items():
            if commit is None:
                continue
            listed = hub.list_repo_tree(repo_id, repo_type=repo_type, revision=commit, recursive=True)
            files = {file.path: file for file in listed if isinstance(file, RepoFile)}
            if any(_MARKERS[repo_type].fullmatch(name) for name in files):
                return repo_type, commit, files
    if not any(commits.values()):
        raise RequestError(no_visible(repo_id))
    raise RequestError(f"{repo_id} holds neither a store nor probes; upload them with probesweep push")


def _commit(hub: HfApi, repo_id: str, repo_type: RepoType, revision: str | None) -> str | None:
    """The current commit of a revision; None if there is no such repository, or none visible."""
    try:
        return hub.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
