"""The .dcb file: a header, payload chunks, and after them an index of tensors. See FORMAT.md, section 4.

This module turns an :class:`Index` into bytes and back, and checks it whole: whoever holds an Index that was parsed may
trust its names, shapes and chunk positions. All limits on hostile input are here.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..checkpoint.base import BFLOAT16, EXACT_DTYPES, FLOAT8_E4M3FN, FLOAT8_E5M2, Array, bits_of
from ..checkpoint.packing import pack, packed_dtype
from ..errors import DamagedFileError, LimitError, OptionError, UnsupportedError, WrongKindError
from ..quantize import exact
from ..quantize.exact import Form
from ..wire import Cursor, blob, varint

MAGIC = b"\x89DCB\r\n\x1a\n"
VERSION = 1
#: magic, version, CRC-32 of the index, offset and length of the index
HEADER = struct.Struct("<8sIIQQ")

#: Methods that are not of ``quantize.exact``, which has the others.
RAW, LEVELS, TIED, EQUAL = 0, 1, 2, 12
#: Tensors that another one may be stored for, so that memory stays in proportion to the file.
MOST_EQUAL = 64
#: Methods of floating-point values alone.
_FLOATS = (exact.FLOAT, exact.FLOAT_ZEROS, exact.DIFFERENCES, exact.QUANTIZED_DIFFERENCE, exact.SYMBOLS)
#: Bytes of a raw chunk, but the last.
RAW_CHUNK = 1 << 20
MAX_DIMENSIONS = 32
#: Bytes of a digest (SHA-256).
DIGEST = 32
#: Most bytes of an index once decoded; and how many it may have beyond the bytes of the file, since decoding is slow.
MAX_INDEX, FREE_INDEX = 1 << 28, 1 << 20
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
#: Those of which levels can be made.
_QUANTIZED = tuple(DTYPES[code] for code in range(1, 7))
_INTEGERS = range(7, 15)
_MORE = (
    *("complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e4m3"),
    *("float8_e3m4", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    *("int4", "uint4", "int2", "uint2"),
)
DTYPES |= {code: EXACT_DTYPES[name] for code, name in enumerate(_MORE, start=16) if name in EXACT_DTYPES}
#: What is added to the code of an integer type whose elements are stored as codes of so many bits.
_PACKED = {4: 32, 2: 48, 8: 64}
_LEAST_PACKED = min(_PACKED.values())
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Chunk(NamedTuple):
    """Where a chunk of payload lies, and what it must hash to."""

    offset: int
    length: int
    crc: int
    refinement: int = 0  #: bytes of refinement bits at its end (REFINED), or of steps (MULTIPLES)

    def check(self, data: bytes | memoryview, name: str) -> None:
        """Raise :class:`DamagedFileError` if ``data`` is not this chunk."""
        if len(data) != self.length or _core.crc32(data) != self.crc:
            raise DamagedFileError(f"tensor {name!r} is damaged: the checksum at byte {self.offset} does not match")


@dataclass
class Entry:
    """One tensor of the index. A complex one is stored as its parts, and so is one of packed codes: ``dtype`` and
    ``shape`` are theirs.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    method: int
    chunks: tuple[Chunk, ...] = ()
    params: bytes = b""  #: coding parameters (LEVELS)
    step: float = 0.0  #: distance between two reconstruction values (LEVELS)
    row_scales: bytes = b""  #: int8 for each slice of dimension 0, or nothing (LEVELS)
    column_scales: bytes = b""  #: int8 for each place in such a slice, or nothing (LEVELS)
    tied_to: int = -1  #: number of the entry that this one equals (TIED, EQUAL)
    form: Form | None = None  #: how values are coded (the methods of ``quantize.exact``)
    whole: np.dtype[Any] | None = None  #: the tensor's own data type, if what is stored are parts of its elements

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The tensor's own data type."""
        return self.dtype if self.whole is None else self.whole

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The tensor's own shape."""
        return self.shape if self.whole is None else self.shape[:-1]

    @property
    def is_packed(self) -> bool:
        """Whether its elements are made of codes, which take more memory than they do."""
        return self.whole is not None and self.whole.kind != "c"

    def values(self, flat: Array) -> Array:
        """The tensor, from its elements or parts, flat."""
        return (pack(flat) if self.is_packed else flat).view(self.value_dtype).reshape(self.value_shape)

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.size * self.dtype.itemsize

    @property
    def coding_params(self) -> bytes:
        """Coding parameters of its levels; none if it has no levels."""
        return self.params if self.form is None else self.form.params

    @property
    def states(self) -> int:
        """States of the trellis that it was quantised with; 1 without one (LEVELS, QUANTIZED_DIFFERENCE)."""
        return _core.parameters(self.coding_params).states

    @property
    def distance(self) -> float:
        """Distance between two reconstruction values; 0 if it is exact."""
        return self.step if self.form is None else self.form.step

    @property
    def needs_base(self) -> bool:
        """Whether it is a difference to a tensor of the base."""
        return self.method in exact.UPDATES

    @property
    def has_scales(self) -> bool:
        """Whether rows or columns have factors of the step size."""
        return bool(self.row_scales or self.column_scales)

    @property
    def mode(self) -> str:
        """How it is stored, in a word: "exact", "quantized", "tied" or "equal"."""
        if self.method in (LEVELS, exact.QUANTIZED_DIFFERENCE):
            return "quantized"
        return {TIED: "tied", EQUAL: "equal"}.get(self.method, "exact")

    @property
    def coding(self) -> str:
        """How an exact tensor is stored, in words; empty for others."""
        if self.mode != "exact":
            return ""
        return "raw" if self.form is None else self.form.name

    @property
    def coder(self) -> str:
        """The entropy coder of a quantised tensor: "binary", that with "regression", "fast" or "sparse"."""
        return _core.parameters(self.coding_params).coder

    @cached_property
    def coded_bytes(self) -> int:
        """Bytes of its payload."""
        return sum(chunk.length for chunk in self.chunks)

    @cached_property
    def chunk_size(self) -> int:
        """Bytes (RAW) or elements (others) in every chunk but the last."""
        if self.form is not None:
            return self.form.chunk_size
        return _core.chunk_levels(self.params) if self.method == LEVELS else RAW_CHUNK

    def chunk_range(self, number: int) -> slice:
        """The bytes (RAW) or elements (others) that chunk ``number`` holds."""
        total = self.nbytes if self.method == RAW else self.size
        return slice(number * self.chunk_size, min((number + 1) * self.chunk_size, total))


@dataclass
class Index:
    """What a file says about itself: its tensors, and what a checkpoint of its kind holds besides them."""

    entries: list[Entry] = field(default_factory=list)
    kind: str = ""  #: kind of checkpoint it was made from, "" for arrays
    extra: bytes = b""  #: CheckpointReader.extra
    base_digest: bytes = b""  #: what the tensors that are differences must hash to in their base; empty without any
    base_name: str = ""  #: name of the base's file, without folders: a hint

    @property
    def is_update(self) -> bool:
        """Whether a base is needed."""
        return any(entry.needs_base for entry in self.entries)

    def write(self, payload: range | None = None) -> bytes:
        """The index as stored: the decoded length, then the coded bytes. If a file of this size may not hold that: 0,
        then the index as it is. Given ``payload``, what a reader would refuse is not written.
        """
        parts = [blob(self.kind.encode()), blob(self.extra), varint(len(self.entries))]
        parts += [_write_entry(entry) for entry in self.entries]
        if self.is_update:
            parts += [self.base_digest, blob(self.base_name.encode())]
        plain = b"".join(parts)
        if payload is not None:
            Index.parse(plain, payload)
        if len(plain) > MAX_INDEX:
            raise UnsupportedError(f"the index takes {len(plain):,} bytes, more than a .dcb file can hold")
        head = varint(len(plain))
        around = HEADER.size + sum(entry.coded_bytes for entry in self.entries) + len(head)
        if len(plain) // 2 <= _index_limit(around):  # else it would not become small enough, and coding is slow
            coded = _core.encode_bytes(plain)
            if len(plain) <= _index_limit(around + len(coded)):
                return head + coded
        return varint(0) + plain

    @classmethod
    def read(cls, stored: bytes, payload: range, max_bytes: int | None = None) -> Index:
        """Parse and check an index whose chunks must tile ``payload`` (byte offsets) exactly.

        Raises :class:`LimitError` if it takes more than ``max_bytes`` once decoded (and more than SMALL_INDEX).
        """
        cursor = Cursor(stored, "index")
        length = cursor.varint()
        rest = cursor.take(cursor.left)
        is_plain = length == 0
        length = len(rest) if is_plain else length
        limit = _index_limit(payload.stop + len(stored))
        if length > limit:
            raise cursor.damaged(f"it claims {length} bytes, more than the {limit} allowed")
        if max_bytes is not None and length > max(max_bytes, SMALL_INDEX):
            raise LimitError(f"the index takes {length} bytes, more than max_bytes = {max_bytes}")
        return cls.parse(rest if is_plain else _core.decode_bytes(rest, length), payload)

    @classmethod
    def parse(cls, plain: bytes | memoryview, payload: range) -> Index:
        """As :meth:`read`, from the decoded bytes."""
        cursor = Cursor(plain, "index")
        index = cls(kind=cursor.text(), extra=cursor.blob())
        offset = payload.start
        names: set[str] = set()
        equals: Counter[int] = Counter()
        for _ in range(cursor.count(each=5)):
            entry = _read_entry(cursor, offset, index.entries)
            if entry.name in names:
                raise cursor.damaged(f"two tensors are called {entry.name!r}")
            names.add(entry.name)
            if entry.method == EQUAL:
                equals[entry.tied_to] += 1
                if equals[entry.tied_to] > MOST_EQUAL:
                    raise cursor.damaged(f"more than {MOST_EQUAL} tensors are stored as equal to one")
            index.entries.append(entry)
            if entry.chunks:
                offset = entry.chunks[-1].offset + entry.chunks[-1].length
            if offset > payload.stop:
                raise cursor.damaged(f"tensor {entry.name!r} lies outside the file")
        if index.is_update:
            index.base_digest, index.base_name = bytes(cursor.take(DIGEST)), cursor.text()
            if index.base_name in (".", "..") or any(sign in index.base_name for sign in "/\\:\0"):
                raise cursor.damaged(f"its base is called {index.base_name!r}, which is not a file's name")
        cursor.end()
        if offset != payload.stop:
            raise cursor.damaged(f"{payload.stop - offset} bytes of payload belong to no tensor")
        return index


def _index_limit(file_bytes: int) -> int:
    """Most bytes of the decoded index of a file of so many bytes."""
    return min(MAX_INDEX, FREE_INDEX + file_bytes)


def header(index: bytes, offset: int) -> bytes:
    """The header of a file whose stored ``index`` lies at ``offset``."""
    return HEADER.pack(MAGIC, VERSION, _core.crc32(index), offset, len(index))


def read_header(head: bytes, file_size: int) -> tuple[int, range]:
    """The checksum and the place of the index, from the first bytes of a file."""
    if not head:
        raise DamagedFileError("damaged .dcb file: it is empty")
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        if head[1:4] == MAGIC[1:4]:
            raise DamagedFileError("damaged .dcb file: its first bytes were changed, as by a transfer in text mode")
        raise WrongKindError("not a .dcb file: it does not begin like one")
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
    if _core.crc32(stored) != crc:
        raise DamagedFileError("damaged .dcb file: the checksum of the index does not match")


def check_max_bytes(max_bytes: int | None) -> None:
    """Raise :class:`OptionError` if ``max_bytes`` is neither None nor a number of bytes."""
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0):
        raise OptionError(f"max_bytes must be a whole number of bytes, not {max_bytes!r}")


def digest_part(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before a tensor's bytes in the digest of a base (FORMAT.md, 11.3)."""
    return blob(name.encode()) + bytes([_DTYPE_CODES[dtype], len(shape)]) + b"".join(varint(size) for size in shape)


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


def parts_of(dtype: np.dtype[Any], shape: tuple[int, ...], bits: int = 0) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the parts of a complex tensor or, with ``bits``, of the codes in integers."""
    if dtype.kind == "c":
        return np.dtype(f"<f{dtype.itemsize // 2}"), (*shape, 2)
    return packed_dtype(bits), (*shape, 8 * dtype.itemsize // bits)


def _dtype_code(entry: Entry) -> int:
    code = _DTYPE_CODES[entry.value_dtype]
    return code + _PACKED[bits_of(entry.dtype)] if entry.is_packed else code


def _write_entry(entry: Entry) -> bytes:
    parts = [
        blob(entry.name.encode()),
        bytes([_dtype_code(entry), len(entry.value_shape)]),
        *(varint(size) for size in entry.value_shape),
        bytes([entry.method]),
    ]
    if entry.method in (TIED, EQUAL):
        return b"".join([*parts, varint(entry.tied_to)])
    if entry.method == LEVELS:
        parts += [struct.pack("<f", entry.step), blob(entry.row_scales), blob(entry.column_scales)]
        parts.append(write_chunks(entry.params, entry.chunks))
    elif entry.form is not None:
        parts.append(form_bytes(entry.form, entry.dtype.itemsize))
        parts += [parted_bytes(chunk, entry.method) for chunk in entry.chunks]
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
        chunk = Chunk(offset, cursor.varint(), cursor.u32())
        if chunk.length == 0:  # and so a file has fewer chunks than bytes
            raise cursor.damaged("a chunk has no bytes")
        if size - start > chunk.length and min(each, size - start) > _core.most_levels(chunk.length):
            raise cursor.damaged(f"{chunk.length} bytes cannot hold {min(each, size - start)} levels")
        chunks.append(chunk)
        offset += chunk.length
    return params, tuple(chunks)


def read_shape(cursor: Cursor) -> tuple[int, ...]:
    """The number of dimensions, then the dimensions; their product fits 63 bits."""
    dimensions = cursor.byte()
    if dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"a tensor of {dimensions} dimensions")
    shape = tuple([cursor.varint() for _ in range(dimensions)])
    # Zeros do not make an absurd shape sound: numpy refuses it too.
    if (math.prod(shape) or math.prod([max(size, 1) for size in shape])) >= 1 << 60:
        raise cursor.damaged(f"a tensor of shape {shape}")
    return shape


def _read_entry(cursor: Cursor, offset: int, before: list[Entry]) -> Entry:
    name = cursor.text()
    code, bits = cursor.byte(), 0
    if code >= _LEAST_PACKED:
        bits = next((bits for bits, more in _PACKED.items() if more <= code < more + 16), 0)
        code = code % 16 if bits else 0
        if code not in _INTEGERS or bits >= 8 * DTYPES[code].itemsize:
            code = 0
    dtype = DTYPES.get(code)
    if dtype is None and 16 <= code < 16 + len(_MORE):
        raise UnsupportedError(f"tensor {name!r} is of type {_MORE[code - 16]}, which ml_dtypes lacks: update it")
    if dtype is None:
        raise cursor.damaged(f"tensor {name!r} has an unknown data type")
    shape = read_shape(cursor)
    if dtype.kind != "c" and not bits:
        entry = _read_rest(cursor, name, dtype, shape, offset, before)
    else:
        entry = replace(_read_rest(cursor, name, *parts_of(dtype, shape, bits), offset, before), whole=dtype)
    if entry.method in (TIED, EQUAL) and before[entry.tied_to].whole != entry.whole:
        raise cursor.damaged(f"tensor {name!r} is tied to one of another type")
    if bits and entry.needs_base:
        raise cursor.damaged(f"tensor {name!r} is a difference of packed codes")
    return entry


def _read_rest(
    cursor: Cursor, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, before: list[Entry]
) -> Entry:
    """What follows the shape in an entry."""
    size, method = math.prod(shape), cursor.byte()
    if method in (TIED, EQUAL):
        number = cursor.varint()
        if number >= len(before) or before[number].method in (TIED, EQUAL):
            raise cursor.damaged(f"tensor {name!r} is tied to one that does not come before it")
        source = before[number]
        if (source.dtype, source.shape) != (dtype, shape):
            raise cursor.damaged(f"tensor {name!r} is tied to {source.name!r}, which has another type or shape")
        return Entry(name, dtype, shape, method, tied_to=number)
    if method == RAW:
        return Entry(name, dtype, shape, method, _read_raw_chunks(cursor, size * dtype.itemsize, offset))
    if method == LEVELS:
        (step,) = cursor.unpack("<f")
        if not (math.isfinite(step) and step > 0) or dtype not in _QUANTIZED:
            raise cursor.damaged(f"tensor {name!r} has step {step} and type {dtype}")
        rows, columns = cursor.blob(), cursor.blob()
        params, chunks = read_chunks(cursor, size, offset)
        entry = Entry(name, dtype, shape, method, chunks, params, step, row_scales=rows, column_scales=columns)
        if entry.has_scales and not _scales_fit(entry):
            raise cursor.damaged(f"tensor {name!r} has scales that do not fit its shape {shape}")
        return entry
    form = _read_form(cursor, name, dtype, method)
    return Entry(name, dtype, shape, method, _read_parted(cursor, form, size, offset), form=form)


def form_bytes(form: Form, item: int) -> bytes:
    """What an index says about how values of ``item`` bytes are coded, between the method and the chunks."""
    parts = []
    if form.method in exact.REFINED:
        parts.append(varint(form.exponent))
    if form.method == exact.INTEGERS:
        parts.append(form.centre.to_bytes(item, "little"))
    if form.entries is not None:
        parts += [varint(number) for number in (form.entries.size, form.usual, form.width, form.rows)]
        # The bytes of their differences, the highest of all entries first, then the next: they are alike.
        steps = np.diff(form.entries, prepend=form.entries.dtype.type(0))
        parts.append(steps.astype(steps.dtype.newbyteorder(">")).view(np.uint8).reshape(steps.size, -1).T.tobytes())
    if form.method == exact.SYMBOLS:
        parts += [varint(form.width), varint(form.rows)]
    if form.rates is not None:
        parts += [varint(form.rates.first), blob(form.rates.codes)]
    if form.method == exact.QUANTIZED_DIFFERENCE:
        parts.append(struct.pack("<f", form.step))
    if form.method == exact.MULTIPLES:
        parts.append(varint(form.group) + bytes([form.signed]))
    if form.params:
        parts.append(blob(form.params))
    return b"".join(parts)


def _read_form(cursor: Cursor, name: str, dtype: np.dtype[Any], method: int) -> Form:
    """How the values of a tensor are coded, every field in its range."""
    item, floats = dtype.itemsize, exact.mantissa(dtype) > 0
    if not (exact.FLOAT <= method <= exact.SYMBOLS or method in (exact.CHANGES, exact.MULTIPLES)):
        raise cursor.damaged(f"tensor {name!r} is stored with unknown method {method}")
    wrong = floats if method == exact.INTEGERS else method in _FLOATS and not floats
    if wrong or (method in (exact.QUANTIZED_DIFFERENCE, exact.MULTIPLES) and dtype not in _QUANTIZED):
        raise cursor.damaged(f"tensor {name!r} of type {dtype} is stored with method {method}")
    exponent = cursor.varint() if method in exact.REFINED else 0
    if exponent > exact.LAST_EXPONENT:
        raise cursor.damaged(f"tensor {name!r} has a step of 2^{exponent} units")
    centre = int.from_bytes(cursor.take(item), "little") if method == exact.INTEGERS else 0
    if method == exact.CODEBOOK:
        entries, usual, width, rows = (cursor.varint() for _ in range(4))
        sound = 1 <= entries <= exact.MOST_ENTRIES and usual < entries
        if not sound or not (1 <= width <= exact.MOST_WIDTH and rows >= 1 and width * rows <= exact.MOST_INDICES):
            raise cursor.damaged(
                f"tensor {name!r} has a codebook of {entries} entries, rows of {width}, {rows} in a chunk"
            )
        planes = np.frombuffer(cursor.take(entries * item), np.uint8).reshape(item, entries)
        steps = np.ascontiguousarray(planes.T).view(f">u{item}").reshape(entries).astype(f"<u{item}")
        values = np.cumsum(steps, dtype=steps.dtype)
        if (values[1:] <= values[:-1]).any():
            raise cursor.damaged(f"tensor {name!r} has a codebook whose entries do not ascend")
        return Form(method, entries=values, usual=usual, width=width, rows=rows)
    if method == exact.SYMBOLS:
        width, rows = cursor.varint(), cursor.varint()
        if not (1 <= width <= exact.MOST_WIDTH and rows >= 1 and width * rows <= exact.MOST_VALUES):
            raise cursor.damaged(f"tensor {name!r} has rows of {width}, {rows} in a chunk")
        return Form(method, width=width, rows=rows)
    if method == exact.CHANGES:
        first, codes = cursor.varint(), bytes(cursor.blob())
        if not 1 <= len(codes) <= exact.exponents(dtype) - first or max(codes) >= _core.RATE_CODES:
            raise cursor.damaged(f"tensor {name!r} has rates of change that do not fit its type {dtype}")
        return Form(method, rates=_core.Rates(first, codes))
    if method == exact.MULTIPLES:
        group, signed, params = cursor.varint(), cursor.byte(), cursor.blob()
        if signed > 1 or group == 0 or _core.chunk_levels(params) % group:
            raise cursor.damaged(f"tensor {name!r} has groups of {group} elements, which do not fit its chunks")
        return Form(method, params=params, group=group, signed=signed == 1)
    step = cursor.unpack("<f")[0] if method == exact.QUANTIZED_DIFFERENCE else 0.0
    if method == exact.QUANTIZED_DIFFERENCE and not (math.isfinite(step) and step > 0):
        raise cursor.damaged(f"tensor {name!r} has step {step}")
    params = b"" if method == exact.UNCHANGED else cursor.blob()
    return Form(method, exponent, centre, params=params, step=step)


def parted_bytes(chunk: Chunk, method: int) -> bytes:
    """What an index says about a chunk of levels and refinement bits, or of changes."""
    lengths = varint(chunk.length - chunk.refinement)
    lengths += b"" if method == exact.CHANGES else varint(chunk.refinement)
    return lengths + struct.pack("<I", chunk.crc) if chunk.length else lengths


def _read_parted(cursor: Cursor, form: Form, size: int, offset: int) -> tuple[Chunk, ...]:
    """Chunks that have a code and refinement bits; those that are like the base's have neither."""
    if form.method == exact.UNCHANGED:
        return ()
    each = form.chunk_size
    changes = form.method == exact.CHANGES
    if -(-size // each) * (1 if changes else 2) > cursor.left:
        raise cursor.damaged("it ends early")
    if form.group and size % form.group:
        raise cursor.damaged(f"{size} elements are no groups of {form.group}")
    chunks = []
    for start in range(0, size, each):
        code, refinement = cursor.varint(), 0 if changes else cursor.varint()
        if code == 0 and not (form.method in exact.UPDATES and refinement == 0):
            raise cursor.damaged("a chunk has no bytes")
        # A few bytes can say that little changed: the base has the memory that the values take.
        # A symbol comes with at least one bit that is copied.
        if code and not changes and size - start > code:
            most = 8 * code if form.method == exact.SYMBOLS else _core.most_levels(code)
            if min(each, size - start) > most:
                raise cursor.damaged(f"{code} bytes cannot hold {min(each, size - start)} levels")
        if form.group and min(each, size - start) > 8 * refinement * form.group:
            raise cursor.damaged(f"{refinement} bytes cannot hold the steps of {min(each, size - start)} levels")
        if refinement and form.method not in (*exact.REFINED, exact.MULTIPLES):
            raise cursor.damaged("a chunk has refinement bits that its method does not have")
        chunks.append(Chunk(offset, code + refinement, cursor.u32() if code else 0, refinement))
        offset += code + refinement
    return tuple(chunks)


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
        Chunk(offset + start, min(RAW_CHUNK, nbytes - start), cursor.u32())
        for start in range(0, nbytes, RAW_CHUNK)
    )
