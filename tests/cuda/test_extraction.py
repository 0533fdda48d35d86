"""Extraction on a card: the CPU's hidden states, less memory than there is, and batches that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from activation_store import ActivationStore, Extraction
from activation_store.capture.footprint import token_nbytes, weights_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import layer_errors, tolerance
from activation_store.capture.splitting import SplittingRunner
from activation_store.models.loading import LoadedDecoder
from activation_store.models.structure import find_decoder
from tests.helpers.architectures import build, random_prompts

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")]

DEVICE = "cuda"
N_TOKENS = 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_those_of_the_cpu(tiny_model, dataset: Path, tmp_path: Path, dtype: str) -> None:
    found, expected = (
        Extraction(
            *(str(tiny_model("llama")), dataset, tmp_path / f"{place}.zarr"),
            use_chat_template=True, batch_size=3, shard_samples=4, dtype=dtype, device=device,
        ).run()
        for place, device in (("card", DEVICE), ("cpu", "cpu"))
    )  # fmt: skip
    assert isinstance(found, ActivationStore)
    # Two devices sum in another order, as a batch and a single prompt do: what is rounding there is rounding here.
    assert layer_errors(found[:], expected[:]).max() <= tolerance(found.dtype)


def load(model: torch.nn.Module) -> HiddenStates:
    """What extract makes of a model on the card."""
    decoder = find_decoder(model.to(DEVICE))
    loaded = LoadedDecoder(decoder, torch.device(DEVICE), torch.float32, "")
    config = model.config
    layers = range(config.num_hidden_layers + 1)
    return HiddenStates(loaded, layers, (-2, -1), config.num_hidden_layers, config.hidden_size)


def test_a_batch_takes_about_the_memory_that_is_foretold() -> None:
    model = build("llama")
    states = load(model)
    prompts = random_prompts([N_TOKENS] * 512)
    states.start(prompts[:2])()  # what libraries keep for good
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert before >= weights_nbytes(find_decoder(model))
    states.start(prompts)()
    peak = torch.cuda.max_memory_allocated() - before
    foretold = token_nbytes(find_decoder(model), model.config.hidden_size, N_TOKENS) * N_TOKENS * len(prompts)
    assert 0.05 * foretold < peak <= 2 * foretold


def test_memory_that_ends_splits_batches_and_changes_no_values(caplog: pytest.LogCaptureFixture) -> None:
    states = load(build("llama"))
    prompts = random_prompts([N_TOKENS] * 4096)
    expected = states.start(prompts)()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    # One of the three wide tensors of a block takes 48 MiB for all prompts; torch asks for 20 MiB or more at a time.
    allowed = torch.cuda.memory_reserved() + 2**26
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        parts = list(SplittingRunner(states.start).run(np.arange(len(prompts)), prompts))
        found = np.concatenate([wait() for _, wait in parts])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(parts) > 1
    assert "split in half" in caplog.text
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]), np.arange(len(prompts)))
    assert layer_errors(found, expected).max() <= tolerance(found.dtype)
