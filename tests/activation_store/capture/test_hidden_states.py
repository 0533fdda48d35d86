"""Stored hidden states against Hugging Face's own, one prompt at a time and without padding."""

import accelerate
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from activation_store import ActivationStore, Extraction, InputError, ParityError
from activation_store.capture.hidden_states import HiddenStates
from activation_store.models.info import read_model_info
from activation_store.models.loading import LoadedDecoder, input_device, load_decoder
from activation_store.models.source import ModelSource
from tests.helpers.architectures import build, hidden_states, one_by_one, random_prompts, relative_errors, run
from tests.helpers.models import N_BLOCKS, QUESTIONS


def hidden_states_one_by_one(model, tokenizer, questions, positions):
    """[sample, layer, position, feature] by ``model(ids, output_hidden_states=True)``."""
    rows = []
    for question in questions:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        rows.append(torch.stack([state[0, list(positions)] for state in states]))
    return torch.stack(rows).float().numpy()


def relative_error(found, expected):
    """Largest error of each layer over the layer's root mean square."""
    rms = np.sqrt(np.square(expected).mean(axis=(0, 2, 3)))
    return np.abs(found - expected).max(axis=(0, 2, 3)) / rms


def read_all(store: ActivationStore) -> np.ndarray:
    cells = [[store.cell(layer, position) for position in store.positions] for layer in store.layers]
    return np.array(cells, dtype=np.float32).transpose(2, 0, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox"])
def test_store_equals_one_by_one_forward(family, tiny_model, dataset, tmp_path):
    folder = tiny_model(family)
    store = Extraction(
        str(folder), dataset, tmp_path / "s.zarr", use_chat_template=True, batch_size=4, shard_samples=5, device="cpu"
    ).run()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = hidden_states_one_by_one(model, tokenizer, QUESTIONS, store.positions)
    assert store.layers == tuple(range(N_BLOCKS + 1))
    assert read_all(store).shape == expected.shape
    error = relative_error(read_all(store), expected)
    assert error.max() < 1e-4, error
    # The reference must be able to tell layers and positions apart, or the comparison proves nothing.
    assert relative_error(np.roll(read_all(store), 1, axis=1), expected).min() > 1e-2
    assert relative_error(np.roll(read_all(store), 1, axis=2), expected).min() > 1e-2


@pytest.mark.slow
def test_smollm2_equals_one_by_one_forward(tmp_path, monkeypatch):
    # The GGUF takes half a minute to load: the reference runs the very model and tokenizer that extract loads.
    loaded = {}
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        load = auto.from_pretrained
        monkeypatch.setattr(
            auto, "from_pretrained", lambda *a, auto=auto, load=load, **k: loaded.setdefault(auto, load(*a, **k))
        )
    questions = pd.read_parquet("data/success_smollm2_test.parquet").sort_values(
        "question", key=lambda column: column.str.len()
    )
    chosen = questions.iloc[[0, 20, 40, 60, 80, 109]]
    chosen.to_parquet(tmp_path / "q.parquet")
    store = Extraction(
        "smollm2", tmp_path / "q.parquet", tmp_path / "s.zarr", use_chat_template=True, batch_size=3, device="cpu"
    ).run()
    (model, _), tokenizer = loaded[AutoModelForCausalLM], loaded[AutoTokenizer]
    expected = hidden_states_one_by_one(model, tokenizer, list(chosen.question), store.positions)
    assert store.shape == (6, 31, 6, 576)
    assert store.position_tokens == ["<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n"]
    error = relative_error(read_all(store), expected)
    assert error.max() < 1e-4, error
    # At the template's own tokens the embedding layer does not depend on the prompt.
    assert np.ptp(store.cell(0, -1), axis=0).max() == 0


@pytest.mark.slow
def test_chosen_layers_are_those_of_all(tiny_model, dataset, tmp_path):
    folder = str(tiny_model("llama"))
    everything = Extraction(folder, dataset, tmp_path / "all.zarr", use_chat_template=True, device="cpu").run()
    some = Extraction(folder, dataset, tmp_path / "some.zarr", use_chat_template=True, layers="0,2", device="cpu").run()
    assert some.layers == (0, 2)
    for layer in some.layers:
        np.testing.assert_array_equal(some.cell(layer, -2), everything.cell(layer, -2))


@pytest.mark.parametrize(
    ("layers", "blocks", "norms"),
    [([0], [], 0), ([0, 1], [0], 0), ([1, 2], [0, 1], 0), ([0, 3], [0, 1, 2], 1)],
)
def test_nothing_above_the_highest_layer_runs(layers, blocks, norms):
    model = build("llama")
    states = hidden_states(model, layers)
    ran = {"blocks": [], "norm": 0, "head": 0}
    prompts = random_prompts([5, 9])
    expected = run(states, prompts)
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, index=index: ran["blocks"].append(index))
    for name, module in (("norm", model.model.norm), ("head", model.lm_head)):
        module.register_forward_hook(lambda *_, name=name: ran.update({name: ran[name] + 1}))
    np.testing.assert_array_equal(run(states, prompts), expected)
    assert ran == {"blocks": blocks, "norm": norms, "head": 0}


def test_nothing_is_left_on_the_model():
    model = build("llama")
    states = hidden_states(model, [0, 1])
    run(states, random_prompts([5]))
    states.first_nonfinite_module(random_prompts([5])[0])
    hooked = [module for module in model.modules() if module._forward_pre_hooks]
    assert hooked == []


class Stack(nn.Module):
    """Blocks that stand in no ModuleList."""

    def __init__(self, blocks):
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(f"block{index}", block)

    def __getitem__(self, index):
        return list(self.children())[index]

    def __iter__(self):
        return self.children()


@pytest.mark.parametrize(("name", "blocks"), [("llama", "layers"), ("gpt2", "h")])
def test_unknown_structure_falls_back_to_output_hidden_states(name, blocks, caplog):
    model = build(name)
    decoder = model.base_model
    setattr(decoder, blocks, Stack(getattr(decoder, blocks)))
    states = hidden_states(model)
    prompts = random_prompts([5, 12, 7])
    states.check(prompts, max_rows=4)
    assert "blocks were not found: using output_hidden_states" in caplog.text
    assert len(caplog.records) == 1
    assert relative_errors(run(states, prompts), one_by_one(model, prompts, (-1,))).max() < 1e-5


def test_blocks_that_are_called_twice_are_not_hooked(caplog):
    model = build("bloom")
    first, second, _ = model.transformer.h
    second.register_forward_pre_hook(lambda _module, args, kwargs: (first(*args, **kwargs), None)[1], with_kwargs=True)
    states = hidden_states(model)
    prompts = random_prompts([5, 12, 7])
    assert relative_errors(run(states, prompts), one_by_one(model, prompts, (-1,))).max() < 1e-5
    assert "blocks were not found" in caplog.text


def test_another_number_of_hidden_states_is_refused():
    model = build("llama")
    states = HiddenStates(LoadedDecoder(model.model, torch.device("cpu"), torch.float32, ""), [0], [-1], 4, 32)
    with pytest.raises(InputError, match="returns 4 hidden states for 4 blocks: its layers cannot be numbered"):
        run(states, random_prompts([5]))


def test_another_width_is_refused():
    model = build("llama")
    states = HiddenStates(LoadedDecoder(model.model, torch.device("cpu"), torch.float32, ""), [0], [-1], 3, 30)
    with pytest.raises(InputError, match="returns 32 features, its blocks have 30"):
        run(states, random_prompts([5]))


def test_the_first_module_that_breaks_is_named():
    model = build("llama")
    states = hidden_states(model)
    prompt = random_prompts([5])[0]
    assert states.first_nonfinite_module(prompt) is None
    model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    model.model.layers[2].mlp.up_proj.weight.fill_(torch.inf)
    assert states.first_nonfinite_module(prompt) == "layers.1.self_attn.v_proj (Linear)"


def test_a_prefix_serves_only_prompts_that_begin_with_it():
    model = build("llama")
    prefix, other = random_prompts([6, 6])
    rests = random_prompts([5, 12, 7], seed=3)
    together = [np.concatenate([prefix, rest]) for rest in rests]
    for prompts, positions in (
        (together, (-5, -1)),
        (together, (-6, -1)),  # the first wanted token of the first prompt is the prefix's last
        ([*together[1:], np.concatenate([other, rests[0]])], (-1,)),
        (rests, (-1,)),
    ):
        states = hidden_states(model, positions=positions)
        assert states.use_prefix(prefix) == 6
        found = run(states, prompts)
        assert relative_errors(found, one_by_one(model, prompts, positions)).max() < 1e-5


def test_a_reused_prefix_is_not_run_again_and_does_not_grow():
    model = build("llama")
    states = hidden_states(model)
    prefix = random_prompts([6])[0]
    states.use_prefix(prefix)
    run(states, [prefix])
    sizes = []
    model.model.embed_tokens.register_forward_hook(lambda _module, _args, out: sizes.append(tuple(out.shape[:2])))
    for lengths in ([5, 12, 7], [3], [9, 9]):
        run(states, [np.concatenate([prefix, rest]) for rest in random_prompts(lengths)])
    assert sizes == [(3, 12), (1, 3), (2, 9)]
    layers = states._way.prefix.cache.layers
    assert [(layer.get_seq_length(), layer.keys.shape[0]) for layer in layers] == [(6, 1)] * 3
    assert states.use_prefix(prefix[:0]) == states.n_prefix == 0


def test_weights_that_are_loaded_as_they_are_needed():
    """Accelerate's hooks, as with a device_map that sends modules to the CPU or the disk."""
    model = build("llama")
    prompts = random_prompts([5, 12, 7])
    expected = one_by_one(model, prompts, (-1,))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    assert input_device(model).type == "cpu"
    # A forward pass that is ended early leaves the next one whole.
    first = hidden_states(model, [0, 1])
    assert relative_errors(run(first, prompts), expected[:2]).max() < 1e-5
    states = hidden_states(model)
    assert relative_errors(run(states, prompts), expected).max() < 1e-5


@pytest.mark.parametrize(
    ("quantized", "device_map", "expected"),
    [(False, None, None), (False, "auto", "auto"), (True, None, {"": torch.device("cpu")}), (True, "auto", "auto")],
)
def test_weights_that_have_their_place_are_not_moved(quantized, device_map, expected, tiny_model, monkeypatch):
    source = ModelSource.parse(str(tiny_model("llama")))
    info = read_model_info(source)
    if quantized:
        info.config.quantization_config = {"quant_method": "bitnet"}
    model, seen, moved = build("llama"), {}, []
    found = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **kwargs: (seen.update(kwargs), (model, found))[1]
    )
    monkeypatch.setattr(type(model), "to", lambda self, *_: moved.append(self) or self)
    load_decoder(source, info, dtype="float32", device=torch.device("cpu"), device_map=device_map)
    assert seen.get("device_map") == expected
    assert bool(moved) == (expected is None)


def test_values_that_depend_on_the_number_of_rows_are_no_rounding():
    model = build("llama")

    def crowded(_module, _inputs, output):
        return output * (1 + 0.5 * (len(output) - 1))

    model.model.layers[1].mlp.register_forward_hook(crowded)
    with pytest.raises(ParityError, match="prompts in a batch give different values than one at a time, at layer"):
        hidden_states(model).check(random_prompts([5, 9, 12]), max_rows=8)


def test_a_model_that_fails_with_a_cache_reuses_no_prefix(monkeypatch, caplog):
    model = build("llama")

    def without_cache(_module, _arguments, keywords):
        if keywords.get("use_cache"):
            raise ValueError("no cache here")

    model.model.register_forward_pre_hook(without_cache, with_kwargs=True)
    assert hidden_states(model).use_prefix(np.arange(3, 13)) == 0
    assert "this model fails with a cache, so no prefix is reused: no cache here" in caplog.text
