"""The journal: which shards are committed. A shard that is not in it does not exist, whatever files there are.

It consists of records, each a line ``<crc32c of the JSON, 8 hexadecimal digits> <JSON>``. The first names the store's
metadata files and their SHA-256; each later one commits a shard with the crc32c of every cell in it, or says what the
finished store is like.

In format 2 every record is a file of its own, so that several processes can commit and nothing is ever added to a file;
a finished store has one more file with all of them. In format 1 the journal is one file. Lines are only added to it;
where a shard has two, the later one counts. Anything after its last good line was being written when the machine
stopped, and counts as never written.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from activation_store.errors import MEND, CorruptStoreError
from activation_store.format.layout import CHECKSUM_NBYTES, checksum_bytes

# In the folder of the activations. The journal is a folder in format 2 and a file in format 1.
JOURNAL = "journal"
LOCK = "writer.lock"
# Files of the journal of format 2; those between them are named after their shards.
CREATED = "created"
FINISHED = "finished"
CLAIM = ".claim"


@dataclass(frozen=True)
class JournalContents:
    """A journal as read.

    Parameters
    ----------
    files : dict
        Path below the store of every file that was written when the store was created -> SHA-256.
    shards : dict
        Committed shard -> crc32c of each of its cells, in the order of the layout, 4 bytes each.
    health : dict
        What was found when the store was finished; empty before.
    n_bytes : int
        Length of the good part of a journal of format 1.
    damaged : tuple of str
        Damaged records that were passed over.
    before : dict
        Shards that a repair writes again -> what was committed.
    """

    files: dict[str, str]
    shards: dict[int, bytes] = field(default_factory=dict[int, bytes])
    health: dict[str, Any] = field(default_factory=dict[str, Any])
    n_bytes: int = 0
    damaged: tuple[str, ...] = ()
    before: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def records(self) -> bytes:
        """All records, each shard once, in order."""
        shards = (shard_record(shard, self.shards[shard]) for shard in sorted(self.shards))
        return b"".join(
            [_encode({"files": self.files}), *shards, *([health_record(self.health)] if self.health else [])]
        )


def header_record(files: dict[str, bytes]) -> bytes:
    """First line: path and SHA-256 of every file that is written when the store is created."""
    return _encode({"files": {name: file_hash(data) for name, data in sorted(files.items())}})


def file_hash(data: bytes) -> str:
    """SHA-256 in hexadecimal; of data that ends in its own crc32c, as Zarr chunks do, crc32c is a constant."""
    return hashlib.sha256(data).hexdigest()


def shard_record(shard: int, checksums: bytes) -> bytes:
    """Line that commits one shard; `checksums` are the crc32c of its cells, 4 bytes each."""
    return _encode({"shard": shard, "crc32c": checksums.hex()})


def health_record(health: dict[str, Any]) -> bytes:
    """Line that says what a finished store is like."""
    return _encode({"health": health})


def _encode(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, separators=(",", ":")).encode()
    return checksum_bytes(data).hex().encode() + b" " + data + b"\n"


def _decode(line: bytes) -> bytes | None:
    """JSON of a line, None where the line does not match its checksum."""
    checksum, _, data = line.partition(b" ")
    good = line.endswith(b"\n") and checksum_bytes(data[:-1]).hex().encode() == checksum
    return data if good else None


def parse_journal(data: bytes, where: str, *, may_be_torn: bool = True) -> JournalContents:
    """Read records.

    Parameters
    ----------
    data : bytes
        All records.
    where : str
        Where they are from, for messages.
    may_be_torn : bool
        Pass over damaged lines at the end: lines were added, and the machine stopped.

    Raises
    ------
    CorruptStoreError
        Any other line is damaged, there is no header, or a record does not have this format.
    """
    lines = data.splitlines(keepends=True)
    records = [_decode(line) for line in lines]
    while may_be_torn and records and records[-1] is None:
        del records[-1]
    if not records or None in records:
        number = records.index(None) + 1 if records else 1
        raise CorruptStoreError(f"{where}: line {number} is damaged; {MEND}")
    try:
        header, *entries = [json.loads(record or b"") for record in records]
        files = {_checked_name(name): str(digest) for name, digest in header["files"].items()}
        shards = {
            _checked_shard(entry["shard"]): bytes.fromhex(entry["crc32c"]) for entry in entries if "health" not in entry
        }
        health = dict(next((entry["health"] for entry in reversed(entries) if "health" in entry), {}))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(f"{where}: a record is not of this format ({error}); restore the journal") from error
    return JournalContents(files, shards, health, n_bytes=sum(map(len, lines[: len(records)])))


def _checked_name(name: str) -> str:
    """Refuse a path that could lead out of the store."""
    if not re.fullmatch(r"[^/\0]+(/[^/\0]+)*", name) or {".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a path inside the store")
    return name


def _checked_shard(shard: Any) -> int:
    if type(shard) is not int or shard < 0:
        raise ValueError(f"{shard!r} is not a shard")
    return shard


def parse_record(data: bytes, shard: int, where: str) -> bytes:
    """Checksums in the file of one shard's record.

    Raises
    ------
    CorruptStoreError
        It is damaged, or another shard's.
    """
    record = _decode(data) if data.count(b"\n") == 1 else None
    if record is None:
        raise CorruptStoreError(f"{where} is damaged; {MEND}")
    try:
        entry = json.loads(record)
        found, checksums = _checked_shard(entry["shard"]), bytes.fromhex(entry["crc32c"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(f"{where} is not a record of this format ({error}); {MEND}") from error
    if found != shard:
        raise CorruptStoreError(f"{where} is the record of shard {found}; {MEND}")
    return checksums


def good_lines(data: bytes, where: str) -> tuple[bytes, int]:
    """The good lines of a journal's content, and how many are damaged.

    Raises
    ------
    CorruptStoreError
        The first line, which names all other files, is one of these.
    """
    lines = data.splitlines(keepends=True)
    good = [line for line in lines if _decode(line) is not None]
    if not lines or lines[:1] != good[:1]:
        raise CorruptStoreError(
            f"{where}: its first line, which names all other files, is damaged; restore the journal"
        )
    return b"".join(good), len(lines) - len(good)


def record_nbytes(n_cells: int) -> int:
    """Upper bound of the length of a shard's line, in bytes."""
    return n_cells * CHECKSUM_NBYTES * 2 + 64
