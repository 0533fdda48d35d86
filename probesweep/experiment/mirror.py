"""Results whose place is in an object store: a folder of this machine, and the same files below an address."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from activation_store.files.durable import make_folder, write_output
from activation_store.files.storage import Storage, open_storage
from gpu_probes.results.folder import RUN

# The file that says who is at work, and those that say what is complete, which are sent after all others.
_LOCK = "writer.lock"
_LAST = (RUN, "stages.json")


class Mirror:
    """A folder and an address that hold the same files; stores below the address are no part of it.

    Parameters
    ----------
    address : str
        In an object store.
    folder : Path
        On this machine; made where it is needed.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.folder = folder
        self._storage: Storage = open_storage(address)
        self._sent: dict[str, str] = {}

    @contextmanager
    def only_writer(self) -> Generator[None]:
        """Be the only process that writes below the address; raises `StoreLockedError` while another is."""
        lock = self._storage.acquire(_LOCK)
        try:
            yield
        finally:
            lock.release()

    def fetch(self) -> None:
        """Bring the files from the address; what only this machine has stays."""
        for name in self._there(""):
            content = self._storage.read(name)
            self._sent[name] = _hash(content)
            path = self.folder / name
            if not path.is_file() or _hash(path.read_bytes()) != self._sent[name]:
                make_folder(path.parent)
                write_output(path, [content])

    def send(self) -> None:
        """Bring new and changed files to the address, and remove those there that are gone here.

        A reader who comes meanwhile finds files that do not match their ``run.json``, which it refuses.
        """
        here = {str(path.relative_to(self.folder)): path for path in self._here()}
        for name in sorted(here, key=lambda name: (name.rpartition("/")[2] in _LAST, name.count("/") == 0, name)):
            content = here[name].read_bytes()
            if self._sent.get(name) != _hash(content):
                self._storage.replace(name, [content])
                self._sent[name] = _hash(content)
        for name in self._sent.keys() - here.keys():
            self._storage.remove(name)
            del self._sent[name]

    def _here(self) -> Iterator[Path]:
        """All files but hidden ones: locks, and what is being written."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                yield path

    def _there(self, below: str) -> Iterator[str]:
        for name in self._storage.names(below):
            full = f"{below}/{name}" if below else name
            if not name.endswith("/"):
                if full != _LOCK:
                    yield full
            elif not full.endswith(".zarr/"):
                yield from self._there(full.rstrip("/"))


def folder_beside(file: Path, address: str) -> Path:
    """A folder next to a file: the same for every run, another one for every address."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]
    return file.with_name(f"{file.stem}.results-{digest}")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
