"""The check that runs by itself: what it compares, what it gives up, what it refuses."""

import numpy as np
import pytest
import torch

from activation_store import ParityError
from activation_store.capture.parity import choose_rows, first_rows, layer_errors, tolerance
from activation_store.models.structure import Structure
from tests.helpers.architectures import build, hidden_states, one_by_one, random_prompts, relative_errors, run

POSITIONS = (-3, -2, -1)


def test_rows_of_different_lengths_are_chosen_none_long():
    assert choose_rows(random_prompts([30, 30, 20, 500, 10, 25, 28])) == [4, 2, 6, 0]
    # With nothing short or nothing different there are still two, so that a batch is compared.
    assert choose_rows(random_prompts([300, 200, 400])) == [1, 0]
    assert choose_rows(random_prompts([7, 7, 7])) == [0, 1]
    assert choose_rows(random_prompts([7])) == [0]


def test_only_the_first_rows_are_looked_at_unless_they_have_one_length():
    mixed = np.array([9] * 63 + [8] + [5] * 10)
    assert first_rows(mixed) == list(range(64))
    assert first_rows(np.array([9] * 64 + [12, 5, 5])) == [*range(64), 65]
    assert first_rows(np.array([9] * 70)) == list(range(64))
    assert first_rows(np.array([9, 9, 5])) == [0, 1, 2]


def test_errors_are_relative_to_each_vector():
    expected = np.array([[[[3.0, 4.0], [300.0, 400.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    found = expected.copy()
    found[0, 0, 0, 0] += 0.5
    found[0, 0, 1, 0] += 0.5
    np.testing.assert_allclose(layer_errors(found, expected), [0.1, 0.0])
    found[0, 1, 0, 1] = np.nan
    assert layer_errors(found, expected)[1] == np.inf
    found[0, 1] = [[1.0, 0.0], [0.0, 1e-9]]  # expected to be zero
    assert layer_errors(found, expected)[1] > 1


def test_half_of_the_digits_must_agree():
    assert [round(-np.log2(tolerance(np.dtype(name)))) for name in ("float32", "float16")] == [12, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_a_good_model_passes_without_a_word(dtype, max_rows, caplog):
    states = hidden_states(build("llama", dtype), positions=POSITIONS)
    prompts = [np.arange(3, 9, dtype=np.int32), *random_prompts([5, 12, 7])]
    states.check(prompts, max_rows=max_rows)
    assert not caplog.records


def test_a_wrong_prefix_is_not_reused(caplog):
    model = build("llama")
    states = hidden_states(model, positions=POSITIONS)
    prompts = [np.concatenate([np.arange(3, 9), rest]).astype(np.int32) for rest in random_prompts([5, 12, 7])]
    assert states.use_prefix(prompts[0][:6]) == states.n_prefix == 6
    layer = states._way.prefix.cache.layers[1]
    layer.keys = layer.keys.roll(1, dims=-2)
    states.check(prompts, max_rows=16)
    assert "common prefix changes the values at layer 2 by 0." in caplog.text
    assert states.n_prefix == 0
    assert relative_errors(run(states, prompts), one_by_one(model, prompts, POSITIONS)).max() < 1e-5


def test_a_right_prefix_is_kept(caplog):
    states = hidden_states(build("llama"), positions=POSITIONS)
    prompts = [np.concatenate([np.arange(3, 9), rest]).astype(np.int32) for rest in random_prompts([5, 12, 7])]
    states.use_prefix(prompts[0][:6])
    states.check(prompts, max_rows=16)
    assert states.n_prefix == 6
    assert not caplog.records


def test_wrong_hooks_are_given_up(caplog):
    model = build("llama")
    states = hidden_states(model, positions=POSITIONS)
    right = states.structure
    states.structure = Structure(right.blocks[::-1], right.shift, right.readout, right.rope_switch)
    prompts = random_prompts([5, 12, 7])
    states.check(prompts, max_rows=16)
    assert "hooks change the values at layer" in caplog.text
    assert relative_errors(run(states, prompts), one_by_one(model, prompts, POSITIONS)).max() < 1e-5


def leak_between_rows(model):
    """Block 1 adds half of the row before it to every row: of itself, where it is alone."""

    def leak(_module, _args, out):
        return out + 0.5 * out.roll(1, dims=0)

    model.model.layers[1].register_forward_hook(leak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_whose_rows_see_each_other_is_refused(dtype, caplog):
    model = build("llama", dtype)
    leak_between_rows(model)
    prompts = random_prompts([5, 12, 7])
    refusal = r"one at a time, at layer [23] by 0\.\d+ of its size.*batch_size=1"
    with pytest.raises(ParityError, match=refusal):
        hidden_states(model, positions=POSITIONS).check(prompts, max_rows=16)
    hidden_states(model, positions=POSITIONS).check(prompts, max_rows=1)
    assert not caplog.records  # not the hooks' fault


def test_rounding_of_this_very_model_is_allowed(monkeypatch):
    """A model so rough that copies of one prompt in a batch differ from it alone."""
    model = build("llama")

    def rough(_module, args, out):
        return out * (1 + 1e-3 * len(args[0]))

    model.model.layers[1].register_forward_hook(rough)
    prompts = random_prompts([5, 12, 7])
    hidden_states(model, positions=POSITIONS).check(prompts, max_rows=16)
    monkeypatch.setattr("activation_store.capture.parity.ROUNDING_MARGIN", 0)
    with pytest.raises(ParityError):
        hidden_states(model, positions=POSITIONS).check(prompts, max_rows=16)


def test_a_model_that_breaks_is_left_to_the_extraction(caplog):
    model = build("llama")
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    states = hidden_states(model, positions=POSITIONS)
    assert states.structure.blocks is not None
    states.check(random_prompts([5, 12, 7]), max_rows=16)
    assert not caplog.records
