"""Values that must come back bit for bit: how they are coded, and the decisions of the encoder. FORMAT.md, 10 and 11.

Floating-point values are symbols and bits that are copied (``src/floats.rs``), or levels if that is to be smaller: each
value is a level, its rounding to a multiple of a step 2^k, and refinement bits, stored raw: they say which of the
values that round to this level it is. Levels are coded like those of quantised tensors, with the same contexts and
predictions.
Tensors of few distinct values are coded as codebook indices instead, and weights that were quantised once already as
the integers and steps that they are made of (``multiples.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .. import _core
from .._parallel import Coding, Run
from ..checkpoint.base import DTYPES, EXACT_DTYPES, Array, Float32, bits_of
from . import multiples

#: Methods of exact values, and those of updates, as an index numbers them (FORMAT.md, 13.1).
FLOAT, FLOAT_ZEROS, INTEGERS, CODEBOOK, STEPS, DIFFERENCES, UNCHANGED, QUANTIZED_DIFFERENCE, SYMBOLS = range(3, 12)
CHANGES, MULTIPLES = 13, 14
#: Methods that code levels and refinement bits.
REFINED = (FLOAT, FLOAT_ZEROS, INTEGERS, STEPS, DIFFERENCES)
#: Methods that need the base of an update.
UPDATES = (STEPS, DIFFERENCES, UNCHANGED, QUANTIZED_DIFFERENCE, CHANGES)

#: Most entries of a codebook, and of one that the encoder tries.
MOST_ENTRIES, _TRIED_ENTRIES = 1 << 12, 1 << 10
#: Bounds that a reader checks: k, columns of a row, codebook indices and symbols in a chunk.
LAST_EXPONENT, MOST_WIDTH, MOST_INDICES, MOST_VALUES = 2200, 1 << 16, 1 << 20, 1 << 20
#: Elements of a tensor for which a codebook is tried, at least.
_WORTH_BOOK = 64
#: Codebook indices in a chunk, about.
_CODEBOOK_CHUNK = 1 << 18
#: Values in a chunk of symbols, about: each chunk has tables of its own.
_SYMBOLS_CHUNK = 1 << 18
#: Other tensors than matrices are coded as levels, which is slow, if that takes so much less.
_LEVELS_GAIN = 0.99
#: Share of zeros from which zero has a level for itself.
_MANY_ZEROS = 0.02
#: Step of the levels, in medians of the magnitude: half a standard deviation of a Gaussian. Shorter steps would tell
#: the
#: contexts more, 0.01 bits per weight, and take longer.
_STEP = 0.7413
#: A codebook is slower, so it has to be smaller by so much.
_CODEBOOK_GAIN = 0.99
#: Matrices of at least so many elements are coded by the fast coder: twice the speed for 0.5 % of the size.
_FAST_FROM = 1 << 16
#: Elements of them that are looked at first.
_FAST_SAMPLE = 1 << 14
#: Elements of a tensor on which several steps are tried.
_SMALL = 1 << 12
#: Tensors of fewer elements are tried as levels with preset fast too: a chunk's head would be a large part of them.
_TINY = 1 << 8
_PIECE = 1 << 20
#: Share of a tensor's bytes below which levels and steps are taken without a look at other ways.
_FEW_BYTES = 0.4

#: Elements from which rates of change are fitted.
_RATES_SAMPLE = 1 << 19
#: Changes that take so small a part of a tensor's bytes are taken without a look at differences: these take longer and
#: are seldom smaller, but where whole rows changed.
_SMALL_CHANGE = 1 / 4

_NAMES = {
    CODEBOOK: "codebook",
    STEPS: "difference",
    DIFFERENCES: "difference",
    UNCHANGED: "same",
    CHANGES: "changes",
    MULTIPLES: "multiples",
}


@dataclass
class Form:
    """How a tensor's values are coded: what the index says besides chunks."""

    method: int
    exponent: int = 0  #: k (REFINED)
    centre: int = 0  #: what is subtracted, as an unsigned pattern (INTEGERS)
    entries: Array | None = None  #: unsigned patterns (CODEBOOK)
    usual: int = 0  #: index of the most frequent entry (CODEBOOK)
    width: int = 0  #: elements in a row (CODEBOOK, SYMBOLS)
    rows: int = 0  #: rows in a chunk (CODEBOOK, SYMBOLS)
    params: bytes = b""  #: coding parameters of levels (REFINED, QUANTIZED_DIFFERENCE, MULTIPLES)
    step: float = 0.0  #: distance between two reconstruction values of a difference (QUANTIZED_DIFFERENCE)
    rates: _core.Rates | None = None  #: how often values change, by the exponents of the base's (CHANGES)
    group: int = 0  #: elements that have a step in common (MULTIPLES)
    signed: bool = False  #: whether level -1 is negative zero (MULTIPLES)

    @property
    def name(self) -> str:
        """For people."""
        return _NAMES.get(self.method, "coded")

    @property
    def chunk_size(self) -> int:
        """Elements in every chunk but the last."""
        if self.method == CHANGES:
            return _core.CHANGE_CHUNK
        return self.width * self.rows if self.method in (CODEBOOK, SYMBOLS) else _core.chunk_levels(self.params)


_MANTISSAS = {
    dtype: int(ml_dtypes.finfo(dtype).nmant)
    for dtype in (*DTYPES, *EXACT_DTYPES.values())
    if dtype.kind in "fV" and bits_of(dtype) >= 8 and dtype.name != "float8_e8m0fnu"
}


def mantissa(dtype: np.dtype[Any]) -> int:
    """Bits of the mantissa of a floating-point type of at least a byte that has a sign; 0 for other types."""
    return _MANTISSAS.get(dtype, 0)


def exponents(dtype: np.dtype[Any]) -> int:
    """Exponents that values of a type have; 1 if it is not a floating-point type."""
    bits = mantissa(dtype)
    return 1 << 8 * dtype.itemsize - 1 - bits if bits else 1


def patterns(array: Array) -> Array:
    """The bits of values, flat, as unsigned integers of their width: a view."""
    return array.reshape(-1).view(f"<u{array.dtype.itemsize}")


@dataclass(frozen=True)
class Coded:
    """A tensor coded exactly."""

    form: Form
    #: Chunks: levels or indices, then refinement bits, and how many bytes these take; empty for one like the base's.
    codes: list[tuple[bytes, int]]

    @property
    def coded_bytes(self) -> int:
        """Bytes of the chunks and of what the index says about them."""
        entries = 0 if self.form.entries is None else self.form.entries.nbytes
        rates = 0 if self.form.rates is None else len(self.form.rates.codes)
        return sum(len(code) + 7 for code, _ in self.codes) + len(self.form.params) + entries + rates + 6


def encode(array: Array, run: Run, base: Array | None = None, preset: str = "default") -> Coded | None:
    """The tensor coded exactly, or None if that takes as many bytes as storing it raw.

    With a ``base`` of the same shape and dtype its difference to that is coded. ``run`` maps calls to results in order.
    ``preset`` is one of :data:`deepcabac.options.PRESETS`.
    """
    if array.size <= 1:
        return None
    if preset == "fast" and base is not None:
        preset = "default"
    best = _encode_update(array, base, run, preset) if base is not None else None
    if best is None or best.form.method != UNCHANGED:
        alone = _encode_alone(array, run, preset) if best is None or best.coded_bytes > array.nbytes // 2 else None
        if alone is not None and (best is None or alone.coded_bytes < best.coded_bytes):
            best = alone
    return best if best is not None and best.coded_bytes < array.nbytes else None


def _encode_alone(array: Array, run: Run, preset: str) -> Coded:
    sample = _sample(array, _FAST_SAMPLE if preset == "fast" else _core.SAMPLE)
    book = _codebook(array, sample, run)
    coded = encode_multiples(array, run, preset)
    if coded is None:
        return _encode_others(array, sample, book, run, preset)
    if book is not None:
        coded = min(coded, _encode_indices(patterns(array), book, run), key=lambda one: one.coded_bytes)
    if coded.coded_bytes < _FEW_BYTES * array.nbytes:
        return coded
    return min(coded, _encode_others(array, sample, None, run, preset), key=lambda one: one.coded_bytes)


def encode_multiples(array: Array, run: Run, preset: str = "default") -> Coded | None:
    """Weights that were quantised once already as levels and steps; None if they were not, or not so."""
    grid = multiples.glance(array)
    if grid is None:
        return None
    flat = array.reshape(-1)
    each = max(_PIECE // grid.group, 1) * grid.group
    parts = run([partial(multiples.split, flat[start : start + each], grid) for start in range(0, flat.size, each)])
    if None in parts:
        return None
    levels = np.concatenate([part.levels for part in parts])
    steps = np.concatenate([part.steps for part in parts]).view(np.uint32)
    sample = np.concatenate([levels[some] for some in _core.sample_runs(array.shape, flat.size)])
    first = levels[: _core.first(array.shape)]
    params = _core.fit_whole(array.shape, sample.astype(np.int32), first.astype(np.int32), preset=preset)
    form = Form(MULTIPLES, params=params, group=grid.group, signed=grid.signed)
    if form.chunk_size % grid.group:
        return None

    def chunk(start: int) -> tuple[bytes, int]:
        stop = start + form.chunk_size
        code = _core.encode(params, levels[start:stop].astype(np.int32))
        lengths = _core.encode_floats(_steps(steps[start // grid.group : stop // grid.group]), scaled=False)
        return code + lengths, len(lengths)

    return Coded(form, run(_calls(chunk, flat, form.chunk_size)))


def _steps(some: Array, code: bytes | memoryview = b"") -> _core.Floats:
    """Steps of a chunk, as patterns, to be coded, or filled from their ``code``."""
    return _core.Floats(some, mantissa(np.dtype(np.float32)), MOST_WIDTH, code)


def multiply(form: Form, factors: Float32, code: bytes | memoryview, out: Array) -> bool:
    """Fill ``out`` (flat) from levels, which are overwritten, and their steps' ``code``. Returns whether it was one."""
    steps = np.empty(factors.size // form.group, np.uint32)
    (fine,) = _core.decode_floats([_steps(steps, code)])
    lengths = steps.view(np.float32)
    if not fine or not (np.isfinite(lengths) & (lengths > 0)).all():
        return False
    multiples.multiply(factors, lengths, form.signed)
    if out.dtype != factors.dtype:
        with np.errstate(over="ignore"):  # beyond the type's range, only in a hostile file
            out[:] = factors.astype(out.dtype)
    elif not np.shares_memory(out, factors):
        out[:] = factors
    return True


def _encode_others(array: Array, sample: Array, book: Form | None, run: Run, preset: str) -> Coded:
    """A tensor coded as codebook indices if there is a ``book``, as levels or as symbols; by a sample of patterns."""
    flat = patterns(array)
    real = mantissa(array.dtype) > 0
    zeros = real and bool(np.count_nonzero(sample == 0) > _MANY_ZEROS * sample.size)
    form, code = _symbols(array), None  # the code of the sample, if it is known
    if not real or zeros or preset == "small":
        form, code = _leveled(array, sample, zeros, preset)
    elif array.ndim != 2 and (preset == "default" or array.size < _TINY):
        code = _piece(form, array.dtype, sample, preset), 0
        other, as_levels = _leveled(array, sample, zeros, preset)
        if len(as_levels[0]) < _LEVELS_GAIN * len(code[0]):
            form, code = other, as_levels
    if book is not None:
        piece = sample[: form.chunk_size]
        indices = np.searchsorted(book.entries, piece) if book.entries is not None else piece
        as_indices = len(_core.encode_indices(indices.astype(np.uint16), *_book(book)))
        entries = 0 if book.entries is None else book.entries.nbytes
        share = piece.size / flat.size
        if as_indices + entries * share < _CODEBOOK_GAIN * len(_piece(form, array.dtype, piece, preset)):
            return _encode_indices(flat, book, run)
    if code is not None and sample.size == flat.size <= form.chunk_size and preset != "small":
        return Coded(form, run([Coding(lambda: code, flat.nbytes)]))
    if form.method == SYMBOLS:
        pieces = partial(_piece, form, array.dtype, preset=preset)
        each = form.chunk_size
        return Coded(form, run(_calls(lambda start: (pieces(flat[start : start + each]), 0), flat, each)))
    if preset == "small":
        form = _fitted(form, array, sample, preset, first=flat[: _core.first(array.shape)])
    return _encode_detailed(flat, form, array.dtype, run)


def _leveled(array: Array, sample: Array, zeros: bool, preset: str) -> tuple[Form, tuple[bytes, int]]:
    """How values are coded as levels, and the sample's code. Many ``zeros`` have a level for themselves."""
    if preset == "default" and array.ndim == 2 and array.size >= _FAST_FROM:
        # Levels of exact values take about three bits, where the fast coder hardly loses, if there are rows for its
        # strips.
        preset = "fast"
    if mantissa(array.dtype):
        form = Form(FLOAT_ZEROS if zeros else FLOAT, _float_exponent(sample, array.dtype))
    else:
        signed = sample.view(f"<i{sample.dtype.itemsize}") if array.dtype.name.startswith("int") else sample
        centre = np.sort(signed)[sample.size // 2]
        form = Form(INTEGERS, _exponent(_magnitudes(sample - centre.astype(sample.dtype))), int(np.uint64(centre)))
        form = replace(form, centre=form.centre & (1 << 8 * sample.dtype.itemsize) - 1)
    # Small ones are often of many orders of magnitude, and the median says little.
    tries = 1 if sample.size > _SMALL else 3
    found = _core.encode_leveled(_native(form, array.dtype), array.shape, sample, tries, preset)
    return replace(form, exponent=found.exponent, params=found.params), (found.code, found.refinement)


def _symbols(array: Array) -> Form:
    """How values are coded as symbols: in rows of the tensor if they are not too long."""
    row = math.prod(array.shape[1:])
    width = row if array.ndim > 1 and row <= MOST_WIDTH else min(array.size, MOST_WIDTH)
    return Form(SYMBOLS, width=width, rows=max(_SYMBOLS_CHUNK // width, 1))


def floats(form: Form, dtype: np.dtype[Any], some: Array, code: bytes | memoryview = b"") -> _core.Floats:
    """A chunk of patterns (SYMBOLS), to be coded, or filled from its ``code``."""
    return _core.Floats(some, mantissa(dtype), form.width, code)


def _piece(form: Form, dtype: np.dtype[Any], some: Array, preset: str) -> bytes:
    """The code of a chunk of patterns, with its refinement bits."""
    if form.method == SYMBOLS:
        return _core.encode_floats(floats(form, dtype, some), scaled=preset != "fast")
    return _core.encode_exact(form.params, _native(form, dtype), some)[0]


def _sample(array: Array, size: int) -> Array:
    flat = patterns(array)
    return np.concatenate([flat[run] for run in _core.sample_runs(array.shape, flat.size, size)])


def _fitted(
    form: Form, array: Array, sample: Array, preset: str, base: Array | None = None, first: Array | None = None
) -> Form:
    """``form`` with coding parameters chosen on the sample's levels, and those of the ``first`` elements if given."""

    def levels_of(some: Array) -> npt.NDArray[np.int32]:
        return _core.split(_native(form, array.dtype, base), some, max(some.size, 1))[0]

    levels = levels_of(sample)
    if first is None:
        return replace(form, params=_core.fit(array.shape, levels, preset=preset))
    return replace(form, params=_core.fit_whole(array.shape, levels, levels_of(first), preset=preset))


def _float_exponent(sample: Array, dtype: np.dtype[Any]) -> int:
    """log2 of half a standard deviation, in units of the smallest subnormal."""
    bits = mantissa(dtype)
    magnitude = sample & sample.dtype.type((1 << 8 * dtype.itemsize - 1) - 1)
    # A NaN or an infinity is no magnitude.
    magnitude = magnitude[(magnitude != 0) & (magnitude < int(patterns(np.array([np.inf]).astype(dtype))[0]))]
    if magnitude.size == 0:
        return 0
    median = int(np.partition(magnitude, magnitude.size // 2)[magnitude.size // 2])
    exponent = max((median >> bits) - 1, 0)
    return max(math.floor(math.log2((median - (exponent << bits)) * _STEP)) + exponent, 0)


def _magnitudes(differences: Array) -> Array:
    signed = differences.view(f"<i{differences.dtype.itemsize}")
    return np.where(signed < 0, -differences, differences)


def _exponent(magnitudes: Array) -> int:
    """log2 of half a standard deviation of integers; 0 if they are small enough to be levels themselves."""
    others = magnitudes[magnitudes != 0]
    if 2 * others.size < magnitudes.size:
        return 0
    return max(math.floor(math.log2(float(np.partition(others, others.size // 2)[others.size // 2]) * _STEP)), 0)


def _codebook(array: Array, sample: Array, run: Run) -> Form | None:
    """A codebook of all values, if they are few."""
    flat = patterns(array)
    if flat.size < _WORTH_BOOK:
        return None
    some, most = sample[:: max(sample.size >> 13, 1)], min(_TRIED_ENTRIES, flat.size // 4)
    for glance in (some[: 2 * _TRIED_ENTRIES], some):  # most are told by a few
        ordered = np.sort(glance)
        if np.count_nonzero(ordered[1:] != ordered[:-1]) >= most:
            return None
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]
    if flat.dtype.itemsize <= 2 and flat.size > _SMALL:
        size = 1 << 8 * flat.dtype.itemsize
        found = run([lambda piece=piece: np.bincount(piece, minlength=size) for piece in pieces])
        entries = np.flatnonzero(np.sum(found, axis=0)).astype(flat.dtype)
    else:
        found = run([lambda piece=piece: np.unique(piece) for piece in pieces])
        entries = np.unique(np.concatenate(found))
    if entries.size > most:
        return None
    counts = np.bincount(np.searchsorted(entries, sample), minlength=entries.size)
    width = min(max(math.prod(array.shape[1:]), 1) if array.ndim > 1 else flat.size, 1 << 16)
    rows = max(min(_CODEBOOK_CHUNK, flat.size) // width, 1)
    return Form(CODEBOOK, entries=entries, usual=int(counts.argmax()), width=width, rows=rows)


def _book(form: Form) -> tuple[int, int, int]:
    return (0 if form.entries is None else form.entries.size), form.usual, form.width


def _calls(chunk: Callable[[int], tuple[bytes, int]], flat: Array, each: int) -> list[Coding]:
    """Calls of ``chunk`` for every ``each`` values."""
    return [Coding(partial(chunk, start), flat[start : start + each].nbytes) for start in range(0, flat.size, each)]


def _encode_indices(flat: Array, form: Form, run: Run) -> Coded:
    entries = form.entries

    def chunk(start: int) -> tuple[bytes, int]:
        indices = np.searchsorted(entries, flat[start : start + form.chunk_size]).astype(np.uint16)  # type: ignore[arg-type]
        return _core.encode_indices(indices, *_book(form)), 0

    return Coded(form, run(_calls(chunk, flat, form.chunk_size)))


def _native(form: Form, dtype: np.dtype[Any], base: Array | None = None) -> _core.Exact:
    width = _core.parameters(form.params).width if form.params else 1 << 16
    return _core.Exact(form.method, mantissa(dtype), form.exponent, form.centre, width, base)


def _encode_detailed(flat: Array, form: Form, dtype: np.dtype[Any], run: Run, base: Array | None = None) -> Coded:
    each = form.chunk_size

    def chunk(start: int) -> tuple[bytes, int]:
        piece = flat[start : start + each]
        reference = None if base is None else base[start : start + each]
        if reference is not None and np.array_equal(piece, reference):
            return b"", 0
        return _core.encode_exact(form.params, _native(form, dtype, reference), piece)

    return Coded(form, run(_calls(chunk, flat, each)))


def _encode_update(array: Array, base: Array, run: Run, preset: str) -> Coded:
    """What changed of the base, or the difference to it, whichever is smaller."""
    coded = _encode_changes(array, base, run)
    if coded is None:
        return Coded(Form(UNCHANGED), [])
    if coded.coded_bytes <= _SMALL_CHANGE * array.nbytes and preset != "small":
        return coded
    difference = _encode_difference(array, base, run, preset)
    return min(coded, difference, key=lambda one: one.coded_bytes)


def _encode_changes(array: Array, base: Array, run: Run) -> Coded | None:
    """What changed of the base; None if nothing did."""
    flat, reference, bits = patterns(array), patterns(base), mantissa(array.dtype)
    runs = _core.sample_runs(array.shape, flat.size, _RATES_SAMPLE)
    sampled = (flat[runs[0]], reference[runs[0]]) if len(runs) == 1 else [
        np.concatenate([one[run] for run in runs]) for one in (flat, reference)
    ]
    rates = _core.fit_changes(bits, sampled[1], sampled[0])

    def chunk(start: int) -> tuple[bytes, int]:
        where = slice(start, start + _core.CHANGE_CHUNK)
        return _core.encode_changes(rates, bits, reference[where], flat[where]), 0

    codes = run(_calls(chunk, flat, _core.CHANGE_CHUNK))
    return Coded(Form(CHANGES, rates=rates), codes) if any(code for code, _ in codes) else None


def _encode_difference(array: Array, base: Array, run: Run, preset: str) -> Coded:
    """The difference to the base: in representable numbers or scaled by the base's exponents, whichever is smaller."""
    flat, reference = patterns(array), patterns(base)
    runs = _core.sample_runs(array.shape, flat.size)
    changed, before = (np.concatenate([one[run] for run in runs]) for one in (flat, reference))
    best: tuple[int, Form] | None = None
    for method in (STEPS, DIFFERENCES) if mantissa(array.dtype) else (STEPS,):
        middle = _typical_distance(method, array.dtype, changed, before)
        for more in (-2, -1, 0, 1):
            exponent = max(math.floor(middle + math.log2(_STEP)) + more, 0)
            form = _fitted(Form(method, exponent), array, changed, preset, before)
            piece = slice(0, form.chunk_size)
            code, _ = _core.encode_exact(form.params, _native(form, array.dtype, before[piece]), changed[piece])
            if best is None or len(code) < best[0]:
                best = len(code), form
    assert best is not None
    return _encode_detailed(flat, best[1], array.dtype, run, reference)


def _typical_distance(method: int, dtype: np.dtype[Any], changed: Array, before: Array) -> float:
    """log2 of the median difference other than zero, in units."""
    bits = mantissa(dtype)
    limit = changed.dtype.type((1 << 8 * dtype.itemsize - 1) - 1)

    def ordered(pattern: Array) -> Array:
        return np.where(pattern > limit, pattern ^ limit, pattern) if bits else pattern

    distances = _magnitudes(ordered(changed) - ordered(before))
    moved = distances != 0
    if not moved.any():
        return 0.0
    logs = np.log2(distances[moved].astype(np.float64))
    if method == DIFFERENCES:
        logs += np.maximum((before[moved] & limit) >> bits, 1).astype(np.float64) - 1
    return float(np.median(logs))


def comes_back(coded: Coded, number: int, array: Array, base: Array | None = None) -> bool:
    """Whether chunk ``number`` decodes to the values that it was coded from."""
    form, where = coded.form, slice(number * coded.form.chunk_size, (number + 1) * coded.form.chunk_size)
    before = None if base is None else patterns(base)[where]
    return _decodes_to(patterns(array)[where], form, array.dtype, *coded.codes[number], before)


def _decodes_to(
    values: Array, form: Form, dtype: np.dtype[Any], code: bytes, refinement: int, base: Array | None
) -> bool:
    """Whether a chunk decodes to these patterns."""
    if not code:
        return base is not None and np.array_equal(values, base)
    out = np.empty_like(values)
    if form.method == SYMBOLS:
        (fine,) = _core.decode_floats([floats(form, dtype, out, code)])
    elif form.method == CODEBOOK:
        fine = decode(form, code, out)
    elif form.method == MULTIPLES:
        factors, cut = np.empty(values.size, np.float32), len(code) - refinement
        (fine,) = _core.decode([_core.Job(form.params, memoryview(code)[:cut], factors)])
        fine = fine and multiply(form, factors, memoryview(code)[cut:], out.view(dtype))
    elif form.method == CHANGES:
        assert base is not None
        fine = change(form, code, out.view(dtype), base.view(dtype))
    else:
        levels = np.empty(values.size, np.int32)
        cut = len(code) - refinement
        (fine,) = _core.decode([_core.Job(form.params, memoryview(code)[:cut], levels, 0.0)])
        fine = fine and join(form, dtype, levels, memoryview(code)[cut:], out, base)
    return fine and np.array_equal(out, values)


def decode(form: Form, code: bytes | memoryview, out: Array) -> bool:
    """Decode a chunk of codebook indices into ``out`` (flat, of ``dtype``). Returns whether it was one."""
    indices = np.empty(out.size, np.uint16)
    if form.entries is None or not _core.decode_indices(code, *_book(form), indices):
        return False
    patterns(out)[:] = form.entries[indices]
    return True


def change(form: Form, code: bytes | memoryview, out: Array, base: Array) -> bool:
    """Fill ``out`` with ``base`` (both flat) and the changes that a chunk holds. Returns whether it was one."""
    assert form.rates is not None
    return _core.decode_changes(form.rates, mantissa(out.dtype), patterns(base), code, patterns(out))


def changed(
    form: Form, code: bytes | memoryview, base: Array
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]] | None:
    """Where a chunk of the flat ``base`` changes, and the patterns there; None if ``code`` is damaged."""
    assert form.rates is not None
    return _core.list_changes(form.rates, mantissa(base.dtype), patterns(base), code)


def join(
    form: Form,
    dtype: np.dtype[Any],
    levels: npt.NDArray[np.int32],
    refinement: bytes | memoryview,
    out: Array,
    base: Array | None = None,
) -> bool:
    """Fill ``out`` (flat, of ``dtype``) from levels and refinement bits. Returns whether they belong together."""
    reference = None if base is None else patterns(base)
    return _core.join(_native(form, dtype, reference), levels, refinement, patterns(out))
