"""From streams of ISO/IEC 15938-17 to arrays: :func:`load`, and what a decoder remembers from update to update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from .. import _streams
from .._parallel import run_all
from ..checkpoint.base import Array
from ..errors import DamagedFileError, LimitError, OptionError
from . import syntax
from .syntax import DataHeader, Payload, Stream

Levels = npt.NDArray[np.int32]

#: Elements that a stream may claim without a decision for each, as skipped rows do, unless ``max_bytes`` is given.
FREE_ELEMENTS = 1 << 26
_STEP_BITS = 6  # a quantisation parameter has as many bits, and those of its density


def step_size(qp: int, density: int) -> float:
    """Distance between two reconstruction values: 2^density steps an octave, linear in between."""
    octave = 1 << density
    return math.ldexp(octave + qp % octave, (qp >> density) - density)


@dataclass
class Known:
    """What is known about a tensor from the streams before: what temporal contexts look at."""

    levels: Levels  #: of the last update, as coded
    parameter: int
    depth: int  #: streams that had this tensor


@dataclass
class Memory:
    """What a decoder, or an encoder, remembers from stream to stream of a sequence."""

    device: int | None = None
    tensors: dict[str, Known] = field(default_factory=dict)
    #: Where an update was not zero so far, 1 or 0.
    touched: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, header: DataHeader, name: str, levels: Levels, updates: bool) -> None:
        """Remember the levels of a tensor."""
        known = self.tensors.get(name)
        self.device = header.device
        self.tensors[name] = Known(levels, header.parameter, 1 if known is None else known.depth + 1)
        if updates:
            if name not in self.touched or self.touched[name].shape != levels.shape:
                self.touched[name] = np.zeros(levels.shape, np.uint8)
            self.touched[name][levels != 0] = 1


@dataclass
class Tensor:
    """A decoded tensor."""

    header: DataHeader
    name: str
    shape: tuple[int, ...]
    levels: Levels | None  #: [rows, width] as coded; None for what is stored raw, or if they were not to be kept
    qp: int | None
    step: float | None
    _values: Array | None = None

    def values(self, codebook: syntax.Codebook | None) -> Array:
        """What the levels stand for: float32, or int32 for integers."""
        if self._values is not None:
            return self._values
        assert self.levels is not None
        if self.step is None:
            return self.levels.reshape(self.shape)
        if codebook is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                book = (np.array(codebook.values, np.float64) * self.step).astype(np.float32)
            return book[self.levels + codebook.zero].reshape(self.shape)
        return scaled(self.levels.copy(), self.step).reshape(self.shape)


#: Elements converted at once: what passes through stays in the cache.
_PIECE = 1 << 15
#: Below, levels of 32 bits times the step are floats of 32 bits.
_LARGE_STEP = 2.0**96


def scaled(levels: Levels, step: float) -> Array:
    """Levels times the step, as float32, in their place."""
    flat = levels.reshape(-1)
    values = flat.view(np.float32)
    # A damaged stream may have infinite steps, and zeros of these; asking for silence takes longer than a small tensor.
    with np.errstate(over="ignore", invalid="ignore") if step > _LARGE_STEP else nullcontext():
        for start in range(0, flat.size, _PIECE):
            piece = slice(start, start + _PIECE)
            values[piece] = flat[piece].astype(np.float32) * np.float32(step)
    return values.reshape(levels.shape)


def coded_qp(stream: Stream, header: DataHeader, payload: bytes | memoryview) -> int | None:
    """The quantisation parameter of a unit's first tensor, at the head of its payload; None if it has none."""
    if header.payload not in (Payload.FLOATS, Payload.BLOCK):
        return None
    count = _STEP_BITS + stream.density
    code = int.from_bytes(bytes(payload[:4]).ljust(4, b"\0"), "big")
    value, qp = code >> 23, 0
    for place in range(1, count + 1):  # bits without contexts, in a range of 510
        value = value << 1 | code >> 23 - place & 1
        qp = qp << 1 | (value >= 510)
        value -= 510 * (value >= 510)
    return qp - (qp >> (count - 1) << count) + stream.qp


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and their width: levels are coded as a matrix with dimension 0 as its rows."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def check_sizes(stream: Stream, max_bytes: int | None) -> None:
    """Refuse a stream whose tensors are more than its bytes can hold, or than ``max_bytes`` allows."""
    total = free = 0
    for header, payload, _ in stream.units:
        elements = sum(syntax.sizes(header))
        total += elements
        if header.payload == Payload.RAW_FLOATS:
            if 4 * elements != len(payload):
                raise DamagedFileError(f"damaged: tensor {header.names[0]!r} claims {elements:,} raw elements")
        elif elements > (most := _streams.most_bins(len(payload))):
            rows = stream.profile == 1 and sum(shape[0] for shape in header.shapes if len(shape) > 1) <= most
            if not rows and not (header.codebook is not None and len(header.codebook.values) == 1):
                raise DamagedFileError(
                    f"damaged: {len(payload):,} bytes of tensor {header.names[0]!r} cannot hold {elements:,} elements"
                )
            free += elements
    if max_bytes is not None:
        if 4 * total > max_bytes:
            raise LimitError(f"the tensors take {4 * total:,} bytes, more than max_bytes = {max_bytes:,}")
    elif free > FREE_ELEMENTS:
        raise LimitError(f"the tensors take {4 * total:,} bytes, suspiciously many: set max_bytes to allow it")


def decode_units(stream: Stream, memory: Memory, threads: int | None, *, keep: bool = True) -> list[Tensor]:
    """Decode all tensors. ``memory`` is looked at, and afterwards has this stream in it, if ``keep``."""
    calls: list[Callable[[], list[Tensor]]] = [
        partial(_decode_unit, stream, header, payload, memory, keep) for header, payload, _ in stream.units
    ]
    tensors = [tensor for unit in run_all(calls, threads) for tensor in unit]
    for tensor in tensors:
        if tensor.levels is not None:
            memory.add(tensor.header, tensor.name, tensor.levels, stream.updates)
    return tensors


def _decode_unit(stream: Stream, header: DataHeader, payload: memoryview, memory: Memory, keep: bool) -> list[Tensor]:
    try:
        return _decoded(stream, header, payload, memory, keep)
    except DamagedFileError as error:
        raise DamagedFileError(f"tensor {header.names[0]!r}: {error}") from error
    except MemoryError as error:
        raise LimitError(f"tensor {header.names[0]!r}: not enough memory for its elements") from error


def _decoded(stream: Stream, header: DataHeader, payload: memoryview, memory: Memory, keep: bool) -> list[Tensor]:
    if header.payload == Payload.RAW_FLOATS:
        values = np.frombuffer(payload, "<f4").reshape(header.shapes[0]).copy()
        return [Tensor(header, header.names[0], header.shapes[0], None, None, None, values)]
    jobs = []
    extended = stream.profile == 1
    has_qp = header.payload != Payload.INTEGERS
    for name, shape, role in zip(header.names, header.shapes, header.roles, strict=True):
        codebook = header.codebook if role in ("", "weight") else None
        job = _streams.NncTensor(
            np.zeros(matrix_shape(shape), np.int32),
            block=header.block if len(shape) > 1 else 0,
            unary=header.unary,
            dependent=header.dependent,
            extended=extended,
            update=header.parent is not None,
            qp_bits=_STEP_BITS + stream.density if has_qp else 0,
        )
        if codebook is not None and extended:
            job.codebook = (len(codebook.values), codebook.zero)
        if header.parent is not None:
            _set_parent(job, header, name, memory)
        rows, width = job.levels.shape
        if job.block and rows > 1 and width > 1:
            job.entries = np.array(header.entries, np.uint64)
            job.entries_known = True
        jobs.append(job)
    _streams.nnc_decode(payload, jobs)
    tensors = []
    for name, shape, role, job in zip(header.names, header.shapes, header.roles, jobs, strict=True):
        qp = job.qp + stream.qp if has_qp else None
        if qp is not None and not -1024 <= qp < 1024:
            raise DamagedFileError(f"a quantisation parameter of {qp} is out of range")
        tensor = Tensor(header, name, shape, job.levels, qp, None if qp is None else step_size(qp, stream.density))
        codebook = header.codebook if role in ("", "weight") else None
        if codebook is not None:
            _check_in_codebook(job.levels, codebook)
        if keep or codebook is not None or tensor.step is None:
            tensor._values = tensor.values(codebook)
        else:
            tensor._values, tensor.levels = scaled(job.levels, tensor.step).reshape(shape), None
        tensors.append(tensor)
    return tensors


def _check_in_codebook(levels: Levels, codebook: syntax.Codebook) -> None:
    """In profile 0 levels are coded without regard to the codebook."""
    if levels.size and not 0 <= int(levels.min()) + codebook.zero <= int(levels.max()) + codebook.zero < len(
        codebook.values
    ):
        raise DamagedFileError("damaged: a level has no value in the codebook")


def _set_parent(job: _streams.NncTensor, header: DataHeader, name: str, memory: Memory) -> None:
    known = memory.tensors.get(name)
    assert header.parent is not None
    if name in memory.touched and memory.touched[name].shape == job.levels.shape:
        job.history = memory.touched[name]
    if not header.parent.temporal:
        return
    if known is None:
        raise OptionError(
            f"tensor {name!r} is an update whose contexts depend on those before it: give these as base=, oldest first"
        )
    if (
        known.levels.shape != job.levels.shape
        or memory.device != header.device
        or (known.parameter, known.depth)
        != (
            header.parameter,
            header.depth - 1,
        )
    ):
        raise OptionError(
            f"tensor {name!r} is update number {header.depth} of device {header.device}, but the base is number "
            f"{known.depth} of device {memory.device}: give all of its predecessors as base=, oldest first"
        )
    job.base = known.levels


def load(
    data: bytes | memoryview,
    bases: Sequence[bytes | memoryview | Mapping[str, Array]] = (),
    *,
    apply: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """The tensors of a stream: float32, integers as int32.

    ``bases`` are the streams before it in a sequence of updates, oldest first; the first may be arrays instead. Without
    ``apply`` the result is what the stream holds, which for an update is a difference, without tensors that did not
    change. With ``apply`` it is the sum of all.

    Raises DamagedFileError, UnsupportedError, LimitError, and OptionError if a base is missing or not the right one.
    """
    memory = Memory()
    model: dict[str, Array] = {}
    for base in bases:
        if isinstance(base, Mapping):
            accumulate(model, base)
        else:
            tensors = load_with(base, memory, max_bytes=max_bytes, threads=threads)
            if apply:
                accumulate(model, tensors)
    last = load_with(data, memory, keep=False, max_bytes=max_bytes, threads=threads)
    if not apply:
        return last
    if not bases:
        raise OptionError("apply needs a base: the model that the update is to be added to")
    accumulate(model, last)
    return model


def load_with(
    data: bytes | memoryview,
    memory: Memory,
    *,
    keep: bool = True,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """The tensors of the next stream of a sequence, which is added to ``memory`` if ``keep``."""
    stream = syntax.read(data)
    check_sizes(stream, max_bytes)
    return {tensor.name: tensor.values(None) for tensor in decode_units(stream, memory, threads, keep=keep)}


def accumulate(model: dict[str, Array], update: Mapping[str, Array]) -> None:
    """Add an update to a model; what the model lacks is the update's."""
    for name, values in update.items():
        if name not in model:
            model[name] = values
            continue
        if model[name].shape != values.shape:
            shapes = f"{list(values.shape)}, in the model {list(model[name].shape)}"
            raise OptionError(f"tensor {name!r} has in the update the shape {shapes}: they do not belong together")
        model[name] = model[name] + values.astype(model[name].dtype, copy=False)


__all__ = ["FREE_ELEMENTS", "Memory", "Tensor", "accumulate", "load", "load_with", "step_size"]
