"""A reference encoder, as far as FORMAT.md says how to write: chunks of levels (4.10), coded bytes (5), and files of
given fields. It chooses nothing; how to quantise and which parameters to take is no part of the format. With it, tests
make files that no real writer makes.

Like ``decode.py`` it was written from FORMAT.md alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from decode import LEVELS_MAGIC, MAGIC, Model, Params, adapted, code_bytes, index_of, level_of, next_state, signed32


class Encoder:
    """The two bit sequences of a chunk (4.10)."""

    def __init__(self) -> None:
        self.low, self.range, self.shifted = 0, 2**64 - 1, 0
        self.raw_value, self.raw_bits = 0, 0

    def decision(self, p: int, one: int) -> None:
        """Code a bit; ``p`` is the probability of one in units of 2^-32."""
        bound = self.range * p >> 32
        if one:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound

    def end_step(self) -> None:
        """Bring the range back to 2^56 and more."""
        while self.range < 2**56:
            self.low, self.range, self.shifted = self.low << 8, self.range << 8, self.shifted + 1

    def raw(self, value: int, count: int) -> None:
        """Store ``count`` raw bits."""
        self.raw_value |= value << self.raw_bits
        self.raw_bits += count

    def finish(self) -> bytes:
        """The chunk."""
        tail = 1 if self.range >= 2**57 else 2
        end = self.low + (1 << 64 - 8 * tail) - 1
        raw_bytes = (self.raw_bits + 7) // 8
        arithmetic = end.to_bytes(8 + self.shifted, "big")[: self.shifted + tail]
        return arithmetic + self.raw_value.to_bytes(raw_bytes, "big")


def encode_residual(encoder: Encoder, contexts: list[int], low: int, leaning: bool, residual: int) -> None:
    """Code a residual whose sign has been turned (4.7)."""

    def decide(k: int, one: int) -> None:
        encoder.decision(contexts[k], one)
        contexts[k] = adapted(contexts[k], one)

    magnitude = abs(residual)
    upper = magnitude >> low
    for k in range(min(upper + 1, 16)):
        decide(k, int(upper > k))
        if k % 4 == 3 or upper <= k:
            encoder.end_step()
    if upper >= 16:
        x = upper - 15
        n = x.bit_length() - 1
        encoder.raw(n, 5)
        encoder.raw(x - (1 << n), n)
    rest = magnitude & (1 << low) - 1
    if low > 0 and upper == 0:
        decide(31, rest >> low - 1)
        encoder.end_step()
        encoder.raw(rest & (1 << low - 1) - 1, low - 1)
    else:
        encoder.raw(rest, low)
    if magnitude and leaning:
        decide(16 + min(upper, 14), int(residual < 0))
        encoder.end_step()
    elif magnitude:
        encoder.raw(int(residual < 0), 1)


def encode_chunk(params: Params, levels: Sequence[int]) -> bytes:
    """Code the levels of a chunk (4.10)."""
    encoder, model = Encoder(), Model(params)
    for level in levels:
        number, low, predicted, leaning, down = model.site()
        index = index_of(level, model.state & 1) if params.dependent else level
        residual = signed32(predicted - index if down else index - predicted)
        encode_residual(encoder, model.sets[number], low, leaning, residual)
        model.commit(level, index, abs(residual))
        if len(model.levels) == params.width:
            model.end_row()
    return encoder.finish()


def levels_of(params: Params, indices: Sequence[int]) -> list[int]:
    """The levels that a tensor's indices stand for where two quantisers take turns (4.5)."""
    levels = []
    for k, index in enumerate(indices):
        if k % params.chunk_levels == 0:
            state = 0
        levels.append(level_of(index, state & 1))
        state = next_state(params, state, index)
    return levels


def encode_chunks(params: Params, levels: Sequence[int]) -> list[bytes]:
    """Cut the levels of a tensor into chunks and code them (4.2)."""
    c = params.chunk_levels
    return [encode_chunk(params, levels[start : start + c]) for start in range(0, len(levels), c)]


class KnownBits:
    """Codes known bits where a decoder would find out what they are."""

    def __init__(self, plain: bytes) -> None:
        self.encoder = Encoder()
        self.bits: Iterator[int] = (byte >> k & 1 for byte in plain for k in range(7, -1, -1))

    def decision(self, p: int) -> int:
        """Code the next bit and return it."""
        one = next(self.bits)
        self.encoder.decision(p, one)
        return one

    def end_step(self) -> None:
        """Behind every decision."""
        self.encoder.end_step()


def encode_bytes(plain: bytes) -> bytes:
    """Code bytes (5)."""
    coder = KnownBits(plain)
    code_bytes(coder, len(plain))
    return coder.encoder.finish()


def varint(value: int) -> bytes:
    """A number of seven bits a byte (3.1)."""
    if value < 128:
        return bytes([value])
    return bytes([value & 127 | 128]) + varint(value >> 7)


def blob(data: bytes) -> bytes:
    """A varint and that many bytes (3.1)."""
    return varint(len(data)) + data


def write_file(plain_index: bytes, payload: bytes) -> bytes:
    """A file with this index and payload, right or wrong, under right checksums (2, 3.1)."""
    index = varint(len(plain_index)) + encode_bytes(plain_index)
    header = struct.pack("<8sIIQQ", MAGIC, 1, zlib.crc32(index), 32 + len(payload), len(index))
    return header + payload + index


def levels_entry(record: bytes, chunks: Sequence[bytes]) -> bytes:
    """Parameters and chunks in an index (3.3, method 1), right or wrong."""
    return blob(record) + b"".join(varint(len(c)) + zlib.crc32(c).to_bytes(4, "little") for c in chunks)


def scaled_entry(
    step: float, rows: Sequence[int], columns: Sequence[int], record: bytes, chunks: Sequence[bytes]
) -> bytes:
    """What follows the method of a tensor of levels with scales (3.3, method 3), right or wrong."""
    scales = [blob(bytes(scale % 256 for scale in scales)) for scales in (rows, columns)]
    return struct.pack("<f", step) + b"".join(scales) + levels_entry(record, chunks)


def write_levels(shape: Sequence[int], record: bytes, chunks: Sequence[bytes]) -> bytes:
    """Levels by themselves (6)."""
    head = LEVELS_MAGIC + bytes([len(shape)]) + b"".join(map(varint, shape)) + levels_entry(record, chunks)
    return head + zlib.crc32(head).to_bytes(4, "little") + b"".join(chunks)
