"""Gumbel noise that depends on the seed, the question, the attempt, the step and the token, and on nothing else.

To add it to log probabilities and take the largest sum is to draw from them (the Gumbel-max trick). So an attempt is
the same in any batch and after any restart, but for sums so near to each other that rounding decides.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

# Philox4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3).
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_N_ROUNDS = 10
_WORD = 0xFFFFFFFF
_LANES = 4
_IN_CACHE = 2**15
# 23 bits and a half: the most for which float32 holds every value, with neither 0 nor 1 among them.
_LOST_BITS = 9
_SCALE = 2.0**-23
# The largest noise less the smallest: a token that is further below the best one cannot win.
_SPAN = math.log(-math.log(_SCALE / 2)) - math.log(-math.log1p(-_SCALE / 2)) + 1e-3


def philox(counter: Int64[Tensor, "4 number"], key: tuple[int, int]) -> Int64[Tensor, "4 number"]:
    """Four random words of 32 bits for each counter of four such words, by Philox4x32-10.

    Parameters
    ----------
    counter : Tensor [word, number]
    key : tuple of int
        Two words of 32 bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_N_ROUNDS):
        # Products of 64 bits: int64 wraps around as unsigned numbers do.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> 32 & _WORD) ^ c1 ^ k0, (p0 >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _WORD, k1 + _KEY_STEPS[1] & _WORD
    return torch.stack([c0, c1, c2, c3])


def add_gumbel(
    scores: Float32[Tensor, "row token"],
    seed: int,
    questions: Int64[Tensor, " row"],
    attempts: Int64[Tensor, " row"],
    step: int,
) -> Float32[Tensor, "row token"]:
    """Log probabilities, up to a constant, with Gumbel noise; -inf for tokens that cannot be the largest.

    Parameters
    ----------
    scores : Tensor [row, token]
        -inf for tokens that are ruled out.
    seed : int
    questions, attempts : Tensor [row]
        Numbers of 32 bits that tell the rows' noise apart.
    step : int
        Number of the token within the attempt.
    """
    n_tokens = scores.shape[1]
    padded = torch.nn.functional.pad(scores, (0, -n_tokens % _LANES), value=-math.inf).unflatten(1, (-1, _LANES))
    possible = (padded >= scores.amax(1)[:, None, None] - _SPAN).any(2)
    noisy = torch.full_like(padded, -math.inf)
    key = seed & _WORD, seed >> 32 & _WORD
    # A processor is several times faster on numbers that stay in its cache; for a GPU all at once is best.
    many = _IN_CACHE if scores.device.type == "cpu" else possible.numel()
    places = possible.flatten().nonzero()[:, 0]
    for place in places.split(many):
        row, block = place // possible.shape[1], place % possible.shape[1]
        words = philox(torch.stack([block, torch.full_like(block, step), attempts[row], questions[row]]), key)
        uniform = ((words >> _LOST_BITS).float() + 0.5) * _SCALE
        noisy.flatten(0, 1)[place] = padded.flatten(0, 1)[place] - (-uniform.log()).log().T
    return noisy.flatten(1)[:, :n_tokens]
