"""Models, tokenizers and questions that are in memory: the values of the same things on disk."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from activation_store import Extraction, FingerprintMismatchError, InputError

GIVEN = {"use_chat_template": True, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_values_are_those_of_the_model_on_disk(folder, dataset, model, tokenizer, tmp_path):
    expected = Extraction(str(folder), dataset, tmp_path / "disk.zarr", **GIVEN).run()
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    token_ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        logits = model(token_ids).logits
    table = pd.read_parquet(dataset)
    table.index = range(100, 100 + len(table))
    found = Extraction(model, table, tmp_path / "memory.zarr", tokenizer=tokenizer, **GIVEN).run()
    assert np.array_equal(found[:], expected[:])
    assert found.questions == expected.questions
    assert np.array_equal(found.labels["success_rate"], expected.labels["success_rate"])
    assert found.fingerprint["dataset"] == expected.fingerprint["dataset"]
    assert found.attrs["provenance"]["dataset_path"] == "DataFrame"
    # The user's model is as it was.
    assert not model.training
    assert all(torch.equal(before[name][0], value) for name, value in model.named_parameters())
    assert all(before[name][1] == value.requires_grad for name, value in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, logits)


def test_another_model_does_not_go_on_with_a_store(folder, dataset, model, tokenizer, tmp_path):
    extraction = Extraction(model, dataset, tmp_path / "a.zarr", tokenizer=tokenizer, **GIVEN)
    extraction.run()
    Extraction(model, dataset, tmp_path / "a.zarr", tokenizer=tokenizer, **GIVEN).run()
    with torch.no_grad():
        next(model.model.layers.parameters())[0, 0] += 1
    with pytest.raises(FingerprintMismatchError, match="weights"):
        Extraction(model, dataset, tmp_path / "a.zarr", tokenizer=tokenizer, **GIVEN).run()


def test_a_preview_loads_nothing(dataset, model, tokenizer, tmp_path):
    shown = Extraction(model, dataset, tmp_path / "a.zarr", tokenizer=tokenizer, **GIVEN).preview()
    assert "11" in shown
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("changed", "message", "argument"),
    [
        ({"tokenizer": None}, "model is LlamaForCausalLM in memory; give its tokenizer=", "tokenizer"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' cannot change a model in memory", "dtype"),
        ({"device_map": "auto"}, "device_map='auto' cannot change a model in memory", "device_map"),
        ({"workers": 2}, "model=... is in this process's memory, and workers load their own", "model"),
        ({"model": 3}, "model is int, which is no model of transformers", "model"),
        ({"model": "smollm2"}, "tokenizer=... goes with a model in memory", "tokenizer"),
    ],
    ids=str,
)
def test_what_a_model_in_memory_cannot_have(changed, message, argument, dataset, model, tokenizer, tmp_path):
    given = {"model": model, "tokenizer": tokenizer} | changed
    with pytest.raises(InputError) as caught:
        Extraction(dataset_path=dataset, output_path=tmp_path / "a.zarr", **given, **GIVEN).run()
    assert str(caught.value).startswith(message)
    assert caught.value.argument == argument
    assert not (tmp_path / "a.zarr").exists()


def test_a_model_in_training_mode_is_refused(dataset, model, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"in training mode, where dropout changes values; call model\.eval"):
        Extraction(model.train(), dataset, tmp_path / "a.zarr", tokenizer=tokenizer, **GIVEN).run()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"question": ["a"]}), "DataFrame has no column 'success_rate'"),
        (pd.DataFrame({"question": ["a"], "success_rate": [None]}), "DataFrame: label column 'success_rate'"),
        (pd.DataFrame({"question": ["a", 3], "success_rate": [1, 2]}), "DataFrame: "),
        (pd.DataFrame({"question": [], "success_rate": []}), "DataFrame has no rows"),
        (pd.DataFrame([["a", 1, 2]], columns=["question", "success_rate", "success_rate"]), "DataFrame"),
    ],
    ids=["no column", "null", "mixed", "empty", "twice"],
)
def test_frames_that_are_no_dataset(table, message, folder, tmp_path):
    with pytest.raises(InputError) as caught:
        Extraction(str(folder), table, tmp_path / "a.zarr", **GIVEN).run()
    assert str(caught.value).startswith(message), caught.value
