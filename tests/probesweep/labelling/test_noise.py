"""Noise: the generator against its published vectors, draws against their distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from probesweep.labelling.noise import add_gumbel, philox

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, result.
VECTORS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS, ids=["zeros", "ones", "pi"])
def test_the_generator_gives_its_published_numbers(
    counter: list[int], key: tuple[int, int], expected: list[int]
) -> None:
    assert philox(torch.tensor([counter]).T, key).T.tolist() == [expected]


def _draws(scores: torch.Tensor, n_draws: int, seed: int = 0, *, question: int = 0, step: int = 0) -> torch.Tensor:
    rows = scores.expand(n_draws, -1)
    questions = torch.full((n_draws,), question)
    return add_gumbel(rows, seed, questions, torch.arange(n_draws), step).argmax(1)


def test_draws_have_the_probabilities_of_softmax() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0, 0.5, -np.inf])
    n_draws = 40_000
    found = np.bincount(_draws(scores, n_draws), minlength=7)
    expected = torch.softmax(scores.double(), 0).numpy() * n_draws
    assert found[6] == 0
    assert stats.chisquare(found[:6], expected[:6]).pvalue > 1e-3


@pytest.mark.parametrize("other", [{"seed": 1}, {"question": 1}, {"step": 1}, {"seed": 2**32}])
def test_each_coordinate_changes_the_draws(other: dict[str, int]) -> None:
    scores = torch.zeros(8)
    assert 0.75 < float((_draws(scores, 2000) != _draws(scores, 2000, **other)).float().mean()) < 1


def test_a_row_is_the_same_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 101, generator=generator) * 3
    questions, attempts = torch.tensor([5, 5, 9, 0, 1, 2]), torch.tensor([0, 1, 0, 3, 3, 3])
    together = add_gumbel(scores, 7, questions, attempts, 4)
    for row in range(6):
        alone = add_gumbel(scores[row : row + 1], 7, questions[row : row + 1], attempts[row : row + 1], 4)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_tokens_that_cannot_win_are_left_out_and_no_others() -> None:
    scores = torch.tensor([[0.0] * 4 + [-19.4] * 4 + [-19.5] * 4])
    found = add_gumbel(scores, 0, torch.tensor([0]), torch.tensor([0]), 0)
    assert torch.isfinite(found[0, :8]).all()
    assert (found[0, 8:] == -np.inf).all()
