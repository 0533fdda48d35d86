"""Compare batches of prompts with the same prompts run one by one, and choose how batches are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float64, Integer, Shaped

from activation_store.capture.prefix import SharedPrefix
from activation_store.errors import ParityError
from activation_store.prompts.prompts import TokenIds

States: TypeAlias = Shaped[np.ndarray, "row layer position feature"]

# Among the first rows, a few of different lengths, none long: a second of work for a small model.
_FIRST_ROWS = 64
_MAX_ROWS = 4
_SHORT = 96


@dataclass(frozen=True)
class Way:
    """How a batch is run: with hooks or ``output_hidden_states``, the common prefix reused or not."""

    hooked: bool
    prefix: SharedPrefix | None = None


PLAIN = Way(hooked=False)


@dataclass(frozen=True)
class Parity:
    """The fastest way to run batches that gives the values of single prompts.

    Attributes
    ----------
    way : Way
    largest_error : float
        Largest error of a layer's vectors, relative to their length.
    tolerance : float
        What that layer was allowed.
    warnings : tuple of str
        Faster ways that were given up, and a rounding that is larger than usual.
    """

    way: Way
    largest_error: float
    tolerance: float
    warnings: tuple[str, ...]


def find_way(
    run: Callable[[Sequence[TokenIds], Way], States],
    ways: Sequence[Way],
    prompts: Sequence[TokenIds],
    layers: Sequence[int],
    *,
    max_rows: int,
) -> Parity | None:
    """Compare batches of a few prompts with the same prompts run one by one through ``output_hidden_states``.

    Parameters
    ----------
    run : callable
        Runs prompts as one batch.
    ways : sequence of Way
        To try, the fastest first; the last is `PLAIN`.
    prompts : sequence of ndarray [token]
        The first prompts of the dataset.
    layers : sequence of int
        What `run` returns, to name them.
    max_rows : int
        Most rows of a batch.

    Returns
    -------
    Parity or None
        None if the model returns NaN or infinity for all of these prompts.

    Raises
    ------
    ParityError
        A plain batch differs too.
    """
    chosen = [prompts[row] for row in choose_rows(prompts)]
    alone = [run([prompt], PLAIN) for prompt in chosen]
    # Prompts that break the model are for the extraction to report, with their rows.
    finite = [row for row, states in enumerate(alone) if np.isfinite(states.astype(np.float32)).all()]
    if not finite:
        return None
    batches = [[chosen[row] for row in finite[i : i + max_rows]] for i in range(0, len(finite), max_rows)]
    comparison = _Comparison(run, tuple(layers), batches, np.concatenate([alone[row] for row in finite]))
    given_up: list[str] = []
    for way in ways:
        problem = comparison.problem(way)
        if problem is None:
            return comparison.parity(way, given_up)
        given_up.append(problem)
    raise ParityError(given_up[-1], argument="batch_size")


@dataclass
class _Comparison:
    """Batches, and what their prompts return one by one."""

    run: Callable[[Sequence[TokenIds], Way], States]
    layers: tuple[int, ...]
    batches: Sequence[Sequence[TokenIds]]
    expected: States
    errors: Float64[np.ndarray, " layer"] = field(init=False)
    allowed: Float64[np.ndarray, " layer"] = field(init=False)

    def __post_init__(self) -> None:
        self.allowed = np.full(len(self.layers), tolerance(self.expected.dtype))

    def problem(self, way: Way) -> str | None:
        """Run the batches; what is wrong with them and what follows, None if nothing is."""
        try:
            found = [self.run(batch, way) for batch in self.batches]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Models are programs: what they raise is theirs to choose.
            if not way.hooked:
                raise
            what = "reusing the prompts' common prefix" if way.prefix else "reading layers with hooks"
            return f"{what} fails ({error}): continuing without it"
        self.errors = layer_errors(np.concatenate(found), self.expected)
        if (self.errors > self.allowed).any():
            self.allowed = np.maximum(self.allowed, self._rounding())
        if (self.errors <= self.allowed).all():
            return None
        worst = int((self.errors / self.allowed).argmax())
        return _wrong(way, f"at layer {self.layers[worst]} by {self.errors[worst]:.2g} of its size")

    def parity(self, way: Way, given_up: Sequence[str]) -> Parity:
        """What the batches that ran last showed."""
        worst = int(self.errors.argmax())
        error, warnings = float(self.errors[worst]), tuple(given_up)
        if error > tolerance(self.expected.dtype):
            warnings += (
                f"layer {self.layers[worst]} of a prompt in a batch differs by {error:.2g} of its size from the same "
                "prompt alone; copies of one prompt differ as much, so this counts as rounding",
            )
        return Parity(way, error, float(self.allowed[worst]), warnings)

    def _rounding(self) -> Float64[np.ndarray, " layer"]:
        """Error of each layer that rounding explains: that of batches of one and the same prompt, with a margin."""
        copies = [self.run([prompt] * len(batch), PLAIN)[:1] for batch in self.batches for prompt in batch]
        errors = layer_errors(np.concatenate(copies), self.expected)
        return np.where(np.isfinite(errors), np.minimum(ROUNDING_MARGIN * errors, MOST_ROUNDING), 0.0)


def _wrong(way: Way, size: str) -> str:
    """Say that a way to run batches returns wrong values, and what follows."""
    if way.prefix:
        return f"reusing the prompts' common prefix changes the values {size}: the prefix is not reused"
    if way.hooked:
        return f"hooks change the values {size}: using output_hidden_states, which is slower"
    return (
        f"prompts in a batch give different values than one at a time, {size}, more than rounding; "
        "try batch_size=1 or dtype='float32'"
    )


def first_rows(n_tokens: Integer[np.ndarray, " sample"]) -> list[int]:
    """Rows to choose from: the first ones, and the shortest one of another length where these have one only."""
    rows = list(range(min(_FIRST_ROWS, len(n_tokens))))
    others = np.flatnonzero(n_tokens != n_tokens[0])
    if len(others) and others[0] >= len(rows):
        rows.append(int(others[n_tokens[others].argmin()]))
    return rows


def choose_rows(prompts: Sequence[TokenIds]) -> list[int]:
    """Pick the rows to compare: up to four of the first ones, of different lengths where there are such.

    Parameters
    ----------
    prompts : sequence of ndarray [token]
        The prompts to choose from.
    """
    n_tokens = [len(prompt) for prompt in prompts]
    by_length = sorted(range(len(n_tokens)), key=n_tokens.__getitem__)
    distinct = list({n_tokens[row]: row for row in reversed(by_length)}.values())[::-1]
    usable = [row for row in distinct if n_tokens[row] <= _SHORT]
    if len(usable) < 2:
        usable = distinct[:2] if len(distinct) > 1 else by_length[:2]
    places = np.linspace(0, len(usable) - 1, min(_MAX_ROWS, len(usable))).round().astype(int)
    return [usable[place] for place in places]


def layer_errors(found: States, expected: States) -> Float64[np.ndarray, " layer"]:
    """Largest error of each layer's vectors, each relative to its own length.

    Vectors rather than values: the few features that are a thousand times larger than the others would hide an error
    in these, and their own rounding would drown it.
    """
    wide_found, wide = found.astype(np.float64), expected.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1)
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(wide_found - wide, axis=-1)
    relative = np.where(error == 0, 0.0, error / np.maximum(length, np.finfo(np.float64).tiny))
    # A value that is not finite is an error of any size.
    return np.where(np.isfinite(relative), relative, np.inf).max(axis=(0, 2))


def tolerance(dtype: np.dtype) -> float:
    """Largest error that is rounding, whatever the model: the square root of the data type's epsilon.

    A batch sums in another order than a single row, so values differ by their rounding, some multiple of epsilon that
    grows with depth; a prompt that sees padding or another row differs by a fraction of one. The square root lies
    midway between epsilon and one: half of the digits must agree (float32: 3e-4, float16: 3e-2, bfloat16: 9e-2).
    """
    return float(ml_dtypes.finfo(dtype).eps) ** 0.5


# An error above the tolerance is rounding still where copies of one prompt in a batch, which have neither padding nor
# other rows to see, differ as much from that prompt alone: deep models in 16 bits, experts that are nearly tied.
ROUNDING_MARGIN = 4
# Copies do see how many they are: what depends on that (the room of an expert, statistics of a batch) is no rounding.
MOST_ROUNDING = 0.3
