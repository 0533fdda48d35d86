"""Every architecture: batches with padding against unpadded ``output_hidden_states``, one prompt at a time."""

import functools

import numpy as np
import pytest
import torch

from tests.helpers.architectures import (
    CONFIGS,
    PROJECTED,
    WINDOW,
    WITHOUT_PREFIX,
    build,
    hidden_states,
    one_by_one,
    random_prompts,
    relative_errors,
    run,
)

LENGTHS = (1, 2, 7, 16, 23)
PREFIX = random_prompts([9], seed=1)[0]
TAIL = (-6, -5, -4, -3, -2, -1)
# float32: some hundred roundings, the largest of a few thousand values, after blocks whose weights amplify them.
# bfloat16 has three digits: a value that is large in its vector is off by some roundings of the vector's rms.
TOLERANCE = {torch.float32: 1024 * torch.finfo(torch.float32).eps, torch.bfloat16: 16 * torch.finfo(torch.bfloat16).eps}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NAMES = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def model_of(name, dtype):
    return build(name, dtype)


def expected_of(name, model, prompts, positions):
    expected = one_by_one(model, prompts, positions)
    return expected[:-1] if name in PROJECTED else expected


def compared(name, found):
    """The layers that Hugging Face has in this width."""
    return found[:, :-1] if name in PROJECTED else found


@pytest.mark.slow
@NAMES
@DTYPES
def test_batches_equal_single_prompts(name, dtype):
    model = model_of(name, dtype)
    assert hidden_states(model).structure.blocks is not None
    prompts = random_prompts(LENGTHS)
    for rows, positions in ((prompts, (-1,)), (prompts[2:], TAIL)):
        found, expected = (
            run(hidden_states(model, positions=positions), rows),
            expected_of(name, model, rows, positions),
        )
        errors = relative_errors(compared(name, found), expected)
        assert errors.max() < TOLERANCE[dtype], errors
    # The reference must be able to tell layers, positions and rows apart, or the comparison proves nothing.
    for axis in range(3):
        shifted = relative_errors(compared(name, np.roll(found, 1, axis=axis)), expected)
        assert shifted.min() > 2 * TOLERANCE[dtype], (axis, shifted)


@pytest.mark.slow
@NAMES
@DTYPES
def test_a_reused_prefix_changes_nothing(name, dtype):
    model = model_of(name, dtype)
    for positions, batches in (((-1,), (LENGTHS, (6, 11))), (TAIL, ((6, 11), (11, 6)))):
        states = hidden_states(model, positions=positions)
        assert states.use_prefix(PREFIX) == (0 if name in WITHOUT_PREFIX else len(PREFIX))
        # Lengths behind the prefix: those of batches that follow each other, for which the cache must not have grown.
        for lengths in batches:
            prompts = [np.concatenate([PREFIX, rest]) for rest in random_prompts(lengths)]
            found, expected = run(states, prompts), expected_of(name, model, prompts, positions)
            errors = relative_errors(compared(name, found), expected)
            assert errors.max() < TOLERANCE[dtype], errors


@pytest.mark.parametrize("name", sorted(PROJECTED))
def test_the_last_layer_of_a_projected_model_is_what_it_projects(name):
    model = model_of(name, torch.float32)
    prompts = random_prompts(LENGTHS)
    last = run(hidden_states(model), prompts)[:, -1]
    projected = model.model.decoder.project_out(torch.from_numpy(last)).numpy()
    expected = one_by_one(model, prompts, (-1,))[-1:]
    assert relative_errors(projected[:, None], expected).max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["mistral, window", "qwen2, window", "gemma2", "gemma3", "llama4"])
def test_the_windows_of_these_models_are_felt(name):
    # Else the tests above would show nothing about windows that are shorter than prompts and prefix.
    field = "attention_chunk_size" if name == "llama4" else "sliding_window"
    prompts = random_prompts(LENGTHS)
    narrow, wide = (run(hidden_states(build(name, **{field: size})), prompts) for size in (WINDOW, 64))
    short = [row for row, length in enumerate(LENGTHS) if length < WINDOW]
    np.testing.assert_allclose(narrow[short], wide[short], atol=1e-5)
    assert np.abs(narrow - wide)[len(short) :].max() > 0.1


def test_prompts_on_both_sides_of_a_rope_switch_share_no_batch():
    model = model_of("phi3, longrope", torch.float32)
    prompts = random_prompts([25, 10, 21, 20])
    states = hidden_states(model)
    assert states.structure.rope_switch == 20
    with torch.inference_mode():
        ids = torch.zeros(4, 25, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
        mixed = model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1][1, 9].numpy()
    expected = one_by_one(model, prompts, (-1,))
    assert np.abs(mixed - expected[-1][1, 0]).max() > 0.01  # what would happen
    assert relative_errors(run(states, prompts), expected).max() < TOLERANCE[torch.float32]
    # A prefix was run as a short prompt: long ones cannot go on from it.
    states.use_prefix(prompts[0][:9])
    prompts = [np.concatenate([prompts[0][:9], prompt]) for prompt in prompts]
    expected = one_by_one(model, prompts, (-1,))
    assert relative_errors(run(states, prompts), expected).max() < TOLERANCE[torch.float32]
