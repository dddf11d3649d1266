"""Takes .dcb files and coded levels apart and puts them together again with right checksums, whatever is in them.

Used by the attacks, by the mutations and by the fuzzer's seeds: damage that a checksum finds is dull.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from deepcabac import _core
from deepcabac.dcb.container import HEADER, LEVELS, MAGIC, RAW, VERSION, Chunk, Index, form_bytes, parted_bytes
from deepcabac.wire import Cursor, blob, varint


@dataclass
class Parts:
    """A .dcb file: its payload and its index, decoded."""

    payload: bytes
    plain: bytes

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """The parts of a good file."""
        _, _, _, offset, _ = HEADER.unpack(data[: HEADER.size])
        return cls(data[HEADER.size : offset], plain_of(data[offset:]))

    def index(self) -> Index:
        """The index, parsed."""
        return Index.read(stored(self.plain), range(HEADER.size, HEADER.size + len(self.payload)))

    def file(self) -> bytes:
        """The file again, checksums of index and header right."""
        return with_stored(self.payload, stored(self.plain))


def plain_of(stored_index: bytes) -> bytes:
    """The decoded index of a stored one."""
    cursor = Cursor(stored_index, "index")
    length = cursor.varint()
    return _core.decode_bytes(cursor.take(cursor.left), length)


def stored(plain: bytes, *, claimed: int | None = None) -> bytes:
    """A decoded index as stored; ``claimed`` is what it says its decoded length is."""
    return varint(len(plain) if claimed is None else claimed) + _core.encode_bytes(plain)


def with_stored(payload: bytes, index: bytes, *, version: int = VERSION, offset: int | None = None) -> bytes:
    """A file with this payload and stored index."""
    offset = HEADER.size + len(payload) if offset is None else offset
    return HEADER.pack(MAGIC, version, zlib.crc32(index), offset, len(index)) + payload + index


def entry(
    name: bytes = b"w",
    dtype: int = 2,  # float32
    shape: Sequence[int] = (),
    method: int = RAW,
    rest: bytes = b"",
) -> bytes:
    """One entry of an index, nothing checked."""
    return blob(name) + bytes([dtype, len(shape)]) + b"".join(map(varint, shape)) + bytes([method]) + rest


def levels_rest(
    codes: Sequence[bytes],
    params: bytes,
    step: float = 1.0,
    lengths: Sequence[int] | None = None,
    *,
    rows: bytes = b"",
    columns: bytes = b"",
) -> bytes:
    """What an entry of coded levels says after its method."""
    return struct.pack("<f", step) + blob(rows) + blob(columns) + chunk_table(codes, params, lengths)


def chunk_table(codes: Sequence[bytes], params: bytes, lengths: Sequence[int] | None = None) -> bytes:
    """Parameters, lengths (which may lie) and right checksums."""
    lengths = [len(code) for code in codes] if lengths is None else lengths
    pairs = zip(codes, lengths, strict=True)
    return blob(params) + b"".join(varint(length) + struct.pack("<I", zlib.crc32(code)) for code, length in pairs)


def plain_index(entries: Sequence[bytes], *, kind: bytes = b"", extra: bytes = b"", count: int | None = None) -> bytes:
    """A decoded index of these entries."""
    return blob(kind) + blob(extra) + varint(len(entries) if count is None else count) + b"".join(entries)


def coded_levels(shape: Sequence[int], table: bytes, codes: Sequence[bytes], *, version: int = 1) -> bytes:
    """What :func:`deepcabac.encode` returns, nothing checked."""
    head = bytes([0xDC, version, len(shape)]) + b"".join(map(varint, shape)) + table
    return b"".join([head, struct.pack("<I", zlib.crc32(head)), *codes])


def right_checksums(parts: Parts) -> bytes | None:
    """The file again with the checksums of chunks right too; None if the index no longer parses."""
    try:
        index = parts.index()
    except Exception:
        return None
    entries = []
    for old in index.entries:
        chunks = tuple(_checked(parts.payload, chunk) for chunk in old.chunks)
        rest = varint(max(old.tied_to, 0))
        if old.method == LEVELS:
            scales = blob(old.row_scales) + blob(old.column_scales)
            rest = struct.pack("<f", old.step) + scales + _table(old.params, chunks)
        elif old.method == RAW:
            rest = b"".join(struct.pack("<I", chunk.crc) for chunk in chunks)
        elif old.form is not None:
            rest = form_bytes(old.form, old.dtype.itemsize)
            rest += b"".join(parted_bytes(chunk, old.method) for chunk in chunks)
        entries.append(entry(old.name.encode(), dtype_code(old.dtype), old.shape, old.method, rest))
    behind = index.base_digest + blob(index.base_name.encode()) if index.is_update else b""
    return Parts(parts.payload, plain_index(entries, kind=index.kind.encode(), extra=index.extra) + behind).file()


def dtype_code(dtype: object) -> int:
    """How an index names a data type."""
    from deepcabac.dcb.container import DTYPES

    return next(code for code, known in DTYPES.items() if known == dtype)


def _checked(payload: bytes, chunk: Chunk) -> Chunk:
    start = chunk.offset - HEADER.size
    return Chunk(chunk.offset, chunk.length, zlib.crc32(payload[start : start + chunk.length]), chunk.refinement)


def _table(params: bytes, chunks: Sequence[Chunk]) -> bytes:
    return blob(params) + b"".join(varint(chunk.length) + struct.pack("<I", chunk.crc) for chunk in chunks)


def levels_with_right_checksums(data: bytes) -> bytes | None:
    """Coded levels again with all checksums right; None if they no longer parse that far."""
    from deepcabac.dcb import container

    try:
        cursor = Cursor(data, "coded levels")
        cursor.take(2)
        shape = container.read_shape(cursor)
        params, chunks = container.read_chunks(cursor, math.prod(shape), 0)
        cursor.take(4)
        codes = [bytes(cursor.take(chunk.length)) for chunk in chunks]
        rest = bytes(cursor.take(cursor.left))
        return coded_levels(shape, chunk_table(codes, params), [*codes, rest], version=data[1])
    except Exception:
        return None
