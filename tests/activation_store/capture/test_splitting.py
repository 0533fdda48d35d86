"""Batches that do not fit in the device's memory."""

import functools

import numpy as np
import pytest
import torch

from activation_store.capture.splitting import SplittingRunner
from activation_store.errors import DeviceMemoryError
from tests.helpers.architectures import build, hidden_states, random_prompts, run


class Small:
    """A device that has memory for some tokens, padding included."""

    def __init__(self, n_tokens, run=lambda prompts: [prompt[-1] for prompt in prompts]):
        self.n_tokens, self.run_whole = n_tokens, run
        self.calls = []

    def run(self, prompts):
        size = len(prompts) * max(map(len, prompts))
        self.calls.append(size)
        if size > self.n_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.run_whole(prompts)


def run_all(runner, rows, prompts):
    parts = list(runner.run(rows, prompts))
    return np.concatenate([part for part, _ in parts]), np.concatenate([block for _, block in parts])


def test_a_batch_that_fits_is_run_whole():
    prompts = random_prompts([9, 7, 5])
    device = Small(27)
    [(rows, block)] = SplittingRunner(device.run).run(np.array([4, 2, 9]), prompts)
    assert rows.tolist() == [4, 2, 9]
    assert block == [prompt[-1] for prompt in prompts]
    assert device.calls == [27]


@pytest.mark.parametrize("n_tokens", [9, 10, 20, 40, 62])
def test_halves_give_every_row_once_in_order(n_tokens, caplog):
    prompts = random_prompts([9, 9, 8, 7, 6, 5, 2])
    rows, block = run_all(SplittingRunner(Small(n_tokens).run), np.arange(10, 17), prompts)
    assert rows.tolist() == list(range(10, 17))
    assert block.tolist() == [prompt[-1] for prompt in prompts]
    assert len(caplog.records) == 1  # said once
    assert "7 prompts of 63 tokens" in caplog.text


def test_what_failed_once_is_not_tried_again():
    device = Small(20)
    runner = SplittingRunner(device.run)
    prompts = random_prompts([10, 10, 10, 10])
    run_all(runner, np.arange(4), prompts)
    assert device.calls == [40, 20, 20]
    run_all(runner, np.arange(4), prompts)
    assert device.calls[3:] == [20, 20]
    # A single long prompt is tried all the same: nothing else can be done with it.
    device.n_tokens = 50
    run_all(runner, np.arange(1), random_prompts([50]))
    assert device.calls[5:] == [50]


def test_a_single_prompt_that_does_not_fit_is_an_error_with_its_row():
    prompts = random_prompts([9, 30, 5])
    with pytest.raises(DeviceMemoryError, match="row 12 with 30 tokens does not fit"):
        run_all(SplittingRunner(Small(20).run), np.array([7, 12, 3]), prompts)


def test_other_errors_pass():
    def broken(_prompts):
        raise RuntimeError("not about memory")

    with pytest.raises(RuntimeError, match="not about memory"):
        list(SplittingRunner(broken).run(np.arange(2), random_prompts([3, 4])))


def test_splitting_changes_values_by_rounding_only():
    states = hidden_states(build("llama"), positions=(-2, -1))
    prompts = random_prompts([23, 16, 12, 9, 7])
    whole = run(states, prompts)
    _, block = run_all(SplittingRunner(Small(40, functools.partial(run, states)).run), np.arange(5), prompts)
    np.testing.assert_allclose(block, whole, atol=1e-5 * np.abs(whole).max())
