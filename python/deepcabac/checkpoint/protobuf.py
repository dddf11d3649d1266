"""Protocol Buffers' wire format, just enough to take a message apart without its schema and to put it together again.

A message is a run of fields; a field is a tag (number * 8 + wire type) and a payload. Reference:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ..wire import varint

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, were abandoned before ONNX began

_WINDOW = 1 << 16  # bytes


class FileBytes:
    """A file to be indexed and sliced like ``bytes``, of which only a window is in memory.

    Not a memory map: the kernel may map two megabytes around each byte touched, and all of that counts as resident.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._window, self._begin = b"", 0

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> bytes: ...
    def __getitem__(self, place: int | slice) -> int | bytes:
        """``place`` must not be negative nor beyond the end."""
        if isinstance(place, slice):
            return self._read(place.start, place.stop - place.start)
        offset = place - self._begin
        if offset < 0 or offset >= len(self._window):
            self._window, self._begin, offset = self._read(place, _WINDOW), place, 0
            if not self._window:
                raise WireError("the file became shorter")
        return self._window[offset]

    def _read(self, begin: int, length: int) -> bytes:
        offset = begin - self._begin
        if offset >= 0 and offset + length <= len(self._window):
            return self._window[offset : offset + length]
        self._file.seek(begin)
        return self._file.read(length)


Buffer = bytes | FileBytes


class WireError(ValueError):
    """The bytes are not a protobuf message."""


class Field(NamedTuple):
    """One field: all of it is ``data[begin:end]``, its payload ``data[start:end]``; ``value`` is a varint's."""

    number: int
    wire: int
    begin: int
    start: int
    end: int
    value: int


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Walk the fields of the message in ``data[start:end]``. Raises :class:`WireError`."""
    while start < end:
        begin = start
        tag, start = read_varint(data, start, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        if wire == VARINT:
            value, stop = read_varint(data, start, end)
        elif wire == FIXED64:
            stop = start + 8
        elif wire == FIXED32:
            stop = start + 4
        elif wire == BYTES:
            length, start = read_varint(data, start, end)
            stop = start + length
        else:
            raise WireError(f"wire type {wire}")
        if number == 0 or stop > end:
            raise WireError("a field goes beyond its message")
        yield Field(number, wire, begin, start, stop, value)
        start = stop


def read_varint(data: Buffer, start: int, end: int) -> tuple[int, int]:
    """Return the unsigned 64-bit number at ``start`` and the place after it."""
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, start
        shift += 7
    raise WireError("a number goes beyond its message")


def prefix(number: int, length: int) -> bytes:
    """The bytes before the payload of a length-delimited field."""
    return varint(number << 3 | BYTES) + varint(length)


def bytes_field(number: int, payload: bytes) -> bytes:
    """A whole length-delimited field."""
    return prefix(number, len(payload)) + payload


def varint_field(number: int, value: int) -> bytes:
    """A whole varint field."""
    return varint(number << 3 | VARINT) + varint(value)


def decode_varints(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """All the numbers of a run of varints.  u8 [bytes] -> u64 [numbers]"""
    last = np.flatnonzero(data < 0x80)  # the last byte of each number
    if not len(data):
        return np.empty(0, np.uint64)
    if not len(last) or last[-1] != len(data) - 1:
        raise WireError("a number goes beyond its message")
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(data)) - np.repeat(first, last - first + 1)  # of each byte within its number
    if place.max() > 9:
        raise WireError("a number has more than 64 bits")
    groups = (data & np.uint8(0x7F)).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(groups, first)
