"""Logistic regression, many fits at once: truncated Newton, preconditioned by ridge factors.

Newton's equation H d = -g is solved by conjugate gradients with exact products H v = X'(curve(Xv)) + penalty v: one
pass over the rows serves all folds and penalties, which are columns. The preconditioner of a penalty is the factor of
M = bound X'X + penalty I on all rows, which is above H everywhere (bound 1/4 for the sigmoid, 1/2 for the softmax;
Böhning 1992). Where the data are nearly separable M is far above H: a penalty whose conjugate gradients run into
their cap gets the factor of its own Hessian (of its diagonal blocks, for the softmax), with the mean curvature of its
folds, which turns its next steps into Newton-Cholesky.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from gpu_probes.features.rows import Rows, TrainingSets
from gpu_probes.solvers.cholesky import Factor, factorise_near
from gpu_probes.solvers.moments import add_gram, lot_marginals
from gpu_probes.solvers.objective import HeldOut, Loss, ProbeFits, Solver, duality_gap
from gpu_probes.solvers.preprocessing import Frame, Marginals, Preprocessing

MAX_NEWTON_STEPS = 100
# Relative to the objective at zero.
CERTIFICATE_LIMIT = 1e-12
# Rounding can keep the gap of a minimum above the limit; above this one, the gap no longer tells a minimum.
SETTLED_LIMIT = 1e-4
# Bound on the relative error of the coefficients before the last step, which squares it.
_TOLERANCE = 1e-5
# For fits that only take part in a choice.
_ROUGH_TOLERANCE = 1e-4
# After about as many steps as a factor of its own costs, a penalty gets one, and then as many as it needs.
_MAX_CG_STEPS = 16
_MAX_CG_STEPS_REFRESHED = 256
_MAX_HALVINGS = 40
_ARMIJO = 1e-4
# Rows that stay in a core's cache between X v and X'(...).
_TILE_BYTES = 2**20


@dataclass(frozen=True)
class Columns:
    """Fits that are worked on at once: place among all, training set and penalty of each, cell by cell.

    The place counts penalties fastest.
    """

    place: Int64[Tensor, "cell column"]
    fit: Int64[Tensor, "cell column"]
    penalty_index: Int64[Tensor, "cell column"]
    penalty: Float64[Tensor, "cell column"]

    @classmethod
    def of(cls, n_cells: int, fits: Int64[Tensor, " fit"], penalties: Float64[Tensor, " penalty"]) -> Columns:
        """Every penalty for each of some fits."""
        place = torch.arange(len(fits) * len(penalties), device=fits.device)
        index = place % len(penalties)
        columns = (place, fits.repeat_interleave(len(penalties)), index, penalties[index])
        return cls(*(column.expand(n_cells, -1) for column in columns))

    def take(self, kept: Int64[Tensor, "cell kept"]) -> Columns:
        """Some of the columns of each cell."""
        return Columns(*(values.gather(1, kept) for values in (self.place, self.fit, self.penalty_index, self.penalty)))


class Design:
    """The features of a block as its fits see them: shifted and scaled on their own training rows.

    What has a value for each row is in the order of a pass over the rows. A point of the parameter space holds a
    number for each feature, and at the end the intercept if there is one.
    """

    def __init__(self, rows: Rows, sets: TrainingSets, preprocessing: Preprocessing) -> None:
        self._rows, self._reduced, self.basis = rows, None, None
        if rows.n_samples < rows.n_features and not preprocessing.standardize:
            # The solution lies in the span of the rows: any other part would only add to the penalty.
            (chunk,) = rows.chunks()
            self.basis, triangle = torch.linalg.qr(chunk.features.mT)
            self._reduced = triangle.mT.contiguous()
        self.n_features = rows.n_features if self._reduced is None else rows.n_samples
        self.n_intercepts = int(preprocessing.fit_intercept)
        self.order = rows.order
        self.weights = sets.weights(self.order)
        marginals = self._marginals(sets, preprocessing)
        no_targets = self.weights.new_zeros(0)
        frames = [Frame.of(rows, no_targets, preprocessing) for rows in marginals]
        self._full = frames[-1]
        self._varies = torch.stack([rows.squares for rows in marginals], 1) > 0 if preprocessing.standardize else None
        self._centre = torch.stack([frame.centre for frame in frames], 1)
        self._scale = torch.stack([frame.scale for frame in frames], 1)

    def tiles(self) -> Iterator[tuple[slice, Float64[Tensor, "cell row feature"]]]:
        """One pass over the rows, a few at a time."""
        size = (
            max(_TILE_BYTES // (8 * self.n_features), 64) if self._rows.device.type == "cpu" else self._rows.n_samples
        )
        start = 0
        for features in [self._reduced] if self._reduced is not None else (c.features for c in self._rows.chunks()):
            for tile in features.split(size, 1):
                yield slice(start, start + tile.shape[1]), tile
                start += tile.shape[1]

    def raw(
        self, columns: Columns, point: Float64[Tensor, "cell column output parameter"]
    ) -> tuple[Float64[Tensor, "cell column output feature"], Float64[Tensor, "cell column output"]]:
        """Coefficients of the raw features, and what has to be added to the features times them."""
        centre, scale = self._frames_of(columns)
        coef = point[..., : self.n_features] / scale
        return coef, point[..., self.n_features :].sum(-1) - (coef * centre).sum(-1)

    def framed(
        self,
        columns: Columns,
        coef: Float64[Tensor, "cell column output feature"],
        offset: Float64[Tensor, "cell column output"],
    ) -> Float64[Tensor, "cell column output parameter"]:
        """The point of raw coefficients and offset: the inverse of `raw`."""
        centre, scale = self._frames_of(columns)
        intercept = (offset + (coef * centre).sum(-1))[..., None]
        return torch.cat([coef * scale, intercept], -1) if self.n_intercepts else coef * scale

    def back(
        self,
        columns: Columns,
        summed: Float64[Tensor, "cell column output feature"],
        total: Float64[Tensor, "cell column output"],
    ) -> Float64[Tensor, "cell column output parameter"]:
        """X'e in the parameter space, from that of the raw features and the sum of e."""
        centre, scale = self._frames_of(columns)
        features = (summed - total[..., None] * centre) / scale
        return torch.cat([features, total[..., None]], -1) if self.n_intercepts else features

    def penalised(
        self, columns: Columns, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Penalty times the point; the intercept has none."""
        product = columns.penalty[:, :, None, None] * point
        product[..., self.n_features :] = 0
        return product

    def confine(
        self, columns: Columns, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Take away the coefficients of features that do not vary in a fit's training rows: they may elsewhere."""
        if self._varies is None:
            return point
        varies = self._varies.gather(1, columns.fit[:, :, None].expand(-1, -1, self.n_features))
        point[..., : self.n_features] *= varies[:, :, None]
        return point

    def gram(self, row_weights: Float64[Tensor, "cell row"]) -> Float64[Tensor, "cell parameter parameter"]:
        """Weighted Gram matrix (lower triangle), framed as the fit on everything."""
        n_parameters = self.n_features + self.n_intercepts
        gram = row_weights.new_zeros(len(row_weights), n_parameters, n_parameters)
        for held, tile in self.tiles():
            features = self._full.apply(tile)
            if self.n_intercepts:
                features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
            for cell in range(len(row_weights)):
                add_gram(gram[cell], features[cell], row_weights[cell, held])
        return gram

    def _frames_of(self, columns: Columns) -> tuple[Tensor, Tensor]:
        index = columns.fit[:, :, None].expand(-1, -1, self.n_features)
        return self._centre.gather(1, index)[:, :, None], self._scale.gather(1, index)[:, :, None]

    def _marginals(self, sets: TrainingSets, preprocessing: Preprocessing) -> list[Marginals]:
        chunks, origin = self._rows.chunks(), self._rows.origin
        if self._reduced is not None:
            chunks = [replace(chunk, features=self._reduced) for chunk in chunks]
            origin = torch.zeros_like(self._reduced[:, 0])
        marginals = lot_marginals(chunks if preprocessing.centres else [], sets, preprocessing, origin)
        return [marginals.of_fit(lots) for lots in sets.included]


@dataclass(frozen=True)
class Problem:
    """Columns of a block at work: their design, loss, targets, and how much each row counts for each of them.

    Targets that all columns share come once.
    """

    design: Design
    loss: Loss
    columns: Columns
    weights: Float64[Tensor, "cell row column"]
    targets: Float64[Tensor, "#cell row #column output"]

    @classmethod
    def of(
        cls, design: Design, loss: Loss, columns: Columns, targets: Float64[Tensor, "#cell sample #column output"]
    ) -> Problem:
        """Look up the weights of each column's training set."""
        return cls(design, loss, columns, design.weights[columns.fit].mT.contiguous(), targets[:, design.order])

    def take(self, kept: Int64[Tensor, "cell kept"]) -> Problem:
        """Some of the columns of each cell."""
        targets = self.targets if self.targets.shape[2] == 1 else _pick(self.targets, kept, 2)
        return Problem(self.design, self.loss, self.columns.take(kept), _pick(self.weights, kept, 2), targets)

    @property
    def at_zero(self) -> Float64[Tensor, "cell column output parameter"]:
        """The point where all coefficients are zero."""
        n_parameters = self.design.n_features + self.design.n_intercepts
        return self.weights.new_zeros(*self.columns.fit.shape, self.targets.shape[-1], n_parameters)

    def decide(
        self, point: Float64[Tensor, "cell column output parameter"]
    ) -> Float64[Tensor, "cell row column output"]:
        """Decision values of all rows."""
        coef, offset = self.design.raw(self.columns, point)
        return torch.cat([_decide(tile, coef, offset) for _, tile in self.design.tiles()], 1)

    def objective(
        self,
        decision: Float64[Tensor, "cell row column output"],
        point: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column"]:
        """The objective of each column."""
        losses = (self.weights * self.loss.value(decision, self.targets)).sum(1)
        return losses + 0.5 * _inner(self.design.penalised(self.columns, point), point)

    def gradient(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        point: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Gradient of the objective at `point`, which gave `predictions`."""
        errors = self.weights[..., None] * (predictions - self.targets)
        summed = torch.zeros_like(point[..., : self.design.n_features])
        for held, tile in self.design.tiles():
            summed += _sum_back(tile, errors[:, held])
        return self.design.back(self.columns, summed, errors.sum(1)) + self.design.penalised(self.columns, point)

    def gap(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        gradient: Float64[Tensor, "cell column output parameter"],
    ) -> Float64[Tensor, "cell column"]:
        """Bound on the excess of the objective; an intercept, which has no penalty, adds what its Newton step gains."""
        n_features = self.design.n_features
        bound = duality_gap(gradient[..., :n_features].square().sum((2, 3)), self.columns.penalty)
        if self.design.n_intercepts:
            curvature = (self.weights[..., None] * predictions * (1 - predictions)).sum(1)
            slope = gradient[..., n_features].square()
            bound = bound + torch.where(slope > 0, slope / (2 * curvature), 0.0).sum(2)
        return bound

    def hessian_times(
        self,
        predictions: Float64[Tensor, "cell row column output"],
        vector: Float64[Tensor, "cell column output parameter"],
    ) -> tuple[Float64[Tensor, "cell column output parameter"], Float64[Tensor, "cell row column output"]]:
        """Exact Hessian-vector product, and the decision values of the vector; one pass over the rows."""
        coef, offset = self.design.raw(self.columns, vector)
        decision = torch.empty_like(predictions)
        summed, total = torch.zeros_like(coef), torch.zeros_like(offset)
        for held, tile in self.design.tiles():
            decision[:, held] = _decide(tile, coef, offset)
            curved = self.weights[:, held, :, None] * self.loss.curve(predictions[:, held], decision[:, held])
            summed += _sum_back(tile, curved)
            total += curved.sum(1)
        product = self.design.back(self.columns, summed, total) + self.design.penalised(self.columns, vector)
        return product, decision


class Preconditioner:
    """One factor per penalty, shared by its fits: of the bound on the Hessian, until a penalty gets its own."""

    def __init__(self, problem: Problem, penalties: Sequence[float]) -> None:
        self._penalties, self._loss, self._design = penalties, problem.loss, problem.design
        self._n_columns = problem.columns.fit.shape[1]
        design = problem.design
        everything = design.weights[-1].expand(len(problem.weights), -1)
        bound = problem.loss.curvature_bound * design.gram(everything)
        self._factors: list[list[Factor]] = [[self._factorise(design, bound, penalty)] for penalty in penalties]
        self.refreshed = [False] * len(penalties)

    def refresh(self, index: int, part: Problem, predictions: Float64[Tensor, "cell row column output"]) -> None:
        """Give a penalty the factors of its Hessian's diagonal blocks, averaged over its columns in `part`."""
        counts = part.weights * (part.columns.penalty_index == index)[:, None]
        curvature = torch.einsum("cnk,cnko->cno", counts, predictions * (1 - predictions))
        n_columns = (counts > 0).sum(2)[..., None].clamp(min=1)
        blocks = [part.design.gram(weight) for weight in (curvature / n_columns).unbind(2)]
        self._factors[index] = [self._factorise(part.design, block, self._penalties[index]) for block in blocks]
        self.refreshed[index] = True

    def apply(
        self, columns: Columns, vector: Float64[Tensor, "cell column output parameter"], indices: Sequence[int]
    ) -> Float64[Tensor, "cell column output parameter"]:
        """Approximately apply the inverse Hessian of columns, whose penalties are among `indices`."""
        everywhere = vector.new_zeros(len(vector), self._n_columns, *vector.shape[2:])
        _put(everywhere, columns.place, 1, vector)
        by_penalty = everywhere.unflatten(1, (-1, len(self._penalties)))
        for index in indices:
            factors, right_side = self._factors[index], by_penalty[:, :, index]
            if len(factors) == 1:
                solved = factors[0].solve(right_side.flatten(1, 2).mT).mT.unflatten(1, right_side.shape[1:3])
            else:
                solved = torch.stack([f.solve(right_side[:, :, o].mT).mT for o, f in enumerate(factors)], 2)
            by_penalty[:, :, index] = solved
        return self._design.confine(columns, self._loss.project(_pick(everywhere, columns.place, 1)))

    def _factorise(self, design: Design, matrix: Float64[Tensor, "cell n n"], penalty: float) -> Factor:
        return factorise_near(matrix, penalty, design.n_features)


@dataclass(frozen=True)
class Step:
    """A truncated Newton direction of each column; `capped` where conjugate gradients ran out of steps or failed."""

    direction: Float64[Tensor, "cell column output parameter"]
    change: Float64[Tensor, "cell row column output"]
    slope: Float64[Tensor, "cell column"]
    capped: Bool[Tensor, "cell column"]


def fit_logistic(
    rows: Rows,
    targets: Float64[Tensor, "sample output"],
    sets: TrainingSets,
    penalties: Sequence[float],
    loss: Loss,
    preprocessing: Preprocessing,
) -> ProbeFits:
    """Fit every training set at every penalty."""
    design = Design(rows, sets, preprocessing)
    n_fits, n_penalties = sets.n_fits, len(penalties)
    columns = Columns.of(rows.n_cells, torch.arange(n_fits, device=targets.device), targets.new_tensor(list(penalties)))
    problem = Problem.of(design, loss, columns, targets[None, :, None])
    preconditioner = Preconditioner(problem, penalties)
    point, settled = _minimise_all(problem, preconditioner, sets)
    decision = problem.decide(point)
    gradient = problem.gradient(loss.predictions(decision), point)
    at_zero = problem.objective(torch.zeros_like(decision), problem.at_zero)
    gap = problem.gap(loss.predictions(decision), gradient) / at_zero
    coef, offset = design.raw(columns, point)
    if design.basis is not None:
        coef = (coef.flatten(1, 2) @ design.basis.mT).unflatten(1, coef.shape[1:3])
    by_sample = torch.empty_like(decision)
    by_sample[:, design.order] = decision
    shape = (n_fits, n_penalties)
    solver = [Solver.NEWTON_CHOLESKY if own else Solver.NEWTON_CG for own in preconditioner.refreshed]
    return ProbeFits(
        coef=coef.unflatten(1, shape),
        intercept=offset.unflatten(1, shape),
        decision=by_sample.permute(0, 2, 1, 3).unflatten(1, shape),
        certificate=gap.unflatten(1, shape),
        converged=((gap <= CERTIFICATE_LIMIT) | (settled & (gap <= SETTLED_LIMIT))).unflatten(1, shape),
        solver=torch.tensor(solver, dtype=torch.int8, device=targets.device).expand(rows.n_cells, n_fits, -1),
    )


def decide_held_out_logistic(
    rows: Rows,
    shuffled: Float64[Tensor, "sample shuffle output"],
    sets: TrainingSets,
    penalties: Sequence[float],
    loss: Loss,
    preprocessing: Preprocessing,
) -> HeldOut:
    """Fit other versions of the targets without each fold, and decide the fold's samples."""
    design = Design(rows, sets, preprocessing)
    shape = (shuffled.shape[1], sets.n_folds, len(penalties))
    fits = torch.arange(sets.n_folds, device=shuffled.device).repeat(shape[0])
    columns = Columns.of(rows.n_cells, fits, shuffled.new_tensor(list(penalties)))
    targets = shuffled.repeat_interleave(sets.n_folds * len(penalties), 1).expand(rows.n_cells, -1, -1, -1)
    problem = Problem.of(design, loss, columns, targets)
    preconditioner = Preconditioner(problem, penalties)
    point, _ = minimise(problem, preconditioner, problem.at_zero, tolerance=_ROUGH_TOLERANCE, certify=False)
    by_sample = problem.weights.new_empty(targets.shape)
    by_sample[:, design.order] = problem.decide(point)
    decision = by_sample.unflatten(2, shape).permute(0, 2, 3, 4, 1, 5)
    for fold in range(sets.n_folds):
        in_fold = torch.nonzero(sets.lot_of_sample == fold).flatten()
        for k, penalty in enumerate(penalties):
            yield fold, penalty, decision[:, :, fold, k][:, :, in_fold]


def _minimise_all(
    problem: Problem, preconditioner: Preconditioner, sets: TrainingSets
) -> tuple[Float64[Tensor, "cell column output parameter"], Bool[Tensor, "cell column"]]:
    """Fits without a fold and on everything from zero; those without a pair of folds from where these lead."""
    columns, point = problem.columns, problem.at_zero
    n_cells, n_columns = columns.fit.shape
    settled = torch.zeros(n_cells, n_columns, dtype=torch.bool, device=point.device)
    by_fit = torch.arange(n_columns, device=point.device).unflatten(0, (sets.n_fits, -1))
    own = by_fit[sets.own_fits].flatten().expand(n_cells, -1)
    found, done = minimise(problem.take(own), preconditioner, _pick(point, own, 1))
    _put(point, own, 1, found)
    _put(settled, own, 1, done)
    if sets.pairs:
        coef, offset = (values.unflatten(1, by_fit.shape) for values in problem.design.raw(columns, point))
        first, second = torch.tensor(sets.pairs, device=point.device).mT
        # What a fold adds to the solution hardly depends on whether the other one is there.
        coef, offset = (v[:, first] + v[:, second] - v[:, -1:] for v in (coef, offset))
        paired = by_fit[sets.n_folds : -1].flatten().expand(n_cells, -1)
        part = problem.take(paired)
        start = problem.design.framed(part.columns, coef.flatten(1, 2), offset.flatten(1, 2))
        start = problem.design.confine(part.columns, start)
        found, done = minimise(part, preconditioner, start, tolerance=_ROUGH_TOLERANCE, certify=False)
        _put(point, paired, 1, found)
        _put(settled, paired, 1, done)
    return point, settled


def minimise(
    problem: Problem,
    preconditioner: Preconditioner,
    start: Float64[Tensor, "cell column output parameter"],
    *,
    tolerance: float = _TOLERANCE,
    certify: bool = True,
) -> tuple[Float64[Tensor, "cell column output parameter"], Bool[Tensor, "cell column"]]:
    """Minimise every column; columns that are done are dropped from the work.

    A step is small when its decrement bounds the relative error of the coefficients (the objective is strongly convex,
    so penalty |w - w*|^2 <= decrement near the minimum) or the excess of the objective by its rounding. The decrement
    of a truncated step is an estimate. So a column is done when, after a small step, its gap is within the limit; or,
    where rounding or a tiny penalty keeps the gap above it, after another small step. Without `certify` one small step
    is enough.

    Returns
    -------
    point, settled
    """
    point, decision = start.clone(), problem.decide(start)
    nothing, undecided = problem.at_zero, torch.zeros_like(decision)
    at_zero = problem.objective(undecided, nothing)
    gradient_at_zero = _norm(problem.gradient(problem.loss.predictions(undecided), nothing))
    settled = torch.zeros(point.shape[:2], dtype=torch.bool, device=point.device)
    active, stale, nearly = ~settled, torch.zeros_like(settled), torch.zeros_like(settled)
    for _ in range(MAX_NEWTON_STEPS):
        kept = _first(active)
        part, here, at = problem.take(kept), _pick(point, kept, 1), _pick(decision, kept, 2)
        predictions = part.loss.predictions(at)
        was_stale = _pick(stale, kept, 1)
        for index in part.columns.penalty_index[was_stale].unique().tolist():
            preconditioner.refresh(index, part, predictions)
        gradient = part.gradient(predictions, here)
        was_small, wanted = _pick(nearly, kept, 1), _pick(active, kept, 1)
        certain = was_small & (part.gap(predictions, gradient) <= CERTIFICATE_LIMIT * _pick(at_zero, kept, 1))
        _put(settled, kept, 1, certain | _pick(settled, kept, 1))
        wanted = wanted & ~certain
        _put(active, kept, 1, wanted)
        if not bool(wanted.any()):
            break
        forcing = (_norm(gradient) / _pick(gradient_at_zero, kept, 1)).sqrt().clamp(max=0.1)
        max_steps = torch.where(was_stale, _MAX_CG_STEPS_REFRESHED, _MAX_CG_STEPS)
        step = newton_direction(part, predictions, gradient, wanted, forcing, max_steps, preconditioner)
        length = line_search(part, at, here, step) * wanted
        _put(decision, kept, 2, at + length[:, None, :, None] * step.change)
        now = here + length[:, :, None, None] * step.direction
        _put(point, kept, 1, now)
        _put(stale, kept, 1, step.capped)
        size = _inner(part.design.penalised(part.columns, now), now)
        enough = torch.maximum(tolerance**2 * size, _pick(at_zero, kept, 1) * torch.finfo(size.dtype).eps)
        small = wanted & (-step.slope <= enough) & ~step.capped
        _put(nearly, kept, 1, small | was_small)
        done = small & was_small if certify else small
        _put(settled, kept, 1, done | _pick(settled, kept, 1))
        _put(active, kept, 1, wanted & ~done & (length > 0))
        if not bool(active.any()):
            break
    return point, settled


def newton_direction(
    part: Problem,
    predictions: Float64[Tensor, "cell row column output"],
    gradient: Float64[Tensor, "cell column output parameter"],
    wanted: Bool[Tensor, "cell column"],
    forcing: Float64[Tensor, "cell column"],
    max_steps: Int64[Tensor, "cell column"],
    preconditioner: Preconditioner,
) -> Step:
    """Solve H d = -g for the wanted columns by conjugate gradients, to `forcing` in the preconditioner's norm."""
    direction, change = torch.zeros_like(gradient), torch.zeros_like(predictions)
    indices = part.columns.penalty_index.unique().tolist()
    residual = -gradient
    search = preconditioner.apply(part.columns, residual, indices)
    size = _inner(residual, search)
    goal = forcing.square() * size
    live = wanted & (size > 0)
    n_steps = 0
    kept, working, there = None, part, predictions
    while bool(live.any()):
        n_steps += 1
        if kept is None or int(live.sum(1).max()) < kept.shape[1]:
            kept = _first(live)
            working, there = part.take(kept), _pick(predictions, kept, 2)
            indices = working.columns.penalty_index.unique().tolist()
        going = _pick(live, kept, 1)
        along, left, old_size = _pick(search, kept, 1), _pick(residual, kept, 1), _pick(size, kept, 1)
        curved, decided = working.hessian_times(there, along)
        length = torch.where(going, old_size / _inner(along, curved), 0.0)
        _put(direction, kept, 1, _pick(direction, kept, 1) + length[:, :, None, None] * along)
        _put(change, kept, 2, _pick(change, kept, 2) + length[:, None, :, None] * decided)
        left = left - length[:, :, None, None] * curved
        preconditioned = preconditioner.apply(working.columns, left, indices)
        new_size = torch.where(going, _inner(left, preconditioned), old_size)
        _put(residual, kept, 1, left)
        # A column that has come to its end may still be there to fill up its cell's.
        ratio = torch.where(going, new_size / old_size, 0.0)
        _put(search, kept, 1, preconditioned + ratio[:, :, None, None] * along)
        _put(size, kept, 1, new_size)
        live = live & (size > goal) & (n_steps < max_steps)
    return Step(direction, change, _inner(gradient, direction), capped=wanted & ~(size <= goal))


def line_search(
    part: Problem,
    decision: Float64[Tensor, "cell row column output"],
    start: Float64[Tensor, "cell column output parameter"],
    step: Step,
) -> Float64[Tensor, "cell column"]:
    """Halve each column's step until the objective falls enough (Armijo); 0 where it never does."""
    before = part.objective(decision, start)
    # Near the minimum the fall is below what the sum can show; rounding must not turn a good step away.
    slack = 64 * torch.finfo(before.dtype).eps * before.abs()
    length = torch.ones_like(before)
    enough = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(_MAX_HALVINGS):
        after = part.objective(
            decision + length[:, None, :, None] * step.change, start + length[:, :, None, None] * step.direction
        )
        enough = after <= before + _ARMIJO * length * step.slope + slack
        if bool(enough.all()):
            return length
        length = torch.where(enough, length, length / 2)
    return torch.where(enough, length, 0.0)


def _decide(tile: Tensor, coef: Tensor, offset: Tensor) -> Float64[Tensor, "cell row column output"]:
    return (tile @ coef.flatten(1, 2).mT).unflatten(2, coef.shape[1:3]) + offset[:, None]


def _sum_back(tile: Tensor, errors: Tensor) -> Float64[Tensor, "cell column output feature"]:
    return (errors.flatten(2).mT @ tile).unflatten(1, errors.shape[2:])


def _inner(a: Tensor, b: Tensor) -> Float64[Tensor, "cell column"]:
    return (a * b).sum((2, 3))


def _norm(gradient: Tensor) -> Float64[Tensor, "cell column"]:
    return gradient.flatten(2).norm(dim=2)


def _first(chosen: Bool[Tensor, "cell column"]) -> Int64[Tensor, "cell kept"]:
    """Columns that are chosen in each cell, filled up with others to the same number in all cells."""
    most = int(chosen.sum(1).max())
    return (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :most]


def _pick(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int) -> Tensor:
    """Some of the columns of each cell, which lie along `dim`."""
    return values.gather(dim, _spread(values, kept, dim))


def _put(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int, new: Tensor) -> None:
    """Replace some of the columns of each cell."""
    values.scatter_(dim, _spread(values, kept, dim), new)


def _spread(values: Tensor, kept: Int64[Tensor, "cell kept"], dim: int) -> Int64[Tensor, ...]:
    shape = [*values.shape]
    shape[dim] = kept.shape[1]
    ones = [1] * values.dim()
    ones[0], ones[dim] = kept.shape
    return kept.reshape(ones).expand(shape)
