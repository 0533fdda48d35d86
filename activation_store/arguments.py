"""What can be said of arguments by themselves, before anything is read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from activation_store.errors import InputError
from activation_store.metadata import RESERVED_NAMES

# Of transformers' apply_chat_template.
_CALL_ARGUMENTS = {
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}
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
        Not such a specification, or a layer that the model does not have.
    """
    if layers == "all":
        return tuple(range(n_blocks + 1))
    items = [item.strip() for item in layers.split(",")] if isinstance(layers, str) else [str(i) for i in layers]
    if not items:
        raise InputError("--layers names no layer; write all, -1, 0,1,2 or 0-8")
    wanted: set[int] = set()
    for item in items:
        first, dash, last = item.partition("-") if not item.startswith("-") else (item, "", "")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError as error:
            raise InputError(f"--layers {layers!r}: {item!r} is no layer; write all, -1, 0,1,2 or 0-8") from error
        if not -n_blocks - 1 <= low <= n_blocks or high > n_blocks or (dash and high < low):
            raise InputError(
                f"--layers {layers!r}: this model has layers 0 to {n_blocks} (-1 = {n_blocks}), not {item}"
            )
        wanted.update(range(low, high + 1) if dash else [low % (n_blocks + 1)])
    return tuple(sorted(wanted))


def check_template_kwargs(template_kwargs: Mapping[str, object]) -> None:
    """Refuse arguments that are not the template's but of how it is called."""
    reserved = sorted(_CALL_ARGUMENTS & set(template_kwargs))
    if reserved:
        raise InputError(
            f"--chat_template_kwargs: {', '.join(reserved)} would change how prompts are rendered and tokenized, not "
            'what the template writes; give it the template\'s own variables, such as {"enable_thinking": false}'
        )


def check_output_path(path: Path) -> None:
    """Refuse a file of the original scripts."""
    if path.suffix == ".pt":
        raise InputError(
            f"{path}: activations are written as a Zarr store; give a path that ends in .zarr and export it afterwards"
        )


def check_column_name(name: str) -> None:
    """Refuse a name that no array of the store can have."""
    if (
        name in RESERVED_NAMES | {"zarr.json"}
        or "/" in name
        or name.startswith((".", "__"))
        or not 0 < len(name.encode()) <= 255
    ):
        raise InputError(f"a column of the store cannot be called {name!r}; rename it in the dataset")


def check_at_least_one(**values: int | None) -> None:
    """Refuse numbers below one."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")


def check_device_map(device: str, device_map: str | None) -> None:
    """Refuse a placement that accelerate does not know, and two placements."""
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise InputError(f"--device_map {device_map!r}: must be one of {', '.join(DEVICE_MAPS)}")
    if device_map is not None and device != "auto":
        raise InputError(f"--device_map {device_map} places the model on all devices; leave out --device {device}")


def check_disk(path: Path, n_bytes: int) -> None:
    """Refuse a store that its disk has no room for."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise InputError(
            f"{path} needs {n_bytes / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free; "
            "choose fewer --layers, a 16-bit --dtype or another disk"
        )
