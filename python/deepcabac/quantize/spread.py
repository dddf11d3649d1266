"""Tensors in which a few weights, rows or columns are so much larger than the rest that noise relative to all of them
would drown the rest.

A channel may be scaled at will if what follows divides by the same factor (a batch norm, the next layer), so its size
says nothing about its weight in the network. Such rows and columns get steps of their own (scales), and single weights
do not count when the noise is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..checkpoint.base import Array, Float32
from .scales import SCALE_STEPS, Scales, no_scales, row_width, scale_factors

#: A row or column is extreme if it is so many times as large as the typical one. In the networks of bench/ rows reach
#: 6 times, columns 10 times.
_EXTREME = 10.0
#: A weight is extreme above so many medians of the magnitude: 34 standard deviations of a Gaussian.
_FAR = 50.0
#: Largest share of the weights that may be extreme, unless they are values that repeat: -10000 for what is forbidden.
_FEW, _SENTINELS = 0.01, 4
#: The extremes matter if without them the energy is so many times smaller: 3 dB.
_MATTERS = 2.0
#: Root mean square of weights other than zero, in medians of their magnitude, from which the whole tensor is looked at.
_HEAVY = 2.0
#: Rows and columns that are smaller than the largest by this factor are dead: weight decay has shrunk them to nothing.
#: What is said of lost rows is about larger ones.
_DEAD, _DYING = 1e-8, 1e-3
#: If more than this share of rows is far smaller than the typical one, it is these that are typical: weight decay
#: leaves no more than a quarter of them behind in the networks of bench/.
_MANY = 0.3
#: Rows of a direction within this factor need no scales.
_ALIKE = 4.0
#: Elements of the sample of which it is said how many become zero.
_SAMPLE = 1 << 13


@dataclass(frozen=True)
class Remark:
    """What the error does to parts of a tensor."""

    lost_rows: int = 0  #: rows (channels) that are no larger than the error
    zeros: float = 0.0  #: share of the weights other than zero that become zero


@dataclass(frozen=True)
class Spread:
    """How uneven a tensor is."""

    row_scales: Scales = field(default_factory=no_scales)  #: log2 in 1/SCALE_STEPS, or none
    column_scales: Scales = field(default_factory=no_scales)  #: likewise
    excess: float = 0.0  #: energy of all weights, so scaled, over that without the extreme ones, in dB

    def factors(self, shape: tuple[int, ...]) -> Float32:
        """What a tensor of this shape is to be divided by, to be broadcast."""
        factors = np.ones((1,) * len(shape), np.float32)
        if self.row_scales.size:
            factors = factors * scale_factors(self.row_scales).reshape(-1, *(1,) * (len(shape) - 1))
        if self.column_scales.size:
            factors = factors * scale_factors(self.column_scales).reshape(1, *shape[1:])
        return factors


def spread(array: Array, sample: Float32, energy: float) -> Spread | None:
    """How uneven a tensor of finite values is; None for one that needs no care. ``energy`` is its sum of squares."""
    some = sample[:: (sample.size // _SAMPLE) | 1]  # odd: not always the same columns
    magnitudes = np.abs(some[some != 0])
    if not magnitudes.size:
        return None
    # Most tensors are told by their sample: 1.5 for Gaussian, 2 for Laplacian weights.
    typical = _median(magnitudes)
    if math.sqrt(energy / array.size * some.size / magnitudes.size) < _HEAVY * typical:
        return None
    shape = array.shape
    width = row_width(shape)
    weights = np.abs(array.astype(np.float32))
    largest = float(weights.max())
    if largest < _EXTREME * typical:
        return None
    weights /= np.float32(largest)  # whose squares float32 can hold
    typical, energy = typical / largest, energy / largest**2
    row_scales = column_scales = no_scales()
    if width is not None and shape[0] > 1 and width > 1 and not _are_sentinels(weights[weights > _FAR * typical]):
        weights = weights.reshape(shape[0], shape[1], width // shape[1])
        factors = _factors(weights, "ijk,ijk->i")
        if factors is not None:
            row_scales = _scales(factors)
            weights /= scale_factors(row_scales)[:, None, None]
        factors = _factors(weights, "ijk,ijk->j") if shape[1] > 1 else None
        if factors is not None:
            weights /= scale_factors(_scales(factors))[:, None]
            column_scales = np.repeat(_scales(factors), weights.shape[2])
    is_scaled = bool(row_scales.size or column_scales.size)
    if not is_scaled and weights.max() < _FAR / 2 * typical:
        return None
    flat = weights.reshape(-1)
    inside = scaled = _core.measure(flat)[0] if is_scaled else energy
    if is_scaled:
        typical = _median(flat[flat > 0])
    far = flat[flat > _FAR * typical]
    most = max(_FEW * flat.size * magnitudes.size / some.size, 1)
    if far.size and (far.size <= most or _are_sentinels(far)):
        inside = _core.measure(flat[flat <= _FAR * typical])[0]
    if inside <= 0 or energy < _MATTERS * inside:
        return None
    return Spread(row_scales, column_scales, 10 * math.log10(scaled / inside))


def directions(array: Array) -> Spread | None:
    """Scales that give each row the same precision, of a matrix in which the sizes of rows do not count; None if they
    are all about as large.
    """
    if row_width(array.shape) is None:
        return None
    rows = np.abs(array.reshape(array.shape[0], -1).astype(np.float64))
    largest = rows.max(axis=1)
    sizes = largest * np.sqrt(np.square(rows / np.where(largest > 0, largest, 1)[:, None]).mean(axis=1))
    alive = sizes[sizes > 0]
    if not alive.size or alive.max() < _ALIKE * alive.min():
        return None
    return Spread(_scales(np.where(sizes > 0, sizes / np.median(alive), 1.0)))


def remark(array: Array, error: float) -> Remark:
    """What an error, a sum of squares that is spread evenly, does to parts of a tensor of finite values."""
    if error <= 0 or array.ndim < 2:
        return Remark()
    noise = error / array.size
    rows = array.reshape(array.shape[0], -1).astype(np.float32, copy=False)
    largest = float(np.abs(rows).max())
    scaled = rows / np.float32(largest)  # whose squares float32 can hold
    sizes = (np.einsum("ij,ij->i", scaled, scaled) / rows.shape[1]).astype(np.float64) * largest**2
    lost = np.count_nonzero((sizes < noise) & (sizes > _DYING**2 * sizes.max()))
    flat = rows.reshape(-1)
    some = np.concatenate([flat[run] for run in _core.sample_runs(array.shape, flat.size, _SAMPLE)])
    others = np.abs(some[some != 0])
    # Values closer to zero than half the distance of two reconstruction values, whose noise is distance^2 / 12.
    zeros = np.count_nonzero(others < math.sqrt(3 * noise)) / max(others.size, 1)
    return Remark(int(lost), float(zeros))


def _are_sentinels(far: Float32) -> bool:
    """Whether far values are a few that stand for something else than a size."""
    return far.size > 0 and bool((far == far[0]).all() or np.unique(far).size <= _SENTINELS < far.size)


def _median(values: npt.NDArray[Any]) -> float:
    """The upper median; numpy's own looks for NaN."""
    return float(np.partition(values, values.size // 2)[values.size // 2])


def _factors(weights: Float32, energies: str) -> npt.NDArray[np.float64] | None:
    """How many times as large as the typical slice extreme slices are, and 1 for the others; None if none is extreme.

    ``energies`` are those of the slices, for einsum. They tell that no slice is extreme; otherwise slices are compared
    by medians, which single weights do not move, or by the root mean square where most weights are zero.
    """
    squares = np.einsum(energies, weights, weights).astype(np.float64)
    roots = np.sqrt(squares * squares.size / weights.size)
    if roots.max() < _EXTREME / 3 * np.quantile(roots[roots > _DEAD * roots.max()], _MANY / 2):
        return None
    sizes = np.median(weights, axis=(1, 2) if energies.endswith("i") else (0, 2)).astype(np.float64)
    sizes = np.where(sizes == 0, roots, sizes)
    alive = sizes[sizes > _DEAD * sizes.max()]
    if not alive.size:
        return None
    typical = float(np.median(alive))
    if np.count_nonzero(_EXTREME * alive < typical) > _MANY * alive.size:
        typical = float(np.quantile(alive, _MANY / 2))
    extreme = sizes > _EXTREME * typical
    return np.where(extreme, sizes / typical, 1.0) if extreme.any() else None


def _scales(factors: npt.NDArray[np.float64]) -> Scales:
    scales: Scales = np.clip(np.rint(np.log2(factors) * SCALE_STEPS), -127, 127).astype(np.int8)
    return scales
