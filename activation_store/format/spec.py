"""What a store holds: its axes, value type, sharding and provenance, and the Zarr metadata that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from activation_store.errors import CorruptStoreError, UnsupportedFormatError
from activation_store.format.dtypes import NUMPY_DTYPES, numpy_dtype
from activation_store.format.layout import Layout
from activation_store.label_classes import LabelClasses

FORMAT_VERSION = 2
OLDEST_VERSION = 1
ARRAY = "activations"
AXES = ("sample", "layer", "position", "feature")
LAYER_CONVENTION = (
    "index into Hugging Face hidden_states: 0 = embeddings, i = output of block i-1, "
    "last (number of blocks) = after the model's final norm"
)
RESIDUAL = "residual"
PLACE = "place"
LABEL_CLASSES = "label_classes"
POSITION_CONVENTION = "index from the last real token of the prompt: -1 = last"

JSON = dict[str, Any]


@dataclass(frozen=True)
class StoreSpec:
    """Everything about a store that is fixed when it is created.

    Parameters
    ----------
    n_samples, n_features : int
        Lengths of the first and the last axis.
    layers : tuple of int
        Indices into Hugging Face ``hidden_states``, ascending.
    positions : tuple of int
        Negative indices from the last real token, ascending.
    dtype : str
        "float32", "float16" or "bfloat16".
    shard_samples : int
        Samples of one shard.
    coordinates : tuple of str
        Names of the arrays next to the activations that describe samples, labels left out.
    label_columns : tuple of str
        Names of the label arrays.
    fingerprint : mapping
        What determines the values: a resumed extraction must bring the same.
    provenance : mapping
        What is recorded with it: library versions, batch plan, names.
    version : int
        Of the format.
    places : tuple of str
        What each position holds, one name each; by default its number. Format 1 has only numbers.
    site : str
        Which tensor of a block is stored: "residual", its output. Format 1 has no other.
    label_classes : mapping of str to LabelClasses
        The classes of those labels that are words, by the label's name.
    """

    n_samples: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    n_features: int
    dtype: str
    shard_samples: int
    coordinates: tuple[str, ...]
    label_columns: tuple[str, ...]
    fingerprint: Mapping[str, Any]
    provenance: Mapping[str, Any]
    version: int = FORMAT_VERSION
    places: tuple[str, ...] = ()
    site: str = RESIDUAL
    label_classes: Mapping[str, LabelClasses] = field(default_factory=dict[str, LabelClasses])

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", tuple(map(str, self.positions)))

    @cached_property
    def layout(self) -> Layout:
        return Layout(
            n_samples=self.n_samples,
            n_layers=len(self.layers),
            n_positions=len(self.positions),
            n_features=self.n_features,
            itemsize=self.numpy_dtype.itemsize,
            shard_samples=self.shard_samples,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.n_samples, len(self.layers), len(self.positions), self.n_features)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.dtype)

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the arrays next to the activations, those of the axes left out."""
        return (*([PLACE] if self.version > 1 else []), *self.coordinates, *self.label_columns)

    def attributes(self) -> JSON:
        """Attributes of the Zarr group."""
        return {
            "probesweep_format": self.version,
            "layer_convention": LAYER_CONVENTION,
            "position_convention": POSITION_CONVENTION,
            **({"site": self.site} if self.version > 1 else {}),
            "layers": list(self.layers),
            "positions": list(self.positions),
            **({"places": list(self.places)} if self.version > 1 else {}),
            "coordinates": list(self.coordinates),
            "label_columns": list(self.label_columns),
            **({LABEL_CLASSES: _classes_as_json(self.label_classes)} if self.label_classes else {}),
            "fingerprint": dict(self.fingerprint),
            "provenance": dict(self.provenance),
        }

    def array_metadata(self) -> JSON:
        """``zarr.json`` of the activations: the only sharding and codecs that this format has."""
        _, n_layers, n_positions, n_features = self.shape
        crc = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [self.shard_samples, 1, 1, n_features],
            "codecs": crc,
            "index_codecs": crc,
            "index_location": "end",
        }
        shard_shape = [self.shard_samples, n_layers, n_positions, n_features]
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            # xarray reads this and shows the arrays named as coordinates of the activations; it splits at spaces.
            "attributes": {"coordinates": " ".join(name for name in self.beside if not any(map(str.isspace, name)))},
            "dimension_names": list(AXES),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def encode_json(document: JSON) -> bytes:
    """Metadata as it is written: indented, keys in the given order."""
    return json.dumps(document, indent=2, allow_nan=False).encode()


def parse_spec(group: JSON, array: JSON, where: str) -> StoreSpec:
    """Read a spec back from the two metadata documents.

    The array's document must be, key for key, the one that this format writes for such a spec: no other shape, codec
    or chunking is let through.

    Parameters
    ----------
    group, array : dict
        ``zarr.json`` of the group and of the activations.
    where : str
        Path of the store, for messages.

    Raises
    ------
    UnsupportedFormatError
        Not a probesweep store, or one of another format version.
    CorruptStoreError
        The documents contradict each other.
    """
    attributes = check_version(group, where)
    version = attributes["probesweep_format"]
    try:
        spec = StoreSpec(
            version=version,
            places=tuple(map(_text, attributes["places"])) if version > 1 else (),
            site=_text(attributes["site"]) if version > 1 else RESIDUAL,
            n_samples=_integer(array["shape"][0]),
            layers=tuple(map(_integer, attributes["layers"])),
            positions=tuple(map(_integer, attributes["positions"])),
            n_features=_integer(array["shape"][3]),
            dtype=str(array["data_type"]),
            shard_samples=_integer(array["chunk_grid"]["configuration"]["chunk_shape"][0]),
            coordinates=tuple(map(_text, attributes["coordinates"])),
            label_columns=tuple(map(_text, attributes["label_columns"])),
            label_classes=_read_classes(attributes),
            fingerprint=dict(attributes["fingerprint"]),
            provenance=dict(attributes["provenance"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptStoreError(f"{where}: the metadata lacks or garbles {error}; restore zarr.json") from error
    if spec.dtype not in NUMPY_DTYPES:
        raise CorruptStoreError(f"{where}/{ARRAY}/zarr.json: data type {spec.dtype!r} is none of {list(NUMPY_DTYPES)}")
    expected = spec.array_metadata()
    differing = [key for key in expected if array.get(key) != expected[key]]
    if len(spec.places) != len(spec.positions):
        raise CorruptStoreError(
            f"{where}/zarr.json: {len(spec.places)} places for {len(spec.positions)} positions; restore zarr.json"
        )
    if differing or min(spec.n_samples, spec.shard_samples, spec.n_features) < 1:
        raise CorruptStoreError(f"{where}/{ARRAY}/zarr.json: {', '.join(differing) or 'shape'} is not of this format")
    return spec


def check_version(group: JSON, where: str) -> JSON:
    """Attributes of a group of this format.

    Raises
    ------
    UnsupportedFormatError
        Not a probesweep store, or one of another format version; says which version of probesweep wrote it.
    """
    attributes = group.get("attributes")
    number = attributes.get("probesweep_format") if isinstance(attributes, dict) else None
    if not isinstance(attributes, dict) or type(number) is not int:
        raise UnsupportedFormatError(f"{where} is not a probesweep store: its zarr.json has no probesweep_format")
    if not OLDEST_VERSION <= number <= FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{where} has store format {number}, this probesweep reads formats {OLDEST_VERSION} to {FORMAT_VERSION}: "
            f"install probesweep {_writer_version(attributes)}"
        )
    return attributes


def _writer_version(attributes: JSON) -> str:
    """Version of probesweep that wrote a store whose format is not known: nothing of its attributes is certain."""
    value: Any = attributes
    for key in ("provenance", "versions", "probesweep"):
        value = value.get(key) if isinstance(value, dict) else None
    return f"{value} or newer" if isinstance(value, str) else "in the version that wrote it"


def _classes_as_json(classes: Mapping[str, LabelClasses]) -> JSON:
    return {label: one.to_json() for label, one in classes.items()}


def _read_classes(attributes: JSON) -> dict[str, LabelClasses]:
    """The classes of labels of words; stores without such labels, and older ones, do not have the key."""
    read: dict[str, LabelClasses] = {}
    for label, content in dict(attributes.get(LABEL_CLASSES, {})).items():
        names = tuple(map(_text, content["names"]))
        if label not in attributes["label_columns"] or not names or len(set(names)) < len(names):
            raise ValueError(f"{LABEL_CLASSES}: {label!r}")
        if not isinstance(content["ordered"], bool):
            raise TypeError(f"a boolean: {content['ordered']!r}")
        read[label] = LabelClasses(names, content["ordered"])
    return read


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"an integer: {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text: {value!r}")
    return value


# What an extraction writes next to the activations, a row per sample; imported activations lack it.
#   n_tokens [sample]              tokens of each prompt
#   token_id, token [sample, position]  token at each stored position, and the same decoded
#   prompt_hash [sample]           first 64 bits of the SHA-256 of the prompt as the model read it
#   question [sample]              the dataset's question, before the chat template
COORDINATES = ("n_tokens", "token_id", "token", "prompt_hash", "question")
RESERVED_NAMES = frozenset({ARRAY, *AXES, PLACE, *COORDINATES})
