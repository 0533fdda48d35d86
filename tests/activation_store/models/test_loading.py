"""What is known about a model before its weights are loaded."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from activation_store import Extraction, InputError
from activation_store.models.info import read_model_info
from activation_store.models.source import ModelSource
from tests.helpers.models import train_tokenizer

_SIZES: dict[str, Any] = {
    **{"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 24, "is_decoder": True},
    **{"bos_token_id": 0, "eos_token_id": 2},
}
_XMOD = {"languages": ["en_XX"], "default_language": "en_XX"}
# Class of the configuration, what is special in it, and most tokens of a prompt.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "roberta": ("RobertaConfig", {"pad_token_id": 1}, 22),
    "roberta, another padding": ("RobertaConfig", {"pad_token_id": 5}, 18),
    "xlm-roberta": ("XLMRobertaConfig", {"pad_token_id": 1}, 22),
    "xlm-roberta-xl": ("XLMRobertaXLConfig", {"pad_token_id": 1}, 22),
    "camembert": ("CamembertConfig", {"pad_token_id": 1}, 22),
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", {"pad_token_id": 1}, 22),
    "data2vec": ("Data2VecTextConfig", {"pad_token_id": 1}, 22),
    "xmod": ("XmodConfig", {"pad_token_id": 1, **_XMOD}, 22),
    "bert": ("BertConfig", {"pad_token_id": 0}, 24),
    "opt": ("OPTConfig", {"pad_token_id": 1, "ffn_dim": 48, "word_embed_proj_dim": 32}, 24),
    "biogpt": ("BioGptConfig", {"pad_token_id": 1}, 24),
    "gpt2": ("GPT2Config", {"pad_token_id": 1}, 24),
}


def save(folder: Path, name: str) -> torch.nn.Module:
    kind, fields, _ = MODELS[name]
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**{**_SIZES, **fields})).eval()
    model.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_longest_prompt_is_as_long_as_the_model_itself_takes(name: str, tmp_path: Path):
    """Some families number positions from behind that of padding, so that their tables have rows for none."""
    model = save(tmp_path, name)
    limit = read_model_info(ModelSource.parse(str(tmp_path))).max_length
    assert limit is not None
    assert limit == MODELS[name][2]
    tokens = torch.full((1, limit + 1), 7)
    model(tokens[:, :limit])
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens)


@pytest.mark.parametrize("name", ["roberta", "camembert"])
def test_a_prompt_beyond_the_positions_is_refused_before_the_weights_are_loaded(name: str, tmp_path: Path):
    save(tmp_path / "model", name)
    questions = ["a", "b" * 60, "c"]
    pd.DataFrame({"question": questions, "success_rate": [0.1, 0.2, 0.3]}).to_parquet(tmp_path / "d.parquet")
    extraction = Extraction(
        str(tmp_path / "model"), tmp_path / "d.parquet", tmp_path / "s.zarr", use_chat_template=True
    )
    for step in (extraction.preview, extraction.run):
        with pytest.raises(InputError, match=r"1 prompts are longer than max_length=22, row 1; .*truncate=True"):
            step()
    assert not (tmp_path / "s.zarr").exists()
