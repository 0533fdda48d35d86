"""All of a store but its shards: build it, and read it back checked against the journal's header."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Integer
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from activation_store.errors import CorruptStoreError, InputError, UnsupportedFormatError
from activation_store.journal import JOURNAL, JournalContents, file_hash, read_journal
from activation_store.spec import ARRAY, AXES, StoreSpec, encode_json, parse_spec


@dataclass(frozen=True)
class Coordinates:
    """What lies beside the activations, a row per sample.

    Parameters
    ----------
    n_tokens : ndarray [sample]
        Tokens of each prompt.
    token_ids : ndarray [sample, position]
        Token at each stored position.
    prompt_hash : ndarray [sample]
        First 64 bits of the SHA-256 of the prompt as the model read it.
    questions : list of str
        The dataset's question, before the chat template.
    labels : dict of ndarray [sample]
        Every label column, in its own data type.
    """

    n_tokens: Integer[np.ndarray, " sample"]
    token_ids: Integer[np.ndarray, "sample position"]
    prompt_hash: Integer[np.ndarray, " sample"]
    questions: list[str]
    labels: dict[str, np.ndarray]


RESERVED_NAMES = frozenset({ARRAY, *AXES, "n_tokens", "token_id", "prompt_hash", "question"})


def skeleton(spec: StoreSpec, coordinates: Coordinates) -> dict[str, bytes]:
    """Every file of a new store but its shards: path below the store -> content."""
    contents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(contents), zarr_format=3, attributes=spec.attributes())
    arrays: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
        "sample": (np.arange(spec.n_samples), ("sample",)),
        "layer": (np.array(spec.layers, dtype=np.int64), ("layer",)),
        "position": (np.array(spec.positions, dtype=np.int64), ("position",)),
        "n_tokens": (coordinates.n_tokens, ("sample",)),
        "token_id": (coordinates.token_ids, ("sample", "position")),
        "prompt_hash": (coordinates.prompt_hash, ("sample",)),
        **{name: (values, ("sample",)) for name, values in coordinates.labels.items()},
    }
    for name, (values, axes) in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            dimension_names=axes,
            config={"write_empty_chunks": True},
        )
        array[...] = values
    text = group.create_array(
        "question",
        shape=(spec.n_samples,),
        chunks=(spec.n_samples,),
        dtype="string",
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        dimension_names=("sample",),
        config={"write_empty_chunks": True},
    )
    text[...] = np.array(coordinates.questions, dtype=object)
    contents[f"{ARRAY}/zarr.json"] = cpu.Buffer.from_bytes(encode_json(spec.array_metadata()))
    with warnings.catch_warnings():
        # zarr-python warns that its inline form is not yet in the v3 specification; other readers pass over it.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group.store)
    return {key: buffer.to_bytes() for key, buffer in contents.items()}


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
