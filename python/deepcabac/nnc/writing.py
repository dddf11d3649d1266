"""From arrays to streams of ISO/IEC 15938-17 that NNCodec reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _streams
from .._core import measure
from .._parallel import run_all
from ..checkpoint.base import EXACT_DTYPES, Array
from ..errors import OptionError, UnsupportedError, unknown
from . import syntax
from .bits import BitWriter
from .reading import Memory, Tensor, accumulate, load_with, matrix_shape, step_size
from .syntax import Codebook, DataHeader, Parent, Payload

#: Quantisation parameters of NNCodec: of weights, and of tensors of one dimension.
DEFAULT_QP, DEFAULT_VECTOR_QP = -38, -75
#: Values of a codebook, at most: more never paid.
_MOST_VALUES = 1 << 12
#: What a bit is worth in squared steps. With two quantisers in turn: 0.7, which NNCodec's authors found best, times
#: ``4 ln 2 / 6``, where a step lies between two values of their union. With one quantiser: ``ln 2 / 6``.
_RATE_DEPENDENT, _RATE_SCALAR = 4 * math.log(2) / 6 * 0.7, math.log(2) / 6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tensors are coded; names and meanings as NNCodec's."""

    qp: int = DEFAULT_QP  #: quantisation parameter of tensors of two dimensions or more
    vector_qp: int = DEFAULT_VECTOR_QP  #: of one dimension or none
    qp_per_tensor: Mapping[str, int] = field(default_factory=dict)
    density: int = 2  #: 2^density parameters double the step: 0 to 7
    dependent: bool = True  #: two quantisers take turns (DQ)
    rate_distortion: float = 1.0  #: how much a saved bit is worth; 0 chooses the values with the least error
    param_opt: bool = True  #: choose how each context begins and adapts
    row_skipping: bool = True  #: skip rows of zeros where it pays
    codebook: bool = False  #: list a tensor's values where that pays
    scan: int = 0  #: 0 row by row; 1 to 4 in blocks of 8, 16, 32, 64, for decoding in parallel
    unary: int = 11  #: decisions "greater than k" of a level, at most: 1 to 256
    temporal: bool = True  #: contexts of an update depend on the update before (TCA)
    device: int = 0  #: who made an update

    def __post_init__(self) -> None:
        for name, low, high in (("density", 0, 7), ("scan", 0, 4), ("unary", 1, 256), ("device", 0, 1 << 30)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise OptionError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        most = 1 << (5 + self.density)
        for name, qp in (("qp", self.qp), ("vector_qp", self.vector_qp), *self.qp_per_tensor.items()):
            if isinstance(qp, bool) or not isinstance(qp, (int, np.integer)) or not -most <= qp < most:
                raise OptionError(
                    f"{name}: a quantisation parameter of density {self.density} is a whole number from "
                    f"{-most} to {most - 1}, not {qp!r}"
                )
        if not (isinstance(self.rate_distortion, (int, float)) and 0 <= self.rate_distortion <= 100):
            raise OptionError(f"rate_distortion must be a number from 0 to 100, not {self.rate_distortion!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """From names and values. Raises OptionError for an unknown name."""
        known = [each.name for each in fields(cls)]
        for name in settings:
            if name not in known:
                raise OptionError(unknown("setting", name, known))
        return cls(**settings)


@dataclass(frozen=True)
class UnitReport:
    """A tensor as it was coded."""

    name: str
    elements: int
    coded_bytes: int  #: of its unit, 0 if an update leaves it as it was
    squared_error: float
    energy: float


@dataclass
class StreamReport:
    """What became of the tensors."""

    tensors: list[UnitReport]
    notes: list[str]
    raw_bytes: int
    file_bytes: int


def encode(
    tensors: Mapping[str, npt.ArrayLike],
    *,
    bases: Sequence[bytes | memoryview | Mapping[str, Array]] = (),
    threads: int | None = None,
    **settings: Any,
) -> bytes:
    """The stream of these tensors. ``settings`` are the fields of :class:`Settings`.

    Floating-point tensors are quantised as float32; integers are stored exactly as int32. With ``bases``, as
    :func:`load` takes them, the stream is an update: the differences to what they give.

    Raises OptionError, and UnsupportedError naming a tensor that the format cannot hold.
    """
    return compress(tensors, bases=bases, threads=threads, settings=Settings.of(settings))[0]


def compress(
    tensors: Mapping[str, npt.ArrayLike],
    *,
    bases: Sequence[bytes | memoryview | Mapping[str, Array]] = (),
    threads: int | None = None,
    settings: Settings,
) -> tuple[bytes, StreamReport]:
    """:func:`encode` with a report."""
    memory = Memory()
    model: dict[str, Array] | None = None
    if bases:
        model = {}
        for base in bases:
            accumulate(model, base if isinstance(base, Mapping) else load_with(base, memory, threads=threads))
        if memory.device not in (None, settings.device):
            raise OptionError(f"the base was made by device {memory.device}, the update by device {settings.device}")
    names = set(tensors)
    for name in settings.qp_per_tensor:
        if name not in names:
            raise OptionError(f"qp_per_tensor: no tensor is called {name!r}")
    notes: list[str] = []
    plain = {name: _plain(name, np.asarray(value), notes) for name, value in tensors.items()}
    if model is not None:
        plain = _differences(plain, model)
    calls: list[Callable[[], tuple[bytes, UnitReport, str]]] = [
        partial(_tensor, name, number, array, settings, memory if bases else None)
        for number, (name, array) in enumerate(plain.items())
    ]
    done = run_all(calls, threads)
    notes += [note for _, _, note in done if note]
    updates = bool(bases)
    code = syntax.write_beginning(settings.density, updates) + b"".join(unit for unit, _, _ in done)
    raw = sum(np.asarray(value).nbytes for value in tensors.values())
    return code, StreamReport([coded for _, coded, _ in done], notes, raw, len(code))


def _plain(name: str, array: Array, notes: list[str]) -> Array:
    """Little-endian float32 or int32, C-contiguous; scalars as NNCodec stores them, with one dimension of one."""
    array = array.reshape(array.shape or (1,))
    if "\0" in name:
        raise UnsupportedError(f"tensor {name!r}: a name in a .nnc file cannot hold a zero character")
    if array.dtype.kind in "iub":
        wide = array.astype(np.int64)
        if array.size and ((array.dtype == np.uint64 and array.max() >= 1 << 31) or abs(wide).max() > (1 << 31) - 4):
            raise UnsupportedError(f"tensor {name!r} has integers that need more than 32 bits, which .nnc cannot hold")
        return np.ascontiguousarray(wide.astype(np.int32)).reshape(array.shape)
    if array.dtype.kind in "cOSUMm" or array.dtype in EXACT_DTYPES.values():
        raise UnsupportedError(f"tensor {name!r} has dtype {array.dtype}, which a .nnc file cannot hold")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    if not np.isfinite(single).all():
        raise UnsupportedError(f"tensor {name!r} has NaN or infinity, which a .nnc file cannot hold; use .dcb")
    if array.dtype != np.float32 and not any("float32" in note for note in notes):
        notes.append(f"tensor {name!r} and others are {array.dtype}; a .nnc file gives float32 back")
    return single


def _differences(tensors: Mapping[str, Array], model: Mapping[str, Array]) -> dict[str, Array]:
    if missing := sorted(set(model) - set(tensors)):
        raise OptionError(f"the base has a tensor {missing[0]!r} that the new version lacks")
    result = {}
    for name, array in tensors.items():
        if name not in model:
            raise OptionError(f"tensor {name!r} is not in the base: give the streams that lead to it, oldest first")
        base = model[name].reshape(model[name].shape or (1,))
        if base.shape != array.shape or (base.dtype.kind in "iub") != (array.dtype == np.int32):
            raise OptionError(
                f"tensor {name!r} is {array.dtype}{list(array.shape)}, in the base {base.dtype}{list(base.shape)}"
            )
        result[name] = array - base.astype(array.dtype, copy=False)
    return result


def _tensor(
    name: str, number: int, array: Array, settings: Settings, memory: Memory | None
) -> tuple[bytes, UnitReport, str]:
    """The unit of a tensor."""
    floats = array.dtype == np.float32
    update = memory is not None
    known = memory.tensors.get(name) if memory is not None else None
    shape = array.shape
    several = len(shape) > 1
    rows, width = matrix_shape(shape)
    header = DataHeader(
        Payload.FLOATS if floats else Payload.INTEGERS,
        (name,),
        (shape,),
        ("",),
        device=settings.device,
        parameter=number if known is None else known.parameter,
        depth=0 if not update else 1 if known is None else known.depth + 1,
        parent=Parent(False) if update else None,
        dependent=floats and settings.dependent,
        unary=settings.unary,
        # Without rows and columns blocks mean nothing, and NNCodec would write no entry points.
        scan=settings.scan if several and rows > 1 and width > 1 else 0,
    )
    job = _streams.NncTensor(
        np.zeros((rows, width), np.int32),
        block=header.block,
        unary=settings.unary,
        dependent=header.dependent,
        update=update,
        qp_bits=6 + settings.density if floats else 0,
        choose_settings=settings.param_opt,
        skip_rows=settings.row_skipping,
    )
    note, error = "", 0.0
    if floats:
        qp = int(settings.qp_per_tensor.get(name, settings.qp if several else settings.vector_qp))
        job.qp, step = _quantize(job, array, qp, settings)
        if job.qp != qp:
            note = f"tensor {name!r} has a quantisation parameter of {job.qp} instead of {qp}, to fit 32 bits per level"
    else:
        job.levels[...] = array.reshape(rows, width)
        step = 1.0
    energy = _energy(array.reshape(-1)) if floats else 0.0
    if update and not job.levels.any():
        return b"", UnitReport(name, array.size, 0, energy, energy), note
    if floats:
        error = _energy(array.reshape(-1), job.levels.reshape(-1), step)
    candidates = [(header, job)]
    if update and settings.temporal and known is not None and known.levels.shape == job.levels.shape:
        candidates.append((replace(header, parent=Parent(True)), replace(job, base=known.levels)))
    if settings.codebook and array.size and floats:
        candidates += _codebooks(header, job)
    unit = min((_unit(*one, update) for one in candidates), key=len)
    return unit, UnitReport(name, array.size, len(unit), error, energy), note


#: Elements whose squares are summed at once: what passes through stays in the cache.
_PIECE = 1 << 15


def _energy(weights: Array, levels: Array | None = None, step: float = 0.0) -> float:
    """Sum of the squares of weights, or of what levels times the step leave of them."""
    total = 0.0
    for start in range(0, weights.size, _PIECE):
        piece = weights[start : start + _PIECE]
        if levels is not None:
            piece = piece - levels[start : start + _PIECE].astype(np.float32) * np.float32(step)
        total += measure(piece)[0]
    return total


def _quantize(job: _streams.NncTensor, weights: Array, qp: int, settings: Settings) -> tuple[int, float]:
    """Choose levels; the quantisation parameter, raised until they fit 32 bits, and the step."""
    rate = settings.rate_distortion * (_RATE_DEPENDENT if job.dependent else _RATE_SCALAR)
    flat = weights.reshape(-1)
    most = 1 << (5 + settings.density)
    for raised in range(qp, most):
        step = step_size(raised, settings.density)
        if step >= np.finfo(np.float32).tiny and _streams.nnc_quantize(job, flat, step, rate):
            return raised, step
    raise UnsupportedError("has values that are too large for the quantisation parameters of this density")


def _unit(header: DataHeader, job: _streams.NncTensor, updates: bool) -> bytes:
    payload = _streams.nnc_encode([job])
    if header.scan:
        # What stands at an entry point follows from the finished code alone.
        entries = np.zeros((len(job.levels) - 1) // header.block, np.uint64)
        again = replace(job, levels=np.zeros_like(job.levels), entries=entries, entries_known=False)
        _streams.nnc_decode(payload, [again])
        header = replace(header, entries=tuple(entries.tolist()))
    return syntax.write_data(header, payload, updates)


def _codebooks(header: DataHeader, job: _streams.NncTensor) -> list[tuple[DataHeader, _streams.NncTensor]]:
    """The same values as codebook indices, with some choices of the one that is level 0."""
    values, places, counts = np.unique(job.levels, return_inverse=True, return_counts=True)
    if values.size > _MOST_VALUES:
        return []
    books = []
    # At either end there are no signs.
    ends = {0, values.size - 1}
    for zero in sorted({int(counts.argmax()), int(np.abs(values).argmin()), values.size // 2} | ends):
        book = Codebook(tuple(values.tolist()), zero, _best_order(values))
        levels = np.ascontiguousarray(places.reshape(job.levels.shape) - zero, np.int32)
        books.append(
            (
                replace(header, codebook=book, dependent=False),
                replace(job, levels=levels, codebook=(values.size, zero), dependent=False),
            )
        )
    return books


def _best_order(values: npt.NDArray[np.int32]) -> int:
    """Of the Exp-Golomb code of the differences: the one with the fewest bits."""

    def bits(order: int) -> int:
        writer = BitWriter()
        syntax.write_codebook(writer, Codebook(tuple(values.tolist()), 0, order))
        return writer.bits

    return min(range(16), key=bits)


__all__ = ["Settings", "StreamReport", "Tensor", "UnitReport", "compress", "encode"]
