"""Weights that were quantised once already: integers times a float32 step of their row, or of so many neighbours.

That is what a checkpoint holds after rounding to nearest, GPTQ, AWQ or training with quantisation, once it was made
floating point again. Integers and steps, found here, give every bit of it back (FORMAT.md, 10.9).

The largest magnitude of a group is some multiple of its step, at most 255 times it. Each of these is tried; then the
steps with which every product rounds to the value are an interval, and the one with the shortest mantissa in it is
taken: scales were often float16 or bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..checkpoint.base import BFLOAT16, Array, Float32

_DTYPES = (np.dtype("<f8"), np.dtype("<f4"), np.dtype("<f2"), BFLOAT16)
#: Elements of a group that are tried, besides rows, and the least.
_GROUPS, _LEAST = (256, 128, 64, 32, 16), 8
#: Largest multiple of a step.
_MOST = 255
_TOPS = np.arange(1, _MOST + 1, dtype=np.float64)
#: Neighbours in which some values have to repeat, how many, and in how many places it is looked for.
_STRETCH, _REPEATED, _PLACES = 128, 4, 4
#: Groups of a sample, few and many.
_SAMPLES = (2, 16)
#: Elements of a group that are looked at before all else, then, and if these mislead.
_FIRST, _SOME, _MANY = 16, 32, 128
#: Numbers that are made at once where all multiples are tried.
_ROOM = 1 << 20
#: How often another multiple is tried for the same group.
_ATTEMPTS = 4

#: A float32 above all steps, as bits.
_ANY = 0x7F7FFFFF

#: Bits of a step besides its mantissa, and how many bits an element has to save for smaller groups to be taken.
_EXPONENT_BITS, _GAIN = 4, 0.25

_Doubles = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_Fitted = tuple[npt.NDArray[np.int16], Float32, _Integers]


@dataclass(frozen=True)
class Grid:
    """What the groups of a tensor have in common."""

    group: int  #: elements, consecutive in C order
    signed: bool  #: whether some zeros are negative
    tops: tuple[int, ...]  #: by which multiple of its step a group's largest magnitude is, the most frequent first


@dataclass(frozen=True)
class Split:
    """Values as integers and steps."""

    levels: npt.NDArray[np.int16]  #: flat
    steps: Float32  #: of each group


def glance(array: Array) -> Grid | None:
    """The grid of a tensor of finite values, as a sample shows it; None if it shows none.

    A few values tell most weights from those on a grid. Groups of a grid's groups are on it too, and groups of those
    sometimes, with finer steps: those are taken that seem to take fewest bits.
    """
    if array.dtype not in _DTYPES or array.size < 2 * _STRETCH or not _repeats(array):
        return None
    row, last = (math.prod(array.shape[1:]), array.shape[-1]) if array.ndim > 1 else (array.size, array.size)
    groups = sorted({size for size in (row, last, *_GROUPS) if size >= _LEAST and row % size == 0}, reverse=True)
    flat = array.reshape(-1)
    if not groups or not _may_fit(flat, groups[-1]):
        return None
    best: tuple[float, Grid] | None = None
    for group in groups:
        found = _fitted_sample(flat, group)
        if found is None:
            continue
        levels, steps, tops = found
        bits = _bits(levels, steps)
        if best is None or bits < best[0] - _GAIN:
            values, counts = np.unique(tops[tops > 0], return_counts=True)
            usual = tuple(int(top) for top in values[np.argsort(-counts, kind="stable")])
            best = bits, Grid(group, False, usual)
    return best and replace(best[1], signed=bool((np.signbit(flat) & (flat == 0)).any()))


def split(values: Array, grid: Grid) -> Split | None:
    """Flat values, whole groups of them, as levels and steps; None if they are on no such grid."""
    groups = values.reshape(-1, grid.group)
    magnitudes = _magnitudes(groups)
    if magnitudes is None:
        return None
    found = _fitted(magnitudes, grid.tops)
    if found is None:
        return None
    levels, steps, _ = found
    negative = np.signbit(groups)
    levels = np.where(negative, -levels, levels)
    if grid.signed:
        levels -= negative
    return Split(levels.reshape(-1), _filled(steps))


def multiply(factors: Float32, steps: Float32, signed: bool) -> None:
    """Turn levels into values, in place: each product is rounded to float32. FORMAT.md, 10.9.

    With ``signed``, level -1 is negative zero, and those below it are one more than they say.
    """
    if signed:
        negative = factors < 0
        factors[negative] = -(-factors[negative] - np.float32(1))
    rows = factors.reshape(len(steps), -1)
    with np.errstate(over="ignore", under="ignore"):  # beyond float32, only in a hostile file
        rows *= steps[:, None]


def _repeats(array: Array) -> bool:
    """Whether magnitudes other than zero repeat among neighbours, as they do on a grid."""
    flat = array.reshape(-1)
    row = math.prod(array.shape[1:]) if array.ndim > 1 else _STRETCH
    seen = repeated = 0
    for place in range(_PLACES):
        start = flat.size * place // _PLACES // row * row
        with np.errstate(over="ignore"):  # float64 beyond float32
            some = np.abs(flat[start : start + _STRETCH].astype(np.float32))
        some = np.sort(some[some > 0])
        seen += some.size
        repeated += int(np.count_nonzero(some[1:] == some[:-1]))
        if seen >= _STRETCH // 2:
            break
    return repeated * _STRETCH >= _REPEATED * max(seen, _STRETCH // 8)


def _may_fit(flat: Array, group: int) -> bool:
    """Whether the first values of one group, from the middle, can be multiples of a step."""
    start = flat.size // group // 2 * group
    magnitudes = _magnitudes(flat[start : start + group])
    if magnitudes is None:
        return False
    info, values = ml_dtypes.finfo(magnitudes.dtype), magnitudes.astype(np.float64)
    some, most = values[:_FIRST], values.max()
    if some[some > 0].min(initial=most) < float(info.smallest_normal):
        return True
    # As in _fits, quickly.
    with np.errstate(invalid="ignore"):  # NaN and infinity
        found = some * (_TOPS / most)[:, None]
        off = np.abs(found - np.rint(found))
    return bool((off <= found * (2.05 * 2.0 ** -(int(info.nmant) + 1))).all(axis=1).any())


def _fitted_sample(flat: Array, group: int) -> _Fitted | None:
    """Levels, steps and tops of some groups; None if one is not on a grid, or all are zero."""
    groups, found = flat.reshape(-1, group), None
    for sample in _SAMPLES:
        magnitudes = _magnitudes(groups[:: -(-len(groups) // sample)])
        found = None if magnitudes is None else _fitted(magnitudes, ())
        if found is None:
            return None
    return found if found is not None and found[2].any() else None


def _bits(levels: npt.NDArray[np.int16], steps: Float32) -> float:
    """About how many bits an element takes, up to a constant."""
    some = steps > 0
    each = np.log2(levels[some].mean(axis=1) + 0.5).mean()
    mantissas = int(np.bitwise_or.reduce(steps.view(np.uint32))) & (1 << 23) - 1
    trailing = (mantissas & -mantissas).bit_length() - 1 if mantissas else 23
    return float(each + (_EXPONENT_BITS + 23 - trailing) / levels.shape[1])


def _magnitudes(groups: Array) -> Array | None:
    """Magnitudes in a type of at most 32 bits; None if they need more."""
    magnitudes = np.abs(groups)
    if magnitudes.dtype.itemsize <= 4:
        return magnitudes
    with np.errstate(over="ignore", under="ignore"):
        narrow = magnitudes.astype(np.float32)
    return narrow if np.array_equal(narrow, magnitudes) else None


def _fitted(magnitudes: Array, usual: tuple[int, ...]) -> _Fitted | None:
    """Levels, steps and tops of groups [groups, elements]; None if there is a group that has none.

    Groups of zeros have step 0. ``usual`` tops are tried first.
    """
    if not np.isfinite(magnitudes).all():
        return None
    count, width = magnitudes.shape
    levels, steps = np.zeros((count, width), np.int16), np.zeros(count, np.float32)
    tops = np.zeros(count, np.int64)
    left = np.flatnonzero(magnitudes.max(axis=1))

    def attempt(rows: _Integers, guesses: _Integers) -> None:
        """Note the groups that have these tops, and leave the others."""
        nonlocal left
        if rows.size:
            good, numbers, lengths = _steps(magnitudes[rows], guesses)
            rows = rows[good]
            levels[rows], steps[rows], tops[rows] = numbers[good], lengths[good], guesses[good]
            left = left[steps[left] == 0]

    for top in usual:
        if left.size:
            fits = _fits(magnitudes[left, :_SOME], magnitudes[left].max(axis=1), np.array([top]))[:, 0]
            attempt(left[fits], np.full(int(fits.sum()), top))
    each = max(_ROOM // (_MOST * _MANY), 1)
    for start in range(0, left.size, each):
        rows = left[start : start + each]
        for looks_closer in (False, True):
            rows = rows[steps[rows] == 0]
            if rows.size == 0:
                break
            # What is seen of a group first may mislead: then quantiles are looked at.
            some = magnitudes[rows, :_SOME]
            if looks_closer:
                some = np.sort(magnitudes[rows].astype(np.float32), axis=1)[:, :: -(-width // _MANY)]
                some = some.astype(magnitudes.dtype)
            fits = _fits(some, magnitudes[rows].max(axis=1), np.arange(1, _MOST + 1))
            if not fits.any(axis=1).all():
                return None
            for _ in range(_ATTEMPTS):
                guesses = fits.argmax(axis=1) + 1
                again = fits.any(axis=1) & (steps[rows] == 0)
                attempt(rows[again], guesses[again])
                fits[np.arange(len(rows)), guesses - 1] = False
        if (steps[rows] == 0).any():
            return None
    return levels, steps, tops


def _fits(magnitudes: Array, largest: Array, tops: _Integers) -> npt.NDArray[np.bool_]:
    """Whether magnitudes [groups, elements] can be multiples of the group's largest by each top.  [groups, tops]"""
    values, most = magnitudes.astype(np.float64), largest.astype(np.float64)
    info = ml_dtypes.finfo(magnitudes.dtype)
    rounding = 2.0 ** -(int(info.nmant) + 1)
    # A value is off by half the distance to the next, and the step by its share of the largest one's: less than itself.
    off = np.maximum(values * rounding, float(info.smallest_subnormal) / 2) + values * rounding
    factors = tops / np.maximum(most, float(info.smallest_subnormal))[:, None]
    found = values[:, None, :] * factors[:, :, None]
    good = np.abs(found - np.rint(found)) <= (off * 1.01)[:, None, :] * factors[:, :, None]
    return np.asarray(good.all(axis=2))


def _steps(magnitudes: Array, tops: _Integers) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int32], Float32]:
    """Whether groups [groups, elements] whose largest magnitudes are these multiples have a step, levels, and it."""
    values = magnitudes.astype(np.float32)
    with np.errstate(over="ignore"):
        factors = (tops / values.max(axis=1).astype(np.float64)).astype(np.float32)
    factors[~np.isfinite(factors)] = 0
    numbers = np.rint(values * factors[:, None]).astype(np.int32)
    sure = 1 << max(int(ml_dtypes.finfo(magnitudes.dtype).nmant) - 2, 0)
    if tops.max() > sure:  # the largest value is too coarse: the step follows from small ones, then all levels from it
        least, most = _interval(magnitudes, np.minimum(numbers, sure + 1), sure)
        middle = (_from_bits(least.astype(np.int32)) + _from_bits(most.astype(np.int32))) / 2
        numbers = np.rint(np.minimum(values / middle[:, None].astype(np.float32), 2 * _MOST)).astype(np.int32)
    least, most = _interval(magnitudes, numbers, int(numbers.max()))
    # The number between them with most zeros at its end.
    bits = np.frexp(((least - 1) ^ most).astype(np.float64))[1] - 1
    steps = np.where(least <= most, most >> np.maximum(bits, 0) << np.maximum(bits, 0), 0)
    lengths = steps.astype(np.int32).view(np.float32)
    with np.errstate(all="ignore"):
        again = (numbers.astype(np.float32) * lengths[:, None]).astype(magnitudes.dtype)
    return (again == magnitudes).all(axis=1) & (lengths > 0) & np.isfinite(lengths), numbers, lengths


def _interval(magnitudes: Array, numbers: npt.NDArray[np.int32], most: int) -> tuple[_Integers, _Integers]:
    """The first and the last float32, as bits, whose multiples of up to ``most`` round to the magnitudes of a group.

    Where equal multiples have different magnitudes, one of these counts.
    """
    known = np.zeros((len(magnitudes), max(int(numbers.max()), most) + 1), magnitudes.dtype)
    known[np.arange(len(magnitudes))[:, None], numbers] = magnitudes
    known = np.ascontiguousarray(known[:, 1 : most + 1])
    lower, upper, is_even = _bounds(known)
    multiples = np.arange(1, known.shape[1] + 1, dtype=np.float64)
    first = _float_bits(lower / multiples)
    product = _from_bits(first) * multiples
    first += (product < lower) | ((product == lower) & ~is_even)
    last = _float_bits(upper / multiples)
    product = _from_bits(last) * multiples
    last -= (product > upper) | ((product == upper) & ~is_even)
    first[known == 0], last[known == 0] = 1, _ANY
    return (
        np.maximum(first.max(axis=1, initial=1), 1).astype(np.int64),
        last.min(axis=1, initial=_ANY).astype(np.int64),
    )


def _bounds(magnitudes: Array) -> tuple[_Doubles, _Doubles, npt.NDArray[np.bool_]]:
    """Between which numbers everything rounds to a magnitude, and whether these numbers themselves do."""
    bits = np.ascontiguousarray(magnitudes).view(f"<u{magnitudes.dtype.itemsize}")
    values = magnitudes.astype(np.float64)
    below = np.where(bits > 0, bits - 1, bits).view(magnitudes.dtype).astype(np.float64)
    above = (bits + 1).astype(bits.dtype).view(magnitudes.dtype).astype(np.float64)
    above = np.where(np.isfinite(above), above, 2 * values - below)
    return (values + below) / 2, (values + above) / 2, bits % 2 == 0


def _float_bits(values: _Doubles) -> npt.NDArray[np.int32]:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32).view(np.int32)


def _from_bits(bits: npt.NDArray[np.int32]) -> _Doubles:
    return bits.view(np.float32).astype(np.float64)


def _filled(steps: Float32) -> Float32:
    """Steps with those of groups of zeros, which may be any, made that of the group before."""
    known = np.flatnonzero(steps)
    if known.size == 0:
        return np.ones_like(steps)
    places = np.searchsorted(known, np.arange(len(steps)), side="right") - 1
    return steps[known[np.maximum(places, 0)]]
