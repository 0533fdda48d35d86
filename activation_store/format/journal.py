"""The journal: which shards are committed. A shard that is not in it does not exist, whatever files there are.

A line is ``<crc32c of the JSON, 8 hexadecimal digits> <JSON>``. The first record names the store's metadata files and
their SHA-256; each later one commits a shard with the crc32c of every cell in it, or says what the finished store is
like. Lines are only added; where a shard has two, the later one counts. Anything after the last good line was
being written when the machine stopped, and counts as never written.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from activation_store.errors import MEND, CorruptStoreError
from activation_store.format.layout import CHECKSUM_NBYTES, checksum_bytes

JOURNAL = "journal"
LOCK = "writer.lock"


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
        Length of the good part.
    n_damaged : int
        Damaged lines that were passed over.
    """

    files: dict[str, str]
    shards: dict[int, bytes] = field(default_factory=dict[int, bytes])
    health: dict[str, Any] = field(default_factory=dict[str, Any])
    n_bytes: int = 0
    n_damaged: int = 0


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


def parse_journal(data: bytes, where: str) -> JournalContents:
    """Read a journal's content, up to a torn last line.

    Raises
    ------
    CorruptStoreError
        A line before good ones is damaged, there is no header, or a record does not have this format.
    """
    lines = data.splitlines(keepends=True)
    records = [_decode(line) for line in lines]
    while records and records[-1] is None:
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
