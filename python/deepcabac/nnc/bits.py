"""Bits as ISO/IEC 15938-17 counts them: the highest of a byte first."""

from __future__ import annotations

from ..errors import DamagedFileError

#: Longest prefix of an Exp-Golomb code that is read: numbers below 2^33 and more.
_LONGEST_PREFIX = 32
#: Bytes that most headers do not exceed.
_HEAD = 96


class BitReader:
    """Reads numbers and texts from bytes. Raises DamagedFileError where they end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0  # in bits
        # Most headers end within the first bytes: these as one number are the quickest to look at.
        self._head = int.from_bytes(self._data[:_HEAD], "big")
        self._head_bits = 8 * min(_HEAD, len(self._data))

    @property
    def byte(self) -> int:
        """Bytes of which at least a bit has been read."""
        return (self._at + 7) // 8

    def unsigned(self, count: int) -> int:
        """``u(count)``: an unsigned number of so many bits."""
        self._at = end = self._at + count
        if end <= self._head_bits:
            return self._head >> (self._head_bits - end) & ((1 << count) - 1)
        first, last = (end - count) // 8, (end + 7) // 8
        if last > len(self._data):
            raise DamagedFileError("damaged: a unit's header ends early")
        return int.from_bytes(self._data[first:last], "big") >> (8 * last - end) & ((1 << count) - 1)

    def flag(self) -> bool:
        """``u(1)``."""
        at = self._at
        if at >= 8 * len(self._data):
            raise DamagedFileError("damaged: a unit's header ends early")
        self._at = at + 1
        return self._data[at >> 3] >> (~at & 7) & 1 == 1

    def signed(self, count: int) -> int:
        """``i(count)``: in two's complement."""
        value = self.unsigned(count)
        return value - (value >> (count - 1) << count)

    def golomb(self, order: int) -> int:
        """``ue(order)``: Exp-Golomb code of this order; each zero of its prefix adds a group."""
        zeros = self._zeros()
        self._at += zeros + 1
        return (((1 << zeros) - 1) << order) + self.unsigned(order + zeros)

    def _zeros(self) -> int:
        """Zeros before the next one; nothing is taken."""
        left = self._head_bits - self._at
        if left > _LONGEST_PREFIX:
            ahead = self._head & ((1 << left) - 1)
        else:
            first, skipped = divmod(self._at, 8)
            window = bytes(self._data[first : first + (_LONGEST_PREFIX + 15) // 8])
            left = 8 * len(window) - skipped
            ahead = int.from_bytes(window, "big") & ((1 << max(left, 0)) - 1)
        zeros = left - ahead.bit_length()
        if zeros > _LONGEST_PREFIX:
            raise DamagedFileError("damaged: a number in a unit's header is too large")
        if not ahead:
            raise DamagedFileError("damaged: a unit's header ends early")
        return zeros

    def signed_golomb(self, order: int) -> int:
        """``ie(order)``: 0, 1, -1, 2, -2, ... as ``ue(order)``."""
        value = self.golomb(order)
        return (value + 1) // 2 if value % 2 else -(value // 2)

    def text(self) -> str:
        """``st``: UTF-8 up to a zero byte."""
        start = self._at // 8
        if self._at % 8:
            raise DamagedFileError("damaged: a text in a unit's header does not begin with a byte")
        raw = bytes(self._data[start : start + (1 << 16)])
        length = raw.find(b"\0")
        if length < 0:
            raise DamagedFileError("damaged: a text in a unit's header has no end")
        self._at += 8 * (length + 1)
        try:
            return raw[:length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedFileError("damaged: a text in a unit's header is not UTF-8") from error

    def align(self) -> None:
        """``byte_alignment``: a bit, then what is left of its byte."""
        self.unsigned(1)
        self._at = 8 * self.byte


class BitWriter:
    """Writes what :class:`BitReader` reads."""

    def __init__(self) -> None:
        self._bits = 0
        self._count = 0
        self._bytes = bytearray()

    def unsigned(self, count: int, value: int) -> None:
        """``u(count)``; ``value`` fits."""
        assert 0 <= value < 1 << count
        self._bits = self._bits << count | value
        self._count += count
        whole, self._count = divmod(self._count, 8)
        self._bytes += (self._bits >> self._count).to_bytes(whole, "big")
        self._bits &= (1 << self._count) - 1

    def signed(self, count: int, value: int) -> None:
        """``i(count)``; ``value`` fits."""
        assert -1 << (count - 1) <= value < 1 << (count - 1)
        self.unsigned(count, value % (1 << count))

    def golomb(self, order: int, value: int) -> None:
        """``ue(order)``."""
        exponent = (value + (1 << order)).bit_length() - 1
        self.unsigned(exponent - order, 0)
        self.unsigned(1, 1)
        self.unsigned(exponent, value - (1 << exponent) + (1 << order))

    def signed_golomb(self, order: int, value: int) -> None:
        """``ie(order)``."""
        self.golomb(order, 2 * value - 1 if value > 0 else -2 * value)

    def text(self, value: str) -> None:
        """``st``: at the beginning of a byte; ``value`` has no zero character."""
        assert self._count == 0
        self._bytes += value.encode("utf-8") + b"\0"

    def align(self) -> None:
        """``byte_alignment``: a one, then zeros."""
        self.unsigned(1, 1)
        self.unsigned(-self._count % 8, 0)

    @property
    def bits(self) -> int:
        """Bits written."""
        return 8 * len(self._bytes) + self._count

    def data(self) -> bytes:
        """The whole bytes."""
        return bytes(self._bytes)
