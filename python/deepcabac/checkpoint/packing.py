"""Types narrower than a byte: packed in files, a byte each in memory.

The first element takes the lowest bits of the first byte, as in ONNX and, for types of 4 bits, in PyTorch and
safetensors. Elements of 6 bits cross bytes: four of them take three.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .base import EXACT_DTYPES, Array, TensorSpec, allocate, bits_of, byte_view, own, read_into


def pack(array: Array) -> Array:
    """The bytes of a C-contiguous array as a file holds them: u8 [n], or ``array`` itself if a byte or more is needed.

    The last byte is filled with zeros.
    """
    bits = bits_of(array.dtype)
    if bits >= 8:
        return array
    codes = np.frombuffer(byte_view(array), np.uint8) & np.uint8((1 << bits) - 1)
    each = 4 if bits == 6 else 8 // bits
    codes = np.concatenate([codes, np.zeros(-codes.size % each, np.uint8)]).reshape(-1, each)
    if bits == 6:
        a, b, c, d = codes.T
        packed = np.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], axis=1).reshape(-1)
    else:
        packed = np.zeros(len(codes), np.uint8)
        for place in range(each):
            packed |= codes[:, place] << np.uint8(place * bits)
    return packed[: (array.size * bits + 7) // 8]


def unpack(packed: npt.NDArray[np.uint8], spec: TensorSpec) -> Array:
    """What :func:`pack` packed: an array of the dtype and shape of ``spec``, which is narrower than a byte.

    packed: u8 [spec.packed_bytes]
    """
    bits = bits_of(spec.dtype)
    if bits == 6:
        groups = np.concatenate([packed, np.zeros(-packed.size % 3, np.uint8)]).reshape(-1, 3)
        a, b, c = groups.T
        codes = np.stack([a, a >> 6 | b << 2, b >> 4 | c << 4, c >> 2], axis=1).reshape(-1)
    else:
        codes = np.empty((packed.size, 8 // bits), np.uint8)
        for place in range(8 // bits):
            np.right_shift(packed, place * bits, out=codes[:, place])
        codes = codes.reshape(-1)
    return from_codes(codes[: spec.size], spec)


def packed_dtype(bits: int) -> np.dtype[Any]:
    """The type of codes of 2, 4 or 8 bits."""
    return EXACT_DTYPES[f"uint{bits}"] if bits < 8 else np.dtype("u1")


def read_packed(file: BinaryIO, offset: int, spec: TensorSpec, path: Path) -> Array:
    """The tensor that lies at ``offset``, unpacked. Raises :class:`CheckpointError` when the file ends early."""
    if bits_of(spec.dtype) >= 8:
        array = allocate(spec, path)
        read_into(file, offset, array, path)
        return array
    packed = allocate(TensorSpec(spec.name, np.dtype("u1"), (spec.packed_bytes,)), path)
    read_into(file, offset, packed, path)
    return own(unpack(packed, spec))


def sound(array: Array) -> Array:
    """The array with the bytes that its elements have when they are unpacked; the bits that count are kept."""
    codes = np.frombuffer(byte_view(np.ascontiguousarray(array)), np.uint8)
    return from_codes(codes, TensorSpec("", array.dtype, array.shape))


def from_codes(codes: npt.NDArray[np.uint8], spec: TensorSpec) -> Array:
    """An array from a byte for each element, of which the lowest bits count.  codes: u8 [spec.size]"""
    bits = bits_of(spec.dtype)
    codes = codes & np.uint8((1 << bits) - 1)
    if spec.dtype.name.startswith("int"):  # the sign fills the byte
        half = np.uint8(1 << (bits - 1))
        codes = (codes ^ half) - half
    return codes.view(spec.dtype).reshape(spec.shape)
