"""A reference encoder, as far as FORMAT.md says how to write: chunks of levels and of symbols (A), the index (4.2), and
files of given fields. It chooses nothing; how to quantise and which parameters to take is no part of the format. With
it, tests make files that no real writer makes.

Like ``decode.py`` it was written from FORMAT.md alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from decode import (
    BLOCK,
    ESCAPE,
    LEVELS_MAGIC,
    LINE,
    MAGIC,
    VISIT,
    Bits,
    ChangeModel,
    Model,
    Params,
    Site,
    SparseModel,
    SymbolSets,
    Tensor,
    adapted,
    bounds,
    code_bytes,
    code_strips,
    in_order,
    index_of,
    learn_blocks,
    left_at,
    level_of,
    low_bits,
    model_of,
    next_state,
    parse_table,
    rate_of,
    signed32,
    strip_levels,
)


class Encoder:
    """The two bit sequences of a chunk (A.1)."""

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


def decide(encoder: Encoder, contexts: list[int], k: int, one: int) -> None:
    """Code a decision, from which its context learns."""
    encoder.decision(contexts[k], one)
    contexts[k] = adapted(contexts[k], one)


def encode_magnitude(encoder: Encoder, contexts: list[int], low: int, magnitude: int) -> int:
    """Code a magnitude (5.7, 1 to 3). Returns its upper part."""
    upper = magnitude >> low
    for k in range(min(upper + 1, 16)):
        decide(encoder, contexts, k, int(upper > k))
        if k % 4 == 3 or upper <= k:
            encoder.end_step()
    if upper >= 16:
        x = upper - 15
        n = x.bit_length() - 1
        encoder.raw(n, 5)
        encoder.raw(x - (1 << n), n)
    rest = magnitude & (1 << low) - 1
    if low > 0 and upper == 0:
        decide(encoder, contexts, 31, rest >> low - 1)
        encoder.end_step()
        encoder.raw(rest & (1 << low - 1) - 1, low - 1)
    else:
        encoder.raw(rest, low)
    return upper


def encode_residual(encoder: Encoder, contexts: list[int], low: int, leaning: bool, residual: int) -> None:
    """Code a residual whose sign has been turned (5.7)."""
    magnitude = abs(residual)
    upper = encode_magnitude(encoder, contexts, low, magnitude)
    if magnitude and leaning:
        decide(encoder, contexts, 16 + min(upper, 14), int(residual < 0))
        encoder.end_step()
    elif magnitude:
        encoder.raw(int(residual < 0), 1)


def encode_chunk(params: Params, levels: Sequence[int]) -> bytes:
    """Code the levels of a chunk (A.1)."""
    encoder, model = Encoder(), model_of(params)
    for level in levels:
        number, low, predicted, leaning, down = model.site()
        index = index_of(level, model.state & 1) if params.dependent else level
        residual = signed32(predicted - index if down else index - predicted)
        encode_residual(encoder, model.sets[number], low, leaning, residual)
        model.commit(level, index, abs(residual))
        if len(model.levels) == params.width:
            model.end_row()
    return encoder.finish()


def encode_sparse_chunk(params: Params, levels: Sequence[int]) -> bytes:
    """Code the levels of a chunk with the sparse coder (8)."""
    encoder, model = Encoder(), SparseModel(params)
    for level in levels:
        index = index_of(level, model.state & 1) if params.dependent else level
        decide(encoder, *model.contexts(), int(index != 0))
        encoder.end_step()
        if index:
            c = model.magnitude_class()
            encode_magnitude(encoder, model.sets[2 * c], low_bits(c), abs(index) - 1)
            encoder.raw(int(index < 0), 1)
        model.commit(index, abs(index) - 1)
    return encoder.finish()


class FastEncoder:
    """Puts known residuals into symbols, states and words (A.2)."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.sets = SymbolSets()
        self.puts: list[tuple[int, int, int, int, int]] = []  # lane, first place, frequency, raw bits, their number
        self.models: list[Model] = []
        self.given: Iterator[list[int]] = iter([])

    def residuals(self, sites: list[Site]) -> list[int]:
        """The residuals of the levels that come next."""
        residuals, rest = [], []
        for lane, (site, level, model) in enumerate(zip(sites, next(self.given), self.models, strict=True)):
            number, low, predicted, leaning, down = site
            index = index_of(level, model.state & 1) if model.params.dependent else level
            residual = signed32(predicted - index if down else index - predicted)
            residuals.append(residual)
            zigzag, negative = leaning and low == 0, int(residual < 0)
            magnitude = -1 - residual if low > 0 and negative else abs(residual)
            upper = magnitude >> low
            symbol = 2 * upper - (residual > 0) if zigzag else upper
            symbol = min(symbol, ESCAPE)
            value, bits = negative, int(symbol > 0)
            if zigzag:
                value, bits = 0, 0
            elif low > 0:
                value, bits = magnitude % 2 ** min(low, 3) << 1 | negative, min(low, 3) + 1
            symbols = self.sets.sets[number]
            first = sum(symbols.frequencies[:symbol])
            self.puts.append((lane, first, symbols.frequencies[symbol], value, bits))
            symbols.counts[symbol] += VISIT
            if low > 3:
                rest.append((lane, 0, 4096, magnitude % 2**low >> 3, low - 3))
            if symbol == ESCAPE:
                x = upper - (7 if zigzag else 14)
                n = x.bit_length() - 1
                pieces = [(n, 5), (x % 2 ** min(n, 16), min(n, 16))]
                pieces += [((x ^ 1 << n) >> 16, n - 16)] if n > 16 else []
                pieces += [(negative, 1)] if zigzag else []
                rest += [(16 + lane, 0, 4096, *piece) for piece in pieces]
        rest.sort(key=lambda put: put[0])  # stable: escapes after low bits, lane by lane
        self.puts += [(put[0] % 16, *put[1:]) for put in rest]
        return residuals

    def finish(self) -> bytes:
        """The chunk."""
        states, words = [2**16] * self.lanes, []
        for lane, first, frequency, value, bits in reversed(self.puts):
            if states[lane] >= frequency << 20 - bits:
                words.append(states[lane] % 2**16)
                states[lane] >>= 16
            state = states[lane] << bits | value
            states[lane] = (state // frequency << 12) + first + state % frequency
        head = b"".join(state.to_bytes(4, "little") for state in states)
        return head + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def encode_fast_chunk(params: Params, levels: Sequence[int]) -> bytes:
    """Code the levels of a chunk with the fast coder (7)."""
    each = strip_levels(params, len(levels))
    encoder = FastEncoder(16 if each else 1)
    for strips, first, count in [(16, 0, each), (1, 16 * each, len(levels) - 16 * each)]:
        if count:
            encoder.given = iter([[levels[first + j * count + k] for j in range(strips)] for k in range(count)])
            code_strips(encoder, params, strips, count, encoder.models)
    return encoder.finish()


def encode_changes(tensor: Tensor, old: Sequence[int], new: Sequence[int]) -> bytes:
    """Code a chunk of changes (A.3): patterns of the base, and what they become."""
    encoder, model, start = Encoder(), ChangeModel(tensor, list(old)), 0
    for before, after, code in zip(old, new, model.codes, strict=True):
        if before == after:
            start += rate_of(code)
            continue
        encode_place(encoder, model, start, start + rate_of(code))
        start = 0
        step = (in_order(tensor, after) - in_order(tensor, before)) % 2**tensor.bits
        if step >= 2 ** (tensor.bits - 1):
            step -= 2**tensor.bits
        encode_unary(encoder, model.sizes[code], min(abs(step), 5) - 1)
        if abs(step) > 4:
            count = (abs(step) - 4).bit_length() - 1
            encode_unary(encoder, model.lengths, count)
            encoder.raw(abs(step) - 4 - 2**count, count)
        encoder.raw(int(step < 0), 1)
    encode_place(encoder, model, start, start // LINE * LINE + LINE)
    return encoder.finish()


def encode_place(encoder: Encoder, model: ChangeModel, start: int, end: int) -> None:
    """Code that what comes next is at one of these places (A.3)."""
    contexts = model.lines[0]
    while start >= LINE or end - LINE > LINE - start:
        encode_part(encoder, contexts, LINE, LINE + 1)
        learn_blocks(contexts, 4)
        contexts = model.lines[1]
        start, end = max(start - LINE, 0), end - LINE
    end = min(end, LINE)
    encode_part(encoder, contexts, start, end)
    learn_blocks(contexts, (start + end) // (2 * BLOCK))


def encode_part(encoder: Encoder, contexts: list[int], start: int, end: int) -> None:
    """A step that takes a part of a line (11.4)."""
    line = bounds(encoder.range, contexts)
    encoder.low += left_at(line, end)
    encoder.range = left_at(line, start) - left_at(line, end)
    encoder.end_step()


def encode_unary(encoder: Encoder, contexts: list[int], ones: int) -> None:
    """So many ones, and a zero if there are more contexts."""
    for k in range(min(ones + 1, len(contexts))):
        decide(encoder, contexts, k, int(k < ones))
        encoder.end_step()


def levels_of(params: Params, indices: Sequence[int]) -> list[int]:
    """The levels of a tensor's quantisation indices with dependent quantisation (5.2)."""
    levels, starts = [], set(range(0, len(indices), params.chunk_levels))
    for start in list(starts) if params.fast else []:
        each = strip_levels(params, min(params.chunk_levels, len(indices) - start))
        starts |= {start + strip * each for strip in range(17)}
    for k, index in enumerate(indices):
        if k in starts:
            state = 0
        levels.append(level_of(index, state & 1))
        state = next_state(params, state, index)
    return levels


def encode_chunks(params: Params, levels: Sequence[int]) -> list[bytes]:
    """Cut the levels of a tensor into chunks and code them (5.1)."""
    c = params.chunk_levels
    code = encode_sparse_chunk if params.sparse else encode_fast_chunk if params.fast else encode_chunk
    return [code(params, levels[start : start + c]) for start in range(0, len(levels), c)]


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
        """After every decision."""
        self.encoder.end_step()


def encode_bytes(plain: bytes) -> bytes:
    """Code bytes (4.2)."""
    coder = KnownBits(plain)
    code_bytes(coder, len(plain))
    return coder.encoder.finish()


def raw(value: int, count: int) -> str:
    """A number of ``count`` bits in a sequence of bits, which is a text of 0 and 1 (10.2)."""
    return format(value % (1 << count), f"0{count}b")[::-1] if count else ""


def packed(sequence: str) -> bytes:
    """A sequence of bits, filled up to a byte (10.2)."""
    return int("0" + sequence[::-1], 2).to_bytes((len(sequence) + 7) // 8, "little")


def number(value: int) -> str:
    """A number of variable length (10.6)."""
    length = (value + 1).bit_length() - 1
    return "0" * length + "1" + raw(value + 1, length)


def signed_number(value: int) -> str:
    """The same with a sign."""
    return number(2 * value if value >= 0 else -2 * value - 1)


def table(first: int, grades: Sequence[int]) -> str:
    """A table with these grades from the first symbol on (10.6)."""
    steps = [grade - before for grade, before in zip(grades, [0, *grades], strict=False)]
    return raw(first, 8) + raw(first + len(grades) - 1, 8) + "".join(map(signed_number, steps))


def encode_symbols(tables: Sequence[Sequence[int]], choice: Sequence[int], symbols: Sequence[int]) -> bytes:
    """The code of symbols, each with the number of its table, whose places are given (10.6, A.2)."""
    states = [1 << 16] * (32 if len(symbols) >= 8192 else 8)
    words: list[int] = []
    for k in reversed(range(len(symbols))):
        places, symbol, lane = tables[choice[k]], symbols[k], k % len(states)
        count = places[symbol]
        if states[lane] >= count << 20:
            words.append(states[lane] % (1 << 16))
            states[lane] >>= 16
        upper, place = divmod(states[lane], count)
        states[lane] = (upper << 12) + sum(places[:symbol]) + place
    return struct.pack(f"<{len(states)}I", *states) + struct.pack(f"<{len(words)}H", *words[::-1])


@dataclass
class SymbolChunk:
    """What the head of a chunk of method 11 says (10.7)."""

    low: int
    base: int
    runs: Sequence[tuple[int, int]]  #: zeros and values of each
    tables: Sequence[tuple[int, Sequence[int]]]  #: as for :func:`table`
    parts: int | None = None  #: None without scales
    rows: Sequence[int] | None = None  #: scales, or None if all are 16
    columns: Sequence[int] | None = None

    def head(self, bits: int, escapes: int) -> str:
        """Its fields, for values of so many bits."""
        fields = [raw(self.low, 6), raw(self.base, bits - 1 - self.low), number(escapes), number(len(self.runs) - 1)]
        for k, (zeros, length) in enumerate(self.runs):
            fields += [number(zeros), number(length - 1) if k < len(self.runs) - 1 else ""]
        fields.append("0" if self.parts is None else "1" + number(self.parts))
        for scales in (self.rows, self.columns) if self.parts is not None else ():
            fields.append("0" if scales is None else "1" + "".join(signed_number(scale - 16) for scale in scales))
        return "".join(fields + [table(first, grades) for first, grades in self.tables])

    def encode(self, bits: int, mantissa: int, width: int, patterns: Sequence[int]) -> bytes:
        """A chunk of patterns in rows of ``width``. Symbols without places become escapes."""
        places = [parse_table(Bits(packed(table(first, grades)))) for first, grades in self.tables]
        zeros = [zeros for zeros, length in self.runs for _ in range(length)]
        copied, escaped, symbols, choice = "", b"", [], []
        for k, pattern in enumerate(patterns):
            scale = 0
            if self.parts is not None:
                scale = self.rows[k // width] if self.rows else 16
                scale += self.columns[k % width] if self.columns else 16
            choice.append(scale % len(places))
            upper = pattern % (1 << bits - 1) >> self.low
            shift = (scale // len(places) << mantissa - self.low) % 256
            symbol = (upper - self.base - shift) % (1 << bits - 1 - self.low)
            exact = pattern % (1 << zeros[k]) == 0 and 0 < symbol < len(places[choice[k]]) and places[choice[k]][symbol]
            symbols.append(symbol if exact else 0)
            copied += raw(pattern >> zeros[k], self.low - zeros[k]) + raw(pattern >> bits - 1, 1)
            escaped += b"" if exact else pattern.to_bytes(bits // 8, "little")
        head = packed(self.head(bits, len(escaped) * 8 // bits))
        return head + packed(copied) + escaped + encode_symbols(places, choice, symbols)


def symbols_entry(width: int, rows: int, chunks: Sequence[bytes]) -> bytes:
    """Method 11 and what follows it (10.7), right or wrong."""
    table = b"".join(varint(len(chunk)) + b"\0" + zlib.crc32(chunk).to_bytes(4, "little") for chunk in chunks)
    return b"\x0b" + varint(width) + varint(rows) + table


def multiples_entry(
    group: int, signed: int, record: bytes, chunks: Sequence[bytes], steps: Sequence[bytes]
) -> bytes:
    """Method 14 and what follows it (10.9), right or wrong. ``steps``: the end of each chunk, coded as method 11."""
    table = b"".join(
        varint(len(levels)) + varint(len(lengths)) + zlib.crc32(levels + lengths).to_bytes(4, "little")
        for levels, lengths in zip(chunks, steps, strict=True)
    )
    return b"\x0e" + varint(group) + bytes([signed]) + blob(record) + table


def varint(value: int) -> bytes:
    """A number of seven bits per byte (2.3)."""
    if value < 128:
        return bytes([value])
    return bytes([value & 127 | 128]) + varint(value >> 7)


def blob(data: bytes) -> bytes:
    """A varint and that many bytes (2.3)."""
    return varint(len(data)) + data


def write_file(plain_index: bytes, payload: bytes) -> bytes:
    """A file with this index and payload, right or wrong, under right checksums (4.1, 4.2)."""
    index = varint(len(plain_index)) + encode_bytes(plain_index)
    if len(plain_index) > 2**20 + 32 + len(payload) + len(index):
        index = varint(0) + plain_index
    header = struct.pack("<8sIIQQ", MAGIC, 1, zlib.crc32(index), 32 + len(payload), len(index))
    return header + payload + index


def levels_entry(record: bytes, chunks: Sequence[bytes]) -> bytes:
    """Parameters and chunks in an index (4.7), right or wrong."""
    return blob(record) + b"".join(varint(len(c)) + zlib.crc32(c).to_bytes(4, "little") for c in chunks)


def tensor_entry(
    step: float, record: bytes, chunks: Sequence[bytes], rows: Sequence[int] = (), columns: Sequence[int] = ()
) -> bytes:
    """Method 1 and what follows it (4.7), right or wrong."""
    scales = [blob(bytes(scale % 256 for scale in scales)) for scales in (rows, columns)]
    return b"\1" + struct.pack("<f", step) + b"".join(scales) + levels_entry(record, chunks)


def write_levels(shape: Sequence[int], record: bytes, chunks: Sequence[bytes]) -> bytes:
    """Levels on their own (12)."""
    head = LEVELS_MAGIC + bytes([len(shape)]) + b"".join(map(varint, shape)) + levels_entry(record, chunks)
    return head + zlib.crc32(head).to_bytes(4, "little") + b"".join(chunks)
