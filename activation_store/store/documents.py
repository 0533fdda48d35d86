"""All of a store but its shards: build it, and read it back checked against the journal's header."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activation_store.errors import MEND, RESTORE, CorruptStoreError, InputError, UnsupportedFormatError
from activation_store.files.inside import path_inside
from activation_store.format.journal import (
    JOURNAL,
    LOCK,
    JournalContents,
    file_hash,
    good_lines,
    parse_journal,
    record_nbytes,
)
from activation_store.format.layout import CHECKSUM_NBYTES
from activation_store.format.spec import ARRAY, AXES, JSON, StoreSpec, check_version, parse_spec

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

_CHANGED = "is not what was written when the store was created"

# Nothing larger is read before its expected content is known.
MAX_JSON_NBYTES = 64 * 2**20
_MAX_TEXT_NBYTES = 16 * 2**20
_MAX_FILE_NBYTES = 4 * 2**30
_FIXED_DTYPES = frozenset(
    {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
)


def is_store(path: Path) -> bool:
    """Whether there is a store, finished or not, at `path`."""
    return (path / ARRAY / JOURNAL).is_file()


def require_store(path: Path) -> None:
    """Raise unless there is a store, finished or not, at `path`.

    Raises
    ------
    InputError
        Nothing is there.
    UnsupportedFormatError
        There is something else, or a store of another format version.
    CorruptStoreError
        Its ``zarr.json`` cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: no such store; extract it first")
    if (path / "zarr.json").is_file():
        check_version(_read_json(path, "zarr.json"), str(path))
        if not is_store(path):
            raise CorruptStoreError(
                f"{path}/{ARRAY}/{JOURNAL} is missing, so it is unknown what is committed; {RESTORE}"
            )
    if not is_store(path):
        raise UnsupportedFormatError(f"{path} is not a probesweep store: {ARRAY}/{JOURNAL} is missing")
    # Written to before anything else is known about the store.
    for name in (JOURNAL, LOCK):
        path_inside(path, f"{ARRAY}/{name}")


def read_spec(path: Path, *, drop_damaged: bool = False) -> tuple[StoreSpec, JournalContents]:
    """Read and check a store's metadata and journal.

    Parameters
    ----------
    path : Path
        Of the store.
    drop_damaged : bool
        Skip damaged lines of the journal, as if what they committed never existed.

    Raises
    ------
    InputError
        Nothing is at `path`.
    UnsupportedFormatError
        There is no store of this format at `path`.
    CorruptStoreError
        Its metadata or journal is damaged.
    """
    require_store(path)
    group, array = (_read_json(path, name) for name in ("zarr.json", f"{ARRAY}/zarr.json"))
    spec = parse_spec(group, array, str(path))
    layout = spec.layout
    # Every shard twice and the header: a journal that was added to by a repair is still far below it.
    limit = min(MAX_JSON_NBYTES + 2 * layout.n_shards * record_nbytes(layout.n_cells), _MAX_FILE_NBYTES)
    journal_path = f"{ARRAY}/{JOURNAL}"
    data = _read(path, journal_path, limit)
    n_damaged = 0
    if drop_damaged:
        data, n_damaged = good_lines(data, str(path / journal_path))
    journal = replace(parse_journal(data, str(path / journal_path)), n_damaged=n_damaged)
    for name in ("zarr.json", f"{ARRAY}/zarr.json"):
        checked_bytes(path, name, journal, MAX_JSON_NBYTES)
    for shard, checksums in journal.shards.items():
        if shard >= layout.n_shards or len(checksums) != layout.n_cells * CHECKSUM_NBYTES:
            raise CorruptStoreError(f"{path / journal_path}: shard {shard} does not belong to this store; restore it")
    return spec, journal


def check_length(path: Path, spec: StoreSpec) -> None:
    """Check the number of samples, on which everything else depends, against the length of a file.

    Raises
    ------
    CorruptStoreError
        They do not agree.
    """
    name, expected = "sample/c/0", spec.n_samples * np.dtype(np.int64).itemsize + CHECKSUM_NBYTES
    n_bytes = _regular_file(path, name, MAX_JSON_NBYTES + expected).stat().st_size
    if n_bytes != expected:
        raise CorruptStoreError(
            f"{path}/{ARRAY}/zarr.json says {spec.n_samples} samples, but {name} is {n_bytes} bytes long; {MEND}"
        )


def read_coordinate(path: Path, name: str, spec: StoreSpec, journal: JournalContents) -> np.ndarray:
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
        raise InputError(f"{path} has no array {name!r}; it has {', '.join(sorted(shapes))}")
    shape = shapes[name]
    metadata = checked_bytes(path, f"{name}/zarr.json", journal, MAX_JSON_NBYTES)
    where = f"{path / name}/zarr.json"
    dtype = _checked_dtype(_parse_json(metadata, where), shape, where)
    key = "/".join(["c", *("0" for _ in shape)])
    n_bytes = math.prod(shape) * (dtype.itemsize if dtype else _MAX_TEXT_NBYTES) + CHECKSUM_NBYTES
    chunk = checked_bytes(path, f"{name}/{key}", journal, min(n_bytes, _MAX_FILE_NBYTES))
    # The text codec takes memory for as many strings as the first four bytes say.
    whole = len(chunk) == n_bytes if dtype else int.from_bytes(chunk[:4], "little") == math.prod(shape)
    if not whole:
        raise CorruptStoreError(f"{path / name / key} does not hold {math.prod(shape)} values; restore it")
    contents: dict[str, Buffer] = {"zarr.json": cpu.Buffer.from_bytes(metadata), key: cpu.Buffer.from_bytes(chunk)}
    try:
        return np.asarray(zarr.open_array(MemoryStore(contents), mode="r")[...])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStoreError(f"{path / name / key} cannot be decoded ({error}); restore it") from error


def _coordinate_shapes(spec: StoreSpec) -> dict[str, tuple[int, ...]]:
    """Arrays next to the activations: name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {axis: (spec.shape[AXES.index(axis)],) for axis in AXES[:3]}
    for name in (*spec.coordinates, *spec.label_columns):
        shapes[name] = (spec.n_samples,)
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


def checked_bytes(path: Path, name: str, journal: JournalContents, max_nbytes: int) -> bytes:
    """Content of a file that was written when the store was created, checked against the journal's header.

    Raises
    ------
    CorruptStoreError
        The file is missing, changed, larger than `max_nbytes`, or outside the store.
    """
    data = _read(path, name, max_nbytes)
    if file_hash(data) != journal.files.get(name):
        raise CorruptStoreError(f"{path / name} {_CHANGED}; {_mend(name)}")
    return data


def check_unchanged(path: Path, name: str, spec: StoreSpec, journal: JournalContents) -> None:
    """Check a file that was written when the store was created; raises as `checked_bytes`, reads it piece by piece."""
    shape = _coordinate_shapes(spec).get(name.split("/")[0], (0,))
    limit = MAX_JSON_NBYTES if name.endswith("zarr.json") else math.prod(shape) * _MAX_TEXT_NBYTES + CHECKSUM_NBYTES
    with _regular_file(path, name, limit).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != journal.files.get(name):
        raise CorruptStoreError(f"{path / name} {_CHANGED}; {_mend(name)}")


def _read(store: Path, name: str, max_nbytes: int) -> bytes:
    return _regular_file(store, name, max_nbytes).read_bytes()


def _regular_file(store: Path, name: str, max_nbytes: int) -> Path:
    """Path of a file that can be read: reading a pipe in its place would block forever."""
    file = path_inside(store, name)
    if not file.is_file():
        raise CorruptStoreError(f"{store / name} is missing; {_mend(name)}")
    n_bytes = file.stat().st_size
    if n_bytes > max_nbytes:
        raise CorruptStoreError(
            f"{store / name} is {n_bytes} bytes long, at most {max_nbytes} are expected; {_mend(name)}"
        )
    return file


def _mend(name: str) -> str:
    """What to do about a damaged file: a repair starts from the two documents that define the store."""
    return RESTORE if name in ("zarr.json", f"{ARRAY}/zarr.json") else MEND


def _read_json(store: Path, name: str) -> JSON:
    return _parse_json(_read(store, name, MAX_JSON_NBYTES), str(store / name))


def _parse_json(data: bytes, where: str) -> JSON:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{where} is not readable JSON ({error}); {RESTORE}") from error
    if not isinstance(document, dict):
        raise CorruptStoreError(f"{where} is not a JSON object; {RESTORE}")
    return document
