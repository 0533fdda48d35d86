"""Extraction on devices that no machine need have: the CPU's values, nothing read before it is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from activation_store import ActivationStore, Extraction
from activation_store.capture.prefix import SharedPrefix
from activation_store.models.loading import resolve_device
from tests.helpers.models import QUESTIONS
from tests.helpers.pretend_device import PretendDevice, pretended

pytestmark = pytest.mark.slow

# Prompts that are run one by one before anything else is.
MOST_COMPARED = 4


@pytest.fixture(scope="module")
def extract(tmp_path_factory, tiny_model):
    """Extract the eleven questions, on a device."""

    def run(dataset: Path, device: str, family: str = "llama", **options: object) -> ActivationStore:
        path = tmp_path_factory.mktemp("store") / "a.zarr"
        options = {"use_chat_template": True, "batch_size": 4, "shard_samples": 3, **options}
        return Extraction(str(tiny_model(family)), dataset, path, device=device, **options).run()

    return run


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_values_are_the_cpus(extract, dataset, family, dtype):
    options = {"family": family, "dtype": dtype}
    with pretended(PretendDevice("cuda")) as device:
        found = extract(dataset, "cuda", **options)
    assert device.counts.kernels.total() > 100
    expected = extract(dataset, "cpu", **options)
    np.testing.assert_array_equal(np.asarray(found[:], np.float32), np.asarray(expected[:], np.float32))


def test_the_common_prefix_is_run_once(extract, tmp_path, monkeypatch):
    start = "You answer questions. Think step by step, then give the answer alone on the last line. "
    long = tmp_path / "long.parquet"
    pd.DataFrame({"question": [start + question for question in QUESTIONS], "success_rate": 0.5}).to_parquet(long)
    used: list[int] = []
    of = SharedPrefix.of
    monkeypatch.setattr(
        SharedPrefix,
        "of",
        lambda decoder, token_ids, device: used.append(len(token_ids)) or of(decoder, token_ids, device),
    )
    with pretended(PretendDevice("cuda")):
        found = extract(long, "auto")
    assert used
    assert used[0] > 20
    np.testing.assert_array_equal(found[:], extract(long, "cpu")[:])


def test_a_batch_is_waited_for_by_who_writes_it_alone(extract, dataset):
    """A batch is begun without an answer to the one before, but for what transformers itself asks."""
    with pretended(PretendDevice("cuda")) as device:
        extract(dataset, "cuda", batch_size=11, shard_samples=11)
        of_one = Counter(device.counts.waits)
        device.counts.waits.clear()
        extract(dataset, "cuda", batch_size=1, shard_samples=11)
    more = device.counts.waits - of_one
    asked = {line: count for line, count in more.items() if line.startswith("__bool__")}
    # Whether several sequences are packed into one, asked by a model that was given no mask.
    assert sum(asked.values()) <= 10 + MOST_COMPARED
    assert more.total() - sum(asked.values()) <= MOST_COMPARED


def test_a_batch_for_which_there_is_no_room_is_split(extract, dataset, caplog):
    # The embeddings have room, as have activations of a gated MLP for some prompts, and not for all.
    with pretended(PretendDevice("cuda", largest_nbytes=400 * 32 * 4)):
        found = extract(dataset, "cuda", batch_size=11, shard_samples=11)
    assert "the device has too little memory for 11 prompts" in caplog.text
    expected = extract(dataset, "cpu", batch_size=11, shard_samples=11)
    np.testing.assert_allclose(found[:], expected[:], rtol=1e-5, atol=1e-6)


def test_auto_is_apples_gpu_where_there_is_one_and_no_other():
    with pretended(PretendDevice("mps")):
        assert resolve_device("auto") == torch.device("mps")
    with pretended(PretendDevice("cuda")):
        assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_apples_gpu_which_refuses_float64_extracts(extract, dataset, dtype):
    with pretended(PretendDevice("mps")) as device:
        found = extract(dataset, "auto", dtype=dtype)
    assert device.counts.kernels.total() > 100
    expected = extract(dataset, "cpu", dtype=dtype)
    np.testing.assert_array_equal(np.asarray(found[:], np.float32), np.asarray(expected[:], np.float32))
