"""From a tensor and a target to a step, and from a step to coded chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import _core
from .._parallel import Coding, Run
from ..checkpoint.base import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, Array, Float32
from ..options import Quantization, Target
from .scales import no_scales

FLOAT_DTYPES = (np.dtype("<f8"), np.dtype("<f4"), np.dtype("<f2"), BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)
#: A 1-D tensor below this many elements is stored exactly: biases and norms are sensitive, and next to nothing in size.
EXACT_BELOW = 1 << 14
#: Elements of the sample on which a step is tried out.
_TRIED = 1 << 14
#: Relative error of the noise that a step found on the sample may have on the sample.
_SAMPLE_TOLERANCE = 0.01
#: Difference to the SQNR asked for that is put right by quantising again: in dB, and relative, for at a low SQNR 0.1 dB
#: are 2 % of the size. And how often.
TOLERANCE_DB, TOLERANCE, ATTEMPTS = 0.1, 0.005, 9
#: Steps outside are not worth float32 arithmetic; such tensors are stored exactly.
SMALLEST_STEP, LARGEST_STEP = 1e-30, 1e30
_PIECE = 1 << 20


@dataclass(frozen=True)
class Quantized:
    """A tensor, quantised and coded."""

    params: bytes
    step: float  #: distance between two reconstruction values
    codes: list[bytes]  #: the chunks
    energy: float  #: sum of w^2
    error: float  #: sum of (w - w')^2, w' as a reader will see it
    #: Of steps, by slice of dimension 0 (FORMAT.md, 6.2).
    row_scales: npt.NDArray[np.int8] = field(default_factory=no_scales)
    #: Of steps, by place in such a slice.
    column_scales: npt.NDArray[np.int8] = field(default_factory=no_scales)

    @property
    def sqnr(self) -> float:
        """In dB; infinite if nothing was lost."""
        return sqnr(self.energy, self.error)

    @property
    def coded_bytes(self) -> int:
        """Bytes of the chunks and of what the index says about them."""
        scales = self.row_scales.size + self.column_scales.size
        return sum(len(code) + 6 for code in self.codes) + len(self.params) + scales // 2 + 5


def sqnr(energy: float, error: float) -> float:
    """10 log10(energy / error) in dB."""
    return 10 * math.log10(energy / error) if error > 0 and energy > 0 else math.inf


@dataclass(frozen=True)
class Measured:
    """A tensor that can be quantised, flat, and its sums."""

    shape: tuple[int, ...]
    flat: Array  #: [size], one of FLOAT_DTYPES
    energy: float
    sample: Float32  #: the elements of ``_core.sample_runs``

    def float32(self, start: int, stop: int) -> Float32:
        """Elements ``start`` to ``stop`` as float32: a view if they are."""
        return self.flat[start:stop].astype(np.float32, copy=False)

    def largest(self, run: Run) -> float:
        """The largest magnitude."""

        def of(start: int) -> float:
            return float(np.abs(self.float32(start, start + _PIECE)).max())

        return float(max(run([partial(of, start) for start in range(0, self.flat.size, _PIECE)])))


def measure(array: Array, target: Target, run: Run) -> Measured | None:
    """The tensor ready to be quantised, or None if it must be stored exactly. ``run`` maps calls to results in order.

    Exactly: on request, other dtypes than floats, scalars, empty tensors, 1-D tensors of fewer than EXACT_BELOW
    elements unless asked for by name, non-finite values, and magnitudes that float32 cannot represent.
    """
    if target.kind == "exact" or array.dtype not in FLOAT_DTYPES or array.ndim == 0 or array.size == 0:
        return None
    if array.ndim == 1 and array.size < EXACT_BELOW and not target.forced:
        return None
    flat = array.reshape(-1)
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]
    energies = run([partial(_energy, piece) for piece in pieces])
    if None in energies:
        return None
    energy = sum(energies)
    runs = _core.sample_runs(array.shape, flat.size)
    sample = np.concatenate([flat[run].astype(np.float32, copy=False) for run in runs])
    return Measured(array.shape, flat, energy, sample)


def _energy(piece: Array) -> float | None:
    """Sum of w^2; None if a weight is not finite, or not in float32."""
    if piece.dtype.itemsize == 8 and _beyond_float32(piece):
        return None
    energy, _, special = _core.measure(piece.astype(np.float32, copy=False))
    return None if special else energy


def _beyond_float32(piece: Array) -> bool:
    """Whether a float64 piece has values that are lost in float32 by their magnitude alone."""
    magnitude = np.abs(piece[piece != 0])
    return bool(magnitude.size and not (magnitude.min() > 1e-37 and magnitude.max() < 1e38))


def is_pruned(sample: Float32) -> bool:
    """Whether weights were pruned, so that those of zero are to stay zero.

    More of them are zero then than of the next magnitude; a bell that was rounded to a narrow type has half as many.
    """
    magnitudes = np.abs(sample)
    other = magnitudes[magnitudes > 0]
    zeros = sample.size - other.size
    return bool(zeros and other.size and zeros > np.count_nonzero(other == other.min()))


def choose(tensor: Measured, target: Target, hows: Sequence[Quantization]) -> tuple[Quantization, float] | None:
    """How to quantise, and the step that reaches the target on a sample of the tensor; None if it is out of range.

    Of several ways to an SQNR, the one that makes the sample smallest.
    """
    if tensor.energy == 0:
        return hows[0], 1.0
    if target.kind == "step":
        step = round_step(target.value / hows[0].steps)
        return (hows[0], step) if step else None
    wanted = tensor.energy / tensor.flat.size * 10 ** (-target.value / 10)  # squared error per weight
    runs = _core.sample_runs(tensor.shape, tensor.sample.size, _TRIED)
    sample = np.concatenate([tensor.sample[run] for run in runs])
    found = [(how, _search(tensor.shape, sample, wanted, how)) for how in hows]
    tried = [(how, result) for how, result in found if result is not None]
    if not tried:
        return None
    how, (step, _) = min(tried, key=lambda one: one[1][1])
    return how, step


def _search(shape: tuple[int, ...], sample: Float32, wanted: float, how: Quantization) -> tuple[float, float] | None:
    """The step that makes the squared error per weight that is wanted, and the bits of the sample with it."""
    step = round_step(math.sqrt(wanted / how.noise))
    bits = math.inf
    # The error of a weight follows the square of the step closely, so a few corrections suffice.
    for _ in range(4):
        if step is None:
            return None
        params = _core.fit(shape, sample, step, how.state_bits, how.preset)
        code, sums = _core.quantize(params, sample, step, how.rate_weight)
        got = sums.error / sample.size
        if got <= 0:
            return step, bits
        # What is still missing would cost half a bit per weight for each factor of two.
        bits = 8 * len(code) + sample.size * 0.5 * math.log2(got / wanted)
        if abs(got / wanted - 1) < _SAMPLE_TOLERANCE:
            return step, bits
        step = round_step(step * min(max(math.sqrt(wanted / got), 0.25), 4.0))
    return (step, bits) if step else None


def round_step(step: float) -> float | None:
    """``step`` rounded to float32 with 12 bits of mantissa (so that it does not hang on a last bit), if in range."""
    if not SMALLEST_STEP < step < LARGEST_STEP:
        return None
    mantissa, exponent = math.frexp(step)
    return math.ldexp(round(mantissa * 4096), exponent - 12)


def quantize(
    tensor: Measured,
    step: float,
    how: Quantization,
    run: Run,
    importance: Float32 | None = None,
) -> Quantized:
    """Quantise and code the whole tensor with this step. ``run`` maps calls to results in order.

    The error of each weight counts ``importance`` times, [size], in all sums too; see :func:`_core.quantize`.

    The step that is stored is then fitted to the levels: ``sum(w q) / sum(q^2)`` minimises the error (Lloyd's condition
    for a uniform reconstruction), except for dtypes narrower than float32, whose rounding is part of the error.
    """
    size, dtype = tensor.flat.size, tensor.flat.dtype
    step = min(step, largest(dtype))  # else the level 1 is already infinite
    first = tensor.float32(0, min(_core.first(tensor.shape), size))
    params = _core.fit_whole(tensor.shape, tensor.sample, first, step, how.state_bits, how.preset, how.regression)
    each = _core.chunk_levels(params)
    limit = level_limit(dtype, step)
    pruned = importance is not None or is_pruned(tensor.sample)

    def chunk(start: int) -> tuple[bytes, _core.Sums]:
        weights = tensor.float32(start, min(start + each, size))
        counts = None if importance is None else importance[start : start + weights.size]
        if dtype.itemsize >= 4:
            return _core.quantize(params, weights, step, how.rate_weight, None, limit, counts, keeps_zeros=pruned)
        levels = np.empty(weights.size, np.int32)
        code, sums = _core.quantize(params, weights, step, how.rate_weight, levels, limit, counts, keeps_zeros=pruned)
        off = weights - dequantize(levels, step).astype(dtype).astype(np.float32)
        error, _, _ = _core.measure(off if counts is None else off * np.sqrt(counts))
        return code, _core.Sums(sums.energy, error, sums.correlation, sums.levels)

    results = run(
        [Coding(partial(chunk, start), min(each, size - start) * dtype.itemsize) for start in range(0, size, each)]
    )
    total = [sum(getattr(sums, name) for _, sums in results) for name in ("energy", "error", "correlation", "levels")]
    energy, error, correlation, squares = total
    if dtype.itemsize >= 4 and squares > 0 and how.rate_weight > 0:
        fitted = float(np.float32(correlation / squares))
        # The correction is small; a large one would mean that the levels do not follow the weights.
        if 0.5 < fitted / step < 2 and fitted * limit <= largest(dtype):
            step = fitted
            error = max(energy - 2 * step * correlation + step * step * squares, 0.0)
    return Quantized(params, step, [code for code, _ in results], energy, error)


def dequantize(levels: npt.NDArray[np.int32], step: float) -> Float32:
    """Reconstruction values as a reader computes them, before the cast to the stored dtype."""
    return levels.astype(np.float32) * np.float32(step)


def level_limit(dtype: np.dtype[Any], step: float) -> int:
    """Largest magnitude of a level whose reconstruction does not overflow the dtype."""
    return max(1, min(int(largest(dtype) / step), _core.MAX_LEVEL))


def largest(dtype: np.dtype[Any]) -> float:
    """Largest finite value that a reader's float32 arithmetic can give this dtype."""
    return float(ml_dtypes.finfo(dtype).max) if dtype.itemsize < 8 else 3e38
