"""Learn from one traced forward pass where a decoder's hidden states can be read, or where its values break.

Nothing here goes by the name of a model, a class or an attribute: what a module was given and what it returned while
the model ran on a short prompt says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from activation_store.errors import InputError

PreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True)
class Structure:
    """Where layers can be read.

    Parameters
    ----------
    blocks : tuple of nn.Module or None
        Block i is given layer i, for every i below N; None where there are no such modules.
    shift : int
        Layer i is ``hidden_states[i - shift]``; 1 where Hugging Face leaves out the embeddings (Mamba, RWKV).
    readout : nn.Module or None
        Is given layer N, and projects it to another width (OPT-350m). None: layer N is what the decoder returns.
    rope_switch : int or None
        Prompts of more tokens than this make the decoder change its rotary frequencies for the whole batch (longrope).
    """

    blocks: tuple[nn.Module, ...] | None
    shift: int
    readout: nn.Module | None
    rope_switch: int | None


@dataclass
class _Call:
    module: nn.Module
    given: Tensor | None
    returned: Tensor | None = None


def find_structure(
    decoder: nn.Module, token_ids: Int[Tensor, "row token"], n_blocks: int, n_features: int
) -> Structure:
    """Run a decoder on a short prompt and find the modules that its hidden states enter.

    Parameters
    ----------
    decoder : nn.Module
        From token ids to hidden states.
    token_ids : Tensor [row, token]
        The short prompt, on the decoder's device.
    n_blocks, n_features : int
        Transformer blocks and hidden size, as the configuration has them.

    Raises
    ------
    InputError
        The model does not return ``n_blocks + 1`` hidden states of `n_features` features.
    """
    calls: list[_Call] = []
    with _recorded(decoder, calls):
        out = decoder(input_ids=token_ids, output_hidden_states=True, use_cache=False)
    hidden = getattr(out, "hidden_states", None) or ()
    last = getattr(out, "last_hidden_state", None)
    if last is None or len(hidden) != n_blocks + 1:
        raise InputError(
            f"the model returns {len(hidden)} hidden states for {n_blocks} blocks: its layers cannot be numbered"
        )
    readout = None if last.shape[-1] == n_features else _find_readout(calls, last, n_features)
    for layer, state in enumerate(hidden[:-1] if readout else [*hidden[:-1], last]):
        if state.shape != (*token_ids.shape, n_features):
            raise InputError(
                f"layer {layer} of this model has the shape {list(state.shape)} where "
                f"{[*token_ids.shape, n_features]} is expected: it cannot be stored"
            )
    rope_switch = _rope_switch(decoder)
    for entered in _called_in_order(decoder, calls, n_blocks):
        given = [call.given for call in entered]
        for shift in (0, 1):
            if all(_same(state, named) for state, named in zip(given[shift:], hidden[: n_blocks - shift], strict=True)):
                return Structure(tuple(call.module for call in entered), shift, readout, rope_switch)
    return Structure(None, 0, readout, rope_switch)


def _called_in_order(decoder: nn.Module, calls: list[_Call], n_blocks: int) -> Generator[list[_Call]]:
    """Calls of every list of modules whose first `n_blocks`, and no others, were called once each and in order."""
    for container in decoder.modules():
        if isinstance(container, nn.ModuleList):
            members = set(container)
            entered = [call for call in calls if call.module in members]
            modules = [call.module for call in entered]
            if modules == list(container)[:n_blocks] and len(set(modules)) == n_blocks:
                yield entered


def _find_readout(calls: list[_Call], last: Tensor, n_features: int) -> nn.Module:
    for call in reversed(calls):
        if _same(call.returned, last) and call.given is not None and call.given.shape[-1] == n_features:
            return call.module
    raise InputError(
        f"the model returns {last.shape[-1]} features, its blocks have {n_features}: they cannot be stored together"
    )


def _rope_switch(decoder: nn.Module) -> int | None:
    for module in decoder.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if "longrope" in (kinds.values() if isinstance(kinds, dict) else [kinds]):
            config: Any = module.config
            parameters = config.rope_parameters
            nested = [value for value in parameters.values() if isinstance(value, dict)]
            lengths = [kind.get("original_max_position_embeddings") for kind in nested or [parameters]]
            return min(int(length) for length in lengths if length is not None)
    return None


def first_nonfinite_module(decoder: nn.Module, token_ids: Int[Tensor, "row token"]) -> str | None:
    """Name the first module that returns NaN or infinity on a prompt; None where all is finite."""
    names = {module: name or "the decoder" for name, module in decoder.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any) -> None:
        state = _state(_values(out))
        if not found and state is not None and not bool(torch.isfinite(state).all()):
            found.append(f"{names[module]} ({type(module).__name__})")

    with hooks([(module, None, look) for module in decoder.modules()]):
        decoder(input_ids=token_ids, use_cache=False)
    return found[0] if found else None


@contextmanager
def hooks(wanted: Iterable[tuple[nn.Module, PreHook | None, Hook | None]]) -> Generator[None]:
    """Hooks for the time of a forward pass."""
    handles: list[Any] = []
    try:
        for module, before, after in wanted:
            if before is not None:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded(decoder: nn.Module, calls: list[_Call]) -> Generator[None]:
    """Record every module's calls, in the order in which they begin."""
    running: list[_Call] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = _Call(module, given_state(args, kwargs))
        calls.append(call)
        running.append(call)

    def end(module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any) -> None:
        call = running.pop()
        assert call.module is module
        call.returned = _state(_values(out))

    with hooks([(module, begin, end) for module in decoder.modules()]):
        yield


def given_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden state that a module is given: its first argument of floating point, by place or by name."""
    return _state([*args, *kwargs.values()])


def _state(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _values(out: Any) -> Iterable[Any]:
    if isinstance(out, dict):
        return out.values()
    return out if isinstance(out, tuple | list) else [out]


def _same(found: Tensor | None, expected: Tensor) -> bool:
    # NaN equals NaN here: a model that breaks has a structure all the same.
    return (
        found is not None
        and (found.shape, found.dtype) == (expected.shape, expected.dtype)
        and torch.allclose(found, expected.to(found.device), rtol=0, atol=0, equal_nan=True)
    )


def find_decoder(model: nn.Module) -> nn.Module:
    """What of a causal LM runs from token ids to hidden states: the head's vocabulary-wide product is never wanted."""
    base: Any = getattr(model, "base_model", model)
    if base is not model:
        return base
    # Classes whose weights have another name for the base than the class has: Llama 4, Mllama.
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)
