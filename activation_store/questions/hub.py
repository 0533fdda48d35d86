"""Datasets on the Hugging Face hub: what an address means now, and its files on this machine.

Code of a repository is never run: datasets has given that up with version 4.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from activation_store.errors import InputError
from activation_store.questions.formats import READABLE, Wanted, read_arrow, read_rows
from activation_store.questions.hub_address import SCHEME, HubAddress
from activation_store.questions.rows import Rows

_COMMIT = re.compile("[0-9a-f]{40}")
# Nearly every repository has one; the client's cache then says which commit a branch was at.
_README = "README.md"
_SHOWN = 10


@dataclass(frozen=True)
class HubDataset:
    """What an address means now: after this, other commits change nothing.

    Parameters
    ----------
    address : HubAddress
        As it was given.
    commit : str
        What its revision is.
    """

    address: HubAddress
    commit: str

    @classmethod
    def find(cls, text: str) -> HubDataset:
        """Ask the hub what an address means; a file is downloaded into the client's cache, if it is not there.

        Where the hub cannot be reached, it is what was downloaded last.

        Raises
        ------
        InputError
            There is no such address, repository, revision or file; it is not for this user; it cannot be reached; or
            datasets is not installed.
        """
        address = HubAddress.parse(text)
        if address.file is not None:
            return cls(address, _commit_of(_download(address, address.file, address.revision), address.file))
        _check_installed(address)
        if _COMMIT.fullmatch(address.revision or ""):
            return cls(address, str(address.revision))
        return cls(address, _current_commit(address))

    @property
    def revision(self) -> str:
        """``ORG/NAME@COMMIT``."""
        return f"{self.address.repo}@{self.commit}"

    @property
    def pinned(self) -> str:
        """The address that will always mean these rows."""
        return str(replace(self.address, revision=self.commit))

    def read(self, wanted: Wanted) -> Rows:
        """Read rows as of a local file; their path is the address.

        Raises
        ------
        InputError
            As `activation_store.questions.formats.read_rows`; no such configuration or split; it cannot be downloaded.
        """
        name = str(self.address)
        if self.address.file is None:
            return read_arrow(name, self._prepared_files(), wanted)
        path = _download(self.address, self.address.file, self.commit)
        try:
            return replace(read_rows(path, wanted), path=name)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name), argument=error.argument) from error

    def _prepared_files(self) -> list[Path]:
        """Arrow files that datasets makes of a split and keeps in its cache, where they are mapped into memory."""
        address, builder = self.address, self._builder()
        there = [str(name) for name in getattr(builder.config, "data_files", None) or builder.info.splits or ()]
        if address.split not in there:
            raise InputError(
                f"{address.repo} has no split {address.split!r} in {address.config}; it has {_some(there)}"
            )
        self._call(builder.download_and_prepare)
        dataset = self._call(lambda: builder.as_dataset(split=address.split))
        return [Path(file["filename"]) for file in dataset.cache_files]

    def _builder(self) -> Any:
        """What datasets makes the split with: where it has made this commit, what is there.

        Asked by itself it would look at the hub again and, without a network, take whichever commit it made last.
        """
        address = self.address
        from datasets import get_dataset_config_names, load_dataset_builder
        from datasets.packaged_modules.cache.cache import Cache

        name = address.repo.split("/")[1]
        made = Cache(repo_id=address.repo, dataset_name=name, config_name=address.config, hash=self.commit)
        if Path(made.cache_dir).is_dir():
            return made
        self._check_reachable()
        # With hf:// a folder of that name on this machine is not looked at.
        where = f"{SCHEME}datasets/{address.repo}"
        # With another cache nothing that was made of another commit is.
        names = self._call(lambda: get_dataset_config_names(where, revision=self.commit, cache_dir=os.devnull))
        if address.config not in names:
            raise InputError(f"{address.repo} has no configuration {address.config!r}; it has {_some(names)}")
        builder = self._call(lambda: load_dataset_builder(where, address.config, revision=self.commit))
        if builder.hash != self.commit:
            raise InputError(f"{address}: the hub stopped answering, and datasets took another commit; try again")
        return builder

    def _check_reachable(self) -> None:
        """Say why a repository cannot be read; datasets loses it on the way."""
        from huggingface_hub import constants

        from activation_store.hub_client import OFFLINE

        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{self.address} is not in the cache of this machine, and {OFFLINE}")
        _current_commit(replace(self.address, revision=self.commit))

    def _call(self, work: Callable[[], Any]) -> Any:
        """Turn what datasets raises into one line."""
        from activation_store.hub_client import first_cause, is_of_hub, reason_of

        logger = logging.getLogger("datasets")
        level = logger.level
        # What it has to say of a failure it raises as well.
        logger.setLevel(logging.CRITICAL)
        try:
            return work()
        except Exception as error:
            # Readers of formats, networks and disks below datasets raise types of their own.
            reason = (
                reason_of(error, self.address.repo, "dataset")
                if is_of_hub(error)
                else f"datasets cannot read it: {first_cause(error)}"
            )
            raise InputError(f"{self.address}: {reason}") from error
        finally:
            logger.setLevel(level)


def _check_installed(address: HubAddress) -> None:
    """Before the hub is asked; a folder that happens to be called datasets has no origin."""
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:
        raise InputError(
            f"{address} is read by the library datasets, which is not installed; pip install 'probesweep[datasets]', "
            "or name a file: hf://datasets/ORG/NAME/FILE"
        )


def _current_commit(address: HubAddress) -> str:
    """The commit that a revision is at."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def ask() -> str:
        try:
            card = hf_hub_download(address.repo, _README, repo_type="dataset", revision=address.revision)
            return _commit_of(Path(card), _README)
        except RemoteEntryNotFoundError:
            return str(HfApi().dataset_info(address.repo, revision=address.revision).sha)

    return _asked(address, ask)


def _download(address: HubAddress, file: str, revision: str | None) -> Path:
    """A file of a repository in the client's cache."""
    from huggingface_hub import hf_hub_download

    return Path(
        _asked(address, lambda: hf_hub_download(address.repo, file, repo_type="dataset", revision=revision), file)
    )


def _asked(address: HubAddress, ask: Callable[[], Any], file: str | None = None) -> Any:
    """Turn what the client raises into one line.

    Raises
    ------
    InputError
        Says what there is instead.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    from activation_store.hub_client import reason_of

    try:
        return ask()
    except HFValidationError as error:
        raise InputError(f"{address}: {address.repo!r} is not a name of a repository; write ORG/NAME") from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{address.repo} has no branch, tag or commit {address.revision!r}; name another after the @"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = reason_of(error, address.repo, "dataset")
        raise InputError(f"{address} is not in the cache of this machine, and {reason}") from error
    except EntryNotFoundError as error:
        raise InputError(f"{address.repo} has no file {file!r}; it has {_files_there(address, str(file))}") from error
    except Exception as error:  # Networks, disks, Xet: the client does not catch what the libraries below it raise.
        raise InputError(f"{address}: {reason_of(error, address.repo, 'dataset')}") from error


def _files_there(address: HubAddress, wanted: str) -> str:
    """The files of a repository that can be read, those in the folder that was asked for alone if there are any."""
    from huggingface_hub import HfApi

    names = _asked(
        address, lambda: HfApi().list_repo_files(address.repo, repo_type="dataset", revision=address.revision)
    )
    readable = sorted(name for name in names if name.lower().endswith(READABLE))
    below = [name for name in readable if name.startswith(f"{wanted}/")]
    return _some(below or readable) if readable else f"no file that ends in {', '.join(READABLE)}"


def _some(names: Iterable[str]) -> str:
    """The first of what there is."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{', '.join(listed[:_SHOWN])}{more}"


def _commit_of(path: Path, file: str) -> str:
    """The commit that a downloaded file is of: the client's cache has it in ``snapshots/COMMIT/FILE``."""
    return path.parents[len(Path(file).parts) - 1].name
