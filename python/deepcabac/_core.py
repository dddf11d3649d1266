"""The native core, as functions on numpy arrays and bytes. Nothing here knows files, names or data types.

Calls release the interpreter lock, so threads run them in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._border import bytes_pointer, checked, deliver, ffi, is_undamaged, lib, pointer, result, structure, structures
from ._native_types import (
    DcChanges,
    DcCodebook,
    DcExact,
    DcFit,
    DcFloats,
    DcJob,
    DcLeveled,
    DcMeasure,
    DcParams,
    DcQuantize,
    DcQuantizeCoupled,
    DcSample,
    DcSums,
    Pointer,
)
from .errors import DamagedFileError

#: Presets, and entropy coders, as the core numbers them.
_PRESETS = ("fast", "default", "small")
_CODERS = ("binary", "fast", "sparse", "regression")
#: Largest magnitude of a level that the quantiser may choose: it stays exact in float32 arithmetic up to 2^24.
MAX_LEVEL = 1 << 24


@dataclass(frozen=True)
class Sums:
    """Sums over the weights w and levels q of a chunk."""

    energy: float  #: of w^2
    error: float  #: of (w - step q)^2
    correlation: float  #: of w q
    levels: float  #: of q^2


def _sums(native: Pointer[DcSums]) -> Sums:
    sums = native[0]
    return Sums(sums.energy, sums.error, sums.correlation, sums.levels)


def measure(weights: npt.NDArray[np.float32]) -> tuple[float, float, int]:
    """Sum of w^2, largest |w|, and how many weights are not finite (those are left out)."""
    out = result(DcMeasure)
    checked(lib.dc_measure(pointer(weights), weights.size, out))
    return out[0].energy, out[0].largest, out[0].special


#: Elements from which parameters are fitted.
SAMPLE = 1 << 16
_RUNS = 4


def sample_runs(shape: Sequence[int], size: int, sample: int = SAMPLE) -> list[slice]:
    """Which elements of a flat tensor to look at: all of a small one, else runs of whole rows spread evenly over it."""
    if size <= 2 * sample:
        return [slice(0, size)]
    width = math.prod(shape[1:])
    unit = width if 0 < width <= sample // _RUNS else 1
    length = sample // _RUNS // unit * unit
    starts = [(size - length) // unit * run // (_RUNS - 1) * unit for run in range(_RUNS)]
    return [slice(start, start + length) for start in starts]


def _sampled(elements: npt.NDArray[Any], step: float) -> Pointer[DcSample]:
    levels = elements.dtype == np.int32
    return structure(
        DcSample(
            levels=pointer(elements if levels else None),
            weights=pointer(None if levels else elements),
            count=elements.size,
            step=step,
        )
    )


def _fit(shape: Sequence[int], preset: str, state_bits: int = 0, regression: bool = False) -> Pointer[DcFit]:
    return structure(
        DcFit(
            shape=pointer(np.array(shape, np.uint64)),
            dimensions=len(shape),
            state_bits=state_bits,
            preset=_PRESETS.index(preset),
            regression=regression,
        )
    )


def fit(
    shape: Sequence[int],
    sample: npt.NDArray[np.int32] | npt.NDArray[np.float32],
    step: float = 1.0,
    state_bits: int = 0,
    preset: str = "default",
    regression: bool = False,
) -> bytes:
    """Coding parameters for a tensor of this shape, from the elements of :func:`sample_runs`.

    They are levels (int32), or weights (float32) to be quantised with ``step``. There are two quantisers and
    ``2**state_bits`` states of a trellis, or one quantiser if that is 0. ``preset`` is "fast", "default" or "small".
    With ``regression`` where there can be one.
    """
    given = _fit(shape, preset, state_bits, regression)
    elements = _sampled(sample, step)
    return deliver(lambda out: lib.dc_fit(given, elements, out), 64)


def first(shape: Sequence[int]) -> int:
    """First elements of a flat tensor, on which regression is tried: rows enough to learn from, but not too many."""
    return min(max(256 * math.prod(shape[1:]), 1 << 17), 1 << 20)


def fit_whole(
    shape: Sequence[int],
    sample: npt.NDArray[Any],
    elements: npt.NDArray[Any],
    step: float = 1.0,
    state_bits: int = 0,
    preset: str = "default",
    regression: bool | None = None,
) -> bytes:
    """What :func:`fit` returns; at preset small with regression of columns on those before, if that makes it smaller.

    ``elements`` are the tensor's :func:`first` elements, by which that is decided if ``regression`` is None.
    """
    params = fit(shape, sample, step, state_bits, preset)
    if preset != "small" or regression is False:
        return params
    if regression is None:
        pays: Pointer[bool] = ffi.new("bool *")
        checked(lib.dc_try_regression(bytes_pointer(params), len(params), _sampled(elements, step), pays))
        if not pays[0]:
            return params
    return fit(shape, sample, step, state_bits, preset, regression=True)


_BAD_PARAMETERS = "damaged data: coding parameters out of range"


class Parameters(NamedTuple):
    """What stored coding parameters say (FORMAT.md, 4.8)."""

    width: int  #: levels in a row
    lanes: int  #: chunks that the core decodes in turn: a call should get a multiple of them, so that none stays empty
    coder: str  #: the entropy coder: "binary", "fast", "sparse" or "regression" (binary, on the columns before)
    states: int  #: of the trellis that the levels were quantised with; 1 without one


@lru_cache(1 << 12)
def parameters(params: bytes) -> Parameters:
    """What ``params`` say. Raises DamagedFileError if they are not valid."""
    out = result(DcParams)
    if not is_undamaged(lib.dc_params(bytes_pointer(params), len(params), out)):
        raise DamagedFileError(_BAD_PARAMETERS)
    said = out[0]
    coder, states = _CODERS[said.coder], 1 << said.state_bits
    return Parameters(said.width, said.lanes, coder, states)


@lru_cache(1 << 12)
def chunk_levels(params: bytes) -> int:
    """Levels in every chunk but the last. Raises DamagedFileError if ``params`` are not valid."""
    levels = lib.dc_chunk_levels(bytes_pointer(params), len(params))
    if levels == 0:
        raise DamagedFileError(_BAD_PARAMETERS)
    return levels


def most_levels(length: int) -> int:
    """Most levels that a chunk of ``length`` bytes can hold."""
    return int(lib.dc_most_levels(length))


def encode(params: bytes, levels: npt.NDArray[np.int32]) -> bytes:
    """The code of one chunk of levels."""
    record, given = bytes_pointer(params), pointer(levels)
    return deliver(lambda out: lib.dc_encode(record, len(params), given, levels.size, out), 2 * levels.size + 64)


def quantize(
    params: bytes,
    weights: npt.NDArray[np.float32],
    step: float,
    rate_weight: float,
    levels: npt.NDArray[np.int32] | None = None,
    limit: int = MAX_LEVEL,
    importance: npt.NDArray[np.float32] | None = None,
    keeps_zeros: bool = False,
) -> tuple[bytes, Sums]:
    """Quantise one chunk of weights and code it.

    ``rate_weight`` is lambda in squared steps per bit. Chosen levels are also written to ``levels`` if given. The error
    of each weight, and its terms in the sums, count ``importance`` times. With ``keeps_zeros`` weights of zero stay
    zero.
    """
    sums = result(DcSums)
    given = structure(
        DcQuantize(
            params=bytes_pointer(params),
            params_length=len(params),
            weights=pointer(weights),
            count=weights.size,
            importance=pointer(importance),
            levels=pointer(levels),
            step=step,
            rate_weight=rate_weight,
            limit=limit,
            keeps_zeros=keeps_zeros,
        )
    )
    code = deliver(lambda out: lib.dc_quantize(given, sums, out), 2 * weights.size + 64)
    return code, _sums(sums)


@dataclass(frozen=True)
class Coupling:
    """How errors in a matrix of [height, width] weights add up: factors of their cost (``src/feedback.rs``)."""

    columns: npt.NDArray[np.float32]  #: [groups, blocks, width / blocks, width / blocks], unit upper triangular
    common: npt.NDArray[np.float32] | None  #: [width], the factor beside these blocks; None if it is zero
    rows: npt.NDArray[np.float32] | None  #: [height, height], unit upper triangular; None if rows are independent
    errors: npt.NDArray[np.float32] | None  #: [height, width], zeros; filled row by row; None with ``rows``
    height: int


def quantize_coupled(
    params: bytes,
    weights: npt.NDArray[np.float32],
    first_row: int,
    coupling: Coupling,
    rate_weight: float,
    levels: npt.NDArray[np.int32],
    limit: int = MAX_LEVEL,
    keeps_zeros: bool = False,
) -> tuple[bytes, Sums]:
    """Quantise one chunk of a matrix, ``weights`` in steps, with error feedback, and code it.

    Chunks of a matrix with ``coupling.rows`` are to be quantised in order. Chosen levels are written to ``levels``.
    """
    sums = result(DcSums)
    groups, blocks, block, _ = coupling.columns.shape
    given = structure(
        DcQuantizeCoupled(
            params=bytes_pointer(params),
            params_length=len(params),
            weights=pointer(weights),
            count=weights.size,
            height=coupling.height,
            width=blocks * block,
            block=block,
            first_row=first_row,
            columns=pointer(coupling.columns),
            common=pointer(coupling.common),
            group_rows=coupling.height // groups,
            rows=pointer(coupling.rows),
            errors=pointer(coupling.errors),
            levels=pointer(levels),
            rate_weight=rate_weight,
            limit=limit,
            keeps_zeros=keeps_zeros,
        )
    )
    code = deliver(lambda out: lib.dc_quantize_coupled(given, sums, out), 5 * weights.size + 64)
    return code, _sums(sums)


@dataclass(frozen=True)
class Job:
    """A chunk to decode into ``out``: int32 gets the levels, float32 the levels times ``step``."""

    params: bytes
    code: bytes | memoryview
    out: npt.NDArray[Any]
    step: float = 1.0


def decode(jobs: Sequence[Job]) -> list[bool]:
    """Decode chunks, several at a time on this thread. Returns for each whether its bytes were exactly its code."""
    native = structures(DcJob, [_job(job) for job in jobs])
    checked(lib.dc_decode(native, len(jobs)))
    return [native[number].good for number in range(len(jobs))]


def _job(job: Job) -> DcJob:
    levels = job.out.dtype == np.int32
    return DcJob(
        params=bytes_pointer(job.params),
        params_length=len(job.params),
        bytes=bytes_pointer(job.code),
        bytes_length=len(job.code),
        count=job.out.size,
        levels=pointer(job.out if levels else None),
        values=pointer(None if levels else job.out),
        step=job.step,
    )


def crc32(data: bytes | bytearray | memoryview) -> int:
    """CRC-32 as of zlib, several times as fast."""
    return int(lib.dc_crc32(bytes_pointer(data), len(data)))


def encode_bytes(data: bytes) -> bytes:
    """The code of bytes without a model of their own (names, metadata)."""
    given = bytes_pointer(data)
    return deliver(lambda out: lib.dc_encode_bytes(given, len(data), out), len(data) + 64)


def decode_bytes(code: bytes | memoryview, length: int) -> bytes:
    """The ``length`` bytes that ``code`` stands for; DamagedFileError if it is not exactly their code."""
    if length > most_levels(len(code)) // 8:
        raise DamagedFileError(f"damaged data: {len(code)} coded bytes cannot stand for {length}")
    out = bytearray(length)
    checked(lib.dc_decode_bytes(bytes_pointer(code), len(code), bytes_pointer(out), length))
    return bytes(out)


@dataclass(frozen=True)
class Exact:
    """How exact values become levels and refinement bits (``src/exact.rs``)."""

    method: int  #: FLOAT, FLOAT_ZEROS, INTEGERS, STEPS or DIFFERENCES of :mod:`deepcabac.quantize.exact`
    mantissa: int  #: bits of the mantissa; 0 for integers
    exponent: int  #: log2 of a step in units
    centre: int  #: what integers are counted from
    width: int  #: values in a row
    base: npt.NDArray[Any] | None = None  #: unsigned patterns, as many as values

    def of(self, patterns: npt.NDArray[Any]) -> Pointer[DcExact]:
        """The C structure for these values."""
        base = None if self.base is None else np.ascontiguousarray(self.base).view(np.uint8)
        return structure(
            DcExact(
                values=pointer(patterns.view(np.uint8)),
                base=pointer(base),
                count=patterns.size,
                width=self.width,
                centre=self.centre,
                exponent=self.exponent,
                method=self.method,
                mantissa=self.mantissa,
                item=patterns.dtype.itemsize,
            )
        )


def split(form: Exact, patterns: npt.NDArray[Any], room: int) -> tuple[npt.NDArray[np.int32], bytes]:
    """Levels and refinement bits of unsigned patterns; ``room`` is a guess at the bytes of refinement bits."""
    levels = np.empty(patterns.size, np.int32)
    given, chosen = form.of(patterns), pointer(levels)
    refinement = deliver(lambda out: lib.dc_split(given, chosen, out), room)
    return levels, refinement


def encode_exact(params: bytes, form: Exact, patterns: npt.NDArray[Any]) -> tuple[bytes, int]:
    """One chunk of values coded: the code of their levels, then refinement bits, and how many bytes those are."""
    record, given = bytes_pointer(params), form.of(patterns)
    length: Pointer[int] = ffi.new("uintptr_t *")
    code = deliver(
        lambda out: lib.dc_encode_exact(record, len(params), given, length, out),
        patterns.nbytes + 64,
    )
    return code, length[0]


@dataclass(frozen=True)
class Leveled:
    """A sample of a tensor's exact values as levels: how they were made, and their code as one chunk."""

    exponent: int  #: log2 of a step in units
    params: bytes
    code: bytes  #: with refinement bits at the end
    refinement: int  #: how many bytes these are


def encode_leveled(
    form: Exact, shape: Sequence[int], patterns: npt.NDArray[Any], tries: int = 1, preset: str = "default"
) -> Leveled:
    """Choose a step and coding parameters for a tensor of this shape by a sample of its patterns; encode the sample.

    ``tries`` exponents are tried, from that of ``form`` on.
    """
    chosen = result(DcLeveled)
    given, tensor = form.of(patterns), _fit(shape, preset)
    coded = deliver(lambda out: lib.dc_encode_leveled(given, tensor, tries, chosen, out), patterns.nbytes + 256)
    exponent, length = chosen[0].exponent, chosen[0].params_length
    return Leveled(exponent, coded[:length], coded[length:], chosen[0].refinement_length)


def join(
    form: Exact, levels: npt.NDArray[np.int32], refinement: bytes | memoryview, patterns: npt.NDArray[Any]
) -> bool:
    """Fill ``patterns`` from levels and refinement bits; whether they belong together."""
    given, bits = form.of(patterns), bytes_pointer(refinement)
    return is_undamaged(lib.dc_join(given, pointer(levels), bits, len(refinement)))


@dataclass(frozen=True)
class Floats:
    """A chunk of floating-point values, as unsigned ``patterns``, and its ``code`` if it is to be decoded."""

    patterns: npt.NDArray[Any]
    mantissa: int  #: bits of the mantissa
    width: int  #: values in a row
    code: bytes | memoryview = b""

    def fields(self) -> DcFloats:
        """The C structure's."""
        return DcFloats(
            values=pointer(self.patterns.view(np.uint8)),
            bytes=bytes_pointer(self.code),
            bytes_length=len(self.code),
            count=self.patterns.size,
            width=self.width,
            mantissa=self.mantissa,
            item=self.patterns.itemsize,
        )


def encode_floats(given: Floats, scaled: bool) -> bytes:
    """The code of one chunk; if ``scaled``, with scales of rows and columns where they save bits."""
    native = structure(given.fields())
    return deliver(lambda out: lib.dc_encode_floats(native, scaled, out), given.patterns.nbytes + 4096)


def decode_floats(jobs: Sequence[Floats]) -> list[bool]:
    """Decode chunks into their patterns. Returns for each whether its bytes were exactly its code."""
    native = structures(DcFloats, [job.fields() for job in jobs])
    checked(lib.dc_decode_floats(native, len(jobs)))
    return [native[number].good for number in range(len(jobs))]


def _book(entries: int, usual: int, width: int) -> Pointer[DcCodebook]:
    return structure(DcCodebook(entries=entries, width=width, usual=usual))


def encode_indices(indices: npt.NDArray[np.uint16], entries: int, usual: int, width: int) -> bytes:
    """The code of one chunk of indices into a codebook of so many ``entries``, whose most frequent one is ``usual``."""
    book, given = _book(entries, usual, width), pointer(indices)
    return deliver(lambda out: lib.dc_encode_indices(book, given, indices.size, out), 2 * indices.size + 64)


def decode_indices(
    code: bytes | memoryview, entries: int, usual: int, width: int, indices: npt.NDArray[np.uint16]
) -> bool:
    """Fill ``indices``; whether ``code`` was exactly their code."""
    book = _book(entries, usual, width)
    return is_undamaged(
        lib.dc_decode_indices(book, bytes_pointer(code), len(code), pointer(indices), indices.size)
    )


#: Values in every chunk of changes but the last.
CHANGE_CHUNK = int(lib.dc_change_chunk())
#: Codes of a rate; exponents that a type has, at most.
RATE_CODES, MOST_EXPONENTS = 64, 1 << 11


@dataclass(frozen=True)
class Rates:
    """How often the values of a base change, by their exponents (``src/coding/changes.rs``)."""

    first: int  #: the exponent of the first code
    codes: bytes  #: one for each exponent from there on

    def of(self, base: npt.NDArray[Any], mantissa: int) -> Pointer[DcChanges]:
        """The C structure for these values of a base: unsigned patterns."""
        return structure(
            DcChanges(
                base=pointer(base.view(np.uint8)),
                count=base.size,
                codes=bytes_pointer(self.codes),
                codes_length=len(self.codes),
                first=self.first,
                mantissa=mantissa,
                item=base.dtype.itemsize,
            )
        )


def fit_changes(mantissa: int, base: npt.NDArray[Any], patterns: npt.NDArray[Any]) -> Rates:
    """Rates that suit the change from ``base`` to as many ``patterns``, with so many bits of mantissa (0: integers)."""
    given, values = Rates(0, b"").of(base, mantissa), pointer(patterns.view(np.uint8))
    first: Pointer[int] = ffi.new("uintptr_t *")
    codes = deliver(lambda out: lib.dc_fit_changes(given, values, first, out), MOST_EXPONENTS)
    return Rates(first[0], codes)


def encode_changes(rates: Rates, mantissa: int, base: npt.NDArray[Any], patterns: npt.NDArray[Any]) -> bytes:
    """The code of the change of one chunk from ``base`` to ``patterns``; empty if there is none."""
    given, values = rates.of(base, mantissa), pointer(patterns.view(np.uint8))
    return deliver(lambda out: lib.dc_encode_changes(given, values, out), base.nbytes // 8 + 64)


def decode_changes(
    rates: Rates, mantissa: int, base: npt.NDArray[Any], code: bytes | memoryview, patterns: npt.NDArray[Any]
) -> bool:
    """Fill ``patterns``, as many as ``base`` has; whether ``code`` was exactly the code of a change."""
    given, values = rates.of(base, mantissa), pointer(patterns.view(np.uint8))
    return is_undamaged(lib.dc_decode_changes(given, bytes_pointer(code), len(code), values))


def list_changes(
    rates: Rates, mantissa: int, base: npt.NDArray[Any], code: bytes | memoryview
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]] | None:
    """Places in the chunk where values change, and what they become; None if ``code`` is damaged."""
    places, values = np.empty(base.size, np.uint32), np.empty_like(base)
    found: Pointer[int] = ffi.new("uintptr_t *")
    given, become = rates.of(base, mantissa), pointer(values.view(np.uint8))
    if not is_undamaged(
        lib.dc_list_changes(given, bytes_pointer(code), len(code), pointer(places), become, found)
    ):
        return None
    return places[: found[0]].copy(), values[: found[0]].copy()
