"""The batch plan covers every row once and keeps to its limits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from activation_store.batches import plan_batches


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 1000), st.integers(0, 30)
)
def test_every_row_once_within_the_limits(lengths, max_rows, max_tokens, start):
    n_tokens = np.array([0] * start + lengths)
    rows = range(start, len(n_tokens))
    batches = list(plan_batches(n_tokens, rows, max_rows=max_rows, max_tokens=max_tokens))
    assert sorted(np.concatenate(batches).tolist()) == list(rows)
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * n_tokens[batch].max() <= max_tokens
    in_order = n_tokens[np.concatenate(batches)]
    assert (np.diff(in_order) <= 0).all()
