"""The native core, as functions on numpy arrays and bytes. Nothing here knows files, names or data types.

Calls release the interpreter lock, so threads run them in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcabac._native import ffi, lib
from deepcabac.errors import DamagedFileError

_INTERFACE = 9
_OK, _ARGUMENT, _DAMAGED, _ROOM = 0, 1, 2, 3

if lib.dc_interface() != _INTERFACE:
    raise ImportError("deepcabac's native library and its Python code are of different versions: reinstall deepcabac")

#: Chunks that the core decodes in turn at most: see :func:`lanes`.
LANES = 8
#: From speed to size.
LEVELS = ("fast", "default", "small")
#: Largest magnitude of a level that the quantiser may choose: it stays exact in float32 arithmetic up to 2^24.
MAX_LEVEL = 1 << 24


@dataclass(frozen=True)
class Sums:
    """Sums over the weights w and levels q of a chunk."""

    energy: float  #: of w^2
    error: float  #: of (w - step q)^2
    correlation: float  #: of w q
    levels: float  #: of q^2


def _pointer(array: npt.NDArray[Any], kind: str) -> Any:
    return ffi.cast(kind, array.ctypes.data) if array.size else ffi.NULL


def _checked(status: int) -> None:
    if status == _DAMAGED:
        raise DamagedFileError("damaged data: the coded bytes are not what an encoder wrote")
    if status != _OK:
        raise AssertionError(f"native call failed with status {status}: please report this as a bug in deepcabac")


def _deliver(call: Any, capacity: int, length: Any = None) -> bytes:
    """Run ``call(out, capacity, length)``, again with more room if it needs more."""
    length = ffi.new("uintptr_t *") if length is None else length
    out = np.empty(capacity, np.uint8)  # what is not needed is never touched
    status = call(_pointer(out, "uint8_t *"), out.size, length)
    if status == _ROOM:
        out = np.empty(length[0], np.uint8)
        status = call(_pointer(out, "uint8_t *"), out.size, length)
    _checked(status)
    return out[: length[0]].tobytes()


def measure(weights: npt.NDArray[np.float32]) -> tuple[float, float, int]:
    """Sum of w^2, largest |w|, and how many weights are not finite (those are left out)."""
    out = np.empty(3)
    _checked(lib.dc_measure(_pointer(weights, "float *"), weights.size, _pointer(out, "double *")))
    return float(out[0]), float(out[1]), int(out[2])


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


def fit(
    shape: Sequence[int],
    sample: npt.NDArray[np.int32] | npt.NDArray[np.float32],
    step: float = 1.0,
    state_bits: int = 0,
    level: str = "default",
    regression: bool = False,
) -> bytes:
    """Coding parameters for a tensor of this shape, from the elements of :func:`sample_runs`.

    They are levels (int32), or weights (float32) to be quantised with ``step``. There are two quantisers and
    ``2**state_bits`` states of a trellis, or one quantiser if that is 0. ``level`` is one of LEVELS. With
    ``regression`` where there can be one.
    """
    dimensions = np.array(shape, np.uint64)
    levels = sample.dtype == np.int32
    return _deliver(
        lambda out, capacity, length: lib.dc_fit(
            _pointer(dimensions, "uint64_t *"),
            len(shape),
            math.prod(shape),
            _pointer(sample, "int32_t *") if levels else ffi.NULL,
            ffi.NULL if levels else _pointer(sample, "float *"),
            sample.size,
            step,
            state_bits,
            LEVELS.index(level),
            regression,
            out,
            capacity,
            length,
        ),
        64,
    )


def first(shape: Sequence[int]) -> int:
    """First elements of a flat tensor, on which regression is tried: rows enough to learn from, but not too many."""
    return min(max(256 * math.prod(shape[1:]), 1 << 17), 1 << 20)


def fit_whole(
    shape: Sequence[int],
    sample: npt.NDArray[Any],
    elements: npt.NDArray[Any],
    step: float = 1.0,
    state_bits: int = 0,
    level: str = "default",
    regression: bool | None = None,
) -> bytes:
    """What :func:`fit` returns; at level small with regression of columns on those before, if that makes it smaller.

    ``elements`` are the tensor's :func:`first` elements, by which that is decided if ``regression`` is None.
    """
    params = fit(shape, sample, step, state_bits, level)
    if level != "small" or regression is False:
        return params
    if regression is None:
        levels, pays = elements.dtype == np.int32, ffi.new("uint8_t *")
        status = lib.dc_try_regression(
            ffi.from_buffer("uint8_t[]", params),
            len(params),
            _pointer(elements, "int32_t *") if levels else ffi.NULL,
            ffi.NULL if levels else _pointer(elements, "float *"),
            elements.size,
            step,
            pays,
        )
        _checked(status)
        if not pays[0]:
            return params
    return fit(shape, sample, step, state_bits, level, regression=True)


def has_regression(params: bytes) -> bool:
    """Whether levels are coded with regression (FORMAT.md, 4.8); not if there are no parameters."""
    return bool(params and params[0] & 64)


def lanes(params: bytes) -> int:
    """Chunks that the core decodes in turn: a call should get a multiple of them, so that no lane stays empty.

    Only the binary coder's, without regression: the fast coder has lanes inside a chunk.
    """
    return 1 if params and params[0] & (16 | 32 | 64) else LANES


def chunk_levels(params: bytes) -> int:
    """Levels in every chunk but the last. Raises DamagedFileError if ``params`` are not valid."""
    levels = int(lib.dc_chunk_levels(ffi.from_buffer("uint8_t[]", params), len(params)))
    if levels == 0:
        raise DamagedFileError("damaged data: coding parameters out of range")
    return levels


def most_levels(length: int) -> int:
    """Most levels that a chunk of ``length`` bytes can hold."""
    return int(lib.dc_most_levels(length))


def encode(params: bytes, levels: npt.NDArray[np.int32]) -> bytes:
    """The code of one chunk of levels."""
    return _deliver(
        lambda out, capacity, length: lib.dc_encode(
            ffi.from_buffer("uint8_t[]", params),
            len(params),
            _pointer(levels, "int32_t *"),
            levels.size,
            out,
            capacity,
            length,
        ),
        2 * levels.size + 64,
    )


def quantize(
    params: bytes,
    weights: npt.NDArray[np.float32],
    step: float,
    rate_weight: float,
    levels: npt.NDArray[np.int32] | None = None,
    limit: int = MAX_LEVEL,
    importance: npt.NDArray[np.float32] | None = None,
    reach: float = math.inf,
    keeps_zeros: bool = False,
) -> tuple[bytes, Sums]:
    """Quantise one chunk of weights and code it.

    ``rate_weight`` is lambda in squared steps per bit. Chosen levels are also written to ``levels`` if given. The error
    of each weight, and its terms in the sums, count ``importance`` times; levels but the nearest cost at most ``reach``
    squared steps in error. With ``keeps_zeros`` weights of zero stay zero.
    """
    sums = np.empty(4)
    code = _deliver(
        lambda out, capacity, length: lib.dc_quantize(
            ffi.from_buffer("uint8_t[]", params),
            len(params),
            _pointer(weights, "float *"),
            weights.size,
            ffi.NULL if importance is None else _pointer(importance, "float *"),
            step,
            rate_weight,
            reach,
            limit,
            keeps_zeros,
            ffi.NULL if levels is None else _pointer(levels, "int32_t *"),
            _pointer(sums, "double *"),
            out,
            capacity,
            length,
        ),
        2 * weights.size + 64,
    )
    return code, Sums(*sums.tolist())


@dataclass(frozen=True)
class Coupling:
    """How errors in a matrix of [height, width] weights add up: factors of their cost (``src/feedback.rs``)."""

    columns: npt.NDArray[np.float32]  #: [groups, width, width], unit upper triangular
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
    sums = np.empty(4)
    groups, width, _ = coupling.columns.shape
    code = _deliver(
        lambda out, capacity, length: lib.dc_quantize_coupled(
            ffi.from_buffer("uint8_t[]", params),
            len(params),
            _pointer(weights, "float *"),
            weights.size,
            coupling.height,
            width,
            first_row,
            _pointer(coupling.columns, "float *"),
            coupling.height // groups,
            ffi.NULL if coupling.rows is None else _pointer(coupling.rows, "float *"),
            ffi.NULL if coupling.errors is None else _pointer(coupling.errors, "float *"),
            rate_weight,
            limit,
            keeps_zeros,
            _pointer(levels, "int32_t *"),
            _pointer(sums, "double *"),
            out,
            capacity,
            length,
        ),
        5 * weights.size + 64,
    )
    return code, Sums(*sums.tolist())


@dataclass(frozen=True)
class Job:
    """A chunk to decode into ``out``: int32 gets the levels, float32 the levels times ``step``."""

    params: bytes
    code: bytes | memoryview
    out: npt.NDArray[Any]
    step: float = 1.0


def decode(jobs: Sequence[Job]) -> list[bool]:
    """Decode chunks, several at a time on this thread. Returns for each whether its bytes were exactly its code."""
    native = ffi.new("DcJob[]", len(jobs))
    keep = []
    for slot, job in zip(native, jobs, strict=True):
        params, code = ffi.from_buffer("uint8_t[]", job.params), ffi.from_buffer("uint8_t[]", job.code)
        keep += [params, code]
        slot.params, slot.params_length = params, len(job.params)
        slot.bytes, slot.bytes_length = code, len(job.code)
        slot.count, slot.step = job.out.size, job.step
        if job.out.dtype == np.int32:
            slot.levels = _pointer(job.out, "int32_t *")
        else:
            slot.values = _pointer(job.out, "float *")
    _checked(lib.dc_decode(native, len(jobs)))
    return [slot.status == _OK for slot in native]


def encode_bytes(data: bytes) -> bytes:
    """The code of bytes without a model of their own (names, metadata)."""
    return _deliver(
        lambda out, capacity, length: lib.dc_encode_bytes(
            ffi.from_buffer("uint8_t[]", data), len(data), out, capacity, length
        ),
        len(data) + 64,
    )


def decode_bytes(code: bytes | memoryview, length: int) -> bytes:
    """The ``length`` bytes that ``code`` stands for; DamagedFileError if it is not exactly their code."""
    if length > most_levels(len(code)) // 8:
        raise DamagedFileError(f"damaged data: {len(code)} coded bytes cannot stand for {length}")
    out = bytearray(length)
    _checked(
        lib.dc_decode_bytes(
            ffi.from_buffer("uint8_t[]", code),
            len(code),
            ffi.from_buffer("uint8_t[]", out, require_writable=True),
            length,
        )
    )
    return bytes(out)


@dataclass(frozen=True)
class Exact:
    """How exact values become levels and details (``src/exact.rs``)."""

    kind: int  #: FLOAT, FLOAT_ZEROS, INTEGER, STEPS or DIFFERENCES of :mod:`deepcabac.exact`
    mantissa: int  #: bits of the mantissa; 0 for integers
    exponent: int  #: log2 of a step in units
    centre: int  #: what integers are counted from
    width: int  #: values in a row
    base: npt.NDArray[Any] | None = None  #: unsigned patterns, as many as values

    def native(self, item: int) -> tuple[Any, Any]:
        """The C structure for values of ``item`` bytes, and what has to live as long."""
        slot = ffi.new("DcExact *")
        slot.kind, slot.mantissa, slot.item = self.kind, self.mantissa, item
        slot.exponent, slot.centre, slot.width = self.exponent, self.centre, self.width
        base = None if self.base is None else np.ascontiguousarray(self.base)
        slot.base = ffi.NULL if base is None else _pointer(base, "uint8_t *")
        return slot, base


def row_width(params: bytes) -> int:
    """Levels in a row (FORMAT.md, 4.8)."""
    width = shift = 0
    for byte in params[2:5]:
        width |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return width


def split(form: Exact, patterns: npt.NDArray[Any], room: int) -> tuple[npt.NDArray[np.int32], bytes]:
    """Levels and details of unsigned patterns; ``room`` is a guess at the bytes of details."""
    levels = np.empty(patterns.size, np.int32)
    slot, keep = form.native(patterns.dtype.itemsize)
    details = _deliver(
        lambda out, capacity, length: lib.dc_split(
            slot,
            _pointer(patterns, "uint8_t *"),
            patterns.size,
            _pointer(levels, "int32_t *"),
            out,
            capacity,
            length,
        ),
        room,
    )
    del keep
    return levels, details


def encode_exact(params: bytes, form: Exact, patterns: npt.NDArray[Any]) -> tuple[bytes, int]:
    """One chunk of values coded: the code of their levels with details behind, and how many bytes those are."""
    slot, keep = form.native(patterns.dtype.itemsize)
    lengths = ffi.new("uintptr_t[2]")
    code = _deliver(
        lambda out, capacity, length: lib.dc_encode_exact(
            ffi.from_buffer("uint8_t[]", params),
            len(params),
            slot,
            _pointer(patterns, "uint8_t *"),
            patterns.size,
            out,
            capacity,
            length,
        ),
        patterns.nbytes + 64,
        lengths,
    )
    del keep
    return code, int(lengths[1])


def join(form: Exact, levels: npt.NDArray[np.int32], details: bytes | memoryview, patterns: npt.NDArray[Any]) -> bool:
    """Fill ``patterns`` from levels and details; whether they belong together."""
    slot, keep = form.native(patterns.dtype.itemsize)
    status = lib.dc_join(
        slot,
        _pointer(levels, "int32_t *"),
        levels.size,
        ffi.from_buffer("uint8_t[]", details),
        len(details),
        _pointer(patterns, "uint8_t *"),
    )
    del keep
    if status != _DAMAGED:
        _checked(status)
    return bool(status == _OK)


def encode_numbers(numbers: npt.NDArray[np.uint16], entries: int, usual: int, width: int) -> bytes:
    """The code of one chunk of numbers below ``entries``."""
    return _deliver(
        lambda out, capacity, length: lib.dc_encode_numbers(
            _pointer(numbers, "uint16_t *"), numbers.size, entries, usual, width, out, capacity, length
        ),
        2 * numbers.size + 64,
    )


def decode_numbers(
    code: bytes | memoryview, entries: int, usual: int, width: int, numbers: npt.NDArray[np.uint16]
) -> bool:
    """Fill ``numbers``; whether ``code`` was exactly their code."""
    status = lib.dc_decode_numbers(
        ffi.from_buffer("uint8_t[]", code),
        len(code),
        entries,
        usual,
        width,
        _pointer(numbers, "uint16_t *"),
        numbers.size,
    )
    if status != _DAMAGED:
        _checked(status)
    return bool(status == _OK)
