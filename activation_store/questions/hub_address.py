"""How datasets on the Hugging Face hub are named; nothing is asked and nothing heavy is imported.

``hf://datasets/ORG/NAME/FILE`` is a file as it is in a repository, ``ORG/NAME:CONFIG:SPLIT`` what the library datasets
makes of a repository's files. ``@REVISION`` after NAME is a branch, a tag or a commit.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from activation_store.errors import InputError

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]*"
_FILE = re.compile(
    rf"hf://datasets/(?P<repo>{_NAME}/{_NAME})(@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?/(?P<file>.*[^/])"
)
_SPLIT = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(@(?P<revision>[^:]+))?:(?P<config>[^:]+):(?P<split>[^:].*)")


def is_on_hub(given: str | Path, folder: str | Path = "") -> bool:
    """Whether a dataset is named by an address on the hub; of what could be either, a file that is there goes first.

    Parameters
    ----------
    given : str or Path
        What names it. A `Path` never is an address.
    folder : str or Path
        Where relative paths start.
    """
    if not isinstance(given, str):
        return False
    if given.startswith(SCHEME):
        return True
    # Not Path.exists, which raises for names that no file can have.
    return _SPLIT.fullmatch(given) is not None and not os.path.exists(Path(folder, given))  # noqa: PTH110


@dataclass(frozen=True)
class HubAddress:
    """What a user writes for a dataset on the hub: a file of a repository, or a split of one of its configurations.

    Parameters
    ----------
    repo : str
        ``ORG/NAME``.
    revision : str or None
        Branch, tag or commit; None: the main branch.
    file : str or None
        Path in the repository.
    config, split : str
        Where `file` is None.
    """

    repo: str
    revision: str | None
    file: str | None = None
    config: str = ""
    split: str = ""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read an address.

        Raises
        ------
        InputError
            It is none.
        """
        found = _FILE.fullmatch(text) or _SPLIT.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text} is not the address of a file in a dataset of the hub; write hf://datasets/ORG/NAME/FILE, or "
                "hf://datasets/ORG/NAME@REVISION/FILE"
            )
        parts = found.groupdict()
        # As addresses of huggingface_hub's file system write revisions with a slash.
        return cls(**{**parts, "revision": parts["revision"] and unquote(parts["revision"])})

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        if self.file is not None:
            return f"{SCHEME}datasets/{self.repo}{at}/{self.file}"
        return f"{self.repo}{at}:{self.config}:{self.split}"
