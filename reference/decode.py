"""A reference decoder for .dcb files, version 1, and for coded levels: FORMAT.md made executable, slow and plain.

It was written from FORMAT.md alone, and shares nothing with the ``deepcabac`` package. Section numbers in the
docstrings are FORMAT.md's. Needs numpy, and ml_dtypes for bfloat16 and float8.

``python reference/decode.py FILE.dcb`` lists the tensors of a file, ``python reference/decode.py FILE.dcb OUT.npz``
decodes them (bfloat16 and float8 become float32, which npz can hold).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = bytes.fromhex("894443420D0A1A0A")
LEVELS_MAGIC = bytes.fromhex("DC01")
RAW, LEVELS, TIED, EQUAL = 0, 1, 2, 12
FLOAT, FLOAT_ZEROS, INTEGERS, CODEBOOK = range(3, 7)
STEPS, DIFFERENCES, UNCHANGED, QUANTIZED_DIFFERENCE, CHANGES = 7, 8, 9, 10, 13  # of updates
UPDATES = (STEPS, DIFFERENCES, UNCHANGED, QUANTIZED_DIFFERENCE, CHANGES)
SYMBOLS, MULTIPLES = 11, 14
REFINED = (FLOAT, FLOAT_ZEROS, INTEGERS, STEPS, DIFFERENCES)
RAW_CHUNK = 1 << 20
#: Bits of the mantissa, by data type (10.2).
MANTISSA = {1: 52, 2: 23, 3: 10, 4: 7, 5: 3, 6: 2, 18: 3, 19: 2, 20: 3, 21: 3, 22: 4}

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f8"),
    2: np.dtype("<f4"),
    3: np.dtype("<f2"),
    4: np.dtype(ml_dtypes.bfloat16),
    5: np.dtype(ml_dtypes.float8_e4m3fn),
    6: np.dtype(ml_dtypes.float8_e5m2),
    7: np.dtype("<i8"),
    8: np.dtype("<i4"),
    9: np.dtype("<i2"),
    10: np.dtype("i1"),
    11: np.dtype("<u8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u2"),
    14: np.dtype("u1"),
    15: np.dtype("?"),
    16: np.dtype("<c8"),
    17: np.dtype("<c16"),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2fnuz),
    20: np.dtype(ml_dtypes.float8_e4m3b11fnuz),
    21: np.dtype(ml_dtypes.float8_e4m3),
    22: np.dtype(ml_dtypes.float8_e3m4),
    23: np.dtype(ml_dtypes.float8_e8m0fnu),
    24: np.dtype(ml_dtypes.float6_e2m3fn),
    25: np.dtype(ml_dtypes.float6_e3m2fn),
    26: np.dtype(ml_dtypes.float4_e2m1fn),
    27: np.dtype(ml_dtypes.int4),
    28: np.dtype(ml_dtypes.uint4),
    29: np.dtype(ml_dtypes.int2),
    30: np.dtype(ml_dtypes.uint2),
}
FLOATS = range(1, 7)
#: Data type of the parts of complex numbers, and how many these are.
PARTS = {16: (2, 2), 17: (1, 2)}
#: Likewise of integers that hold packed codes: 32 + c, 48 + c and 64 + c for those of data type c.
PACKED = {
    more + c: (code, 8 * DTYPES[c].itemsize // bits)
    for c in range(7, 15)
    for more, code, bits in ((32, 28, 4), (48, 30, 2), (64, 14, 8))
    if bits < 8 * DTYPES[c].itemsize
}
#: Of the bytes that elements may have (4.5): the lowest, and how many.
BYTES = {15: (0, 2), 24: (0, 64), 25: (0, 64), 26: (0, 16), 27: (-8, 16), 28: (0, 16), 29: (-2, 4), 30: (0, 4)}

#: 2^0, 2^(1/4), 2^(2/4) and 2^(3/4) as float32, by their bits (6.2).
ROOTS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], dtype=np.uint32).view(np.float32)


class Damaged(Exception):
    """The bytes are not a file, or coded levels, of version 1."""


class TooLarge(Exception):
    """The tensors take more memory than the caller allows (4.11)."""


def check(condition: bool, what: str) -> None:
    """Refuse the input if ``condition`` does not hold."""
    if not condition:
        raise Damaged(what)


class Fields:
    """Reads fields one after the other, from the index (4), coding parameters (4.8) or levels on their own (12)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        check(count <= len(self.data) - self.position, "fields end early")
        self.position += count
        return self.data[self.position - count : self.position]

    def byte(self) -> int:
        """An unsigned byte."""
        return self.take(1)[0]

    def signed(self) -> int:
        """A byte in two's complement."""
        byte = self.byte()
        return byte - 256 if byte >= 128 else byte

    def varint(self, most_bytes: int = 9) -> int:
        """A number of seven bits a byte, least significant first."""
        value = 0
        for k in range(most_bytes):
            byte = self.byte()
            value |= (byte & 127) << 7 * k
            if byte < 128:
                check(byte > 0 or k == 0, "number longer than it needs to be")
                return value
        raise Damaged("number too long")

    def u32(self) -> int:
        """A little-endian number of four bytes."""
        return int.from_bytes(self.take(4), "little")

    def blob(self) -> bytes:
        """A varint and that many bytes."""
        return self.take(self.varint())

    def text(self) -> str:
        """A blob of UTF-8."""
        try:
            return self.blob().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("text is not UTF-8") from error

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self.data) - self.position)

    def end(self) -> None:
        """Nothing may be left."""
        check(self.position == len(self.data), "fields end late")


# --- 3, 5 Coded levels ------------------------------------------------------------------------------------------------


TAPS = {3: (0b110, 0b011), 4: (0b1100, 0b0010), 5: (0b10100, 0b01101), 6: (0b101011, 0b010010)}


class Params:
    """Coding parameters of a tensor (4.8)."""

    def __init__(self, record: bytes) -> None:
        fields = Fields(record)
        flags, self.mean_log = fields.byte(), fields.byte()
        self.width, self.chunk_rows = fields.varint(3), fields.varint(3)
        check(flags <= 63 and self.mean_log <= 191, "flags or mean")
        coder = flags >> 4
        self.fast, self.sparse, self.regression = coder == 1, coder == 2, coder == 3
        check(not (self.sparse and flags & 1), "row prediction with the sparse coder")
        check(not (self.regression and flags & 2), "regression with kernels")
        check(1 <= self.width <= (8192 if self.regression else 65536) and self.chunk_rows >= 1, "width or rows")
        check(self.width * self.chunk_rows <= 1 << (22 if self.regression else 20), "levels in a chunk")
        self.flags = flags
        self.coarse = flags & 4 != 0
        self.above = self.column = 0
        self.kernel_width = self.kernel_size = 1
        self.kernel = [0, 0, 0, 0, 0]
        if flags & 1:
            self.above, self.column = fields.signed(), fields.signed()
        if flags & 2:
            self.kernel_width, self.kernel_size = fields.byte(), fields.byte()
            check(1 <= self.kernel_width <= 64 and 1 <= self.kernel_size <= 128, "kernel")
            if not self.sparse:
                self.kernel = [fields.signed() for _ in range(5)]
        elif self.sparse:
            self.kernel_width = self.kernel_size = self.width
        self.density_log = fields.byte() if self.sparse else 160
        self.dependent = flags & 8 != 0
        self.taps = (0, 0)
        if self.dependent:
            bits = fields.byte()
            check(bits in TAPS, "number of states")
            self.taps = TAPS[bits]
        check(self.density_log <= 160, "density")
        fields.end()

    @property
    def chunk_levels(self) -> int:
        """Levels of every chunk but the last."""
        return self.width * self.chunk_rows


class Decoder:
    """The two bit sequences of a chunk (3.1)."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk
        self.range = 2**64 - 1
        self.code = int.from_bytes((chunk + bytes(8))[:8], "big")
        self.shifted = 0  # bytes taken in after the first eight
        self.raw_bits = 0  # raw bits read

    def decision(self, p: int) -> int:
        """An arithmetically coded bit; ``p`` is the probability of one in units of 2^-32."""
        bound = self.range * p >> 32
        if self.code < bound:
            self.range = bound
            return 1
        self.code -= bound
        self.range -= bound
        return 0

    def end_step(self) -> None:
        """Bring the range back to 2^56 and more. Ends early where the length can no longer fit (3.3)."""
        while self.range < 2**56:
            index = 8 + self.shifted
            byte = self.chunk[index] if index < len(self.chunk) else 0
            self.range = self.range << 8
            self.code = (self.code << 8 | byte) % 2**64
            self.shifted += 1
        check(self.shifted < len(self.chunk), "chunk too short")

    def raw(self, count: int) -> int:
        """A number of ``count`` raw bits."""
        value = 0
        for k in range(count):
            index = len(self.chunk) - 1 - self.raw_bits // 8
            byte = self.chunk[index] if index >= 0 else 0
            value |= (byte >> self.raw_bits % 8 & 1) << k
            self.raw_bits += 1
        return value

    def finish(self) -> None:
        """Check that the chunk ends exactly here (3.3)."""
        arithmetic_bytes = self.shifted + (1 if self.range >= 2**57 else 2)
        raw_bytes = (self.raw_bits + 7) // 8
        check(arithmetic_bytes + raw_bytes == len(self.chunk), "length of the chunk")
        check(self.raw(8 * raw_bytes - self.raw_bits) == 0, "unused bits")


def log(x: int) -> int:
    """Eight times the binary logarithm, roughly (5.3)."""
    x = x | 1
    exponent = x.bit_length() - 1
    return 8 * exponent + ((8 * x >> exponent) - 8)


def from_log(log: int) -> int:
    """The least number of a logarithm, or nearly so (5.3)."""
    exponent, mantissa = log // 8, 8 + log % 8
    return mantissa << exponent - 3 if exponent >= 3 else mantissa >> 3 - exponent


def scale_class(params: Params, row_average: int, column_average: int) -> int:
    """The class, 0 to 79, of the magnitude to expect (5.3)."""
    c = (7 * log(row_average) + 7 * log(column_average) - 6 * params.mean_log - 256) >> 4
    c = min(max(c, 0), 79)
    return c & ~1 if params.coarse else c


def low_bits(c: int) -> int:
    """Low bits of a magnitude in class ``c`` (5.3)."""
    return max((32 + 2 * c) // 8 - 13, 0)


def clamped(level: int) -> int:
    """A level as it enters means and predictions (5.4)."""
    return min(max(level, -32768), 32767)


def adapted(context: int, one: int) -> int:
    """A context after a decision (3.2)."""
    probability, count = context >> 10, context & 1023
    stage = count >> 7
    target = 2**22 - 2**11 if one else 2**11
    probability += (target - probability) >> (stage + 1)
    count = min(count + (128 >> stage), 896)
    return probability << 10 | count


def initial_sets() -> list[list[int]]:
    """The contexts at the start of a chunk: 320 sets of 32 (5.5)."""
    wide, narrow = [], []
    for c in range(80):
        m = from_log(32 + 2 * c) >> low_bits(c)
        a = 1229 + (2867 << 12) // (4096 + 2 * m)
        words = []
        for k in range(16):
            probability = (m << 22) // (m + a + 2867 * k)
            probability = min(max(probability, 2**11), 2**22 - 2**11)
            words.append(probability << 10 | 256)
        words += [2**31 | 256] * 16
        wide += [list(words), list(words)]
        probability = min((m << 22) // (m + 80), 2**22 - 2**11)
        words[0] = probability << 10 | 256
        narrow += [list(words), list(words)]
    return wide + narrow


def signed32(value: int) -> int:
    """A number modulo 2^32, as a signed one."""
    return (value + 2**31) % 2**32 - 2**31


def sign(value: int) -> int:
    """-1, 0 or 1."""
    return (value > 0) - (value < 0)


def level_of(index: int, odd: int) -> int:
    """The level of a quantisation index in the first quantiser (``odd`` = 0) or the second (5.2)."""
    return signed32(2 * index - sign(index) * odd)


def index_of(level: int, odd: int) -> int:
    """The quantisation index of a level in the quantiser that has it (5.2)."""
    return (level + sign(level) * odd) // 2


def next_state(params: Params, state: int, index: int) -> int:
    """The state after an index (5.2)."""
    odd_state, odd_index = params.taps
    return state >> 1 ^ odd_state * (state & 1) ^ odd_index * (index & 1)


def predicted_index(value: int, odd: int) -> int:
    """The index of the level nearest to a prediction in units of 2^-8 (5.6)."""
    if odd and abs(value) < 128:
        return 0
    return sign(value) * (abs(value) + 256 + 256 * odd >> 9)


class Model:
    """What is expected of the levels of a chunk (5.6)."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.mean = from_log(params.mean_log)
        self.column_averages = [self.mean] * params.width
        self.column_means = [0] * params.width
        self.row_predictions = [0] * params.width
        self.row_number = 0
        self.state = 0
        self.sets = initial_sets()
        self.start_row()

    def start_row(self) -> None:
        """Begin a row."""
        self.row_average = self.mean
        self.levels: list[int] = []  # of the present row
        self.magnitudes: list[int] = []  # of its residuals, in units of 2^-12

    def commit(self, level: int, index: int, magnitude: int) -> None:
        """Take in a level, its index and the magnitude of the residual."""
        column = len(self.levels)
        fixed = min(magnitude, 4095) << 12
        if self.params.dependent:
            fixed = min(abs(signed32(level - self.expected)), 8191) << 11
            self.state = next_state(self.params, self.state, index)
        self.levels.append(level)
        self.magnitudes.append(fixed)
        shift = 3 if column < 8 else 4 if column < 24 else 5
        self.row_average += (fixed - self.row_average) >> shift

    def end_row(self) -> None:
        """Move the columns, after a complete row."""
        r = self.row_number
        shift = 3 if r < 4 else 4 if r < 12 else 5 if r < 40 else 6
        for i in range(self.params.width):
            self.column_averages[i] += (self.magnitudes[i] - self.column_averages[i]) >> shift
            level = clamped(self.levels[i])
            self.column_means[i] += ((level << 8) - self.column_means[i]) >> shift
            self.row_predictions[i] = 4 * self.params.above * level + (self.params.column * self.column_means[i] >> 6)
        self.row_number += 1
        self.start_row()

    def prediction(self) -> int:
        """The prediction of the next level, in units of 2^-8."""
        p, column = self.params, len(self.levels)
        value = self.row_predictions[column]
        y, x = divmod(column % p.kernel_size, p.kernel_width)
        # left, up, up-left, two left, two up
        for weight, (dx, dy) in zip(p.kernel, [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)], strict=True):
            if x >= dx and y >= dy:
                value += 4 * weight * clamped(self.levels[column - dx - dy * p.kernel_width])
        return value

    def site(self) -> tuple[int, int, int, bool, bool]:
        """What is known about the next level: context set, low bits, prediction, leaning, down."""
        value = self.prediction()
        self.expected = predicted = (value + 128) >> 8
        rest, least = value - (predicted << 8), 44
        narrow = False
        if self.params.dependent:
            odd = self.state & 1
            predicted = predicted_index(value, odd)
            rest, least = value - (level_of(predicted, odd) << 8), 88
            narrow = odd == 1 and predicted == 0
        leaning = abs(rest) >= least
        down = rest < 0
        c = scale_class(self.params, self.row_average, self.column_averages[len(self.levels)])
        return 2 * c + leaning + 160 * narrow, low_bits(c), predicted, leaning, down


# --- 9 Regression -----------------------------------------------------------------------------------------------------

LIMIT = 2**23
f32 = np.float32


def block_width(width: int) -> int:
    """Columns of a block."""
    blocks = -(-width // (2**19 // width))
    return -(-width // blocks)


class Block:
    """What is known about the columns of a block: what each of them says about those after it."""

    def __init__(self, width: int, prior_energy: np.float32) -> None:
        self.factors = [np.zeros(width, f32) for _ in range(width)]
        self.energies = [prior_energy] * width
        self.row = np.zeros(width, f32)
        self.predictions = np.zeros(width, f32)

    def prediction(self, column: int) -> int:
        """What is predicted in a column, in units of 2^-8."""
        value = float(self.predictions[column])
        return 0 if math.isnan(value) else int(min(max(value, -LIMIT), LIMIT))

    def commit(self, column: int, error: int) -> None:
        """Take in the prediction error of the level in this column."""
        rounded, later = f32(error), slice(column + 1, None)
        self.row[column] = rounded + f32(self.prediction(column))
        self.predictions[later] = self.predictions[later] + self.factors[column][later] * rounded

    def end_row(self) -> None:
        """Learn from the row, and forget it."""
        weight = f32(1)
        for column, factors in enumerate(self.factors):
            error, before, later = self.row[column], self.energies[column], slice(column + 1, None)
            weighted = weight * error
            energy = before + weighted * error
            rate = weighted / energy
            weight = weight * before / energy
            self.energies[column] = energy
            self.row[later] = self.row[later] - error * factors[later]
            factors[later] = factors[later] + rate * self.row[later]
        self.predictions[:] = 0


class RegressionModel(Model):
    """A model that predicts from the columns before, too."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        typical = f32(2 * self.mean if params.dependent else self.mean) / f32(16)
        energy = typical * typical + f32(256) * typical
        prior_energy = energy * f32(1 << (3 * params.width).bit_length() - 1)
        self.reach = block_width(params.width)
        starts = range(0, params.width, self.reach)
        self.blocks = [Block(min(self.reach, params.width - start), prior_energy) for start in starts]
        self.sets += [list(words) for words in self.sets[160::2]]  # steep

    def prediction(self) -> int:
        """The prediction of the next level, in units of 2^-8."""
        block, column = divmod(len(self.levels), self.reach)
        self.predicted = super().prediction() + self.blocks[block].prediction(column)
        return self.predicted

    def site(self) -> tuple[int, int, int, bool, bool]:
        """What is known about the next level."""
        number, low, predicted, leaning, down = super().site()
        value = self.predicted
        if self.params.dependent and self.state & 1 and abs(value) < 512:
            c = number % 160 // 2
            leaning = abs(value) >= 88
            number = 320 + c if abs(value) >= 256 else 160 + 2 * c + leaning
            predicted, down = 0, value < 0
        return number, low, predicted, leaning, down

    def commit(self, level: int, index: int, magnitude: int) -> None:
        """Take in a level, its index and the magnitude of the residual."""
        block, column = divmod(len(self.levels), self.reach)
        super().commit(level, index, magnitude)
        with np.errstate(all="ignore"):
            self.blocks[block].commit(column, (clamped(level) << 8) - self.predicted)

    def end_row(self) -> None:
        """Move the columns, and learn, after a complete row."""
        super().end_row()
        with np.errstate(all="ignore"):
            for block in self.blocks:
                block.end_row()


def model_of(params: Params) -> Model:
    """The model of a chunk of decisions, with regression or without."""
    return RegressionModel(params) if params.regression else Model(params)


# --- 5.7 From decisions to levels -------------------------------------------------------------------------------------


def decide(decoder: Decoder, contexts: list[int], k: int) -> int:
    """A decision, from which its context learns."""
    one = decoder.decision(contexts[k])
    contexts[k] = adapted(contexts[k], one)
    return one


def decode_magnitude(decoder: Decoder, contexts: list[int], low: int) -> tuple[int, int]:
    """The upper part of a magnitude, and the magnitude (5.7, 1 to 3)."""
    upper = 0
    while upper < 16 and decide(decoder, contexts, upper):
        upper += 1
        if upper % 4 == 0:
            decoder.end_step()
    decoder.end_step()
    if upper == 16:
        n = decoder.raw(5)
        upper = (15 + (1 << n | decoder.raw(n))) % 2**32
    magnitude = (upper << low) % 2**32
    if low > 0 and upper == 0:
        magnitude |= decide(decoder, contexts, 31) << low - 1
        decoder.end_step()
        magnitude |= decoder.raw(low - 1)
    else:
        magnitude |= decoder.raw(low)
    return upper, magnitude


def decode_residual(decoder: Decoder, contexts: list[int], low: int, leaning: bool) -> tuple[int, int]:
    """A residual, before its sign is turned, and its magnitude (5.7)."""
    upper, magnitude = decode_magnitude(decoder, contexts, low)
    negative = 0
    if magnitude != 0 and leaning:
        negative = decide(decoder, contexts, 16 + min(upper, 14))
        decoder.end_step()
    elif magnitude != 0:
        negative = decoder.raw(1)
    return -magnitude if negative else magnitude, magnitude


def decode_level(decoder: Decoder, model: Model) -> int:
    """The next level of a chunk (5.7)."""
    number, low, predicted, leaning, down = model.site()
    residual, magnitude = decode_residual(decoder, model.sets[number], low, leaning)
    index = signed32(predicted + (-residual if down else residual))
    level = level_of(index, model.state & 1) if model.params.dependent else index
    model.commit(level, index, magnitude)
    return level


def decode_chunk(params: Params, count: int, chunk: bytes) -> list[int]:
    """The ``count`` levels of a chunk (5.8), also one with regression (9)."""
    check(1 <= count <= params.chunk_levels and count <= 11400 * (len(chunk) + 8), "levels of the chunk")
    decoder, model = Decoder(chunk), model_of(params)
    levels: list[int] = []
    while len(levels) < count:
        levels.append(decode_level(decoder, model))
        if len(model.levels) == params.width:
            model.end_row()
    decoder.finish()
    return levels


# --- 7 The fast coder -------------------------------------------------------------------------------------------------

ESCAPE, STRIDE, VISIT = 15, 512, 256
Site = tuple[int, int, int, bool, bool]


def first_counts(words: list[int], zigzag: bool) -> list[int]:
    """The counts of a set at the start of a chunk, from its contexts."""
    counts, left = [0] * 16, 2**22
    for k in range(16):
        more = left * (words[k] >> 10) >> 22
        here = left - more >> 10
        if zigzag and k > 0:
            counts[min(2 * k - 1, 15)] += here - here // 2
            counts[min(2 * k, 15)] += here // 2
        else:
            counts[k] += here
        left = more
    counts[15] += 4096 - sum(counts)
    return counts


class SymbolSet:
    """What is known about the symbols of a context set."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts
        self.renew()

    def renew(self) -> None:
        """Make frequencies of the counts."""
        self.made = sum(self.counts)
        scale = (4080 << 32) // self.made
        self.frequencies = [1 + (count * scale >> 32) for count in self.counts]
        most = self.counts.index(max(self.counts))
        self.frequencies[most] += 4096 - sum(self.frequencies)


class SymbolSets:
    """All context sets."""

    def __init__(self) -> None:
        numbered = enumerate(initial_sets())
        zigzag = [n % 2 == 1 and low_bits(n % 160 // 2) == 0 for n in range(320)]
        self.sets = [SymbolSet(first_counts(words, zigzag[n])) for n, words in numbered]
        self.age, self.refresh = 0, 256

    def passed(self, count: int) -> None:
        """So many symbols were coded since the last call."""
        self.age += count
        if self.age >= self.refresh:
            self.age, self.refresh = 0, min(2 * self.refresh, 4096)
            for symbols in self.sets:
                if 4 * (sum(symbols.counts) - symbols.made) >= symbols.made:
                    symbols.renew()


class FastCoder(Protocol):
    """Takes the residuals at sites, before their signs are turned; an encoder knows them."""

    sets: SymbolSets

    def residuals(self, sites: list[Site]) -> list[int]:
        """One for each strip."""


def strip_levels(params: Params, count: int) -> int:
    """Levels in each of 16 strips; 0 if there are none."""
    rows = count // params.width
    return rows // 16 * params.width if rows >= 64 or count >= 2**17 else 0


class FastDecoder:
    """States, words and symbols of a chunk."""

    def __init__(self, lanes: int, chunk: bytes) -> None:
        check(len(chunk) % 2 == 0, "half a word")
        self.words = [int.from_bytes(chunk[k : k + 2], "little") for k in range(0, len(chunk), 2)]
        self.next = 0
        self.states = [self.word() | self.word() << 16 for _ in range(lanes)]
        check(min(self.states) >= 2**16, "first states")
        self.sets = SymbolSets()

    def word(self) -> int:
        """The next word; zero after the last."""
        self.next += 1
        return self.words[self.next - 1] if self.next <= len(self.words) else 0

    def fill(self, lane: int) -> None:
        """Keep a state at 2^16 or more."""
        if self.states[lane] < 2**16:
            self.states[lane] = self.states[lane] << 16 | self.word()

    def raw(self, lane: int, bits: int) -> int:
        """Bits alone."""
        value = self.states[lane] % 2**bits
        self.states[lane] >>= bits
        self.fill(lane)
        return value

    def symbol(self, lane: int, symbols: SymbolSet, low: int, zigzag: bool) -> tuple[int, int]:
        """A symbol and the raw bits with it."""
        quotient, place = divmod(self.states[lane], 4096)
        symbol, first = 0, 0
        while place >= first + symbols.frequencies[symbol]:
            first += symbols.frequencies[symbol]
            symbol += 1
        state = symbols.frequencies[symbol] * quotient + place - first
        bits = 0 if zigzag else min(low, 3) + 1 if low > 0 else int(symbol > 0)
        self.states[lane] = state >> bits
        self.fill(lane)
        symbols.counts[symbol] += VISIT
        return symbol, state % 2**bits

    def residuals(self, sites: list[Site]) -> list[int]:
        """One for each strip."""
        zigzags = [leaning and low == 0 for _, low, _, leaning, _ in sites]
        taken = [self.symbol(k, self.sets.sets[site[0]], site[1], zigzags[k]) for k, site in enumerate(sites)]
        lows = [value >> 1 for _, value in taken]
        for lane, site in enumerate(sites):
            if site[1] > 3:
                lows[lane] |= self.raw(lane, site[1] - 3) << 3
        residuals = []
        for lane, ((symbol, value), site, zigzag) in enumerate(zip(taken, sites, zigzags, strict=True)):
            low, negative, upper = site[1], value & 1, symbol
            if zigzag:
                upper, negative = (symbol + 1) // 2, int(symbol % 2 == 0)
            if symbol == ESCAPE:
                n = self.raw(lane, 5)
                upper = 1 << n | self.raw(lane, min(n, 16))
                upper |= self.raw(lane, n - 16) << 16 if n > 16 else 0
                upper += 7 if zigzag else 14
                if zigzag:
                    negative = self.raw(lane, 1)
            magnitude = (upper << low | lows[lane]) % 2**32
            residuals.append(-magnitude - (low > 0) if negative else magnitude)
        return residuals


def end_rows(models: list[Model], r: int) -> None:
    """Move the columns that 16 strips share, after a row of each."""
    p, shift = models[0].params, 1 if r == 0 else 3 if r < 8 else 5
    averages, means = models[0].column_averages, models[0].column_means
    for i in range(p.width):
        total = sum(model.magnitudes[i] for model in models)
        averages[i] += (total // 16 - averages[i]) >> shift
        levels = [clamped(model.levels[i]) for model in models]
        total = sum(levels) << 8
        means[i] += (sign(total) * (abs(total) // 16) - means[i]) >> shift
        for model, level in zip(models, levels, strict=True):
            model.row_predictions[i] = 4 * p.above * level + (p.column * means[i] >> 6)
    for model in models:
        model.start_row()


def code_strips(
    coder: FastCoder, params: Params, strips: int, count: int, models: list[Model] | None = None
) -> list[list[int]]:
    """The levels of each strip. ``models`` is filled with theirs."""
    models = [] if models is None else models
    models[:] = [Model(params) for _ in range(strips)]
    for model in models:
        model.column_averages, model.column_means = models[0].column_averages, models[0].column_means
    levels: list[list[int]] = [[] for _ in models]
    for k in range(count):
        column = k % params.width
        sites = [model.site() for model in models]
        residuals = coder.residuals(sites)
        for strip, model in enumerate(models):
            _, _, predicted, _, down = sites[strip]
            index = signed32(predicted + (-residuals[strip] if down else residuals[strip]))
            level = level_of(index, model.state & 1) if params.dependent else index
            model.commit(level, index, abs(signed32(level - model.expected)))
            levels[strip].append(level)
        end = column == params.width - 1
        if end or k == count - 1 or column % STRIDE == STRIDE - 1:
            coder.sets.passed(strips * (column % STRIDE + 1))
        if end and strips == 1:
            models[0].end_row()
        elif end:
            end_rows(models, k // params.width)
    return levels


def decode_fast_chunk(params: Params, count: int, chunk: bytes) -> list[int]:
    """The ``count`` levels of a chunk of the fast coder."""
    check(1 <= count <= params.chunk_levels and count <= 11400 * (len(chunk) + 8), "levels of the chunk")
    each = strip_levels(params, count)
    decoder = FastDecoder(16 if each else 1, chunk)
    strips = code_strips(decoder, params, 16, each) if each else []
    strips += code_strips(decoder, params, 1, count - 16 * each)
    check(all(state == 2**16 for state in decoder.states), "last states")
    check(decoder.next == len(decoder.words), "length of the chunk")
    return [level for strip in strips for level in strip]


# --- 8 The sparse coder -----------------------------------------------------------------------------------------------


class SparseModel:
    """What is expected of the levels of a chunk of the sparse coder."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.mean = from_log(params.density_log)
        self.column_averages = [self.mean] * params.width
        self.row_number, self.state, self.count = 0, 0, 0
        self.typical = min(max((from_log(params.mean_log) << 20) // self.mean - 4096, 0), 4095 << 12)
        self.sets = initial_sets()
        starts = [min(max(4 * from_log(32 + 2 * c), 2**11), 2**22 - 2**11) for c in range(80)]
        self.occupancy = [[start << 10 | 256] * 6 for start in starts]
        self.start_row()

    def start_row(self) -> None:
        """Begin a row."""
        self.row_average = self.mean
        self.occupied: list[int] = []  # of the present row

    def contexts(self) -> tuple[list[int], int]:
        """Where the next index is decided to be zero or not: contexts and which of them."""
        p, column = self.params, len(self.occupied)
        y, x = divmod(column % p.kernel_size, p.kernel_width)
        near = self.occupied[column - 1] if x > 0 else 0
        near += self.occupied[column - p.kernel_width] if y > 0 else 0
        logs = log(self.row_average) + log(self.column_averages[column])
        c = self.masked((7 * logs - 6 * p.density_log - 256) >> 4)
        return self.occupancy[c], 2 * near + (self.state & 1)

    def magnitude_class(self) -> int:
        """The class of the next magnitude, less one."""
        return self.masked(log(self.typical) - 32 >> 1)

    def masked(self, c: int) -> int:
        """A class within bounds, without its lowest bit if classes are coarse."""
        c = min(max(c, 0), 79)
        return c & ~1 if self.params.coarse else c

    def commit(self, index: int, more: int) -> None:
        """Take in an index and its magnitude, less one."""
        column = len(self.occupied)
        self.occupied.append(int(more >= 0))
        shift = 3 if column < 8 else 4 if column < 24 else 5 if column < 56 else 6
        self.row_average += ((self.occupied[-1] << 20) - self.row_average) >> shift
        if self.params.dependent:
            self.state = next_state(self.params, self.state, index)
        if more >= 0:
            shift = 3 if self.count < 8 else 4 if self.count < 24 else 5
            self.typical += ((min(more, 4095) << 12) - self.typical) >> shift
            self.count += 1
        if len(self.occupied) == self.params.width:
            self.end_row()

    def end_row(self) -> None:
        """Move the columns, after a complete row."""
        r = self.row_number
        shift = 3 if r < 4 else 4 if r < 12 else 5 if r < 40 else 6
        for i, occupied in enumerate(self.occupied):
            self.column_averages[i] += ((occupied << 20) - self.column_averages[i]) >> shift
        self.row_number += 1
        self.start_row()


def decode_sparse_chunk(params: Params, count: int, chunk: bytes) -> list[int]:
    """The ``count`` levels of a chunk of the sparse coder."""
    check(1 <= count <= params.chunk_levels and count <= 11400 * (len(chunk) + 8), "levels of the chunk")
    decoder, model = Decoder(chunk), SparseModel(params)
    levels: list[int] = []
    while len(levels) < count:
        odd, index, more = model.state & 1, 0, -1
        occupied = decide(decoder, *model.contexts())
        decoder.end_step()
        if occupied:
            c = model.magnitude_class()
            _, more = decode_magnitude(decoder, model.sets[2 * c], low_bits(c))
            index = signed32(-(more + 1) if decoder.raw(1) else more + 1)
        model.commit(index, more)
        levels.append(level_of(index, odd) if params.dependent else index)
    decoder.finish()
    return levels


# --- 4.2 The stored index ---------------------------------------------------------------------------------------------

ORDERS = (0, 1, 2, 3, 4, 6)  # bytes of context

LOGISTIC = [1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785]
LOGISTIC += [3902, 3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095]


def squash(x: int) -> int:
    """Log-odds in 1/256 to a probability in 2^-12 (4.2)."""
    x = max(-2047, min(2047, x)) + 2048
    index, rest = x >> 7, x & 127
    return LOGISTIC[index] * (128 - rest) + LOGISTIC[index + 1] * rest + 64 >> 7


STRETCH: list[int] = []  # probability in 2^-12 to the least log-odds whose squash is at least that
for _x in range(-2047, 2048):
    while len(STRETCH) <= squash(_x):
        STRETCH.append(_x)
STRETCH += [2047] * (4096 - len(STRETCH))


class Coder(Protocol):
    """Where :func:`code_bytes` gets its decisions from."""

    def decision(self, p: int) -> int:
        """The next decision."""

    def end_step(self) -> None:
        """After every decision."""


def code_bytes(coder: Coder, count: int) -> bytes:
    """The next ``count`` bytes (4.2)."""
    table = [[0x80000000] * 2**16 for _ in ORDERS]
    mixing = [[22000] * 6 for _ in range(256)]
    history = 0
    plain = bytearray()
    for _ in range(count):
        base = [((history & (1 << 8 * order) - 1) + 1) * 0x9E3779B97F4A7C15 % 2**64 for order in ORDERS]
        partial = 1  # a one, then the bits of the byte so far
        for _ in range(8):
            slot = [((b ^ partial) * 0xD6E8FEB86659FD93 % 2**64) >> 48 for b in base]
            inputs = [STRETCH[table[n][slot[n]] >> 20] for n in range(6)]
            weights = mixing[partial]
            total = sum(i * w for i, w in zip(inputs, weights, strict=True)) >> 16
            mixed = max(2, min(4093, squash(max(-2047, min(2047, total)))))
            one = coder.decision(mixed << 20)
            coder.end_step()
            error = (one << 12) - mixed
            for n in range(6):
                weights[n] = max(-(2**20), min(2**20, weights[n] + (inputs[n] * error + 256 >> 9)))
                table[n][slot[n]] = adapted(table[n][slot[n]], one)
            partial = partial << 1 | one
        history = (history << 8 | partial & 255) % 2**64
        plain.append(partial & 255)
    return bytes(plain)


def decode_bytes(coded: bytes, count: int) -> bytes:
    """The ``count`` bytes that ``coded`` stands for (4.2)."""
    check(count <= 11400 * (len(coded) + 8) // 8, "more bytes than can be coded so")
    decoder = Decoder(coded)
    plain = code_bytes(decoder, count)
    decoder.finish()
    return plain


# --- 4 The index ------------------------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """Where a chunk is: its bytes in the payload, and how many levels (or bytes, if exact) it holds."""

    length: int
    count: int
    checksum: int
    refinement: int = 0  # bytes at its end that are refinement bits (10.1)


@dataclass
class Tensor:
    """A tensor as the index describes it (4.4)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    method: int
    step_size: np.float32 = field(default_factory=lambda: np.float32(1))
    params: Params | None = None
    chunks: list[Chunk] = field(default_factory=list)
    source: int = -1  # of a tied tensor: the number of the tensor that it is the same as
    row_scales: bytes = b""  # of method 1: a signed byte for each slice of dimension 0, or nothing
    column_scales: bytes = b""  # likewise for each place in such a slice
    k: int = 0  # of exact values and updates (10.1), as are those below
    centre: int = 0
    entries: list[int] = field(default_factory=list)
    most_frequent: int = 0
    width: int = 0
    whole: int = 0  # data type of a tensor that is stored as its parts (4.5)
    group: int = 0  # of multiples of steps (10.9), as is the next
    signed: int = 0
    first: int = 0  # of changes (11.4), as is the next
    rates: bytes = b""

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return 8 * self.dtype.itemsize

    @property
    def mantissa(self) -> int:
        """Bits of the mantissa; 0 for integers."""
        return next((MANTISSA.get(code, 0) for code, dtype in DTYPES.items() if dtype == self.dtype), 0)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
        """Data type's number, if it is that of parts, data type and dimensions as in the index."""
        if not self.whole:
            return 0, self.dtype, self.shape
        return self.whole, DTYPES[self.whole % 16 if self.whole >= 32 else self.whole], self.shape[:-1]


def parse_shape(fields: Fields) -> tuple[int, ...]:
    """Number of dimensions, and dimensions (4.4)."""
    count = fields.byte()
    check(count <= 32, "number of dimensions")
    shape = tuple(fields.varint() for _ in range(count))
    check(math.prod(max(d, 1) for d in shape) < 2**60, "dimensions")
    return shape


def parse_levels(fields: Fields, size: int) -> tuple[Params, list[Chunk]]:
    """Parameters and chunks of a tensor of levels (4.7)."""
    params = Params(fields.blob())
    chunks = []
    for start in range(0, size, params.chunk_levels):
        length, checksum = fields.varint(), fields.u32()
        chunks.append(Chunk(length, min(params.chunk_levels, size - start), checksum))
        check(chunks[-1].count <= 11400 * (length + 8), "a chunk cannot hold its levels")
    return params, chunks


def parse_scales(fields: Fields, tensor: Tensor) -> None:
    """Scales of rows and columns (4.10)."""
    tensor.row_scales, tensor.column_scales = fields.blob(), fields.blob()
    if not tensor.row_scales and not tensor.column_scales:
        return
    check(len(tensor.shape) > 0 and tensor.size > 0, "scales of a scalar or of nothing")
    check(len(tensor.row_scales) in (0, tensor.shape[0]), "number of row scales")
    check(len(tensor.column_scales) in (0, math.prod(tensor.shape[1:])), "number of column scales")


def parse_tensor(fields: Fields, earlier: list[Tensor]) -> Tensor:
    """A tensor's entry in the index (4.4)."""
    name, code = fields.text(), fields.byte()
    check(code in DTYPES or code in PACKED, "data type")
    shape, whole = parse_shape(fields), 0
    if code in PARTS or code in PACKED:
        whole = code
        code, count = (PARTS | PACKED)[code]
        shape = (*shape, count)
    tensor = Tensor(name, DTYPES[code], shape, fields.byte(), whole=whole)
    check(whole < 32 or tensor.method not in range(STEPS, QUANTIZED_DIFFERENCE + 1), "an update of packed codes")
    if tensor.method == RAW:
        size = tensor.size * tensor.dtype.itemsize
        for start in range(0, size, RAW_CHUNK):
            length = min(RAW_CHUNK, size - start)
            tensor.chunks.append(Chunk(length, length, fields.u32()))
    elif tensor.method == LEVELS:
        check(code in FLOATS, "levels of a type that is not floating-point")
        tensor.step_size = np.float32(struct.unpack("<f", fields.take(4))[0])
        check(bool(np.isfinite(tensor.step_size) and tensor.step_size > 0), "step size")
        parse_scales(fields, tensor)
        tensor.params, tensor.chunks = parse_levels(fields, tensor.size)
        if tensor.row_scales or tensor.column_scales:
            check(tensor.params.chunk_levels % math.prod(tensor.shape[1:]) == 0, "a row in two chunks")
    elif tensor.method in (TIED, EQUAL):
        tensor.source = fields.varint()
        check(tensor.source < len(earlier), "tied to a later tensor")
        source = earlier[tensor.source]
        check(source.method not in (TIED, EQUAL), "tied to a tied tensor")
        check(source.stored == tensor.stored, "tied to another kind of tensor")
        equal = sum(other.method == EQUAL and other.source == tensor.source for other in earlier)
        check(tensor.method == TIED or equal < 64, "too many tensors equal to one")
    else:
        parse_exact(fields, tensor, code)
    return tensor


def parse_exact(fields: Fields, tensor: Tensor, code: int) -> None:
    """Fields and chunks of an exact tensor or an update (10.1, 11.1)."""
    method = tensor.method
    check(FLOAT <= method <= CODEBOOK or method in (SYMBOLS, MULTIPLES) or method in UPDATES, "method")
    floats = (FLOAT, FLOAT_ZEROS, DIFFERENCES, QUANTIZED_DIFFERENCE, SYMBOLS)
    check(method not in floats or code in MANTISSA, "type of a float")
    check(method not in (QUANTIZED_DIFFERENCE, MULTIPLES) or code in FLOATS, "type of a product")
    check(method != INTEGERS or code not in MANTISSA, "type of an integer")
    each = 0
    if method in REFINED:
        tensor.k = fields.varint()
        check(tensor.k <= 2200, "k")
    if method == INTEGERS:
        tensor.centre = int.from_bytes(fields.take(tensor.dtype.itemsize), "little")
    if method == CODEBOOK:
        count, tensor.most_frequent, tensor.width, rows = (fields.varint() for _ in range(4))
        check(1 <= count <= 4096 and tensor.most_frequent < count, "codebook")
        check(1 <= tensor.width <= 65536 and rows >= 1 and tensor.width * rows <= 1 << 20, "rows of a codebook")
        planes = [fields.take(count) for _ in range(tensor.dtype.itemsize)]
        entry = 0
        for step in zip(*planes, strict=True):
            following = (entry + int.from_bytes(step, "big")) % (1 << tensor.bits)
            check(not tensor.entries or following > entry, "entries do not ascend")
            entry = following
            tensor.entries.append(entry)
        each = tensor.width * rows
    if method == SYMBOLS:
        tensor.width, rows = fields.varint(), fields.varint()
        check(1 <= tensor.width <= 65536 and rows >= 1 and tensor.width * rows <= 1 << 20, "rows of symbols")
        each = tensor.width * rows
    if method == QUANTIZED_DIFFERENCE:
        tensor.step_size = np.float32(struct.unpack("<f", fields.take(4))[0])
        check(bool(np.isfinite(tensor.step_size) and tensor.step_size > 0), "step size")
    if method == CHANGES:
        parse_changes(fields, tensor)
    if method == MULTIPLES:
        tensor.group, tensor.signed = fields.varint(), fields.byte()
        check(tensor.group > 0 and tensor.size % tensor.group == 0 and tensor.signed in (0, 1), "groups")
    if method in (*REFINED, QUANTIZED_DIFFERENCE, MULTIPLES):
        tensor.params = Params(fields.blob())
        each = tensor.params.chunk_levels
        check(method != MULTIPLES or each % tensor.group == 0, "a group in two chunks")
    for start in range(0, tensor.size if each else 0, each or 1):
        coded, refinement = fields.varint(), fields.varint()
        held = min(each, tensor.size - start)
        if coded == 0 and refinement == 0 and method in UPDATES:
            tensor.chunks.append(Chunk(0, held, 0))
            continue
        check(coded > 0 and (refinement == 0 or method in (*REFINED, MULTIPLES)), "lengths of a chunk")
        check(method != MULTIPLES or held // tensor.group <= 8 * refinement, "a chunk cannot hold its steps")
        check(held <= (8 * coded if method == SYMBOLS else 11400 * (coded + 8)), "a chunk cannot hold its values")
        tensor.chunks.append(Chunk(coded + refinement, held, fields.u32(), refinement))


def parse_changes(fields: Fields, tensor: Tensor) -> None:
    """Rates and chunks of a tensor of which some values changed (11.4)."""
    tensor.first, tensor.rates = fields.varint(), fields.blob()
    exponents = 1 << tensor.bits - 1 - tensor.mantissa if tensor.mantissa else 1
    check(len(tensor.rates) >= 1 and tensor.first + len(tensor.rates) <= exponents, "exponents of rates")
    check(all(code < 64 for code in tensor.rates), "codes of rates")
    left = tensor.size
    while left > 0:
        held, length = min(left, 1 << 18), fields.varint()
        tensor.chunks.append(Chunk(length, held, fields.u32() if length else 0))
        left -= held


@dataclass
class Base:
    """What an update says about its base (11.3)."""

    digest: bytes = b""
    name: str = ""


def digest(tensors: list[Tensor], base: dict[str, Array]) -> bytes:
    """SHA-256 of the tensors of ``base`` that are changed (11.3)."""
    total = hashlib.sha256()
    for tensor in tensors:
        array = base.get(tensor.name)
        check(array is not None and (array.dtype, array.shape) == tensor.stored[1:], "base lacks a tensor")
        name = tensor.name.encode()
        _, stored, shape = tensor.stored
        code = next(code for code, dtype in DTYPES.items() if dtype == stored)
        total.update(varint(len(name)) + name + bytes([code, len(shape)]) + b"".join(map(varint, shape)))
        total.update(np.ascontiguousarray(array).tobytes())
    return total.digest()


def varint(value: int) -> bytes:
    """A number as 2.3 has it."""
    out = []
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_index(data: bytes) -> tuple[str, bytes, list[Tensor], Base]:
    """Kind, extra, tensors and base of a file (4.1 to 4.4, 11.3), with all the checks of 4.11."""
    check(len(data) >= 32, "no header")
    magic, version, checksum, offset, length = struct.unpack("<8sIIQQ", data[:32])
    check(magic == MAGIC and version == 1, "magic or version")
    check(offset >= 32 and offset + length == len(data), "size of the file")
    check(zlib.crc32(data[offset:]) == checksum, "checksum of the index")
    stored = Fields(data[offset:])
    count = stored.varint()
    coded = stored.rest()
    check((count or len(coded)) <= min(2**28, 2**20 + len(data)), "length of the index")
    fields = Fields(decode_bytes(coded, count) if count else coded)
    kind, extra = fields.text(), fields.blob()
    tensors: list[Tensor] = []
    for _ in range(fields.varint()):
        tensors.append(parse_tensor(fields, tensors))
    base = Base()
    if any(tensor.method in UPDATES for tensor in tensors):
        base = Base(fields.take(32), fields.text())
        check(base.name not in (".", "..") and not set("/\\:\0") & set(base.name), "name of the base")
    fields.end()
    check(len({t.name for t in tensors}) == len(tensors), "two tensors of the same name")
    check(sum(c.length for t in tensors for c in t.chunks) == offset - 32, "chunks are not the payload")
    return kind, extra, tensors, base


def checked_chunks(chunks: list[Chunk], payload: Fields) -> Iterator[tuple[Chunk, bytes]]:
    """The chunks of a tensor and their bytes, next in the payload."""
    for chunk in chunks:
        coded = payload.take(chunk.length)
        check(zlib.crc32(coded) == chunk.checksum, "checksum of a chunk")
        yield chunk, coded


def chunk_decoder(params: Params) -> Callable[[Params, int, bytes], list[int]]:
    """What decodes the chunks of a tensor with these parameters."""
    return decode_sparse_chunk if params.sparse else decode_fast_chunk if params.fast else decode_chunk


def decode_levels(params: Params, chunks: list[Chunk], shape: tuple[int, ...], payload: Fields) -> Array:
    """The levels of a tensor (6.3)."""
    levels: list[int] = []
    for chunk, coded in checked_chunks(chunks, payload):
        levels += chunk_decoder(params)(params, chunk.count, coded)
    return np.array(levels, dtype=np.int32).reshape(shape)


def factor(scale: int) -> np.float32:
    """The factor of a scale, a byte as it is stored (6.2)."""
    signed = scale - 256 if scale >= 128 else scale
    return np.float32(ROOTS[signed & 3] * np.float32(2.0 ** (signed >> 2)))


def values(tensor: Tensor, levels: Array) -> Array:
    """Levels as float32, times the step size and the factors of row and column, each product rounded (6.2)."""
    rows = np.asarray(levels.astype(np.float32) * tensor.step_size).reshape(-1, math.prod(tensor.shape[1:]) or 1)
    for k, scale in enumerate(tensor.row_scales):
        rows[k] = rows[k] * factor(scale)
    for k, scale in enumerate(tensor.column_scales):
        rows[:, k] = rows[:, k] * factor(scale)
    return rows.reshape(tensor.shape)


class Bits:
    """Refinement bits (10.2), from the lowest of the first byte on; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.number, self.position = data, int.from_bytes(data, "little"), 0

    def raw(self, count: int) -> int:
        """The next number of ``count`` bits."""
        value = (self.number >> self.position) & (1 << count) - 1
        self.position += count
        return value

    def end(self) -> None:
        """Everything was read but what fills the last byte, which is zero."""
        check((self.position + 7) // 8 == len(self.data), "length of the refinement bits")
        check(self.number >> self.position == 0, "unused refinement bits")


def unpack(magnitude: int, mantissa: int) -> tuple[int, int]:
    """V and E of a magnitude (10.2)."""
    exponent = max((magnitude >> mantissa) - 1, 0)
    return magnitude - (exponent << mantissa), exponent


def in_order(tensor: Tensor, pattern: int) -> int:
    """A pattern in order, and back (11.2)."""
    highest = 1 << tensor.bits - 1
    return pattern ^ highest - 1 if tensor.mantissa and pattern & highest else pattern


def float_value(tensor: Tensor, bits: Bits, p: int, level: int) -> int:
    """The pattern of a level of methods 3 and 4 (10.3)."""
    has_bit = 1 if tensor.k > 0 else 0
    m, whole = tensor.mantissa - p, tensor.bits - 1 - p
    half = max(tensor.k - 1, 0) - p
    n, negative, half_steps = abs(level), int(level < 0), 0
    if n == 2**24:
        magnitude = bits.raw(whole)
    else:
        if tensor.method == FLOAT_ZEROS and n == 0:
            return 0
        if tensor.method == FLOAT_ZEROS and n == 1:
            if bits.raw(1) == 0:
                half_steps = 1 + has_bit
            elif has_bit:
                half_steps = 1 - bits.raw(1)
        elif n > 0:
            half_steps = (n << has_bit) - bits.raw(has_bit)
        else:
            negative = bits.raw(1)
        if half_steps > 0:
            top = half + half_steps.bit_length() - 1
            exponent = max(top - m, 0)
            rest = max(half - exponent, 0)
            moved = half_steps << half - exponent if half >= exponent else half_steps >> exponent - half
            magnitude = (exponent << m) + (moved | bits.raw(rest))
        else:
            magnitude = below(bits, whole, m, half)
    return magnitude % 2**whole << p | negative << tensor.bits - 1


def below(bits: Bits, whole: int, m: int, half: int) -> int:
    """A magnitude below half a step (10.3)."""
    places = max(half, 0)
    most = min(places, 16)
    zeros = 0
    while zeros < most and bits.raw(1) == 0:
        zeros += 1
    if zeros < most:
        top = places - 1 - zeros
        exponent = max(top - m, 0)
        return (exponent << m) + (1 << top - exponent | bits.raw(top - exponent))
    return bits.raw(whole) if most < places else 0


def difference(tensor: Tensor, bits: Bits, exponent: int, level: int) -> int:
    """What a level of methods 5, 7 and 8 adds (10.4)."""
    places = max(tensor.k - 1, 0) - exponent
    rest = min(max(places, 0), 64)
    n, negative = abs(level), level < 0
    if n == 2**24:
        v = bits.raw(tensor.bits)
    elif n > 0:
        half_steps = 2 * n - bits.raw(1) if tensor.k > 0 else n
        v = (half_steps << places if places >= 0 else half_steps >> -places) | bits.raw(rest)
    else:
        v = bits.raw(rest)
        negative = v != 0 and bits.raw(1) == 1
    return -v if negative else v


def join(tensor: Tensor, levels: list[int], bits: Bits, base: list[int]) -> list[int]:
    """The patterns of a chunk of a method of REFINED (10.3, 10.4, 11.2). ``base``: the base's, or nothing."""
    assert tensor.params is not None
    patterns: list[int] = []
    width = tensor.params.width
    floats = tensor.method in (FLOAT, FLOAT_ZEROS)
    first = bits.raw(8) if floats else 0
    check(first == 255 or first <= tensor.mantissa, "precision")
    for start in range(0, len(levels), width):
        row = levels[start : start + width]
        if floats:
            p = bits.raw(6) if first == 255 else first
            check(p <= tensor.mantissa, "precision of a row")
            patterns += [float_value(tensor, bits, p, level) for level in row]
            continue
        moved = bits.raw(1)
        check(moved == 1 or not any(row), "levels of a row without differences")
        for number, level in enumerate(row, start):
            before = base[number] if base else 0
            reference = in_order(tensor, before) if base else tensor.centre
            exponent = 0
            if tensor.method == DIFFERENCES:
                exponent = unpack(before % 2 ** (tensor.bits - 1), tensor.mantissa)[1]
            added = difference(tensor, bits, exponent, level) if moved else 0
            patterns.append(in_order(tensor, (reference + added) % 2**tensor.bits))
    return patterns


def decode_indices(tensor: Tensor, count: int, chunk: bytes) -> list[int]:
    """Codebook indices (10.5)."""
    decoder = Decoder(chunk)
    tree = (len(tensor.entries) - 1).bit_length()
    flags, nodes = [0x80000100] * 128, [0x80000100] * (1 << tree)
    columns = [32768] * tensor.width
    row = left = 0

    def decide(contexts: list[int], place: int) -> int:
        one = decoder.decision(contexts[place])
        decoder.end_step()
        contexts[place] = adapted(contexts[place], one)
        return one

    indices: list[int] = []
    for place in range(count):
        column = place % tensor.width
        if column == 0:
            row, left = 32768, 0
        density = columns[column]
        other = decide(flags, (min(row >> 13, 7) << 3 | min(density >> 13, 7)) << 1 | left)
        target = 65536 if other else 0
        row += (target - row) >> 4
        columns[column] += (target - density) >> 4
        left = other
        index = tensor.most_frequent
        if other:
            node = 1
            for _ in range(tree):
                node = node << 1 | decide(nodes, node)
            index = node - (1 << tree)
        check(index < len(tensor.entries), "codebook index")
        indices.append(index)
    decoder.finish()
    return indices


#: What grades stand for, from 2^7 to 2^8 in eighths of an octave (10.6).
WEIGHTS = (128, 140, 152, 166, 181, 197, 215, 235)
PLACES = 4096


def number(bits: Bits) -> int:
    """A number of variable length (10.6)."""
    length = 0
    while not bits.raw(1):
        length += 1
        check(length <= 23, "number too long")
    return (1 << length | bits.raw(length)) - 1


def signed_number(bits: Bits) -> int:
    """The same with a sign: 0, -1, 1, -2, ..."""
    found = number(bits)
    return -(found + 1) // 2 if found % 2 else found // 2


def parse_table(bits: Bits) -> list[int]:
    """The places of each symbol (10.6)."""
    first, last = bits.raw(8), bits.raw(8)
    weights = dict.fromkeys(range(last + 1), 0)
    grade = 0
    for symbol in range(first, last + 1):
        grade += signed_number(bits)
        check(0 <= grade <= 128, "grade")
        octave, eighth = divmod(grade - 1, 8)
        weights[symbol] = 0 if grade == 0 else WEIGHTS[eighth] * 2**octave
    check(first < last and weights[first] > 0 and weights[last] > 0, "symbols of a table")
    total = sum(weights.values())
    places = [weight and max(1, PLACES * weight // total) for weight in weights.values()]
    excess = sum(places) - PLACES
    while excess > 0:
        places[max(range(len(places)), key=lambda symbol: (places[symbol], -symbol))] -= 1
        excess -= 1
    places[max(range(len(places)), key=lambda symbol: (places[symbol], -symbol))] -= excess
    return places


def decode_symbols(tables: list[list[int]], choice: list[int], code: bytes) -> list[int]:
    """A symbol for each table's number in ``choice`` (10.6)."""
    count = 32 if len(choice) >= 8192 else 8
    fields = Fields(code)
    states = [fields.u32() for _ in range(count)]
    starts = [list(itertools.accumulate(table, initial=0)) for table in tables]
    symbols = []
    for k, table in enumerate(choice):
        upper, place = divmod(states[k % count], PLACES)
        symbol = bisect.bisect_right(starts[table], place) - 1
        state = upper * tables[table][symbol] + place - starts[table][symbol]
        if state >> 16 == 0:
            word = fields.take(2)
            state = state << 16 | word[0] | word[1] << 8
        states[k % count] = state
        symbols.append(symbol)
    check(not fields.rest(), "bytes after the words")
    check(states == [1 << 16] * count, "states at the end")
    return symbols


def parse_octaves(bits: Bits, count: int) -> list[int]:
    """Scales of rows or columns (10.7)."""
    if not bits.raw(1):
        return [16] * count
    scales = [16 + signed_number(bits) for _ in range(count)]
    check(all(0 <= scale < 32 for scale in scales), "scale")
    return scales


def decode_symbol_chunk(tensor: Tensor, count: int, data: bytes) -> list[int]:
    """Patterns of a chunk of method 11 (10.7)."""
    head = Bits(data)
    low = head.raw(6)
    joined = tensor.mantissa - low
    check(0 <= joined <= 7, "bits of the mantissa in a symbol")
    base, escapes, more = head.raw(tensor.bits - 1 - low), number(head), number(head)
    runs: list[tuple[int, int]] = []
    left = count
    for k in range(more + 1):
        zeros = number(head)
        length = left if k == more else number(head) + 1
        check(zeros <= low and 0 < length <= left, "run")
        runs.append((zeros, length))
        left -= length
    scales, parts = [0] * count, 0
    if head.raw(1):
        parts = number(head)
        rows = parse_octaves(head, (count + tensor.width - 1) // tensor.width)
        columns = parse_octaves(head, min(tensor.width, count))
        check(parts <= 4, "parts of an octave")
        scales = [row + column for row in rows for column in columns][:count]
    tables = [parse_table(head) for _ in range(1 << parts)]
    check(head.raw(-head.position % 8) == 0, "unused bits of the head")
    fields = Fields(data)
    fields.take((head.position + 7) // 8)
    copied = Bits(fields.take((sum(length * (low - zeros + 1) for zeros, length in runs) + 7) // 8))
    escaped = Fields(fields.take(escapes * tensor.bits // 8))
    symbols = iter(decode_symbols(tables, [scale % (1 << parts) for scale in scales], fields.rest()))
    octaves = iter([scale >> parts for scale in scales])
    patterns = []
    for zeros, length in runs:
        for _ in range(length):
            symbol, shift = next(symbols), (next(octaves) << joined) & 255
            rest, sign = copied.raw(low - zeros), copied.raw(1)
            magnitude = ((base + symbol + shift) << low) + (rest << zeros)
            if symbol == 0:
                patterns.append(int.from_bytes(escaped.take(tensor.bits // 8), "little"))
            else:
                patterns.append(magnitude % (1 << tensor.bits - 1) + (sign << tensor.bits - 1))
    copied.end()
    check(not escaped.rest(), "escaped values that belong to no symbol")
    return patterns


BLOCK, LINE = 1 << 14, 1 << 16  # places of a block, and of a line of four (11.4)


def bounds(interval: int, contexts: list[int]) -> list[int]:
    """What is left of an interval at the beginning of a line and at the end of each of its blocks (11.4)."""
    share, found = (1 << 32) - 1, [interval]
    for context in contexts:
        share = share * max(context, 1 << 27) >> 32
        found.append(interval * share >> 32)
    return found


def left_at(line: list[int], place: int) -> int:
    """What is left at a place; nothing beyond the line."""
    if place > LINE:
        return 0
    block = min(place // BLOCK, 3)
    if place == LINE:
        return line[4]
    each = line[block] - line[block + 1] >> 14
    return line[block] - each * (place - block * BLOCK)


def learn_blocks(contexts: list[int], passed: int) -> None:
    """The contexts of a line learn how many blocks lie before the place."""
    for k in range(4):
        if k <= passed:
            contexts[k] = adapted(contexts[k], 1 if k < passed else 0)


def rate_of(code: int) -> int:
    """Places of a value (11.4)."""
    return (4 + code % 4) * 2 ** (code // 4) // 4


class ChangeModel:
    """Contexts of a chunk of changes, and the codes of its values' rates (11.4)."""

    def __init__(self, tensor: Tensor, old: list[int]) -> None:
        self.lines = [[0x80000100] * 4 for _ in range(2)]
        self.sizes = [[self.initial(code)] * 4 for code in range(64)]
        self.lengths = [0x80000100] * 63
        exponents = 1 << tensor.bits - 1 - tensor.mantissa if tensor.mantissa else 1
        last = tensor.first + len(tensor.rates) - 1
        fields = [(pattern >> tensor.mantissa) % exponents for pattern in old]
        self.codes = [tensor.rates[min(max(field, tensor.first), last) - tensor.first] for field in fields]

    @staticmethod
    def initial(code: int) -> int:
        """The first context of the sizes of steps."""
        cube = (rate_of(code) // 16) ** 3
        probability = 2**22 * cube // (cube + 10 * 2**30)
        return min(max(probability, 2**11), 2**22 - 2**11) * 2**10 + 0x100


def decode_changes(tensor: Tensor, chunk: bytes, old: list[int]) -> list[int]:
    """Patterns of a chunk of which some values changed (11.4)."""
    decoder, model, patterns = Decoder(chunk), ChangeModel(tensor, old), list(old)
    at = 0
    while True:
        passed = 0  # lines
        while True:
            contexts = model.lines[min(passed, 1)]
            line = bounds(decoder.range, contexts)
            if decoder.code >= line[4]:
                break
            check(passed <= len(old), "lines without a change")
            take_places(decoder, line, LINE, LINE + 1)
            learn_blocks(contexts, 4)
            passed += 1
        block = sum(decoder.code < bound for bound in line[1:4])
        into = max(line[block] - 1 - decoder.code, 0) // (line[block] - line[block + 1] >> 14)
        place = passed * LINE + block * BLOCK + min(into, BLOCK - 1)
        start = 0
        while at < len(old) and start + rate_of(model.codes[at]) <= place:
            start += rate_of(model.codes[at])
            at += 1
        end = start + rate_of(model.codes[at]) - passed * LINE if at < len(old) else LINE
        first, end = max(start - passed * LINE, 0), min(end, LINE)
        take_places(decoder, line, first, end)
        learn_blocks(contexts, (first + end) // (2 * BLOCK))
        if at == len(old):
            decoder.finish()
            return patterns
        moved = in_order(tensor, old[at]) + decode_step(decoder, model.sizes[model.codes[at]], model.lengths)
        patterns[at] = in_order(tensor, moved % (1 << tensor.bits))
        at += 1


def take_places(decoder: Decoder, line: list[int], start: int, end: int) -> None:
    """A step that takes the places from ``start`` to before ``end`` of a line (11.4)."""
    above, below = left_at(line, start), left_at(line, end)
    decoder.code = (decoder.code - below) % 2**64
    decoder.range = above - below
    decoder.end_step()


def decode_step(decoder: Decoder, sizes: list[int], lengths: list[int]) -> int:
    """By how many representable numbers a value moved (11.4)."""

    def ones(contexts: list[int]) -> int:
        for k in range(len(contexts)):
            one = decide(decoder, contexts, k)
            decoder.end_step()
            if not one:
                return k
        return len(contexts)

    size = 1 + ones(sizes)
    if size == 5:
        count = ones(lengths)
        size = 4 + (1 << count | decoder.raw(count))
    return -size if decoder.raw(1) else size


def decode_exact(tensor: Tensor, payload: Fields, base: Array | None) -> Array:
    """The elements of a tensor of exact values or of an update (10, 11)."""
    if tensor.method == UNCHANGED:
        assert base is not None
        return base.copy()
    pattern = np.dtype(f"<u{tensor.dtype.itemsize}")
    before: list[int] = [] if base is None else np.ascontiguousarray(base).reshape(-1).view(pattern).tolist()
    patterns: list[int] = []
    for chunk in tensor.chunks:
        start = len(patterns)
        old = before[start : start + chunk.count]
        if chunk.length == 0:
            patterns += old
            continue
        data = payload.take(chunk.length)
        check(zlib.crc32(data) == chunk.checksum, "checksum of a chunk")
        coded, refinement = data[: chunk.length - chunk.refinement], data[chunk.length - chunk.refinement :]
        if tensor.method == SYMBOLS:
            patterns += decode_symbol_chunk(tensor, chunk.count, coded)
            continue
        if tensor.method == CODEBOOK:
            patterns += [tensor.entries[index] for index in decode_indices(tensor, chunk.count, coded)]
            continue
        if tensor.method == CHANGES:
            patterns += decode_changes(tensor, coded, old)
            continue
        assert tensor.params is not None
        levels = chunk_decoder(tensor.params)(tensor.params, chunk.count, coded)
        if tensor.method == QUANTIZED_DIFFERENCE:
            patterns += added(tensor, levels, old)
            continue
        bits = Bits(refinement)
        patterns += join(tensor, levels, bits, old)
        bits.end()
    check_bytes(tensor, patterns)
    return np.array(patterns, dtype=pattern).view(tensor.dtype).reshape(tensor.shape)


def decode_multiples(tensor: Tensor, payload: Fields) -> Array:
    """The elements of a tensor of multiples of steps (10.9)."""
    assert tensor.params is not None
    pieces = []
    for chunk, data in checked_chunks(tensor.chunks, payload):
        cut = chunk.length - chunk.refinement
        levels = chunk_decoder(tensor.params)(tensor.params, chunk.count, data[:cut])
        count = chunk.count // tensor.group
        lengths = Tensor("", DTYPES[2], (count,), SYMBOLS, width=65536)
        steps = np.array(decode_symbol_chunk(lengths, count, data[cut:]), np.uint32).view(np.float32)
        check(all(np.isfinite(step) and step > 0 for step in steps), "step size of a group")
        for start, step in zip(range(0, chunk.count, tensor.group), steps, strict=True):
            for level in levels[start : start + tensor.group]:
                factor = np.float32(level)
                if tensor.signed and level < 0:
                    factor = np.negative(np.negative(factor) - np.float32(1))
                with np.errstate(all="ignore"):
                    pieces.append(factor * step)
    with np.errstate(all="ignore"):
        return np.array(pieces, np.float32).astype(tensor.dtype).reshape(tensor.shape)


def check_bytes(tensor: Tensor, patterns: list[int]) -> None:
    """A byte of a bool, or of a type narrower than a byte, is one of its elements (4.5)."""
    for code, (lowest, count) in BYTES.items():
        if tensor.dtype == DTYPES[code]:
            check(all((pattern - lowest) % 256 < count for pattern in patterns), "a byte that is no element")


def added(tensor: Tensor, levels: list[int], old: list[int]) -> list[int]:
    """Patterns of the base's values plus levels times the step size (11.2, method 10)."""
    pattern = np.dtype(f"<u{tensor.dtype.itemsize}")
    wide = np.float64 if tensor.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        base = np.array(old, dtype=pattern).view(tensor.dtype).astype(wide)
        total = base + (np.array(levels, np.int32).astype(np.float32) * tensor.step_size).astype(wide)
        found: list[int] = total.astype(tensor.dtype).view(pattern).tolist()
        return found


def decode_tensor(tensor: Tensor, payload: Fields, base: Array | None) -> Array:
    """The elements of a tensor that is not tied (6.3)."""
    if tensor.method == MULTIPLES:
        return decode_multiples(tensor, payload)
    if tensor.method >= FLOAT:
        return decode_exact(tensor, payload, base)
    if tensor.params is not None:
        levels = decode_levels(tensor.params, tensor.chunks, tensor.shape, payload)
        with np.errstate(all="ignore"):
            return np.asarray(values(tensor, levels).astype(tensor.dtype))
    raw = b"".join(coded for _, coded in checked_chunks(tensor.chunks, payload))
    check_bytes(tensor, list(raw))
    return np.frombuffer(raw, dtype=tensor.dtype).reshape(tensor.shape)


def read_file(
    data: bytes, max_bytes: int | None = None, base: dict[str, Array] | None = None
) -> dict[str, Array]:
    """All tensors of a .dcb file; tied ones share their array, equal ones do not. An update needs its ``base``.

    Raises :class:`Damaged`, also for a base that is not the update's, or :class:`TooLarge` if the tensors take more
    than ``max_bytes``.
    """
    _, _, tensors, update = read_index(data)
    if max_bytes is not None and sum(t.size * t.dtype.itemsize for t in tensors if t.method != TIED) > max_bytes:
        raise TooLarge
    changed = [tensor for tensor in tensors if tensor.method in UPDATES]
    if changed:
        check(base is not None, "an update without its base")
    given = base or {}
    check(not changed or digest(changed, given) == update.digest, "another base")
    payload = Fields(data[32:])
    arrays: list[Array] = []
    for tensor in tensors:
        before = given[tensor.name] if tensor.method in UPDATES else None
        if tensor.source >= 0:
            arrays.append(arrays[tensor.source] if tensor.method == TIED else arrays[tensor.source].copy())
        else:
            arrays.append(decode_tensor(tensor, payload, before))
    return {tensor.name: whole(tensor, array) for tensor, array in zip(tensors, arrays, strict=True)}


def whole(tensor: Tensor, array: Array) -> Array:
    """The tensor; a complex one from its parts (4.5)."""
    code, dtype, shape = tensor.stored
    if code < 32:
        return array.view(dtype).reshape(shape) if code else array
    count, unsigned = tensor.shape[-1], np.dtype(f"<u{dtype.itemsize}").type
    total = np.zeros(shape, unsigned)
    for k in range(count):
        total |= array[..., k].astype(unsigned) << unsigned(8 * dtype.itemsize // count * k)
    return np.asarray(total).view(dtype)


def read_levels(data: bytes, max_bytes: int | None = None) -> npt.NDArray[np.int32]:
    """The array that levels on their own stand for (12).

    Raises :class:`Damaged`, or :class:`TooLarge` if the array takes more than ``max_bytes``.
    """
    fields = Fields(data)
    check(fields.take(2) == LEVELS_MAGIC, "magic")
    shape = parse_shape(fields)
    params, chunks = parse_levels(fields, math.prod(shape))
    checksum = zlib.crc32(data[: fields.position])
    check(fields.u32() == checksum, "checksum")
    check(sum(c.length for c in chunks) == len(data) - fields.position, "chunks are not the payload")
    if max_bytes is not None and 4 * math.prod(shape) > max_bytes:
        raise TooLarge
    return decode_levels(params, chunks, shape, fields)


def write_npz(arrays: dict[str, Array], path: Path) -> None:
    """Write an npz file; names may be any text."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            storable = array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
            with file.open(name + ".npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, storable, allow_pickle=False)


def main(arguments: list[str]) -> int:
    """The command line."""
    if len(arguments) not in (1, 2):
        print("usage: decode.py FILE.dcb [OUT.npz]", file=sys.stderr)
        return 2
    data = Path(arguments[0]).read_bytes()
    try:
        if len(arguments) == 2:
            write_npz(read_file(data), Path(arguments[1]))
            return 0
        kind, extra, tensors, base = read_index(data)
    except Damaged as damage:
        print(f"{arguments[0]} is damaged: {damage}", file=sys.stderr)
        return 1
    print(f"made from {kind or 'arrays'}, extra {len(extra)} bytes, {len(tensors)} tensors")
    if base.digest:
        print(f"update of {base.name!r}, digest {base.digest.hex()}")
    for t in tensors:
        scales = f"{len(t.row_scales)} row and {len(t.column_scales)} column scales"
        how = {RAW: "raw", LEVELS: f"levels, step size {t.step_size}, {scales}", TIED: f"tied to {t.source}"}
        stored = f"{how.get(t.method, f'method {t.method}')}, {sum(c.length for c in t.chunks)} bytes"
        print(f"{t.name!r} {t.dtype.name} {list(t.shape)} {stored}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
