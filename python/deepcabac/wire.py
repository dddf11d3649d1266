"""Numbers and strings as bytes: the vocabulary of the index. See FORMAT.md, 2.3."""

from __future__ import annotations

import struct
from typing import Any

from .errors import DamagedFileError


def varint(value: int) -> bytes:
    """A number of at most 63 bits, seven bits a byte, least significant first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def blob(data: bytes) -> bytes:
    """A length, then as many bytes."""
    return varint(len(data)) + data


class Cursor:
    """Reads what was written, and refuses everything else with :class:`DamagedFileError`."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = data
        self._at, self._end = 0, len(data)
        self._what = what

    def damaged(self, why: str) -> DamagedFileError:
        """An error that says where it was found."""
        return DamagedFileError(f"damaged {self._what}: {why}")

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return self._end - self._at

    def take(self, length: int) -> bytes | memoryview:
        """The next ``length`` bytes."""
        start, end = self._at, self._at + length
        if end > self._end:
            raise self.damaged("it ends early")
        self._at = end
        return self._data[start:end]

    def byte(self) -> int:
        """The next byte."""
        at = self._at
        if at >= self._end:
            raise self.damaged("it ends early")
        self._at = at + 1
        return self._data[at]

    def varint(self) -> int:
        """A number; one number has one form."""
        at = self._at
        if at < self._end and self._data[at] < 128:  # most are short
            self._at = at + 1
            return self._data[at]
        value = self.byte() & 127
        for shift in range(7, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0:
                    break
                return value
        raise self.damaged("a number is malformed")

    def count(self, each: int) -> int:
        """A number of things that take at least ``each`` bytes: more than fit are refused before memory is taken."""
        value = self.varint()
        if value * each > self.left:
            raise self.damaged("it ends early")
        return value

    def blob(self) -> bytes:
        """A length, then as many bytes."""
        return bytes(self.take(self.varint()))

    def text(self) -> str:
        """A length in bytes, then as many of UTF-8."""
        try:
            return self.blob().decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a name is not UTF-8") from None

    def u32(self) -> int:
        """A number of 32 bits."""
        return int.from_bytes(self.take(4), "little")

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Fields of a ``struct`` layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def end(self) -> None:
        """Refuses anything that follows."""
        if self.left:
            raise self.damaged(f"{self.left} bytes too many")
