"""The .dcb file: a header, payload chunks, and behind them an index of tensors. See FORMAT.md, sections 2 and 3.

This module turns an :class:`Index` into bytes and back, and checks it whole: whoever holds an Index that was parsed may
trust its names, shapes and chunk positions. All limits on hostile input are here.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint.base import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2
from .errors import DamagedFileError, LimitError, OptionError, UnsupportedError
from .wire import Cursor, blob, varint

MAGIC = b"\x89DCB\r\n\x1a\n"
VERSION = 1
#: magic, version, CRC-32 of the index, offset and length of the index
HEADER = struct.Struct("<8sIIQQ")

RAW, LEVELS, TIED, SCALED = 0, 1, 2, 3
METHOD_NAMES = {RAW: "exact", LEVELS: "quantized", TIED: "tied", SCALED: "quantized"}
#: Methods whose chunks hold levels.
CODED = (LEVELS, SCALED)
#: A flag of coding parameters (FORMAT.md, 4.2): their last byte is log2 of a trellis's states.
_TWO_QUANTIZERS = 8
#: Another: its chunks are coded by the fast coder.
_FAST = 16
#: Bytes of a raw chunk, but the last.
RAW_CHUNK = 1 << 20
MAX_DIMENSIONS = 32
#: Most bytes of an index once decoded.
MAX_INDEX = 1 << 28
#: A decoded index of so many bytes is read whatever ``max_bytes`` is.
SMALL_INDEX = 1 << 16

DTYPES: dict[int, np.dtype[Any]] = dict(
    enumerate(
        [
            *(np.dtype(code) for code in ("<f8", "<f4", "<f2")),
            BFLOAT16,
            FLOAT8_E4M3FN,
            FLOAT8_E5M2,
            *(np.dtype(code) for code in ("<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?")),
        ],
        start=1,
    )
)
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Chunk:
    """Where a chunk of payload lies, and what it must hash to."""

    offset: int
    length: int
    crc: int

    def check(self, data: bytes | memoryview, name: str) -> None:
        """Raise :class:`DamagedFileError` if ``data`` is not this chunk."""
        if len(data) != self.length or zlib.crc32(data) != self.crc:
            raise DamagedFileError(f"tensor {name!r} is damaged: the checksum at byte {self.offset} does not match")


@dataclass(frozen=True)
class Entry:
    """One tensor of the index."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    method: int
    chunks: tuple[Chunk, ...] = ()
    params: bytes = b""  #: coding parameters (LEVELS, SCALED)
    step: float = 0.0  #: distance of two reconstruction values (LEVELS, SCALED)
    row_scales: bytes = b""  #: int8 for each slice of dimension 0, or nothing (SCALED)
    column_scales: bytes = b""  #: int8 for each place in such a slice, or nothing (SCALED)
    tied_to: int = -1  #: number of the entry that this one equals (TIED)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.size * self.dtype.itemsize

    @property
    def states(self) -> int:
        """States of the trellis that it was quantised with; 1 without one (LEVELS, SCALED)."""
        return 1 << self.params[-1] if self.params[0] & _TWO_QUANTIZERS else 1

    @property
    def coder(self) -> str:
        """The entropy coder, "binary" or "fast" (LEVELS, SCALED)."""
        return "fast" if self.params[0] & _FAST else "binary"

    @property
    def coded_bytes(self) -> int:
        """Bytes of its payload."""
        return sum(chunk.length for chunk in self.chunks)

    @cached_property
    def chunk_size(self) -> int:
        """Elements (LEVELS, SCALED) or bytes (RAW) in every chunk but the last."""
        return _core.chunk_levels(self.params) if self.method in CODED else RAW_CHUNK

    def chunk_range(self, number: int) -> slice:
        """The elements (LEVELS, SCALED) or bytes (RAW) that chunk ``number`` holds."""
        total = self.size if self.method in CODED else self.nbytes
        return slice(number * self.chunk_size, min((number + 1) * self.chunk_size, total))


@dataclass
class Index:
    """What a file says about itself: its tensors, and what a checkpoint of its kind holds besides them."""

    entries: list[Entry] = field(default_factory=list)
    kind: str = ""  #: kind of checkpoint it was made from, "" for arrays
    extra: bytes = b""  #: CheckpointReader.extra

    def write(self) -> bytes:
        """The index as stored: coded bytes behind their decoded length."""
        parts = [blob(self.kind.encode()), blob(self.extra), varint(len(self.entries))]
        parts += [_write_entry(entry) for entry in self.entries]
        plain = b"".join(parts)
        coded = _core.encode_bytes(plain) if len(plain) <= MAX_INDEX else b""
        if len(plain) > _index_limit(len(coded)):
            raise UnsupportedError(f"the index takes {len(plain):,} bytes, more than a .dcb file can hold")
        return varint(len(plain)) + coded

    @classmethod
    def read(cls, stored: bytes, payload: range, max_bytes: int | None = None) -> Index:
        """Parse and check an index whose chunks must tile ``payload`` (byte offsets) exactly.

        A small stored index can decode to a large one: raises :class:`LimitError` if it takes more than ``max_bytes``
        (and more than SMALL_INDEX).
        """
        cursor = Cursor(stored, "index")
        length = cursor.varint()
        limit = _index_limit(cursor.left)
        if length > limit:
            raise cursor.damaged(f"it claims {length} bytes, more than the {limit} allowed")
        if max_bytes is not None and length > max(max_bytes, SMALL_INDEX):
            raise LimitError(f"the index takes {length} bytes, more than max_bytes = {max_bytes}")
        cursor = Cursor(_core.decode_bytes(cursor.take(cursor.left), length), "index")
        index = cls(kind=cursor.text(), extra=cursor.blob())
        offset = payload.start
        names: set[str] = set()
        for _ in range(cursor.count(each=5)):
            entry = _read_entry(cursor, offset, index.entries)
            if entry.name in names:
                raise cursor.damaged(f"two tensors are called {entry.name!r}")
            names.add(entry.name)
            index.entries.append(entry)
            offset += entry.coded_bytes
            if offset > payload.stop:
                raise cursor.damaged(f"tensor {entry.name!r} lies outside the file")
        cursor.end()
        if offset != payload.stop:
            raise cursor.damaged(f"{payload.stop - offset} bytes of payload belong to no tensor")
        return index


def _index_limit(stored: int) -> int:
    """Most bytes that ``stored`` coded bytes of an index may stand for: decoding them is slow."""
    return min(MAX_INDEX, (1 << 16) + 64 * stored)


#: 2^0, 2^(1/4), 2^(1/2) and 2^(3/4) as float32, by their bits: every machine has the same.
_ROOTS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], np.uint32).view(np.float32)


def scale_factors(scales: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """2^(scale / 4) as float32. All are finite and above 0: from 2^-32 to 2^31.75."""
    factors: npt.NDArray[np.float32] = np.ldexp(_ROOTS[scales & 3], scales >> 2)
    return factors


def header(index: bytes, offset: int) -> bytes:
    """The header of a file whose stored ``index`` lies at ``offset``."""
    return HEADER.pack(MAGIC, VERSION, zlib.crc32(index), offset, len(index))


def read_header(head: bytes, file_size: int) -> tuple[int, range]:
    """The checksum and the place of the index, from the first bytes of a file."""
    if not head:
        raise DamagedFileError("not a .dcb file: it is empty")
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise DamagedFileError("not a .dcb file: it does not begin like one")
    if len(head) < HEADER.size:
        raise DamagedFileError(f"damaged .dcb file: it ends after {len(head)} bytes")
    _, version, crc, offset, length = HEADER.unpack(head)
    if version != VERSION:
        raise UnsupportedError(
            f"a .dcb file of format version {version}; this release reads version {VERSION}: update deepcabac"
        )
    if offset < HEADER.size or offset + length != file_size:
        raise DamagedFileError(f"damaged .dcb file: it should have {offset + length} bytes and has {file_size}")
    return crc, range(offset, offset + length)


def check_index(stored: bytes, crc: int) -> None:
    """Raise :class:`DamagedFileError` if the stored index does not match the header."""
    if zlib.crc32(stored) != crc:
        raise DamagedFileError("damaged .dcb file: the checksum of the index does not match")


def check_max_bytes(max_bytes: int | None) -> None:
    """Raise :class:`OptionError` if ``max_bytes`` is neither None nor a number of bytes."""
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0):
        raise OptionError(f"max_bytes must be a whole number of bytes, not {max_bytes!r}")


def check_writable(name: str, shape: tuple[int, ...]) -> None:
    """Raise :class:`UnsupportedError` for a tensor that an index cannot hold."""
    if len(shape) > MAX_DIMENSIONS:
        raise UnsupportedError(
            f"tensor {name!r} has {len(shape)} dimensions, more than the {MAX_DIMENSIONS} that a .dcb file can hold"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"tensor {name!r}: the name holds half a character (a surrogate): rename it") from None


def _write_entry(entry: Entry) -> bytes:
    parts = [
        blob(entry.name.encode()),
        bytes([_DTYPE_CODES[entry.dtype], len(entry.shape)]),
        *(varint(size) for size in entry.shape),
        bytes([entry.method]),
    ]
    if entry.method == TIED:
        return b"".join([*parts, varint(entry.tied_to)])
    if entry.method in CODED:
        parts.append(struct.pack("<f", entry.step))
        if entry.method == SCALED:
            parts += [blob(entry.row_scales), blob(entry.column_scales)]
        parts.append(write_chunks(entry.params, entry.chunks))
    else:
        parts += [struct.pack("<I", chunk.crc) for chunk in entry.chunks]
    return b"".join(parts)


def write_chunks(params: bytes, chunks: tuple[Chunk, ...]) -> bytes:
    """Coding parameters, and length and checksum of each chunk."""
    return blob(params) + b"".join(varint(chunk.length) + struct.pack("<I", chunk.crc) for chunk in chunks)


def read_chunks(cursor: Cursor, size: int, offset: int) -> tuple[bytes, tuple[Chunk, ...]]:
    """What :func:`write_chunks` wrote for a tensor of ``size`` levels whose first chunk lies at ``offset``."""
    params = cursor.blob()
    each = _core.chunk_levels(params)
    if -(-size // each) * 5 > cursor.left:
        raise cursor.damaged("it ends early")
    chunks = []
    for start in range(0, size, each):
        chunk = Chunk(offset, cursor.varint(), cursor.unpack("<I")[0])
        if chunk.length == 0:  # and so a file has fewer chunks than bytes
            raise cursor.damaged("a chunk has no bytes")
        if min(each, size - start) > _core.most_levels(chunk.length):
            raise cursor.damaged(f"{chunk.length} bytes cannot hold {min(each, size - start)} levels")
        chunks.append(chunk)
        offset += chunk.length
    return params, tuple(chunks)


def read_shape(cursor: Cursor) -> tuple[int, ...]:
    """Dimensions behind their number; their product fits 63 bits."""
    dimensions = cursor.byte()
    if dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"a tensor of {dimensions} dimensions")
    shape = tuple(cursor.varint() for _ in range(dimensions))
    # Zeros do not make an absurd shape sound: numpy refuses it too.
    if math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise cursor.damaged(f"a tensor of shape {shape}")
    return shape


def _read_entry(cursor: Cursor, offset: int, before: list[Entry]) -> Entry:
    name = cursor.text()
    dtype = DTYPES.get(cursor.byte())
    if dtype is None:
        raise cursor.damaged(f"tensor {name!r} has an unknown data type")
    shape = read_shape(cursor)
    size, method = math.prod(shape), cursor.byte()
    if method == TIED:
        number = cursor.varint()
        if number >= len(before) or before[number].method == TIED:
            raise cursor.damaged(f"tensor {name!r} is tied to one that does not come before it")
        source = before[number]
        if (source.dtype, source.shape) != (dtype, shape):
            raise cursor.damaged(f"tensor {name!r} is tied to {source.name!r}, which has another type or shape")
        return Entry(name, dtype, shape, method, tied_to=number)
    if method == RAW:
        return Entry(name, dtype, shape, method, _read_raw_chunks(cursor, size * dtype.itemsize, offset))
    if method in CODED:
        (step,) = cursor.unpack("<f")
        if not (math.isfinite(step) and step > 0) or dtype.kind not in "fV":
            raise cursor.damaged(f"tensor {name!r} has step {step} and type {dtype}")
        rows, columns = (cursor.blob(), cursor.blob()) if method == SCALED else (b"", b"")
        params, chunks = read_chunks(cursor, size, offset)
        entry = Entry(name, dtype, shape, method, chunks, params, step, row_scales=rows, column_scales=columns)
        if method == SCALED and not _scales_fit(entry):
            raise cursor.damaged(f"tensor {name!r} has scales that do not fit its shape {shape}")
        return entry
    raise cursor.damaged(f"tensor {name!r} is stored with unknown method {method}")


def _scales_fit(entry: Entry) -> bool:
    """Whether scales are those of the rows and columns of a tensor of this shape, and chunks hold whole rows."""
    if entry.size == 0 or not entry.shape:
        return False
    height, width = entry.shape[0], math.prod(entry.shape[1:])
    lengths = len(entry.row_scales), len(entry.column_scales)
    return lengths[0] in (0, height) and lengths[1] in (0, width) and entry.chunk_size % width == 0


def _read_raw_chunks(cursor: Cursor, nbytes: int, offset: int) -> tuple[Chunk, ...]:
    if -(-nbytes // RAW_CHUNK) * 4 > cursor.left:
        raise cursor.damaged("it ends early")
    return tuple(
        Chunk(offset + start, min(RAW_CHUNK, nbytes - start), cursor.unpack("<I")[0])
        for start in range(0, nbytes, RAW_CHUNK)
    )
