"""The border to the native core for streams of ISO/IEC 15938-17 and of 2019, as ``_core.py`` is for .dcb files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._border import bytes_pointer, checked, deliver, lib, pointer, structures
from ._native_types import DcLayer, DcNncTensor, Pointer


@dataclass
class NncTensor:
    """A tensor of a unit of ISO/IEC 15938-17 (``src/nnc.rs``)."""

    levels: npt.NDArray[np.int32]  #: [rows, width]; the encoder reads, the decoder writes them
    block: int = 0  #: edge of a block, 0 for none
    unary: int = 11  #: most decisions "greater than k"
    dependent: bool = False
    extended: bool = True  #: profile 1
    update: bool = False
    codebook: tuple[int, int] = (0, 0)  #: number of values, and which of them is level 0
    qp_bits: int = 0  #: bits of ``qp``, 0 if it is not coded
    qp: int = 0  #: the encoder reads, the decoder writes it
    base: npt.NDArray[np.int32] | None = None  #: like ``levels``
    history: npt.NDArray[np.uint8] | None = None  #: like ``levels``, 0 or 1
    entries: npt.NDArray[np.uint64] | None = None  #: entry points; the decoder compares or finds them
    entries_known: bool = False  #: for the decoder: compare
    choose_settings: bool = True  #: for the encoder
    skip_rows: bool = False  #: for the encoder


def _nnc_tensors(tensors: Sequence[NncTensor]) -> Pointer[DcNncTensor]:
    return structures(DcNncTensor, [_nnc_tensor(tensor) for tensor in tensors])


def _nnc_tensor(tensor: NncTensor) -> DcNncTensor:
    rows, width = tensor.levels.shape
    size, zero = tensor.codebook
    return DcNncTensor(
        rows=rows,
        width=width,
        block=tensor.block,
        unary=tensor.unary,
        base=pointer(tensor.base),
        history=pointer(tensor.history),
        levels=pointer(tensor.levels),
        entries=pointer(tensor.entries),
        entries_count=0 if tensor.entries is None else tensor.entries.size,
        codebook_size=size,
        codebook_zero=zero,
        qp_bits=tensor.qp_bits,
        qp=tensor.qp,
        dependent=tensor.dependent,
        extended=tensor.extended,
        update=tensor.update,
        skip_rows=tensor.skip_rows,
        choose_settings=tensor.choose_settings,
        entries_known=tensor.entries_known,
    )


def nnc_encode(tensors: Sequence[NncTensor]) -> bytes:
    """The stream of a unit with these tensors. Raises OptionError if a decoder could not give their levels."""
    native = _nnc_tensors(tensors)
    return deliver(
        lambda out: lib.dc_nnc_encode(native, len(tensors), out),
        64 + sum(2 * tensor.levels.size for tensor in tensors),
    )


def nnc_decode(code: bytes | memoryview, tensors: Sequence[NncTensor]) -> None:
    """Fill in levels and quantisation parameters of a unit's tensors.

    Raises DamagedFileError unless ``code`` is exactly their stream.
    """
    native = _nnc_tensors(tensors)
    checked(lib.dc_nnc_decode(bytes_pointer(code), len(code), native, len(tensors)))
    for number, tensor in enumerate(tensors):
        tensor.qp = native[number].qp


def most_bins(length: int) -> int:
    """Most context-coded decisions in ``length`` bytes of a stream of ISO/IEC 15938-17."""
    return int(lib.dc_most_bins(length))


def nnc_quantize(tensor: NncTensor, weights: npt.NDArray[np.float32], step: float, rate_weight: float) -> bool:
    """Choose ``tensor.levels`` for as many weights: the least sum of squared errors in steps and ``rate_weight`` per
    bit.

    False if the step is too small for 32 bits, or a weight is not finite; then levels are undefined.
    """
    native = _nnc_tensors([tensor])
    status = lib.dc_nnc_quantize(native, pointer(weights), weights.size, step, rate_weight)
    if status == lib.DC_STATUS_RANGE:
        return False
    checked(status)
    return True


@dataclass(frozen=True)
class Layer:
    """A layer for a stream of 2019: one, two or four dimensions below 2^16."""

    weights: npt.NDArray[np.float32]
    intervals: npt.NDArray[np.float32]  #: standard deviations, like ``weights`` or a single one
    step: float
    rate_weight: float


def dc2019_encode(layers: Sequence[Layer]) -> bytes:
    """The stream of the DeepCABAC authors' software. Raises OptionError if a level does not fit 32 bits."""
    native = structures(DcLayer, [_layer(layer) for layer in layers])
    return deliver(
        lambda out: lib.dc_dc2019_encode(native, len(layers), out),
        64 + sum(2 * layer.weights.size for layer in layers),
    )


def _layer(layer: Layer) -> DcLayer:
    return DcLayer(
        shape=pointer(np.array(layer.weights.shape, np.uint64)),
        dimensions=layer.weights.ndim,
        weights=pointer(layer.weights),
        intervals=pointer(layer.intervals),
        intervals_count=layer.intervals.size,
        step=layer.step,
        rate_weight=layer.rate_weight,
    )


def dc2019_decode(code: bytes | memoryview) -> bytes:
    """Numbers of four bytes: for each layer the number of dimensions, the dimensions, the step, the levels."""
    given = bytes_pointer(code)
    return deliver(lambda out: lib.dc_dc2019_decode(given, len(code), out), 64 * len(code) + 64)
