"""The batch plan covers every row once and keeps to its limits."""

import json
from os.path import commonprefix

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_store.capture.batches import BatchPlan, shared_prefix, token_budget


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.none() | st.integers(1, 9),
    st.integers(1, 1000),
    st.integers(0, 30),
    st.floats(0, 1),
)
def test_every_row_once_within_the_limits(lengths, max_rows, max_tokens, start, share):
    n_tokens = np.array([0] * start + lengths)
    rows = range(start, len(n_tokens))
    prefix = int(share * min(lengths))
    plan = BatchPlan(max_tokens, max_rows, prefix)
    batches = list(plan.batches(n_tokens, rows))
    assert sorted(np.concatenate(batches).tolist()) == list(rows)
    for batch in batches:
        assert 1 <= len(batch) <= (max_rows or len(rows))
        assert len(batch) == 1 or len(batch) * (n_tokens[batch].max() - prefix) <= max_tokens
    in_order = n_tokens[np.concatenate(batches)]
    assert (np.diff(in_order) <= 0).all()
    padded = plan.padded_tokens(n_tokens, rows)
    assert padded == sum((n_tokens[batch].max() - prefix) * len(batch) for batch in batches)
    assert padded >= sum(lengths) - len(lengths) * prefix


def test_a_long_prefix_bounds_the_rows_whose_keys_are_there_at_once():
    n_tokens = np.full(5000, 2010)
    sizes = [len(batch) for batch in BatchPlan(1000, None, 2000).batches(n_tokens, range(5000))]
    assert max(sizes) == 3
    assert [len(batch) for batch in BatchPlan(1000, None, 0).batches(n_tokens, range(3))] == [1, 1, 1]


def test_a_plan_survives_the_store():
    plan = BatchPlan(4096, None, 24)
    assert BatchPlan.of({"batch_plan": json.loads(json.dumps(plan.describe()))}) == plan
    # As stores before prefixes were reused have it.
    assert BatchPlan.of({"batch_plan": {"max_rows": 16, "max_tokens": 8192}}) == BatchPlan(8192, 16, 0)


@given(st.integers(1, 2**17), st.integers(-(2**40), 2**40), st.integers(1, 2**24))
def test_the_budget_leaves_half_of_the_memory(enough, free, token_nbytes):
    budget = token_budget(enough, free, token_nbytes)
    assert 1 <= budget <= enough
    assert budget == 1 or budget * token_nbytes <= free / 2
    assert budget == enough or (budget + 1) * token_nbytes > free / 2


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=30),
    st.lists(st.integers(0, 2), max_size=5),
    st.integers(1, 2),
)
def test_shared_prefix_is_that_of_os_path(prompts, head, n_positions):
    """Against the standard library's longest common prefix of the prompts without their stored positions."""
    prompts = [head + prompt for prompt in prompts]
    starts = np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])])
    found = shared_prefix(np.concatenate(prompts), starts, n_positions)
    assert found == len(commonprefix([prompt[:-n_positions] for prompt in prompts]))  # noqa: RUF071


def test_shared_prefix_of_more_rows_than_are_looked_at_at_once():
    prompts = np.tile(np.arange(10), (5000, 1))
    starts = np.arange(0, 50001, 10)
    assert shared_prefix(prompts.reshape(-1), starts, 3) == 7
    prompts[4321, 2] = 99
    assert shared_prefix(prompts.reshape(-1), starts, 3) == 2
