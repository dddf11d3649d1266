"""What is expected of a network on which nothing was measured: how much errors in each tensor matter, and what the
inputs of a convolution are like. docs/design/quantisation.md has how it was found.

Inputs of a convolution are alike from pixel to pixel, and most of them are positive (ReLU and its relatives). Errors of
neighbouring weights of opposite sign therefore cancel in what the layer puts out, so each weight's target makes up
for the errors before it, as with a curvature (``src/quantize/feedback.rs``). The second moments of a row of inputs are
taken to be ``(1 - MEAN) S + MEAN``, S being NEIGHBOURS to the power of the distance in a kernel, and zero between
channels.

Numbers are computed element by element, in a stated order: they are the same on every machine.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable

import numpy as np

from .. import _core
from ..checkpoint.base import Array, Float32
from ..source import Source
from . import choice
from .coupling import Float64, Plan
from .scales import row_width
from .steps import FLOAT_DTYPES

#: Correlation of a convolution's inputs one pixel apart, and the share of their mean square that is their common mean.
NEIGHBOURS, MEAN = 0.5, 0.2
#: What an error in a matrix of queries or keys counts: a softmax comes after it.
_ATTENTION = 0.15
_QUERIES = frozenset(("q", "k", "wq", "wk", "query", "key", "queries", "keys"))
_VALUES = frozenset(("v", "wv", "value", "values"))
_TRANSPOSED = re.compile("transpose|deconv|upconv|upsampl", re.IGNORECASE)
#: Fewer weights have no use for error feedback.
_LEAST = 1 << 8
#: SQNR of a tensor, at least, beside the average, in dB. No network of bench/ has one below -9; but a tensor may be
#: scaled at will where what follows divides by the same factor.
_WORST = -12.0


def importance(name: str, shape: tuple[int, ...], mean_square: float) -> float:
    """What a squared error of a weight of this tensor is expected to cost, up to a factor that all tensors share.

    ``mean_square^(1/4) / (outputs sqrt(inputs))``: each layer's outputs together matter about alike, so the more there
    are, the less each does. The rest was found on five networks, each time without the one that it was judged on.
    """
    # Matrices that are stacked, such as those of experts, are one of as many outputs.
    stacked = len(shape) > 2 and row_width(shape) is None
    outputs = math.prod(shape[:-1]) if stacked else shape[0]
    inputs = shape[-1] if stacked else math.prod(shape[1:])
    found = math.sqrt(math.sqrt(mean_square)) / (outputs * math.sqrt(inputs))
    words = set(re.split("[^a-z0-9]+", name.lower()))
    return found * _ATTENTION if len(shape) == 2 and words & _QUERIES and not words & _VALUES else found


class Prior:
    """The tensors of a model, and what is expected of them. Used like :class:`~.coupling.Calibrated`."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        """Measure the tensors ``names``, those that will be quantised if their values allow it."""
        wanted = set(names)
        self._importance: dict[str, float] = {}
        self._weights: set[str] = set()
        self._transposed = {
            spec.name for spec in source.specs if spec.name in wanted and _is_transposed(spec.name, spec.shape, source)
        }
        self._factors: dict[tuple[int, ...], _Inputs] = {}
        self._lock = threading.Lock()
        energies: dict[str, float] = {}
        logs = count = 0.0
        for spec in source.specs:
            fits = spec.dtype in FLOAT_DTYPES and len(spec.shape) > 1 and spec.size > 0 and spec.tied_to is None
            if spec.name not in wanted or not fits or choice.by_shape(spec.shape):
                continue
            with np.errstate(over="ignore"):  # float64 beyond float32 is stored exactly
                values = source.read(spec.name).reshape(-1).astype(np.float32, copy=False)
            energy, _, special = _core.measure(values)
            if special or not 0 < energy < math.inf or choice.by_values(values.reshape(spec.shape)):
                continue
            if spec.dtype == np.float32:
                self._weights.add(spec.name)
            alive = int(np.count_nonzero(values))  # pruned weights have no error
            found = importance(spec.name, spec.shape, energy / alive)
            self._importance[spec.name] = found
            energies[spec.name] = energy / alive
            logs += alive * math.log2(found * energy / alive)
            count += alive
        self._signal = 2 ** (logs / count) if count else 1.0
        for name, energy in energies.items():
            self._importance[name] = max(self._importance[name], self._signal * 10 ** (_WORST / 10) / energy)

    def has_weights(self, name: str) -> bool:
        """Whether the tensor's values, as they are in the source, look like weights: see :func:`.choice.by_values`."""
        return name in self._weights

    def forget(self, names: Iterable[str]) -> None:
        """The tensors ``names`` have other values now."""
        self._weights.difference_update(names)

    def slope(self, quality: float) -> float:
        """Loss that a bit is worth. Errors, averaged over weights in dB, are then ``quality`` dB below the weights."""
        return 2 * math.log(2) * self._signal * 10 ** (-quality / 10)

    def plan(self, name: str, array: Array) -> Plan | None:
        """How to quantise a tensor; None if nothing is expected of it."""
        if name not in self._importance:
            return None
        found, shape = self._importance[name], array.shape
        if len(shape) < 3 or row_width(shape) is None or array.size < _LEAST or name in self._transposed:
            return Plan(found)
        with self._lock:
            inputs = self._factors.get(shape[1:])
            if inputs is None:
                inputs = self._factors[shape[1:]] = _Inputs(shape[1], shape[2:])
        return Plan(found * inputs.left, inputs.columns, common=inputs.common, seen=inputs.seen)


def _is_transposed(name: str, shape: tuple[int, ...], source: Source) -> bool:
    """Whether a tensor is the kernel of a transposed convolution, [inputs, outputs, ...], as far as can be known."""
    if len(shape) < 3:
        return False
    bias = name.removesuffix("weight") + "bias"
    sizes = [spec.shape for spec in source.specs if spec.name == bias]
    return bool(_TRANSPOSED.search(name)) or (shape[0] != shape[1] and sizes == [(shape[1],)])


class _Inputs:
    """The second moments A of a row of inputs, ``channels`` of kernels, factored: ``A = U D U^T``."""

    def __init__(self, channels: int, kernel: tuple[int, ...]) -> None:
        place = np.indices(kernel).reshape(len(kernel), -1)  # [dimensions, size]
        apart = np.abs(place[:, :, None] - place[:, None, :]).sum(0)
        self._upper, self._diagonal = _factored((1 - MEAN) * np.array(_powers(NEIGHBOURS, int(apart.max())))[apart])
        size = len(self._diagonal)
        blocks, common = np.empty((channels, size, size)), np.empty((channels, size))
        logs = 0.0
        # Adding a matrix of ones to a factored one (Gill, Golub, Murray & Saunders 1974, method C1), columns backwards.
        share = MEAN
        for channel in reversed(range(channels)):
            upper, ones = self._upper.copy(), np.ones(size)
            for column in reversed(range(size)):
                one, before = float(ones[column]), float(self._diagonal[column])
                now = before + share * one * one
                factor = share * one / now
                share = before * share / now
                ones[:column] -= one * upper[:column, column]
                upper[:column, column] += factor * ones[:column]
                common[channel, column] = factor
                logs += math.log2(now)
            blocks[channel] = upper
        #: What errors cost with feedback, as a share of what they cost without.
        self.left = 2 ** (logs / (channels * size))
        self.columns: Float32 = blocks.astype(np.float32)[None]
        self.common: Float32 = common.astype(np.float32).reshape(-1)

    def seen(self, weights: Float32) -> list[Float32]:
        """What outputs see of ``weights`` [rows, channels * size]: arrays whose squares add up to ``w A w^T``."""
        size = len(self._diagonal)
        parts = np.ascontiguousarray(weights.reshape(-1, size).T)
        seen = []
        for column in range(size):
            found = parts[column].copy()
            for row in range(column):
                found += np.float32(self._upper[row, column]) * parts[row]
            seen.append(found * np.float32(math.sqrt(self._diagonal[column])))
        sums = weights
        while sums.shape[1] > 1:  # by halves: numpy's sums are in an order of its own
            half = sums.shape[1] // 2
            last = sums[:, 2 * half :]
            sums = sums[:, :half] + sums[:, half : 2 * half]
            if last.shape[1]:
                sums[:, :1] += last
        return [*seen, np.ascontiguousarray(sums[:, 0]) * np.float32(math.sqrt(MEAN))]


def _powers(base: float, most: int) -> list[float]:
    found = [1.0]
    for _ in range(most):
        found.append(found[-1] * base)
    return found


def _factored(matrix: Float64) -> tuple[Float64, Float64]:
    """U, unit upper triangular, and D of ``matrix = U D U^T``."""
    left, size = matrix.copy(), len(matrix)
    upper, diagonal = np.eye(size), np.empty(size)
    for column in reversed(range(size)):
        diagonal[column] = left[column, column]
        upper[:column, column] = left[:column, column] / diagonal[column]
        part = upper[:column, column]
        left[:column, :column] -= diagonal[column] * (part[:, None] * part)
    return upper, diagonal
