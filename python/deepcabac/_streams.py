"""The border to the native core for streams of ISO/IEC 15938-17 and of 2019, as ``_core.py`` is for .dcb files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcabac._native import ffi, lib

from ._core import _DAMAGED, _checked, _deliver, _pointer


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


def _nnc_tensors(tensors: Sequence[NncTensor], known: bool) -> Any:
    native = ffi.new("DcNncTensor[]", len(tensors))
    for slot, tensor in zip(native, tensors, strict=True):
        slot.rows, slot.width = tensor.levels.shape
        slot.block, slot.unary = tensor.block, tensor.unary
        slot.base = ffi.NULL if tensor.base is None else _pointer(tensor.base, "int32_t *")
        slot.history = ffi.NULL if tensor.history is None else _pointer(tensor.history, "uint8_t *")
        slot.levels = _pointer(tensor.levels, "int32_t *")
        if tensor.entries is not None:
            slot.entries, slot.entries_count = _pointer(tensor.entries, "uint64_t *"), tensor.entries.size
        slot.codebook_size, slot.codebook_zero = tensor.codebook
        slot.qp_bits, slot.qp = tensor.qp_bits, tensor.qp
        slot.dependent, slot.extended, slot.update = tensor.dependent, tensor.extended, tensor.update
        slot.skip_rows = tensor.skip_rows
        slot.chosen = tensor.entries_known if known else tensor.choose_settings
    return native


def nnc_encode(tensors: Sequence[NncTensor]) -> bytes:
    """The stream of a unit with these tensors. Their levels are such as a decoder can give."""
    native = _nnc_tensors(tensors, known=False)
    return _deliver(
        lambda out, capacity, length: lib.dc_nnc_encode(native, len(tensors), out, capacity, length),
        64 + sum(2 * tensor.levels.size for tensor in tensors),
    )


def nnc_decode(code: bytes | memoryview, tensors: Sequence[NncTensor]) -> None:
    """Fill in levels and quantisation parameters of a unit's tensors.

    Raises DamagedFileError unless ``code`` is exactly their stream.
    """
    native = _nnc_tensors(tensors, known=True)
    _checked(lib.dc_nnc_decode(ffi.from_buffer("uint8_t[]", code), len(code), native, len(tensors)))
    for slot, tensor in zip(native, tensors, strict=True):
        tensor.qp = slot.qp


def most_bins(length: int) -> int:
    """Most context-coded decisions in ``length`` bytes of a stream of ISO/IEC 15938-17."""
    return int(lib.dc_most_bins(length))


def nnc_quantize(tensor: NncTensor, weights: npt.NDArray[np.float32], step: float, rate_weight: float) -> bool:
    """Choose ``tensor.levels`` for as many weights: the least sum of squared errors in steps and ``rate_weight`` a bit.

    False if the step is too small for 32 bits, or a weight is not finite; then levels are undefined.
    """
    native = _nnc_tensors([tensor], known=False)
    status = lib.dc_nnc_quantize(native, _pointer(weights, "float *"), weights.size, step, rate_weight)
    if status == _DAMAGED:
        return False
    _checked(status)
    return True


@dataclass(frozen=True)
class Layer:
    """A layer for a stream of 2019: one, two or four dimensions below 2^16."""

    weights: npt.NDArray[np.float32]
    intervals: npt.NDArray[np.float32]  #: standard deviations, like ``weights`` or a single one
    step: float
    rate_weight: float


def dc2019_encode(layers: Sequence[Layer]) -> bytes:
    """The stream of the DeepCABAC authors' software. Raises DamagedFileError if a level does not fit 32 bits."""
    native = ffi.new("DcLayer[]", len(layers))
    shapes = [np.array(layer.weights.shape, np.uint64) for layer in layers]
    for slot, layer, shape in zip(native, layers, shapes, strict=True):
        slot.shape, slot.dimensions = _pointer(shape, "uint64_t *"), shape.size
        slot.weights = _pointer(layer.weights, "float *")
        slot.intervals, slot.intervals_count = _pointer(layer.intervals, "float *"), layer.intervals.size
        slot.step, slot.rate_weight = layer.step, layer.rate_weight
    return _deliver(
        lambda out, capacity, length: lib.dc_dc2019_encode(native, len(layers), out, capacity, length),
        64 + sum(2 * layer.weights.size for layer in layers),
    )


def dc2019_decode(code: bytes | memoryview) -> bytes:
    """Numbers of four bytes: for each layer the number of dimensions, the dimensions, the step, the levels."""
    return _deliver(
        lambda out, capacity, length: lib.dc_dc2019_decode(
            ffi.from_buffer("uint8_t[]", code), len(code), out, capacity, length
        ),
        64 * len(code) + 64,
    )
