"""Memory that is foretold against memory that is taken."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from activation_store.capture.footprint import enough_tokens, free_nbytes, token_nbytes, weights_nbytes
from activation_store.models.info import read_model_info
from activation_store.models.loading import empty_decoder
from activation_store.models.source import ModelSource
from activation_store.models.structure import find_decoder
from tests.helpers.architectures import build


def peak_nbytes(action):
    """Most bytes that tensors had at once beyond those at the beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "qwen2_moe", "falcon_h1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens_take_what_half_of_the_free_memory_has_room_for(name, dtype, attention):
    model = build(name, dtype)
    try:
        model.set_attn_implementation(attention)
    except ValueError:
        return  # has only the other one
    decoder = find_decoder(model)
    foretold = token_nbytes(decoder, 32, 96)
    ids = torch.randint(3, 60, (8, 96))
    with torch.inference_mode():
        peak = peak_nbytes(lambda: decoder(input_ids=ids, use_cache=False))
    assert 0.05 * foretold < peak / ids.numel() <= 2 * foretold


def test_the_weights_of_an_empty_decoder_are_those_of_the_loaded_one(tiny_model):
    source = ModelSource.parse(str(tiny_model("llama")))
    empty = empty_decoder(source, read_model_info(source), "bfloat16")
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16).model
    parameters = sum(parameter.nbytes for parameter in loaded.parameters())
    assert parameters <= weights_nbytes(empty) < 1.1 * parameters


def test_what_a_device_can_take():
    cpu = torch.device("cpu")
    assert 2**20 < free_nbytes(cpu) < 2**50
    assert enough_tokens(cpu) == 256 * torch.get_num_threads()
    assert enough_tokens(torch.device("cuda")) > 10_000


def test_packed_weights_do_not_count_as_wide():
    plain = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64))
    packed = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64))
    for layer in packed:
        layer.weight = nn.Parameter(torch.zeros(64 * 256 // 2, 1, dtype=torch.uint8), requires_grad=False)
    assert token_nbytes(packed, 64, 10) == token_nbytes(plain, 64, 10)
