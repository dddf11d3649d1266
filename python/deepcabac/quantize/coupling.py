"""Quantising by measured curvature: from a tensor's :class:`~deepcabac.curvature.Factors` to factors, steps and levels.

The loss grows by ``trace(G E A E^T)`` with the errors E of a matrix (``src/feedback.rs``). Both A and G come from few
samples. Their small eigenvalues are mostly noise, and error feedback would push the errors exactly there. So each is
shrunk towards its diagonal, as far as makes it predict the half of the samples that it was not computed from best
(without that, EfficientNet-Lite0's classifier lost 29 times as much on other images as on those of the calibration).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._parallel import Coding, Run
from ..checkpoint.base import Array, Float32
from ..curvature import Curvature, Factors
from ..errors import OptionError
from ..options import Quantization, Target
from ..source import Source
from . import steps
from .scales import SCALE_STEPS, Scales, matrix_shape, no_scales, scale_factors
from .steps import FLOAT_DTYPES, Quantized, is_pruned, largest, level_limit, measure, round_step

Float64 = npt.NDArray[np.float64]

#: Shares of the diagonal that are tried, relative to the measured matrix.
_SHRINKAGES = (0.003, 0.02, 0.1, 0.5, 2.5)
#: Added to every diagonal, relative to its mean: inputs that were never active.
_FLOOR = 1e-4
#: Rows are coupled in matrices of at most so many: the factor is a square.
_MOST_COUPLED = 8192
#: A tensor gets scales of rows or columns if they save this many bits a scale.
_SCALE_COST = 6.0
#: A row or column that hardly matters by the samples may matter elsewhere: steps are at most 10 times the usual.
_LEAST_IMPORTANCE = 0.01
#: Lambda as a multiple of theory's: what saves bits by shrinking weights adds up over layers, which the quadratic form
#: does not see. Chosen on calibration images of ResNet-20 by the error of the logits.
_RATE = 0.75
#: A tensor without factors is taken to be this many times as important: its curvature is that of small changes alone.
_CAUTION = 4.0
#: A vector of positive numbers whose largest is so many times its smallest (variances) gets steps relative to each: a
#: small one must not become zero. Relative steps are at most LARGEST.
_WIDE, _LARGEST_RELATIVE = 8.0, 0.125
#: What a row counts that the samples never used, as a share of the mean.
_UNSEEN = 1.0
#: Bytes of factors that are kept from one pass to the next.
_MOST_HELD = 1 << 31


@dataclass(frozen=True)
class Plan:
    """How to quantise a tensor, at any quality."""

    importance: float  #: loss per squared error of a weight, on average
    columns: Float32 | None = None  #: U, [groups, d, d]; or its blocks, [groups, blocks, d / blocks, d / blocks]
    diagonal: Float64 | None = None  #: [groups, d], D
    rows: Float32 | None = None  #: [r, r], V
    row_scales: Scales = field(default_factory=no_scales)  #: [r] or none: log2 in 1/SCALE_STEPS
    column_scales: Scales = field(default_factory=no_scales)  #: [d] or none
    largest_step: float = math.inf
    common: Float32 | None = None  #: [d], what U has in each column above its block; None: zeros
    #: Arrays, the squares in which add up to what the layer's outputs see of a matrix; None: by U and D
    seen: Callable[[Float32], list[Float32]] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        parts = (self.columns, self.diagonal, self.rows)
        return sum(part.nbytes for part in parts if part is not None)

    def step(self, slope: float, how: Quantization) -> float | None:
        """The step with which a bit buys ``slope`` of loss: the error per weight is noise * step^2 and a bit divides it
        by four, so slope = 2 ln 2 * importance * noise * step^2. None if that is beyond float32 arithmetic.
        """
        step = math.sqrt(slope / (2 * math.log(2) * how.noise * self.importance))
        return round_step(min(step, self.largest_step / how.steps))


class Calibrated:
    """A curvature and the tensors that it is used for."""

    def __init__(self, curvature: Mapping[str, Factors], source: Source) -> None:
        """Check that they fit, and measure the tensors.

        Raises :class:`OptionError` if a tensor has another shape than in the calibrated model, or none is known.
        """
        for name, factors in curvature.items() if not isinstance(curvature, Curvature) else ():
            if not isinstance(factors, Factors):
                raise OptionError(f"the curvature of {name!r} must be deepcabac.curvature.Factors, not {factors!r}")
        # A plain mapping is checked as what comes from a calibration or a file has been.
        known = curvature if isinstance(curvature, Curvature) else Curvature(curvature, samples=1, loss="custom")
        self._curvature = known
        self._plans: dict[str, Plan | None] = {}
        self._held = 0
        self._lock = threading.Lock()
        signal = 0.0
        count = 0
        found = False
        for spec in source.specs:
            if spec.name not in known or spec.tied_to is not None or spec.dtype not in FLOAT_DTYPES:
                continue
            found = True
            factors = known[spec.name]
            _check(spec.name, spec.shape, factors)
            if factors.total > 0 and spec.size > 0:
                with np.errstate(over="ignore"):  # float64 beyond float32 is stored exactly
                    array = source.read(spec.name).reshape(-1).astype(np.float32, copy=False)
                signal += factors.total / spec.size * _core.measure(array)[0]
                count += spec.size
        if not found:
            raise OptionError("the curvature has none of these tensors: was it measured on another model?")
        if count == 0:
            raise OptionError("the curvature of every tensor is zero: were the samples those of this model?")
        self._signal = signal / count

    def __contains__(self, name: str) -> bool:
        return name in self._curvature

    def slope(self, sqnr: float) -> float:
        """Loss that a bit is worth where errors, weighted by importance, are ``sqnr`` dB below the weights."""
        return 2 * math.log(2) * self._signal * 10 ** (-sqnr / 10)

    def plan(self, name: str, array: Array) -> Plan | None:
        """How to quantise a tensor; None if nothing is known of it."""
        if name not in self._curvature:
            return None
        if name not in self._plans:
            try:
                made = plan(array, self._curvature[name])
            except np.linalg.LinAlgError:
                raise OptionError(
                    f"the curvature of {name!r} has a factor that is not positive semidefinite: calibrate again"
                ) from None
            with self._lock:
                self._held += made.nbytes if made else 0
                if self._held > _MOST_HELD:
                    return made
                self._plans[name] = made
        return self._plans[name]


def _check(name: str, shape: tuple[int, ...], factors: Factors) -> None:
    """Raise :class:`OptionError` unless factors are those of a tensor of this shape."""
    size, height = math.prod(shape), shape[0] if shape else 1
    fits = factors.diagonal is None or factors.diagonal.shape == shape
    if factors.columns is not None:
        groups, width = factors.columns.shape[1:3]
        if height * width != size and shape[-1:] == (width,):  # stacked matrices
            height = size // width if width else 0
        fits = fits and groups > 0 and height % groups == 0 and height * width == size
    if factors.rows is not None:
        fits = fits and factors.rows.shape in ((height,), (2, height, height))
    if not fits:
        raise OptionError(f"the curvature of {name!r} is not that of a tensor of shape {shape}: calibrate this model")
    if factors.rows is not None and factors.rows.ndim == 1 and factors.rows.min(initial=0) < 0:
        raise OptionError(f"the curvature of {name!r} has rows below zero: calibrate again")


def plan(array: Array, factors: Factors) -> Plan | None:
    """How to quantise a tensor; None if nothing is known of it (its curvature is zero)."""
    shape, size = array.shape, array.size
    importance = factors.total / size if size else 0.0
    if not importance > 0:
        return None
    natural = matrix_shape(shape)
    if factors.columns is None or natural is None or natural[2] != factors.columns.shape[-1]:
        return _plan_vector(array, factors.diagonal) if array.ndim == 1 else Plan(_CAUTION * importance)
    height = natural[1]
    pairs = [_factor(first, second) for first, second in zip(*factors.columns, strict=True)]
    upper = np.stack([upper for upper, _ in pairs])
    expected = np.stack([expected for _, expected in pairs])
    across = np.exp(np.log(expected).mean(axis=0))
    row_upper, down = None, np.ones(height)
    measured = factors.rows
    if measured is not None and measured.ndim == 3 and len(pairs) > 1:
        measured = np.einsum("hii->i", measured)  # groups have inputs of their own: nothing is known across them
    if measured is not None and measured.ndim == 1:
        if measured.mean() > 0:
            down = measured.astype(np.float64)
            down = down + _UNSEEN * down.mean()
            down = down / down.mean()
    elif measured is not None and height <= _MOST_COUPLED:
        row_upper, down = _factor(*measured)
    row_scales = column_scales = no_scales()
    if len(shape) == 2:
        row_scales, row_importance = _scales(down, size)
        column_scales, column_importance = _scales(across, size)
    else:
        row_importance, column_importance = 1.0, float(across.mean())
    return Plan(
        importance * row_importance * column_importance,
        _rescaled(upper, column_scales),
        expected,
        None if row_upper is None else _rescaled(row_upper[None], row_scales)[0],
        row_scales,
        column_scales,
    )


def _plan_vector(vector: Array, diagonal: Float32 | None) -> Plan | None:
    """How to quantise a vector: as its most sensitive element needs it."""
    if diagonal is None or not diagonal.max() > 0:
        return None
    values = vector.astype(np.float64)
    if values.min() > 0 and values.max() > _WIDE * values.min():
        scales = np.clip(np.rint(np.log2(values) * SCALE_STEPS), -127, 127).astype(np.int8)
        if max(-scales.min(), scales.max()) == 127:
            return None  # beyond what scales can say
        importance = float((diagonal * scale_factors(scales).astype(np.float64) ** 2).max())
        return Plan(_CAUTION * importance, row_scales=scales, largest_step=_LARGEST_RELATIVE)
    return Plan(_CAUTION * float(diagonal.max()))


def _factor(first: Float32, second: Float32) -> tuple[Float64, Float64]:
    """U, and what D is expected to be on other samples, from the second moments of two halves of the samples."""
    halves = []
    for half in (first, second):
        if np.diagonal(half).min(initial=0) < 0:
            raise np.linalg.LinAlgError("a diagonal below zero")
        mean = float(np.trace(half, dtype=np.float64)) / len(half)
        halves.append(half / np.float32(mean) if mean > 0 else np.eye(len(half), dtype=np.float32))

    def expected(shrinkage: float) -> Float64:
        found = np.zeros(len(first))
        for one, other in (halves, halves[::-1]):
            inverse = _inverse(_upper(one, shrinkage))
            found += np.einsum("ij,ij->i", inverse @ other, inverse) / 2
        least: Float64 = np.maximum(found, _LEAST_IMPORTANCE * found.mean())
        return least

    # From the middle towards where it gets better: the score has one minimum.
    place, best = len(_SHRINKAGES) // 2, expected(_SHRINKAGES[len(_SHRINKAGES) // 2])
    for way in (-1, 1):
        start = place
        while 0 <= place + way < len(_SHRINKAGES):
            tried = expected(_SHRINKAGES[place + way])
            if np.log(tried).sum() >= np.log(best).sum():
                break
            place, best = place + way, tried
        if place != start:
            break
    both = (halves[0].astype(np.float64) + halves[1]) / 2
    return _upper(both, _SHRINKAGES[place]), best


def _upper(moments: npt.NDArray[Any], shrinkage: float) -> npt.NDArray[Any]:
    """The unit upper triangular U with ``U D U^T`` the shrunken matrix."""
    diagonal = np.diagonal(moments)
    shrunk = moments / (1 + shrinkage)
    np.fill_diagonal(shrunk, diagonal + _FLOOR * diagonal.mean())
    # Cholesky's factor is lower triangular: from the last row and column to the first it is upper.
    try:
        factor = np.linalg.cholesky(shrunk[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:  # too near to singular for float32
        factor = np.linalg.cholesky(shrunk[::-1, ::-1].astype(np.float64))[::-1, ::-1]
    upper: npt.NDArray[Any] = (factor / np.diagonal(factor)).astype(moments.dtype)
    return upper


def _inverse(upper: npt.NDArray[Any]) -> Any:
    """The inverse of a unit upper triangular matrix, by halves: a third of the work of a general one."""
    size = len(upper)
    if size <= 64:
        return np.linalg.inv(upper)
    half = size // 2
    result = np.zeros_like(upper)
    result[:half, :half] = _inverse(upper[:half, :half])
    result[half:, half:] = _inverse(upper[half:, half:])
    result[:half, half:] = -result[:half, :half] @ upper[:half, half:] @ result[half:, half:]
    return result


def _scales(importance: Float64, size: int) -> tuple[Scales, float]:
    """Scales that make steps follow ``importance^(-1/2)`` if that is worth it, and the importance that is left."""
    mean = float(importance.mean())
    typical = float(np.exp(np.log(importance).mean()))
    if size * 0.5 * math.log2(mean / typical) < _SCALE_COST * importance.size:
        return no_scales(), mean
    logs = np.log2(importance / typical) * (-0.5 * SCALE_STEPS)
    return np.clip(np.rint(logs), -127, 127).astype(np.int8), typical


def _rescaled(upper: Float64, scales: Scales) -> Float32:
    """Factors for errors that are counted in scaled steps."""
    if scales.size:
        sizes = scale_factors(scales).astype(np.float64)
        upper = upper * (sizes[:, None] / sizes)
    return np.ascontiguousarray(upper, np.float32)


def quantize(array: Array, plan: Plan, step: float, how: Quantization, run: Run) -> Quantized:
    """Quantise and code a tensor with this step. ``run`` maps calls to results in order.

    The error is infinite if a value is beyond the tensor's data type: an error that was made up for by a weight that is
    the largest of its type already.
    """
    if plan.columns is None:
        return _quantize_apart(array, plan, step, how, run)
    width = math.prod(plan.columns.shape[1:-1])
    height = array.size // width
    weights = array.reshape(height, width).astype(np.float32, copy=False)
    scales = np.ones((height, width), np.float32)
    if plan.row_scales.size:
        scales *= scale_factors(plan.row_scales)[:, None]
    if plan.column_scales.size:
        scales *= scale_factors(plan.column_scales)
    scaled = (weights / (scales * np.float32(step))).reshape(-1)
    runs = _core.sample_runs(array.shape, array.size)
    sample, first = np.concatenate([scaled[run] for run in runs]), scaled[: _core.first(array.shape)]
    params = _core.fit_whole(array.shape, sample, first, 1.0, how.state_bits, how.preset, how.regression)
    pruned = is_pruned(np.concatenate([weights.reshape(-1)[run] for run in runs]))
    each = _core.chunk_levels(params)
    levels = np.empty(array.size, np.int32)
    errors = None if plan.rows is None else np.zeros((height, width), np.float32)
    blocks = plan.columns if plan.columns.ndim == 4 else plan.columns[:, None]
    coupled = _core.Coupling(blocks, plan.common, plan.rows, errors, height)
    # By the smallest scale: by the largest, it would cut what rows and columns with smaller ones need.
    limit = max(8, level_limit(array.dtype, step * float(scales.min())))

    def chunk(start: int) -> bytes:
        part = slice(start, min(start + each, array.size))
        code, _ = _core.quantize_coupled(
            params, scaled[part], start // width, coupled, _RATE * how.rate_weight, levels[part], limit, pruned
        )
        return code

    calls = [
        Coding(partial(chunk, start), min(each, array.size - start) * array.dtype.itemsize)
        for start in range(0, array.size, each)
    ]
    # Rows that make up for those before them come one after another.
    codes = run(calls) if errors is None else [run([call])[0] for call in calls]
    values = levels.reshape(height, width).astype(np.float32) * scales
    gained = float(np.float32(step * _gain(weights / np.float32(step), values, plan)))
    if gained * float(np.abs(values).max()) <= largest(array.dtype):
        step = gained
    energy, error = _sums(weights, values * np.float32(step), array.dtype)
    return Quantized(params, step, codes, energy, error, plan.row_scales, plan.column_scales)


def _quantize_apart(array: Array, plan: Plan, step: float, how: Quantization, run: Run) -> Quantized:
    """Quantise a tensor whose elements' errors do not make up for each other."""
    if not plan.row_scales.size:
        tensor = measure(array, Target("step", step, forced=True), run)
        assert tensor is not None
        return steps.quantize(tensor, step, how, run)
    factors = scale_factors(plan.row_scales).reshape(-1, *(1,) * (array.ndim - 1))
    weights = array.astype(np.float32, copy=False)
    tensor = measure(weights / factors, Target("step", step, forced=True), run)
    assert tensor is not None
    result = steps.quantize(tensor, step, how, run)
    return with_scales(array, result, plan.row_scales, no_scales())


def with_scales(array: Array, result: Quantized, row_scales: Scales, column_scales: Scales) -> Quantized:
    """``result``, which is ``array`` divided by its scales, with these: energy and error are those of the array."""
    flat = np.empty(array.size, np.float32)
    each = _core.chunk_levels(result.params)
    jobs = [
        _core.Job(result.params, code, flat[number * each : (number + 1) * each], result.step)
        for number, code in enumerate(result.codes)
    ]
    _core.decode(jobs)
    values = flat.reshape(array.shape[0], -1)
    with np.errstate(over="ignore"):  # beyond the type, which makes the error infinite
        if row_scales.size:
            values *= scale_factors(row_scales)[:, None]
        if column_scales.size:
            values *= scale_factors(column_scales)
    weights = array.reshape(values.shape).astype(np.float32, copy=False)
    energy, error = _sums(weights, values, array.dtype)
    return replace(result, energy=energy, error=error, row_scales=row_scales, column_scales=column_scales)


def _sums(weights: Float32, values: Float32, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Energy and error of weights that are restored as ``values``; infinite if their type cannot hold them."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = weights - values.astype(dtype).astype(np.float32)
    error, _, special = _core.measure(off.reshape(-1))
    return _core.measure(weights.reshape(-1))[0], math.inf if special else error


def _gain(weights: Float32, values: Float32, plan: Plan) -> float:
    """The factor that leaves no part of the weights in the error, as the layer's outputs see it.

    Levels chosen for their cost are too small on average. That the least squared error asks for smaller values still
    does not matter here: what all layers lose together adds up, noise does not.
    """
    own = other = 0.0
    if plan.seen is not None:
        for one, two, both in zip(*map(plan.seen, (weights, values, weights + values)), strict=True):
            energy = _core.measure(one)[0]
            own += energy
            other += (_core.measure(both)[0] - energy - _core.measure(two)[0]) / 2
        return _bounded(own, other)
    assert plan.columns is not None and plan.diagonal is not None
    groups, width, _ = plan.columns.shape
    sizes = scale_factors(plan.column_scales).astype(np.float64) if plan.column_scales.size else np.ones(width)
    for group in range(groups):
        rows = slice(group * len(weights) // groups, (group + 1) * len(weights) // groups)
        upper = plan.columns[group] * (sizes / sizes[:, None]).astype(np.float32)
        seen = weights[rows] @ upper
        own += float((seen * seen * plan.diagonal[group]).sum())
        other += float((seen * (values[rows] @ upper) * plan.diagonal[group]).sum())
    return _bounded(own, other)


def _bounded(own: float, other: float) -> float:
    return min(max(own / other, 0.8), 1.25) if other > 0 else 1.0
