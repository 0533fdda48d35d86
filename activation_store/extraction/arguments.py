"""Checks of arguments by themselves, before anything is read."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import date, time
from importlib.util import find_spec
from pathlib import Path

from activation_store.errors import InputError
from activation_store.files.storage import Location
from activation_store.format.spec import RESERVED_NAMES
from probesweep_errors import naming
from probesweep_ray import Machines

# Of transformers' apply_chat_template.
_CALL_ARGUMENTS = {
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}
# Of Linux and most of its file systems.
_NAME_NBYTES, _PATH_NBYTES = 255, 4095
_SHOWN_CHARACTERS = 40
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def parse_layers(layers: str | Sequence[int], n_blocks: int) -> tuple[int, ...]:
    """Resolve a layer specification into ascending indices of ``hidden_states``.

    Parameters
    ----------
    layers : str or sequence of int
        "all", or indices and ranges such as "-1", "0,1,2", "0-8,30"; negative ones count from the end.
    n_blocks : int
        Blocks of the model; it has ``n_blocks + 1`` hidden states.

    Raises
    ------
    InputError
        Not a layer specification, or a layer that the model does not have.
    """
    if layers == "all":
        return tuple(range(n_blocks + 1))
    wanted: list[int] = []
    for low, high in read_layers(layers):
        if not -n_blocks - 1 <= low <= n_blocks or high > n_blocks:
            item = str(low) if low == high else f"{low}-{high}"
            raise InputError(
                f"layers={layers!r}: this model has layers 0 to {n_blocks} (-1 = {n_blocks}), not {item}",
                argument="layers",
            )
        wanted += [low % (n_blocks + 1)] if low < 0 else range(low, high + 1)
    # Ranges in a string may overlap; a list names each layer separately.
    twice = [] if isinstance(layers, str) else [layer for layer in wanted if wanted.count(layer) > 1]
    if twice:
        raise InputError(f"layers={layers!r} names layer {twice[0]} twice; give each once", argument="layers")
    return tuple(sorted(set(wanted)))


def read_layers(layers: str | Sequence[int]) -> list[tuple[int, int]]:
    """First and last layer of each part of a specification that is not "all"; no model is needed.

    Raises
    ------
    InputError
        Not a layer specification.
    """
    if layers == "all":
        return []
    items = [item.strip() for item in layers.split(",")] if isinstance(layers, str) else list(layers)
    if not items:
        raise InputError("layers=[] is empty; write all, -1, 0,1,2 or 0-8", argument="layers")
    parts: list[tuple[int, int]] = []
    for item in items:
        found = re.fullmatch(r"(-?[0-9]{1,9})|([0-9]{1,9})-([0-9]{1,9})", str(item), re.ASCII)
        low, high = (int(found[1] or found[2]), int(found[1] or found[3])) if found else (0, -1)
        if high < low:
            raise InputError(
                f"layers={layers!r}: {item!r} is not a layer; write all, -1, 0,1,2 or 0-8", argument="layers"
            )
        parts.append((low, high))
    if not isinstance(layers, str) and len(set(parts)) < len(parts):
        raise InputError(f"layers={layers!r} names a layer twice; give each once", argument="layers")
    return parts


def check_in_memory(machines: Machines, *, device_map: str | None, dtype: str) -> None:
    """Refuse options of loading a model with one that is in memory already.

    Raises
    ------
    InputError
        Workers, which load a model of their own; another data type; another place.
    """
    if machines.many:
        raise InputError(
            "model=... is in this process's memory, and workers load their own; give the name or path of the model",
            argument="model",
        )
    for name, value, default in (("device_map", device_map, None), ("dtype", dtype, "auto")):
        if value != default:
            raise InputError(
                f"{name}={value!r} cannot change a model in memory; leave it out, or give the model's name or path",
                argument=name,
            )


def check_template_kwargs(template_kwargs: Mapping[str, object]) -> None:
    """Refuse arguments of the call rather than of the template, and values that JSON does not have."""
    for name, value in template_kwargs.items():
        with naming(f"chat_template_kwargs.{name}"):
            _check_json(name, value)
    reserved = sorted(_CALL_ARGUMENTS & set(template_kwargs))
    if reserved:
        raise InputError(
            f"chat_template_kwargs=...: {', '.join(reserved)} would change how prompts are rendered and tokenized, not "
            'what the template writes; pass only the template\'s own variables, such as {"enable_thinking": false}',
            argument=f"chat_template_kwargs.{reserved[0]}",
        )


def _check_json(name: str, value: object) -> None:
    """Refuse what a store cannot keep next to its prompts."""
    where = f"chat_template_kwargs=...: {name}"
    if isinstance(value, date | time):
        kind = "date" if isinstance(value, date) else "time"
        raise InputError(
            f'{where} is a {kind}, and templates take text; put the {kind} in quotes: "{value.isoformat()}"'
        )
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, which is not a string; put it in quotes")
            with naming(f"chat_template_kwargs.{name}.{key}"):
                _check_json(f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_json(name, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"{where} is {value}, which JSON cannot represent; give a finite number, or a string in quotes"
        )
    elif not isinstance(value, str | bool | int | float | None):
        raise InputError(f"{where} is {value!r}, which JSON cannot represent; use strings, numbers, true, false, lists")


def check_path(name: str, path: str | Path) -> None:
    """Refuse names that no file or folder can have."""
    if not str(path) or "\0" in str(path):
        raise InputError(f"{name}={str(path)!r}: no file or folder can have this name; give another", argument=name)
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    if longest > _NAME_NBYTES or len(os.fsencode(path)) > _PATH_NBYTES:
        raise InputError(
            f"{name}={f'{str(path)[:_SHOWN_CHARACTERS]}...'!r}: names can have {_NAME_NBYTES} bytes at most and paths "
            f"{_PATH_NBYTES}, this one has {longest} and {len(os.fsencode(path))}; give a shorter one",
            argument=name,
        )


def check_output_path(path: Location) -> None:
    """Refuse a file of the original scripts."""
    check_path("output_path", path)
    if str(path).endswith(".pt"):
        raise InputError(
            f"{path}: activations are written as a Zarr store; give a path that ends in .zarr and export it afterwards",
            argument="output_path",
        )


def check_column_name(argument: str, name: str) -> None:
    """Refuse a name that no array of the store can have."""
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"a column cannot be called {name!r}, which contains bytes that are not valid text; give UTF-8",
            argument=f"{argument}.{name}",
        ) from error
    if name in RESERVED_NAMES | {"zarr.json"} or "/" in name or name.startswith((".", "__")) or not 0 < n_bytes <= 255:
        raise InputError(
            f"a column of the store cannot be called {name!r}; rename it in the dataset", argument=f"{argument}.{name}"
        )


def check_device_map(device: str, device_map: str | None) -> None:
    """Refuse a placement that accelerate does not know, and two placements at once."""
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise InputError(f"device_map={device_map!r} must be one of {', '.join(DEVICE_MAPS)}", argument="device_map")
    if device_map is not None and device != "auto":
        raise InputError(
            f"device_map={device_map!r} places the model on all devices; leave out device={device!r}",
            argument="device_map",
        )
    if device_map is not None and find_spec("accelerate") is None:
        raise InputError(
            f"device_map={device_map!r}: accelerate is not installed; pip install accelerate", argument="device_map"
        )


def check_shared_device(device: str, device_map: str | None) -> None:
    """Refuse devices that several workers cannot each have one of."""
    if device_map is not None:
        raise InputError(
            f"device_map={device_map!r} spreads one model over all devices, and each worker has a model of its own; "
            "leave out one of them",
            argument="device_map",
        )
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"device={device!r} is one device of this machine, and each worker takes another; use auto, cpu or cuda",
            argument="device",
        )


def check_disk(path: Location, n_bytes: int) -> None:
    """Refuse a store that does not fit on its disk; of an object store nobody knows."""
    if not isinstance(path, Path):
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise InputError(
            f"{path} needs {n_bytes / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free; "
            "choose fewer layers=..., a 16-bit dtype=... or another disk",
            argument="output_path",
        )
