"""All of a store but its shards: build it, and read it back checked against the journal's header."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from activation_store.errors import CorruptStoreError, InputError, UnsupportedFormatError
from activation_store.journal import JOURNAL, JournalContents, file_hash, read_journal
from activation_store.spec import ARRAY, AXES, StoreSpec, encode_json, parse_spec

# What an extraction writes beside the activations, a row per sample; imported activations lack it.
#   n_tokens [sample]              tokens of each prompt
#   token_id, token [sample, position]  token at each stored position, and the same decoded
#   prompt_hash [sample]           first 64 bits of the SHA-256 of the prompt as the model read it
#   question [sample]              the dataset's question, before the chat template
COORDINATES = ("n_tokens", "token_id", "token", "prompt_hash", "question")
RESERVED_NAMES = frozenset({ARRAY, *AXES, *COORDINATES})


def skeleton(spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Every file of a new store but its shards: path below the store -> content.

    Parameters
    ----------
    spec : StoreSpec
        Of the store.
    beside : mapping of str to ndarray [sample] or [sample, position]
        Values of ``spec.coordinates`` and ``spec.label_columns``; text as objects of type str.
    """
    contents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(contents), zarr_format=3, attributes=spec.attributes())
    _add_array(group, "sample", np.arange(spec.n_samples), ("sample",))
    _add_array(group, "layer", np.array(spec.layers, dtype=np.int64), ("layer",))
    _add_array(group, "position", np.array(spec.positions, dtype=np.int64), ("position",))
    for name in (*spec.coordinates, *spec.label_columns):
        _add_array(group, name, beside[name], ("sample", "position")[: beside[name].ndim])
    contents[f"{ARRAY}/zarr.json"] = cpu.Buffer.from_bytes(encode_json(spec.array_metadata()))
    with warnings.catch_warnings():
        # zarr-python warns that its inline form is not yet in the v3 specification; other readers pass over it.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group.store)
    return {key: buffer.to_bytes() for key, buffer in contents.items()}


def _add_array(group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    text = values.dtype == object
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype="string" if text else values.dtype,
        serializer="auto" if text else BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=3), Crc32cCodec()] if text else [Crc32cCodec()],
        dimension_names=axes,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def is_store(path: Path) -> bool:
    """Whether a store, finished or not, lies at `path`."""
    return (path / ARRAY / JOURNAL).is_file()


def read_spec(path: Path) -> tuple[StoreSpec, JournalContents]:
    """Read and check a store's metadata and journal.

    Raises
    ------
    UnsupportedFormatError
        There is no store of this format at `path`.
    CorruptStoreError
        Its metadata or journal is damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such store; write it with `probesweep extract --output_path {path}`")
    if not is_store(path):
        raise UnsupportedFormatError(f"{path} is not a probesweep store: {ARRAY}/{JOURNAL} is missing")
    journal = read_journal(path / ARRAY / JOURNAL)
    group, array = (json.loads(checked_bytes(path, name, journal)) for name in ("zarr.json", f"{ARRAY}/zarr.json"))
    return parse_spec(group, array, str(path)), journal


def checked_bytes(path: Path, name: str, journal: JournalContents) -> bytes:
    """Content of a file that was written when the store was created, checked against the journal's header."""
    try:
        data = (path / name).read_bytes()
    except FileNotFoundError as error:
        raise CorruptStoreError(f"{path / name} is missing; restore it") from error
    if file_hash(data) != journal.files.get(name):
        raise CorruptStoreError(f"{path / name} is not what was written when the store was created; restore it")
    return data
