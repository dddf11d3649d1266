"""GGUF: a header with metadata and a table of tensors, then the tensors, each at a multiple of an alignment.

The header is kept to the byte. Tensors of blocks become several arrays, one for each kind of number in a block
(``gguf_blocks.py``): ``blk.0.ffn_up.weight`` has the codes, ``blk.0.ffn_up.weight.d`` the scales.

Reference: the specification of GGUF, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import io
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import AtomicFile, reading
from ..errors import CheckpointError, DamagedFileError, UnsupportedError
from .base import (
    BFLOAT16,
    SCALE,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    allocate,
    byte_view,
    open_binary,
    read_into,
)
from .gguf_blocks import LAYOUTS, OPAQUE, Layout, Numbers, finish, join, split

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
#: Most bytes of a header: large vocabularies take ten million.
MAX_HEADER = 1 << 28
_MAX_DEPTH = 4  # of arrays in arrays
#: Bytes of the values of metadata, by type; strings (8) and arrays (9) say their own length.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
#: Plain types, by number.
_PLAIN: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    24: np.dtype("i1"),
    25: np.dtype("<i2"),
    26: np.dtype("<i4"),
    27: np.dtype("<i8"),
    28: np.dtype("<f8"),
    30: BFLOAT16,
}
_BLOCKS = 1 << 16  # taken apart at a time


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the table."""

    name: str
    shape: tuple[int, ...]  #: the last dimension varies fastest, unlike in the file
    kind: int
    offset: int  #: in the file

    @property
    def layout(self) -> Layout | None:
        """Its blocks, if they are taken apart."""
        return LAYOUTS.get(self.kind)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = math.prod(self.shape)
        if self.kind in _PLAIN:
            return size * _PLAIN[self.kind].itemsize
        elements, nbytes = block_of(self.kind)
        return size // elements * nbytes

    def parts(self) -> list[tuple[TensorSpec, Numbers | None]]:
        """The arrays that it becomes, before names are made unique."""
        if self.kind in _PLAIN:
            return [(TensorSpec(self.name, _PLAIN[self.kind], self.shape), None)]
        elements, nbytes = block_of(self.kind)
        *outer, width = self.shape
        if self.layout is None:
            return [(TensorSpec(self.name, np.dtype("u1"), (*outer, width // elements, nbytes)), None)]
        return [
            (
                TensorSpec(
                    f"{self.name}.{field.suffix}" if field.suffix else self.name,
                    field.dtype,
                    (*outer, width // elements * field.count),
                ),
                field,
            )
            for field in self.layout.fields
        ]


def block_of(kind: int) -> tuple[int, int]:
    """Elements and bytes of a block."""
    layout = LAYOUTS.get(kind)
    return OPAQUE[kind] if layout is None else (layout.elements, layout.size)


class _Malformed(ValueError):
    """A header is none."""


class _Header:
    """Reads the header of a file; what it has read is ``text``."""

    def __init__(self, read: Any, size: int) -> None:
        self._read, self._size = read, size
        self._pieces: list[bytes] = []
        self._length = 0
        self.alignment = 32
        if self._take(4) != _MAGIC:
            raise _Malformed("it does not begin like one")
        version = self._number("<I")
        if version not in _VERSIONS:
            big = int.from_bytes(struct.pack("<I", version), "big") in _VERSIONS
            raise UnsupportedError(f"a GGUF file of version {'for big-endian machines' if big else version}")
        tensors, entries = self._number("<Q"), self._number("<Q")
        if tensors > size // 24 or entries > size // 13:
            raise _Malformed("it claims more than it has")
        for _ in range(entries):
            key, kind = self._text(), self._number("<I")
            self._value(key, kind, 0)
        found = [self._tensor() for _ in range(tensors)]
        self.text = b"".join(self._pieces)
        start = self._length + -self._length % self.alignment
        self.tensors = [_Tensor(name, shape, kind, start + offset) for name, shape, kind, offset in found]
        if len({tensor.name for tensor in self.tensors}) != len(found):
            raise _Malformed("two tensors have one name")

    def _take(self, length: int) -> bytes:
        if length > MAX_HEADER - self._length:
            raise _Malformed("its header is too long")
        data: bytes = self._read(length)
        if len(data) != length:
            raise _Malformed("it ends early")
        self._pieces.append(data)
        self._length += length
        return data

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8")

    def _value(self, key: str, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._take(self._number("<Q"))
        elif kind == _ARRAY:
            item, count = self._number("<I"), self._number("<Q")
            if depth >= _MAX_DEPTH:
                raise _Malformed("arrays are nested too deeply")
            if item in _VALUE_BYTES:
                self._take(count * _VALUE_BYTES[item])
                return
            if count > self._size // 8:
                raise _Malformed("an array claims more than there is")
            for _ in range(count):
                self._value("", item, depth + 1)
        elif kind in _VALUE_BYTES:
            data = self._take(_VALUE_BYTES[kind])
            if key == _ALIGNMENT and kind == _UINT32:
                self.alignment = int.from_bytes(data, "little")
                if not 1 <= self.alignment <= 1 << 20:
                    raise _Malformed(f"its alignment is {self.alignment}")
        else:
            raise _Malformed(f"a value has the unknown type {kind}")

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("<I")
        if dimensions > 8:
            raise _Malformed(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        if math.prod(max(size, 1) for size in shape) >= 1 << 50 or offset >= 1 << 60:
            raise _Malformed(f"tensor {name!r} has an impossible shape")
        if kind not in _PLAIN and kind not in LAYOUTS and kind not in OPAQUE:
            raise UnsupportedError(f"tensor {name!r} is of type {kind} of GGUF, which is not known: update deepcabac")
        if kind not in _PLAIN and (not shape or shape[-1] % block_of(kind)[0]):
            raise _Malformed(f"tensor {name!r} has rows that are no whole blocks")
        return name, shape, kind, offset


def _unique(tensors: list[_Tensor]) -> dict[str, list[tuple[TensorSpec, Numbers | None]]]:
    """The arrays of each tensor; a name that is another tensor's already gets "~2" and so on."""
    taken = {tensor.name for tensor in tensors}
    result: dict[str, list[tuple[TensorSpec, Numbers | None]]] = {}
    for tensor in tensors:
        result[tensor.name] = parts = []
        for spec, field in tensor.parts():
            name, number = spec.name, 1
            while field is not None and field.suffix and name in taken:
                number += 1
                name = f"{spec.name}~{number}"
            taken.add(name)
            parts.append((TensorSpec(name, spec.dtype, spec.shape), field))
    return result


class GgufReader(CheckpointReader):
    """Reads a ``.gguf`` file. ``extra`` is the file's size and its header."""

    kind = "gguf"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, size = open_binary(self.path)
        try:
            with reading(self.path):
                header = _parse(self._file.read, size, f"{self.path}: ", CheckpointError)
                self._check_places(header, size)
        except BaseException:
            self._file.close()
            raise
        self.extra = struct.pack("<Q", size) + header.text
        self._places: dict[str, tuple[TensorSpec, _Tensor, Numbers | None]] = {}
        self._cached: tuple[str, Array] | None = None
        by_name = {tensor.name: tensor for tensor in header.tensors}
        for name, parts in _unique(header.tensors).items():
            for spec, field in parts:
                self._places[spec.name] = (spec, by_name[name], field)
        self.specs = [spec for spec, _, _ in self._places.values()]

    def _check_places(self, header: _Header, size: int) -> None:
        """Raise unless tensors follow each other, with zeros between them."""
        end = len(header.text)
        for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
            self._check_gap(end, tensor.offset, tensor.name)
            end = tensor.offset + tensor.nbytes
            if end > size:
                raise CheckpointError(f"{self.path}: ends before its tensors do; it is truncated, so fetch it again")
        self._check_gap(end, size, "the end")

    def _check_gap(self, start: int, stop: int, what: str) -> None:
        if stop < start:
            raise CheckpointError(f"{self.path}: tensor {what!r} overlaps another; the file is damaged")
        self._file.seek(start)
        while start < stop:
            data = self._file.read(min(stop - start, 1 << 20))
            if not data:
                raise CheckpointError(f"{self.path}: ends before its tensors do; it is truncated, so fetch it again")
            if data.strip(b"\0"):
                raise UnsupportedError(f"{self.path}: has data before {what} that belong to no tensor")
            start += len(data)

    def roles(self) -> dict[str, str]:
        return {
            spec.name: SCALE for spec, _, field in self._places.values() if field is not None and field.suffix
        }

    def read(self, name: str) -> Array:
        spec, tensor, field = self._places[name]
        if field is None:
            array = allocate(spec, self.path)
            read_into(self._file, tensor.offset, array, self.path)
            return array
        blocks = self._blocks(tensor)
        array = allocate(spec, self.path)
        flat = array.reshape(len(blocks), field.count)
        for start in range(0, len(blocks), _BLOCKS):
            flat[start : start + _BLOCKS] = split(blocks[start : start + _BLOCKS], field)
        return array

    def _blocks(self, tensor: _Tensor) -> Array:
        """All blocks of a tensor; those of the last one asked for are kept, as its arrays are read one by one."""
        if self._cached is None or self._cached[0] != tensor.name:
            size = block_of(tensor.kind)[1]
            self._cached = None
            blocks = allocate(TensorSpec(tensor.name, np.dtype("u1"), (tensor.nbytes // size, size)), self.path)
            read_into(self._file, tensor.offset, blocks, self.path)
            self._cached = tensor.name, blocks
        return self._cached[1]

    def close(self) -> None:
        self._cached = None
        self._file.close()


def _parse(read: Any, size: int, where: str, error: type[Exception]) -> _Header:
    try:
        return _Header(read, size)
    except UnsupportedError as cause:
        raise UnsupportedError(f"{where}{cause}") from cause
    except (_Malformed, UnicodeDecodeError) as cause:
        raise error(f"{where}is not a GGUF file, or is damaged: {cause}") from cause


class GgufWriter(CheckpointWriter):
    """Writes a ``.gguf`` file from a :class:`GgufReader`'s ``extra``."""

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True) -> None:
        super().__init__(specs)
        if len(extra) < 8:
            raise DamagedFileError("the stored GGUF header is missing; the file is damaged")
        text, size = extra[8:], struct.unpack("<Q", extra[:8])[0]
        header = _parse(io.BytesIO(text).read, size, "the stored GGUF header: ", DamagedFileError)
        if len(header.text) != len(text):
            raise DamagedFileError("the stored GGUF header goes on after its tensors; the file is damaged")
        parts = _unique(header.tensors)
        expected = [(spec.name, spec.dtype, spec.shape) for one in parts.values() for spec, _ in one]
        if expected != [(spec.name, spec.dtype, spec.shape) for spec in self.specs]:
            raise DamagedFileError("the stored GGUF header does not fit the stored tensors; the file is damaged")
        end = len(text)
        for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise DamagedFileError("tensors of the stored GGUF header overlap; the file is damaged")
            end = tensor.offset + tensor.nbytes
        # What a writer aligns is small; a file of nothing but a gap is none.
        if not end <= size <= end + (1 << 20):
            raise DamagedFileError("the stored size of the GGUF file is wrong; the file is damaged")
        self._of: dict[str, tuple[_Tensor, Numbers | None]] = {}
        for tensor in header.tensors:
            for spec, field in parts[tensor.name]:
                self._of[spec.name] = tensor, field
        self._open: dict[str, tuple[Array, list[str]]] = {}  # blocks that lack some of their numbers, and which
        self._parts = {name: [spec.name for spec, _ in one] for name, one in parts.items()}
        self._target = AtomicFile(path, overwrite=overwrite)
        try:
            self._target.file.write(text)
            self._target.file.truncate(size)
        except BaseException:
            self.abort()
            raise

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):
            self._put_one(place.name, array)

    def _put_one(self, name: str, array: Array) -> None:
        tensor, field = self._of[name]
        if field is None:
            self._write(tensor.offset, array)
            return
        elements, size = block_of(tensor.kind)
        if tensor.name not in self._open:
            blocks = np.zeros((math.prod(tensor.shape) // elements, size), np.uint8)
            self._open[tensor.name] = blocks, list(self._parts[tensor.name])
        blocks, missing = self._open[tensor.name]
        numbers = array.reshape(len(blocks), field.count)
        for start in range(0, len(blocks), _BLOCKS):
            join(blocks[start : start + _BLOCKS], field, numbers[start : start + _BLOCKS])
        missing.remove(name)
        if not missing:
            del self._open[tensor.name]
            for start in range(0, len(blocks), _BLOCKS):
                finish(blocks[start : start + _BLOCKS], LAYOUTS[tensor.kind])
            self._write(tensor.offset, blocks)

    def _write(self, offset: int, array: Array) -> None:
        self._target.file.seek(offset)
        self._target.file.write(byte_view(array))

    def _commit(self) -> None:
        self._target.commit()

    def abort(self) -> None:
        self._open = {}
        self._target.abort()
