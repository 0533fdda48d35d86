"""The journal: which shards are committed. A shard that is not in it does not exist, whatever files lie there.

A line is ``<crc32c of the JSON, 8 hexadecimal digits> <JSON>``. The first record names the store's metadata files and
their checksums; each later one commits a shard. Nothing is ever changed, lines are only added. A last line that does
not check is one that was being written when the machine stopped: it counts as never written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

from activation_store.errors import CorruptStoreError, StoreLockedError
from activation_store.layout import checksum_bytes

JOURNAL = "journal"
LOCK = "writer.lock"


@dataclass(frozen=True)
class JournalContents:
    """A journal as read: the metadata files' checksums, the committed shards, and how many bytes of it are good."""

    files: dict[str, str]
    shards: dict[int, str] = field(default_factory=dict[int, str])
    n_bytes: int = 0


def header_record(files: dict[str, bytes]) -> bytes:
    """First line: path and SHA-256 of every file that is written when the store is created."""
    return _encode({"files": {name: file_hash(data) for name, data in sorted(files.items())}})


def file_hash(data: bytes) -> str:
    """SHA-256 in hexadecimal; of data that ends in its own crc32c, as Zarr chunks do, crc32c is a constant."""
    return hashlib.sha256(data).hexdigest()


def shard_record(shard: int, checksum: str) -> bytes:
    """Line that commits one shard."""
    return _encode({"shard": shard, "crc32c": checksum})


def _encode(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, separators=(",", ":")).encode()
    return checksum_bytes(data).hex().encode() + b" " + data + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, _, data = line.partition(b" ")
    if not line.endswith(b"\n") or checksum_bytes(data[:-1]).hex().encode() != checksum:
        return None
    return json.loads(data)


def read_journal(path: Path) -> JournalContents:
    """Read a journal up to a torn last line.

    Raises
    ------
    CorruptStoreError
        A line other than the last is damaged, or there is no header.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    records = [_decode(line) for line in lines]
    if records and records[-1] is None:
        lines, records = lines[:-1], records[:-1]
    damaged = [number for number, record in enumerate(records, start=1) if record is None]
    if damaged or not records or records[0] is None or "files" not in records[0]:
        raise CorruptStoreError(f"{path}: line {damaged[0] if damaged else 1} is damaged; restore the journal")
    shards = {record["shard"]: record["crc32c"] for record in records[1:] if record is not None}
    return JournalContents(files=records[0]["files"], shards=shards, n_bytes=sum(map(len, lines)))


def append(path: Path, line: bytes, after_n_bytes: int) -> None:
    """Add one line durably, cutting off a torn one behind the good `after_n_bytes`."""
    with path.open("r+b") as file:
        file.truncate(after_n_bytes)
        file.seek(after_n_bytes)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def acquire_lock(path: Path) -> BufferedRandom:
    """Become the only writer; hold the returned file open for as long.

    Raises
    ------
    StoreLockedError
        Another process is; names its pid.
    """
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().decode() or "unknown"
        file.close()
        raise StoreLockedError(
            f"{path.parent.parent} is being written by process {holder}; wait for it or stop it"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def release_lock(file: BufferedRandom) -> None:
    """Empty the lock file, so that a finished store does not depend on who wrote it, and let go."""
    file.truncate(0)
    file.close()
