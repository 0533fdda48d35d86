"""All of a store but its shards: build it, and read it back checked against the journal's header."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_store.errors import MEND, RESTORE, CorruptStoreError, InputError, UnsupportedFormatError
from activation_store.files.storage import Storage, open_storage
from activation_store.format.journal import CREATED, FINISHED, JOURNAL, LOCK, JournalContents, file_hash
from activation_store.format.layout import CHECKSUM_NBYTES
from activation_store.format.spec import ARRAY, AXES, JSON, PLACE, StoreSpec, check_version, parse_spec
from activation_store.store.bounded import MAX_FILE_NBYTES, MAX_JSON_NBYTES, check_size, mend, read_file
from activation_store.store.journals import JOURNAL_PATH, journal_of

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

_CHANGED = "is not what was written when the store was created"

# Nothing larger is read before its expected content is known.
_MAX_TEXT_NBYTES = 16 * 2**20
_FIXED_DTYPES = frozenset(
    {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
)


def is_store(location: str | Path) -> bool:
    """Whether there is a store, finished or not, at a path or an address."""
    return _has_journal(open_storage(location))


def _has_journal(storage: Storage) -> bool:
    """A file in format 1, a folder with at least one of these files in format 2."""
    names = (f"{JOURNAL_PATH}/{CREATED}", f"{JOURNAL_PATH}/{FINISHED}", JOURNAL_PATH)
    return any(storage.n_bytes(name) is not None for name in names)


def require_store(storage: Storage) -> None:
    """Raise unless there is a store, finished or not.

    Raises
    ------
    InputError
        Nothing is there.
    UnsupportedFormatError
        There is something else, or a store of another format version.
    CorruptStoreError
        Its ``zarr.json`` cannot be read.
    """
    if not storage.exists():
        raise InputError(f"{storage.location}: no such store; extract it first")
    if storage.n_bytes("zarr.json") is not None:
        check_version(_read_json(storage, "zarr.json"), str(storage.location))
        if not _has_journal(storage):
            raise CorruptStoreError(
                f"{storage.where(JOURNAL_PATH)} is missing, so it is unknown what is committed; {RESTORE}"
            )
    elif not _has_journal(storage):
        raise UnsupportedFormatError(f"{storage.location} is not a probesweep store: {ARRAY}/{JOURNAL} is missing")
    # Written to before anything else is known about the store: not through a link.
    storage.n_bytes(f"{ARRAY}/{LOCK}")


def read_spec(storage: Storage, *, drop_damaged: bool = False) -> tuple[StoreSpec, JournalContents]:
    """Read and check a store's metadata and journal.

    Parameters
    ----------
    storage : Storage
        Of the store.
    drop_damaged : bool
        Skip damaged records of the journal, as if what they committed never existed.

    Raises
    ------
    InputError
        Nothing is there.
    UnsupportedFormatError
        There is no store of this format.
    CorruptStoreError
        Its metadata or journal is damaged.
    """
    require_store(storage)
    group, array = (_read_json(storage, name) for name in ("zarr.json", f"{ARRAY}/zarr.json"))
    spec = parse_spec(group, array, str(storage.location))
    contents = journal_of(storage, spec.version).read(spec.layout, drop_damaged=drop_damaged)
    for name in ("zarr.json", f"{ARRAY}/zarr.json"):
        checked_bytes(storage, name, contents, MAX_JSON_NBYTES)
    return spec, contents


def check_length(storage: Storage, spec: StoreSpec) -> None:
    """Check the number of samples, on which everything else depends, against the length of a file.

    Raises
    ------
    CorruptStoreError
        They do not agree.
    """
    name, expected = "sample/c/0", spec.n_samples * np.dtype(np.int64).itemsize + CHECKSUM_NBYTES
    n_bytes = check_size(storage, name, MAX_JSON_NBYTES + expected)
    if n_bytes != expected:
        raise CorruptStoreError(
            f"{storage.where(f'{ARRAY}/zarr.json')} says {spec.n_samples} samples, but {name} is {n_bytes} bytes "
            f"long; {MEND}"
        )


def read_coordinate(storage: Storage, name: str, spec: StoreSpec, journal: JournalContents) -> np.ndarray:
    """Read one of the arrays next to the activations; nothing but such an array as `skeleton` writes.

    Raises
    ------
    InputError
        The store has no such array.
    CorruptStoreError
        It is damaged, or not what this format writes.
    """
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    shapes = _coordinate_shapes(spec)
    if name not in shapes:
        raise InputError(f"{storage.location} has no array {name!r}; it has {', '.join(sorted(shapes))}")
    shape = shapes[name]
    metadata = checked_bytes(storage, f"{name}/zarr.json", journal, MAX_JSON_NBYTES)
    where = storage.where(f"{name}/zarr.json")
    dtype = _checked_dtype(_parse_json(metadata, where), shape, where)
    key = "/".join(["c", *("0" for _ in shape)])
    n_bytes = math.prod(shape) * (dtype.itemsize if dtype else _MAX_TEXT_NBYTES) + CHECKSUM_NBYTES
    chunk = checked_bytes(storage, f"{name}/{key}", journal, min(n_bytes, MAX_FILE_NBYTES))
    # The text codec takes memory for as many strings as the first four bytes say.
    whole = len(chunk) == n_bytes if dtype else int.from_bytes(chunk[:4], "little") == math.prod(shape)
    if not whole:
        raise CorruptStoreError(f"{storage.where(f'{name}/{key}')} does not hold {math.prod(shape)} values; restore it")
    contents: dict[str, Buffer] = {"zarr.json": cpu.Buffer.from_bytes(metadata), key: cpu.Buffer.from_bytes(chunk)}
    try:
        return np.asarray(zarr.open_array(MemoryStore(contents), mode="r")[...])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStoreError(f"{storage.where(f'{name}/{key}')} cannot be decoded ({error}); restore it") from error


def _coordinate_shapes(spec: StoreSpec) -> dict[str, tuple[int, ...]]:
    """Arrays next to the activations: name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {axis: (spec.shape[AXES.index(axis)],) for axis in AXES[:3]}
    for name in spec.beside:
        shapes[name] = (len(spec.positions) if name == PLACE and spec.version > 1 else spec.n_samples,)
    for name in {"token_id", "token"} & set(spec.coordinates):
        shapes[name] = (spec.n_samples, len(spec.positions))
    return shapes


def _checked_dtype(document: JSON, shape: tuple[int, ...], where: str) -> np.dtype[Any] | None:
    """Value type of an array next to the activations, None for text."""
    name = document.get("data_type")
    text = name == "string"
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "storage_transformers": [],
    }
    codecs = ["vlen-utf8", "crc32c"] if text else ["bytes", "crc32c"]
    differing = [key for key, value in expected.items() if document.get(key) != value]
    if not text and name not in _FIXED_DTYPES:
        differing.append("data_type")
    if not isinstance(document.get("codecs"), list) or [_codec_name(codec) for codec in document["codecs"]] != codecs:
        differing.append("codecs")
    if differing:
        raise CorruptStoreError(f"{where}: {', '.join(differing)} is not of this format; restore it")
    return None if text else np.dtype(name)


def _codec_name(codec: Any) -> Any:
    return codec.get("name") if isinstance(codec, dict) else codec


def checked_bytes(storage: Storage, name: str, journal: JournalContents, max_nbytes: int) -> bytes:
    """Content of a file that was written when the store was created, checked against the journal's header.

    Raises
    ------
    CorruptStoreError
        The file is missing, changed, larger than `max_nbytes`, or outside the store.
    """
    data = read_file(storage, name, max_nbytes)
    if file_hash(data) != journal.files.get(name):
        raise CorruptStoreError(f"{storage.where(name)} {_CHANGED}; {mend(name)}")
    return data


def check_unchanged(storage: Storage, name: str, spec: StoreSpec, journal: JournalContents) -> None:
    """Check a file that was written when the store was created; raises as `checked_bytes`, reads it piece by piece."""
    shape = _coordinate_shapes(spec).get(name.split("/")[0], (0,))
    limit = MAX_JSON_NBYTES if name.endswith("zarr.json") else math.prod(shape) * _MAX_TEXT_NBYTES + CHECKSUM_NBYTES
    check_size(storage, name, limit)
    digest = hashlib.sha256()
    for piece in storage.pieces(name):
        digest.update(piece)
    if digest.hexdigest() != journal.files.get(name):
        raise CorruptStoreError(f"{storage.where(name)} {_CHANGED}; {mend(name)}")


def _read_json(storage: Storage, name: str) -> JSON:
    return _parse_json(read_file(storage, name, MAX_JSON_NBYTES), storage.where(name))


def _parse_json(data: bytes, where: str) -> JSON:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{where} is not readable JSON ({error}); {RESTORE}") from error
    if not isinstance(document, dict):
        raise CorruptStoreError(f"{where} is not a JSON object; {RESTORE}")
    return document
