"""The label benchmark runs end to end on a tiny model, with every part's figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.__main__ import main
from benchmarks.label.agreement import p_same_rates
from benchmarks.label.speed import GENERATE, OURS
from tests.helpers.models import train_tokenizer


@pytest.fixture
def long_model(tmp_path: Path) -> Path:
    """A tiny model whose prompts may have thousands of tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    train_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_a_quick_run_has_the_figures_of_every_part(long_model: Path, tmp_path: Path) -> None:
    given = ["label", "--quick", "--model", str(long_model), "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    speeds = figures["tables"][:2]
    assert all([row["contender"] for row in table["rows"]] == [OURS, GENERATE] for table in speeds)
    targets = {target["what"]: target for target in figures["targets"]}
    assert targets["share of greedy answers that are generate's"]["is_met"]
    assert targets["attempts that differ between batch sizes, %"]["is_met"]
    assert len(figures["tables"]) >= 5


def test_equal_rates_are_told_from_others() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, 300)
    same = [p_same_rates(rng.binomial(8, rates), rng.binomial(8, rates), 8) for _ in range(20)]
    assert 0.2 < np.mean(same) < 0.8
    # Equal in the mean, and not for each question.
    other = rng.permutation(rates)
    assert p_same_rates(rng.binomial(8, rates), rng.binomial(8, other), 8) < 1e-3
