"""Stored hidden states against Hugging Face's own, one prompt at a time and without padding."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from activation_store import ActivationStore, extract
from activation_store.capture import HiddenStates, ModelSource, find_blocks, read_model_info
from tests.conftest import N_BLOCKS, QUESTIONS


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


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox"])
def test_store_equals_one_by_one_forward(family, tiny_model, dataset, tmp_path):
    folder = tiny_model(family)
    store = extract(
        str(folder), dataset, tmp_path / "s.zarr", use_chat_template=True, batch_size=4, shard_samples=5, device="cpu"
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = hidden_states_one_by_one(model, tokenizer, QUESTIONS, store.positions)
    assert store.layers == tuple(range(N_BLOCKS + 1))
    assert read_all(store).shape == expected.shape
    error = relative_error(read_all(store), expected)
    assert error.max() < 1e-4, error
    # The reference must be able to tell layers and positions apart, or the comparison proves nothing.
    assert relative_error(np.roll(read_all(store), 1, axis=1), expected).min() > 1e-2
    assert relative_error(np.roll(read_all(store), 1, axis=2), expected).min() > 1e-2


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
    store = extract(
        "smollm2", tmp_path / "q.parquet", tmp_path / "s.zarr", use_chat_template=True, batch_size=3, device="cpu"
    )
    model, tokenizer = loaded[AutoModelForCausalLM], loaded[AutoTokenizer]
    expected = hidden_states_one_by_one(model, tokenizer, list(chosen.question), store.positions)
    assert store.shape == (6, 31, 6, 576)
    assert store.position_tokens == ["<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n"]
    error = relative_error(read_all(store), expected)
    assert error.max() < 1e-4, error
    # At the template's own tokens the embedding layer does not depend on the prompt.
    assert np.ptp(store.cell(0, -1), axis=0).max() == 0


def test_chosen_layers_are_those_of_all(tiny_model, dataset, tmp_path):
    folder = str(tiny_model("llama"))
    everything = extract(folder, dataset, tmp_path / "all.zarr", use_chat_template=True, device="cpu")
    some = extract(folder, dataset, tmp_path / "some.zarr", use_chat_template=True, layers="0,2", device="cpu")
    assert some.layers == (0, 2)
    for layer in some.layers:
        np.testing.assert_array_equal(some.cell(layer, -2), everything.cell(layer, -2))


def test_blocks_above_the_highest_layer_do_not_run(tiny_model, monkeypatch):
    source = ModelSource.parse(str(tiny_model("llama")))
    info = read_model_info(source)
    states = HiddenStates.load(source, info, [0, 1], dtype="float32", device=torch.device("cpu"))
    blocks = find_blocks(states._decoder, N_BLOCKS)
    ran = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    states.run([np.arange(5, dtype=np.int32)], (-1,))
    assert ran == [0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unknown_structure_falls_back_to_output_hidden_states(family, tiny_model, caplog):
    source = ModelSource.parse(str(tiny_model(family)))
    info = read_model_info(source)
    states = HiddenStates.load(source, info, range(N_BLOCKS + 1), dtype="float32", device=torch.device("cpu"))
    prompts = [np.arange(5, 12, dtype=np.int32), np.arange(20, 25, dtype=np.int32)]
    hooked = states.run(prompts, (-2, -1))
    # A structure that the hooks misread: the blocks in another order.
    states._blocks = torch.nn.ModuleList(reversed(list(states._blocks)))
    assert not np.array_equal(states.run(prompts, (-2, -1)), hooked)
    states.check(prompts[0])
    assert "output_hidden_states" in caplog.text
    np.testing.assert_allclose(states.run(prompts, (-2, -1)), hooked)
