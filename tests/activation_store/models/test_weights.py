"""What is computed is computed on the weights of the model that was named, or it is not computed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from activation_store import ActivationStore, Extraction, InputError
from activation_store.capture.session import KnownModel
from activation_store.models.info import read_model_info
from activation_store.models.loading import load_model
from activation_store.models.source import ModelSource
from activation_store.prompts.prompts import PromptFormat
from benchmarks.extract.subject import Subject
from tests.activation_store.extraction.test_extract import run
from tests.helpers.models import N_BLOCKS

Weights = dict[str, torch.Tensor]


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A folder of its own with the tiny Llama."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def rewrite(model: Path, change: Callable[[Weights], Weights]) -> None:
    file = model / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(file)).items()}, file, {"format": "pt"})


def configure(model: Path, **changes: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_block(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if ".layers.1." not in name}


def pickled(model: Path) -> None:
    """The same checkpoint as older ones are, less a block."""
    torch.save(without_block(load_file(model / "model.safetensors")), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def in_shards(model: Path) -> None:
    """Two shards and their index; block 1 is in neither."""
    names = sorted(without_block(load_file(model / "model.safetensors")))
    weights, index = load_file(model / "model.safetensors"), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, model / shard, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (model / "model.safetensors").unlink()


BROKEN = {
    "a block is missing": (lambda model: rewrite(model, without_block), r"lacks 9 weights \(model\.layers\.1\."),
    "a .bin lacks a block": (pickled, r"lacks 9 weights \(model\.layers\.1\."),
    "shards lack a block": (in_shards, r"lacks 9 weights \(model\.layers\.1\."),
    "no weight at all": (lambda model: rewrite(model, lambda _: {}), "lacks 29 weights"),
    "a wrapper's names": (
        lambda model: rewrite(model, lambda weights: {f"module.{name}": w for name, w in weights.items()}),
        r"lacks 29 weights .* begin with 'module\.': save it without",
    ),
    "no embeddings": (
        lambda model: rewrite(model, lambda weights: {n: w for n, w in weights.items() if "embed" not in n}),
        r"lacks 1 weight \(model\.embed_tokens\.weight\)",
    ),
    "blocks that the configuration leaves out": (
        lambda model: configure(model, num_hidden_layers=N_BLOCKS - 1),
        r"9 weights \(model\.layers\.2\..*of the decoder that transformers does not use",
    ),
    "more blocks in the configuration": (
        lambda model: configure(model, num_hidden_layers=N_BLOCKS + 1),
        r"lacks 9 weights \(model\.layers\.3\.",
    ),
    "a bias that the configuration leaves out": (
        lambda model: rewrite(model, lambda w: {**w, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
        r"1 weight \(model\.layers\.0\.self_attn\.q_proj\.bias\) of the decoder that",
    ),
    "a bias with the name of a mask": (
        lambda model: rewrite(model, lambda w: {**w, "model.layers.0.self_attn.attention.bias": torch.ones(32)}),
        r"1 weight \(model\.layers\.0\.self_attn\.attention\.bias\) of the decoder that",
    ),
    "an adapter among the weights": (
        lambda model: rewrite(
            model, lambda w: {**w, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
        ),
        r"1 weight \(base_model\..*lora_A\.weight\) of an adapter, which is not applied: merge it",
    ),
    "an adapter's embeddings": (
        lambda model: rewrite(model, lambda w: {**w, "model.embed_tokens.lora_embedding_A": torch.ones(2, 400)}),
        r"1 weight \(.*lora_embedding_A\) of an adapter",
    ),
    "an adapter of the head": (
        lambda model: rewrite(model, lambda w: {**w, "lm_head.modules_to_save.default.weight": torch.ones(400, 32)}),
        r"1 weight \(lm_head\.modules_to_save\.default\.weight\) of an adapter",
    ),
    "a second copy": (
        lambda model: rewrite(model, lambda w: {**w, **{f"module.{name}": value + 1 for name, value in w.items()}}),
        r"of the decoder twice, the second time as 29 weights \(module\.model\.embed_tokens",
    ),
    "a second copy of torch.compile": (
        lambda model: rewrite(model, lambda w: {**w, "_orig_mod.model.norm.weight": torch.ones(32)}),
        r"of the decoder twice, the second time as 1 weight \(_orig_mod\.model\.norm\.weight\)",
    ),
    "another width": (lambda model: configure(model, intermediate_size=47), r"\[32, 48\], not \[32, 47\]"),
    "another vocabulary": (lambda model: configure(model, vocab_size=500), r"\[400, 32\], not \[500, 32\]"),
    "an adapter": (lambda model: (model / "adapter_config.json").write_text("{}"), "has an adapter .* merge it"),
    "an adapter's weights": (
        lambda model: shutil.copy(model / "model.safetensors", model / "adapter_model.safetensors"),
        "has an adapter .* merge it",
    ),
    "a shard without its index": (
        lambda model: (model / "model.safetensors").rename(model / "model-00001-of-00004.safetensors"),
        "without their index",
    ),
    "two checkpoints": (
        lambda model: (
            (shutil.copy(model / "model.safetensors", model / "kept"), in_shards(model))
            and (model / "kept").rename(model / "model.safetensors")
        ),
        "two sets of weights",
    ),
    "a torn file": (
        lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100]),
        "cannot load the weights",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_are_not_the_models_are_refused_before_anything_is_written(kind, model, dataset, tmp_path):
    damage, says = BROKEN[kind]
    damage(model)
    with pytest.raises(InputError, match=says):
        run(model, dataset, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    # Wherever else a model is loaded.
    with pytest.raises(InputError, match=says):
        KnownModel.open(str(model), PromptFormat()).load([1], [-1])
    with pytest.raises(InputError, match=says):
        Subject.load(str(model))


HARMLESS = {
    "no head": (lambda w: {n: v for n, v in w.items() if "lm_head" not in n}, "lacks lm_head.weight; hidden states"),
    "a decoder alone": (
        lambda w: {n.removeprefix("model."): v for n, v in w.items() if "lm_head" not in n},
        "lacks lm_head.weight; hidden states",
    ),
    "another module": (lambda w: {**w, "vision_tower.weight": torch.ones(3)}, r"1 weight \(vision_tower\.weight\)"),
    "a stored mask": (
        lambda w: {**w, "model.layers.0.self_attn.masked_bias": torch.ones(1)},
        r"1 weight \(model\.layers\.0\.self_attn\.masked_bias\)",
    ),
    "a mask with the name of a bias": (
        lambda w: {**w, "model.layers.0.self_attn.attention.bias": torch.ones(1, 1, 8, 8)},
        r"1 weight \(model\.layers\.0\.self_attn\.attention\.bias\)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARMLESS)
def test_what_changes_no_hidden_state_is_a_warning(kind, model, dataset, tmp_path, tiny_model, caplog):
    change, says = HARMLESS[kind]
    rewrite(model, change)
    run(model, dataset, tmp_path / "s.zarr")
    run(tiny_model("llama"), dataset, tmp_path / "whole.zarr")
    stores = [ActivationStore.open(tmp_path / f"{name}.zarr") for name in ("s", "whole")]
    np.testing.assert_array_equal(stores[0][:], stores[1][:])
    assert re.search(says, caplog.text)
    # All names stand in transformers' own table.
    assert "LOAD REPORT" in caplog.text


def test_a_left_over_shard_of_pickles_beside_whole_weights_is_not_read(model):
    torch.save({}, model / "pytorch_model-00001-of-00002.bin")
    assert isinstance(load(model), torch.nn.Module)


def test_the_name_of_a_mask_is_looked_up_in_every_format(model):
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for shape in ((1, 1, 8, 8), (32,)):
        bias = {"layers.0.self_attn.attention.bias": torch.ones(shape)}
        inner = {name.removeprefix("model."): value for name, value in weights.items() if "lm_head" not in name}
        torch.save(inner | bias, model / "pytorch_model.bin")
        if len(shape) > 1:
            load(model)
        else:
            with pytest.raises(InputError, match="of the decoder that transformers does not use"):
                load(model)


def test_a_whole_checkpoint_is_loaded_without_a_word(model, dataset, tmp_path, caplog, capfd):
    run(model, dataset, tmp_path / "s.zarr")
    assert not [record for record in caplog.records if record.name.startswith("activation_store.models.weights")]
    assert "LOAD REPORT" not in capfd.readouterr().err


def write_gguf(path: Path, model: Path, *, extra: dict[str, np.ndarray] | None = None, leave_out: str = "-") -> Path:
    """A checkpoint of the tiny Llama as a GGUF file, without a tokenizer."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in load_file(model / "model.safetensors").items():
        if leave_out not in name:
            writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", value.float().numpy())
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> object:
    source = ModelSource.parse(str(path))
    return load_model(source, read_model_info(source), dtype=torch.float32)


def test_a_gguf_file_must_hold_every_weight_and_no_other(model, tmp_path):
    assert isinstance(load(write_gguf(tmp_path / "whole.gguf", model)), torch.nn.Module)
    with pytest.raises(InputError, match=r"lacks 9 weights \(model\.layers\.1\."):
        load(write_gguf(tmp_path / "part.gguf", model, leave_out=".layers.1."))
    for name, values in (
        ("blk.0.attn_q.bias", np.ones(32, np.float32)),
        ("blk.3.ffn_up.weight", np.ones((48, 32), np.float32)),
        ("rope_freqs.weight", np.full(4, 8, np.float32)),
    ):
        with pytest.raises(InputError, match=rf"1 weight \({name}\) of the decoder that transformers does not use"):
            load(write_gguf(tmp_path / f"{name}.gguf", model, extra={name: values}))


def test_a_gguf_file_in_parts_is_refused_by_its_name(model, tmp_path):
    write_gguf(tmp_path / "big-00001-of-00003.gguf", model)
    with pytest.raises(InputError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        ModelSource.parse(str(tmp_path / "big-00001-of-00003.gguf"))
    write_gguf(tmp_path / "small-00001-of-00001.gguf", model)
    assert ModelSource.parse(str(tmp_path / "small-00001-of-00001.gguf")).gguf_file


def test_the_report_of_transformers_is_shown_where_loading_fails(model, dataset, tmp_path, monkeypatch, caplog):
    load_whole = AutoModelForCausalLM.from_pretrained
    rewrite(model, without_block)

    def fails(*args, **kwargs):
        load_whole(*args, **kwargs)
        raise RuntimeError("for details look at the report above")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(InputError, match="look at the report above"):
        Extraction(str(model), dataset, tmp_path / "s.zarr", use_chat_template=True, device="cpu").run()
    assert "MISSING" in caplog.text
