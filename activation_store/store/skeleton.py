"""The files of a new store except its shards."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from activation_store.format.spec import ARRAY, PLACE, StoreSpec, encode_json

if TYPE_CHECKING:
    import zarr
    from zarr.abc.buffer import Buffer


def skeleton(spec: StoreSpec, beside: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Every file of a new store except its shards: path inside the store -> content.

    Parameters
    ----------
    spec : StoreSpec
        Of the store.
    beside : mapping of str to ndarray [sample] or [sample, position]
        Values of ``spec.coordinates`` and ``spec.label_columns``; text as objects of type str.
    """
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    # It registers the data type.
    import_module("activation_store.format.bfloat16")
    contents: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(contents), zarr_format=3, attributes=spec.attributes())
    _add_array(group, "sample", np.arange(spec.n_samples), ("sample",))
    _add_array(group, "layer", np.array(spec.layers, dtype=np.int64), ("layer",))
    _add_array(group, "position", np.array(spec.positions, dtype=np.int64), ("position",))
    if spec.version > 1:
        _add_array(group, PLACE, np.array(spec.places, dtype=object), ("position",))
    for name in (*spec.coordinates, *spec.label_columns):
        _add_array(group, name, beside[name], ("sample", "position")[: beside[name].ndim])
    contents[f"{ARRAY}/zarr.json"] = cpu.Buffer.from_bytes(encode_json(spec.array_metadata()))
    with warnings.catch_warnings():
        # zarr-python warns that its inline form is not yet in the v3 specification; other readers pass over it.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group.store)
    return {key: buffer.to_bytes() for key, buffer in contents.items()}


def _add_array(group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    from zarr.codecs import BytesCodec, Crc32cCodec

    text = values.dtype == object
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype="string" if text else values.dtype,
        serializer="auto" if text else BytesCodec(endian="little"),
        # Not compressed, so that a file's length bounds what it decodes to.
        compressors=[Crc32cCodec()],
        dimension_names=axes,
        config={"write_empty_chunks": True},
    )
    array[...] = values
