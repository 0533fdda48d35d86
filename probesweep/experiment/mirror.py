"""Results whose place is in an object store: a folder of this machine, and the same files below an address."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from activation_store.files.durable import make_folder, write_output
from activation_store.files.storage import Lock, Storage, open_storage
from gpu_probes.results.folder import RUN

# The file that says who is at work, the folder of results, and the files that say what is complete, which go last.
_LOCK, _RESULTS, _STAGES = "writer.lock", "probes", "stages.json"
# How files of labels that were made here end.
_LABELS = ".parquet"
_LAST = (RUN, _STAGES)
# On this machine: name -> SHA-256 of what was last sent or fetched.
_SENT = ".sent.json"


class Mirror:
    """A folder and an address that hold the same results. Stores below the address are no part of it.

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
        self._lock: Lock | None = None

    @contextmanager
    def only_writer(self) -> Generator[None]:
        """Be the only process that writes below the address; raises `StoreLockedError` while another is."""
        self._lock = self._storage.acquire(_LOCK)
        try:
            yield
        except BaseException:
            # The first failure is the one to report.
            with suppress(OSError):
                self._lock.release()
            raise
        self._lock.release()

    def fetch(self) -> None:
        """Bring the files from the address; a file that was made here since it was sent is newer, and stays."""
        sent = self._read_sent()
        for name in self._there():
            path = self.folder / name
            here = _hash(path.read_bytes()) if path.is_file() else None
            if here is None or here == sent.get(name):
                content = self._storage.read(name)
                sent[name] = _hash(content)
                if here != sent[name]:
                    make_folder(path.parent)
                    write_output(path, [content])
        self._write_sent(sent)

    def send(self) -> None:
        """Bring new and changed files to the address, and remove those there that were sent and are gone here.

        A reader who comes meanwhile finds files that do not match their ``run.json``, which it refuses.
        """
        sent = self._read_sent()
        here = {str(path.relative_to(self.folder)): path for path in self._here()}
        for name in sorted(here, key=lambda name: (name.rpartition("/")[2] in _LAST, name == _STAGES, name)):
            content = here[name].read_bytes()
            if sent.get(name) != _hash(content):
                self._check_lock()
                self._storage.replace(name, [content])
                sent[name] = _hash(content)
        for name in sorted(sent.keys() - here.keys()):
            self._check_lock()
            self._storage.remove(name)
            del sent[name]
        self._write_sent(sent)

    def _check_lock(self) -> None:
        """Training takes hours, in which a machine may sleep and another may take over."""
        if self._lock is not None:
            self._lock.check()

    def _read_sent(self) -> dict[str, str]:
        path = self.folder / _SENT
        try:
            return {str(name): str(digest) for name, digest in json.loads(path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            # Nothing is known: what is here counts as newer.
            return {}

    def _write_sent(self, sent: dict[str, str]) -> None:
        make_folder(self.folder)
        write_output(self.folder / _SENT, [json.dumps(sent, indent=2).encode()])

    def _here(self) -> Iterator[Path]:
        """All files but hidden ones: locks, and what is being written."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                yield path

    def _there(self) -> Iterator[str]:
        yield from (name for name in self._storage.names() if name == _STAGES or name.endswith(_LABELS))
        yield from self._below(_RESULTS)

    def _below(self, folder: str) -> Iterator[str]:
        for name in self._storage.names(folder):
            if name.endswith("/"):
                yield from self._below(f"{folder}/{name.rstrip('/')}")
            else:
                yield f"{folder}/{name}"


def folder_beside(file: Path, address: str) -> Path:
    """A folder next to a file: the same for every run, another one for every address."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]
    return file.with_name(f"{file.stem}.results-{digest}")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
