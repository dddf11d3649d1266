"""safetensors: an 8-byte header length, a JSON header, then the tensors end to end.

The header is parsed here rather than by the safetensors library, because the library maps the file into memory, and
mapped pages count as the process's own. Everything the format demands is checked before a tensor is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import AtomicFile, reading
from ..errors import CheckpointError, DamagedFileError, UnsupportedError
from .base import (
    BFLOAT16,
    EXACT_DTYPES,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    bits_of,
    byte_view,
    check_shape,
    compact_json,
    is_string_map,
    open_binary,
    parse_json,
    require_dtypes,
)
from .packing import pack, read_packed

MAX_HEADER = 100_000_000  # bytes; the library's own cap
_SPACES = 64  # bytes of the header among which its first brace is looked for

DTYPE_OF_TAG: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F8_E4M3": FLOAT8_E4M3FN,
    "F8_E5M2": FLOAT8_E5M2,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAME_OF_TAG = {
    "C64": "complex64",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F4": "float4_e2m1fn",
}
DTYPE_OF_TAG |= {tag: EXACT_DTYPES[name] for tag, name in _NAME_OF_TAG.items() if name in EXACT_DTYPES}
TAG_OF_DTYPE = {dtype: tag for tag, dtype in DTYPE_OF_TAG.items()}


class SafetensorsReader(CheckpointReader):
    """Reads one ``.safetensors`` file. ``extra`` is its ``__metadata__`` as JSON, or empty when it has none."""

    kind = "safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, size = open_binary(self.path)
        try:
            located, self.metadata = _read_header(self._file, size, self.path)
        except BaseException:
            self._file.close()
            raise
        self.specs = [spec for spec, _ in located]
        self.extra = b"" if self.metadata is None else compact_json(self.metadata)
        self._located = {spec.name: (spec, offset) for spec, offset in located}

    def read(self, name: str) -> Array:
        spec, offset = self._located[name]
        return read_packed(self._file, offset, spec, self.path)

    def close(self) -> None:
        self._file.close()


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[list[tuple[TensorSpec, int]], dict[str, str] | None]:
    """Return each tensor with its offset in the file, in file order, and ``__metadata__`` (None when there is none)."""
    with reading(path):
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER + 1
        # Text read as a length is astronomically large, so this also catches files of another kind.
        begin = file.read(min(length, _SPACES)) if length <= MAX_HEADER else b""
        if not begin.lstrip().startswith(b"{"):
            raise CheckpointError(
                f"{path}: is not a safetensors file; check that the suffix is right and the download complete"
            )
        if 8 + length > size:
            raise CheckpointError(f"{path}: ends inside its header; it is truncated, so fetch it again")
        text = begin + file.read(length - len(begin))
    # As the library: spaces around the object, doubled metadata and unknown fields of an entry do no harm.
    header = parse_json(text, f"{path}: the safetensors header", CheckpointError, doubled_texts=True)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not is_string_map(metadata):
        raise CheckpointError(f"{path}: __metadata__ is not a map of strings; the file is damaged")
    entries = [_read_entry(name, entry, path) for name, entry in header.items()]
    entries.sort(key=lambda entry: entry[1:])  # by place; the sort is stable, so empty tensors keep the header's order
    end_of_previous = 0
    for spec, start, end in entries:
        if start != end_of_previous:
            raise CheckpointError(
                f"{path}: tensor {spec.name!r} overlaps another or leaves a hole; the file is damaged"
            )
        end_of_previous = end
    data_start = 8 + length
    if end_of_previous > size - data_start:
        raise CheckpointError(f"{path}: ends before its tensors do; it is truncated, so fetch it again")
    if end_of_previous < size - data_start:
        raise CheckpointError(f"{path}: goes on after its last tensor; the file is damaged")
    return [(spec, data_start + start) for spec, start, _ in entries], metadata


def _read_entry(name: str, entry: Any, path: Path) -> tuple[TensorSpec, int, int]:
    """Check one header entry on its own; return the spec and its offsets within the data."""
    if (
        not isinstance(entry, dict)
        or not entry.keys() >= {"dtype", "shape", "data_offsets"}
        or not isinstance(entry["dtype"], str)
    ):
        raise CheckpointError(f"{path}: tensor {name!r} has an invalid header entry; the file is damaged")
    dtype = DTYPE_OF_TAG.get(entry["dtype"])
    if dtype is None:
        raise UnsupportedError(
            f"{path}: tensor {name!r} has dtype {entry['dtype'][:20]}, which is not supported; convert it to one of "
            + " ".join(DTYPE_OF_TAG)
        )
    spec = TensorSpec(name, dtype, check_shape(entry["shape"], name, path))
    offsets = entry["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset >= 0 for offset in offsets)
    ):
        raise CheckpointError(f"{path}: tensor {name!r} has invalid offsets; the file is damaged")
    start, end = offsets
    if end - start != spec.packed_bytes or spec.size * bits_of(dtype) % 8:
        raise CheckpointError(
            f"{path}: tensor {name!r} has {end - start} bytes where its shape needs {spec.packed_bytes}; "
            "the file is damaged"
        )
    return spec, start, end


class SafetensorsStream:
    """One safetensors file being written: the header first, then every tensor at its place."""

    def __init__(
        self, path: Path, specs: list[TensorSpec], metadata: Mapping[str, str] | None, *, overwrite: bool = True
    ) -> None:
        require_dtypes(specs, TAG_OF_DTYPE, "a .safetensors file", "cast the tensor before saving")
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        place = 0
        places = {}
        for spec in specs:
            if spec.name == "__metadata__":
                raise UnsupportedError("a .safetensors file cannot hold a tensor called '__metadata__'; rename it")
            places[spec.name] = place
            if spec.size * bits_of(spec.dtype) % 8:
                raise UnsupportedError(
                    f"tensor {spec.name!r}: a .safetensors file cannot hold {spec.size} elements of "
                    f"{bits_of(spec.dtype)} bits, which do not fill their last byte; write .onnx or .pt"
                )
            end = place + spec.packed_bytes
            header[spec.name] = {
                "dtype": TAG_OF_DTYPE[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [place, end],
            }
            place = end
        text = _header_text(header)
        text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8
        if len(text) > MAX_HEADER:
            raise UnsupportedError(
                f"{path}: the header would exceed safetensors' limit of {MAX_HEADER:,} bytes; write another kind"
            )
        self._offsets = {name: 8 + len(text) + place for name, place in places.items()}
        self.file = AtomicFile(path, overwrite=overwrite)
        try:
            self.file.file.write(struct.pack("<Q", len(text)) + text)
        except BaseException:
            self.file.abort()
            raise

    def put(self, name: str, array: Array) -> None:
        """Write the values of tensor ``name`` (C-contiguous)."""
        self.file.file.seek(self._offsets[name])
        self.file.file.write(byte_view(pack(array)))

    def finish(self) -> None:
        """Nothing comes after the tensors."""

    def abort(self) -> None:
        """Remove the file."""
        self.file.abort()


def _header_text(header: dict[str, Any]) -> bytes:
    try:
        return compact_json(header)
    except UnicodeEncodeError as error:
        raise UnsupportedError(
            "a tensor name holds half a UTF-16 pair, which a .safetensors file cannot store; rename it"
        ) from error


class SafetensorsWriter(CheckpointWriter):
    """Writes one ``.safetensors`` file; ``extra`` as :class:`SafetensorsReader` gave it, or empty."""

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True) -> None:
        super().__init__(specs)
        self._stream = SafetensorsStream(path, self.specs, parse_metadata(extra), overwrite=overwrite)

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):  # the format knows no ties
            self._stream.put(place.name, array)

    def _commit(self) -> None:
        self._stream.file.commit()

    def abort(self) -> None:
        self._stream.file.abort()


def parse_metadata(extra: bytes) -> dict[str, str] | None:
    """The metadata that :attr:`SafetensorsReader.extra` holds. Raises :class:`DamagedFileError` if it is malformed."""
    if not extra:
        return None
    return checked_metadata(parse_json(extra, "the stored safetensors metadata", DamagedFileError))


def checked_metadata(metadata: Any) -> dict[str, str]:
    """Stored ``__metadata__``. Raises :class:`DamagedFileError` if it is not a map of strings."""
    if not is_string_map(metadata):
        raise DamagedFileError("the stored safetensors metadata is not a map of strings; the file is damaged")
    return dict(metadata)
