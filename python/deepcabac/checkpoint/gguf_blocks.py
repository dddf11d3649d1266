"""The blocks of quantised GGUF tensors, taken apart into codes and scales, and put together again.

A block holds the codes of 32 to 256 neighbouring elements and what scales them, packed so that a processor finds them
quickly. Here each kind of number becomes an array of its own: codes in the order of their elements, which have a
distribution that a coder can use, and scales beside them. Every bit of a block belongs to one number, so that blocks
come back bit for bit, whatever is in them.

Reference for the layouts: the structures ``block_*`` of ggml-common.h, as the documentation of GGUF describes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import EXACT_DTYPES, Array

Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Some bits of the codes of a block: those of code ``k`` are ``width`` bits of byte ``bytes[k]`` from ``shifts[k]``
    on, and they are the bits of the code from ``place`` on.
    """

    bytes: npt.NDArray[np.intp]
    shifts: Octets
    width: int
    place: int = 0


@dataclass(frozen=True)
class Numbers:
    """An array of numbers of each block."""

    suffix: str  #: of its name; empty for the codes themselves
    dtype: np.dtype[Any]
    count: int  #: numbers in a block
    pieces: tuple[Piece, ...] = ()  #: where their bits are; none for whole numbers, which lie together
    start: int = 0  #: first byte of whole numbers
    bits: int = 0  #: of a code
    #: Where a block has d and m, if codes are counted from the one nearest to -m / d: weights are m + d code, and those
    #: near zero are the most frequent ones, whichever code that is.
    line: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """A kind of block."""

    elements: int
    size: int  #: bytes
    fields: tuple[Numbers, ...]


def split(blocks: Octets, field: Numbers) -> Array:
    """The numbers of one field.  blocks: u8 [n, bytes] -> [n, field.count]"""
    if not field.pieces:
        end = field.start + field.count * field.dtype.itemsize
        return np.ascontiguousarray(blocks[:, field.start : end]).view(field.dtype)
    codes = np.zeros((len(blocks), field.count), np.uint8)
    for piece in field.pieces:
        part = blocks[:, piece.bytes] >> piece.shifts
        part &= np.uint8((1 << piece.width) - 1)
        codes |= part << np.uint8(piece.place)
    if field.line is not None:
        codes -= _zeros(blocks, field)
        codes &= np.uint8((1 << field.bits) - 1)
    return codes.view(field.dtype)


def _zeros(blocks: Octets, field: Numbers) -> Octets:
    """The code that stands for zero in each block, modulo the number of codes; 0 if there is none.  -> [n, 1]"""
    assert field.line is not None
    scale, least = (
        np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32) for start in field.line
    )
    with np.errstate(all="ignore"):
        place = np.rint(-least / scale)
    return np.where(np.isfinite(place), np.mod(place, np.float32(1 << field.bits)), 0).astype(np.uint8)


def finish(blocks: Octets, layout: Layout) -> None:
    """Make blocks whole whose numbers were all put into them."""
    for field in layout.fields:
        if field.line is None:
            continue
        codes = split(blocks, replace(field, line=None)).view(np.uint8)
        codes += _zeros(blocks, field)
        for piece in field.pieces:
            for byte, shift in zip(piece.bytes, piece.shifts, strict=True):
                blocks[:, byte] &= np.uint8(~(((1 << piece.width) - 1) << int(shift)) & 255)
        join(blocks, field, codes)


def join(blocks: Octets, field: Numbers, numbers: Array) -> None:
    """Put the numbers of one field into blocks that begin as zeros; :func:`finish` has to follow.

    numbers: [n, field.count]
    """
    if not field.pieces:
        end = field.start + field.count * field.dtype.itemsize
        blocks[:, field.start : end] = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(blocks), -1)
        return
    codes = np.ascontiguousarray(numbers).view(np.uint8)
    for piece in field.pieces:
        part = codes >> np.uint8(piece.place) & np.uint8((1 << piece.width) - 1)
        for shift in np.unique(piece.shifts):  # bytes that are named once each
            chosen = piece.shifts == shift
            blocks[:, piece.bytes[chosen]] |= part[:, chosen] << shift


def _whole(suffix: str, dtype: str, start: int, count: int = 1) -> Numbers:
    return Numbers(suffix, np.dtype(dtype), count, start=start)


def _piece(places: Iterator[tuple[int, int]], width: int, place: int = 0) -> Piece:
    """``places``: byte and shift of each code."""
    numbers, shifts = zip(*places, strict=True)
    return Piece(np.array(numbers, np.intp), np.array(shifts, np.uint8), width, place)


def _codes(bits: int, *pieces: Piece, suffix: str = "", line: tuple[int, int] | None = None) -> Numbers:
    dtype = EXACT_DTYPES.get(f"uint{bits}", np.dtype("u1"))
    return Numbers(suffix, dtype, len(pieces[0].bytes), pieces, bits=bits, line=line)


def _nibbles(start: int, count: int, run: int) -> Piece:
    """4 bits each: ``run`` codes in the lower halves of as many bytes, as many in the upper halves, and so on."""
    return _piece(((start + k // (2 * run) * run + k % run, 4 * (k // run % 2)) for k in range(count)), 4)


def _high_bits(start: int, count: int, place: int) -> Piece:
    """A bit each: code k's is bit k of a long number."""
    return _piece(((start + k // 8, k % 8) for k in range(count)), 1, place)


def _spread_bits(start: int, count: int, width: int, place: int, each: int) -> Piece:
    """``width`` bits each, the codes k, k + 32, ... in the same byte, from its lowest bits on; ``each`` codes take 32
    bytes.
    """
    return _piece(((start + k // each * 32 + k % 32, k % each // 32 * width) for k in range(count)), width, place)


def _six_bits(start: int, suffix: str) -> tuple[Numbers, Numbers]:
    """Eight scales and eight minima of 6 bits in 12 bytes (Q4_K, Q5_K): the first four of each in a byte, whose upper
    bits, with a nibble, are the others.
    """

    def number(second: int) -> Numbers:
        first = start + 4 * second
        low = [(first + k, 0) if k < 4 else (start + 4 + k, 4 * second) for k in range(8)]
        high = [(first + k, 4) if k < 4 else (first + k - 4, 6) for k in range(8)]
        word = f"{suffix}{'m' if second else 's'}"
        return _codes(6, _piece(iter(low), 4), _piece(iter(high), 2, 4), suffix=word)

    return number(0), number(1)


def _layouts() -> dict[int, Layout]:
    """By the type's number in a file."""
    half = "<f2"
    scales, minima = _six_bits(4, "")
    low, high = _nibbles(2 + 2, 32, 16), _high_bits(2, 32, 4)
    low3 = [(96 + k % 8, 4 * (k // 8)) for k in range(16)]
    high3 = [(104 + k % 4, 2 * (k // 4)) for k in range(16)]
    six_low = _piece(((k // 128 * 64 + k % 64, 4 * (k % 128 // 64)) for k in range(256)), 4)
    six_high = _spread_bits(128, 256, 2, 4, 128)
    return {
        2: Layout(32, 18, (_codes(4, _nibbles(2, 32, 16)), _whole("d", half, 0))),  # Q4_0
        3: Layout(32, 20, (_codes(4, low, line=(0, 2)), _whole("d", half, 0), _whole("m", half, 2))),  # Q4_1
        6: Layout(32, 22, (_codes(5, _nibbles(6, 32, 16), high), _whole("d", half, 0))),  # Q5_0
        7: Layout(  # Q5_1
            32,
            24,
            (
                _codes(5, _nibbles(8, 32, 16), _high_bits(4, 32, 4), line=(0, 2)),
                _whole("d", half, 0),
                _whole("m", half, 2),
            ),
        ),
        8: Layout(32, 34, (_whole("", "i1", 2, 32), _whole("d", half, 0))),  # Q8_0
        10: Layout(  # Q2_K
            256,
            84,
            (
                _codes(2, _spread_bits(16, 256, 2, 0, 128)),
                _codes(4, _piece(((k, 0) for k in range(16)), 4), suffix="s"),
                _codes(4, _piece(((k, 4) for k in range(16)), 4), suffix="m"),
                _whole("d", half, 80),
                _whole("dmin", half, 82),
            ),
        ),
        11: Layout(  # Q3_K
            256,
            110,
            (
                _codes(3, _spread_bits(32, 256, 2, 0, 128), _spread_bits(0, 256, 1, 2, 256)),
                _codes(6, _piece(iter(low3), 4), _piece(iter(high3), 2, 4), suffix="s"),
                _whole("d", half, 108),
            ),
        ),
        12: Layout(  # Q4_K
            256,
            144,
            (_codes(4, _nibbles(16, 256, 32)), scales, minima, _whole("d", half, 0), _whole("dmin", half, 2)),
        ),
        13: Layout(  # Q5_K
            256,
            176,
            (
                _codes(5, _nibbles(48, 256, 32), _spread_bits(16, 256, 1, 4, 256)),
                scales,
                minima,
                _whole("d", half, 0),
                _whole("dmin", half, 2),
            ),
        ),
        14: Layout(  # Q6_K
            256,
            210,
            (_codes(6, six_low, six_high), _whole("s", "i1", 192, 16), _whole("d", half, 208)),
        ),
        20: Layout(32, 18, (_codes(4, _nibbles(2, 32, 16)), _whole("d", half, 0))),  # IQ4_NL
        23: Layout(  # IQ4_XS
            256,
            136,
            (
                _codes(4, _nibbles(8, 256, 16)),
                _codes(
                    6,
                    _piece(((4 + k // 2, 4 * (k % 2)) for k in range(8)), 4),
                    _piece(((2 + k // 4, 2 * (k % 4)) for k in range(8)), 2, 4),
                    suffix="s",
                ),
                _whole("d", half, 0),
            ),
        ),
        35: Layout(256, 66, (_codes(2, _spread_bits(0, 256, 2, 0, 128)), _whole("d", half, 64))),  # TQ2_0
        39: Layout(32, 17, (_codes(4, _nibbles(1, 32, 16)), _whole("e", "u1", 0))),  # MXFP4
        40: Layout(64, 36, (_codes(4, _nibbles(4, 64, 8)), _whole("d", "u1", 0, 4))),  # NVFP4
        41: Layout(128, 18, (_codes(1, _high_bits(2, 128, 0)), _whole("d", half, 0))),  # Q1_0
    }


LAYOUTS = _layouts()
#: Blocks that are kept as they are: elements and bytes, by the type's number.
OPAQUE = {
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    29: (256, 56),  # IQ1_M
    34: (256, 54),  # TQ1_0
}
