"""NumPy's ``.npz``: a zip file of ``.npy`` members, each a small header and one array."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..atomic import AtomicFile, reading, reason
from ..errors import CheckpointError, DamagedFileError, UnsupportedError
from .base import (
    NUMPY_DTYPES,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    allocate,
    byte_view,
    check_shape,
    compact_json,
    open_binary,
    own,
    parse_json,
    require_dtypes,
)

_PLAIN_DTYPES = (*NUMPY_DTYPES, np.dtype("<c8"), np.dtype("<c16"))
_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest date, so that the same tensors give the same bytes


class NpzReader(CheckpointReader):
    """Reads an ``.npz`` file, compressed or not.

    Fortran-ordered and big-endian members come out in C order, little-endian. Arrays of types that are no numbers
    (texts, structures, ``V2`` as which numpy saves bfloat16) come out as unsigned integers, and ``extra`` has their
    types; those of Python objects as the bytes that numpy pickled, which nobody unpickles here.
    """

    kind = "npz"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file, _ = open_binary(self.path)
        try:
            self._zip = open_zip(file, self.path, "an .npz file")
            self._members = self._find_members()
            self._stored: dict[str, _Stored] = {}  # the type and shape that the file states, of the opaque ones
            self.specs = [self._spec(name) for name in self._members]
            self.extra = compact_json(_described(self._stored)) if self._stored else b""
        except BaseException:
            file.close()
            raise
        self._file = file

    def _find_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if not info.filename.endswith(".npy"):
                raise UnsupportedError(
                    f"{self.path}: holds {info.filename!r}, which is not a .npy array; save the file with numpy.savez"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsupportedError(
                    f"{self.path}: {info.filename!r} is compressed in a way that numpy does not use; "
                    "save the file with numpy.savez"
                )
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise CheckpointError(f"{self.path}: holds two arrays called {name!r}; save it again with unique names")
            members[name] = info
        return members

    def _spec(self, name: str) -> TensorSpec:
        with self._open_member(name) as member:
            dtype, shape, _ = self._read_header(member, name)
            length = self._members[name].file_size - member.tell()
            if dtype.newbyteorder("<") in _PLAIN_DTYPES:
                spec = TensorSpec(name, dtype.newbyteorder("<"), shape)
            else:
                self._stored[name] = stored = _Stored(dtype, shape)
                spec = TensorSpec(name, *stored.as_integers(length))
            if length != spec.nbytes:
                raise CheckpointError(
                    f"{self.path}: array {name!r} has more or fewer bytes than its shape needs; it is damaged"
                )
            return spec

    def _read_header(self, member: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
        """Return the stored dtype (either byte order), the shape, and whether the values are in Fortran order."""
        try:
            version = npy.read_magic(member)
            if version not in ((1, 0), (2, 0)):  # 3.0 is for structured types alone
                raise UnsupportedError(
                    f"{self.path}: array {name!r} is structured; save each field as an array of its own"
                )
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(member)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: array {name!r} has an unreadable header: {reason(error)}") from error
        return dtype, check_shape(shape, name, self.path), fortran

    def read(self, name: str) -> Array:
        with self._open_member(name) as member:
            dtype, shape, fortran = self._read_header(member, name)
            stored = self._stored.get(name)
            if stored is not None:
                fortran = fortran and not dtype.hasobject
                dtype, shape = stored.as_bytes(self._members[name].file_size - member.tell())
            order = shape[::-1] if fortran else shape
            array = allocate(TensorSpec(name, dtype, order), self.path)
            target = byte_view(array)
            done = 0
            while done < len(target):
                block = member.read(min(_CHUNK, len(target) - done))
                if not block:
                    raise CheckpointError(f"{self.path}: array {name!r} ends early; the file is damaged")
                target[done : done + len(block)] = block
                done += len(block)
            member.read(1)  # zipfile compares the checksum when it meets the end
        if stored is not None:
            array = array.T.copy(order="C") if fortran and len(shape) > 1 else array
            integers, shape = stored.as_integers(array.nbytes)
            return own(array.reshape(-1).view(integers).reshape(shape))
        if dtype.byteorder == ">":
            array = array.byteswap(inplace=True).view(dtype.newbyteorder("<"))
        return array.T.copy(order="C") if fortran and len(shape) > 1 else own(array)

    @contextlib.contextmanager
    def _open_member(self, name: str) -> Iterator[IO[bytes]]:
        with zip_errors(self.path), self._zip.open(self._members[name]) as member:
            yield member

    def close(self) -> None:
        self._zip.close()
        self._file.close()


def open_zip(file: IO[bytes], path: Path, what: str) -> zipfile.ZipFile:
    """Open a zip file's table of contents. Raises :class:`CheckpointError` if it is none."""
    try:
        with reading(path):
            return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: is not {what} or is truncated: {reason(error)}; check its name, or fetch it again"
        ) from error


@contextlib.contextmanager
def zip_errors(path: Path) -> Iterator[None]:
    """Turn what ``zipfile`` raises on damaged or exotic members into our errors."""
    try:
        with reading(path):
            yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged: {reason(error)}; fetch it again") from error
    except (NotImplementedError, RuntimeError) as error:  # an unknown compression; an encrypted member
        raise UnsupportedError(
            f"{path}: uses a feature of zip that is not supported: {reason(error)}; save it again"
        ) from error


@dataclass(frozen=True)
class _Stored:
    """An array of a type that is not a number's."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def as_bytes(self, length: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Type and shape of its elements as mere bytes; of ``length`` bytes, if they are pickled objects."""
        if self.dtype.hasobject:
            return np.dtype("u1"), (length,)
        return np.dtype(f"V{self.dtype.itemsize}"), self.shape

    def as_integers(self, length: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Type and shape as integers: one for an element, or for a character or byte of it."""
        item = self.dtype.itemsize
        if self.dtype.hasobject:
            return np.dtype("u1"), (length,)
        if self.dtype.kind == "U":
            return np.dtype("<u4"), (*self.shape, item // 4)
        if self.dtype.names is None and self.dtype.kind != "S" and item in (1, 2, 4, 8):
            return np.dtype(f"<u{item}"), self.shape
        return np.dtype("u1"), (*self.shape, item)


def _described(stored: dict[str, _Stored]) -> dict[str, Any]:
    return {name: [npy.dtype_to_descr(one.dtype), list(one.shape)] for name, one in stored.items()}


def opaque(extra: bytes) -> list[str]:
    """The arrays whose types an :class:`NpzReader`'s ``extra`` has."""
    found = parse_json(extra, "the types of arrays", DamagedFileError)
    return list(found) if isinstance(found, dict) else []


def _parse_stored(extra: bytes, specs: list[TensorSpec]) -> dict[str, _Stored]:
    """Types and shapes from an untrusted file. Raises :class:`DamagedFileError` where they do not fit the specs."""
    described = parse_json(extra, "the stored types of arrays", DamagedFileError) if extra else {}
    own_specs = {spec.name: spec for spec in specs}
    stored: dict[str, _Stored] = {}
    try:
        for name, (descr, shape) in described.items():
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(shape)
            one = _Stored(npy.descr_to_dtype(_tupled(descr)), tuple(shape))
            if (own_specs[name].dtype, own_specs[name].shape) != one.as_integers(own_specs[name].nbytes):
                raise ValueError(name)
            stored[name] = one
    # A malformed description fails in as many ways as there are types in it, all of them harmless.
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError, SyntaxError, OverflowError) as error:
        raise DamagedFileError("the stored types of arrays are malformed; the file is damaged") from error
    return stored


def _tupled(descr: Any) -> Any:
    """A type's description with the tuples that JSON made lists: [(name, type, shape), ...]."""
    if not isinstance(descr, list):
        return descr
    return [(field[0], _tupled(field[1]), *map(tuple, field[2:])) for field in descr]


class NpzWriter(CheckpointWriter):
    """Writes an uncompressed ``.npz`` file, the same bytes for the same tensors; ``extra`` as :class:`NpzReader` gave
    it.
    """

    def __init__(self, path: Path, specs: list[TensorSpec], extra: bytes = b"", *, overwrite: bool = True) -> None:
        super().__init__(specs)
        require_dtypes(self.specs, _PLAIN_DTYPES, "an .npz file", "write .safetensors instead")
        self._stored = _parse_stored(extra, self.specs)
        for spec in self.specs:
            check_member_name(spec.name, "an .npz file")
        self._target = AtomicFile(path, overwrite=overwrite)
        self._zip = zipfile.ZipFile(self._target.file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):  # the format knows no ties
            info = zipfile.ZipInfo(place.name + ".npy", _EPOCH)
            info.file_size = spec.nbytes + _CHUNK  # a bound: decides whether the member needs 64-bit sizes
            with self._zip.open(info, "w") as member:
                header = npy.header_data_from_array_1_0(array)
                stored = self._stored.get(place.name)
                if stored is not None:
                    header |= {"descr": npy.dtype_to_descr(stored.dtype), "shape": stored.shape}
                npy.write_array_header_1_0(member, header)
                write_in_blocks(member, array)

    def _commit(self) -> None:
        self._zip.close()
        self._target.commit()

    def abort(self) -> None:
        discard_zip(self._zip)
        self._target.abort()


def check_member_name(name: str, what: str) -> None:
    """Raise :class:`UnsupportedError` for a tensor name that the zip format would alter."""
    if (
        "\0" in name
        or len(name.encode("utf-8", "surrogatepass")) > 60_000
        or any("\ud800" <= char <= "\udfff" for char in name)
    ):
        raise UnsupportedError(f"{what} cannot store a tensor called {name[:60]!r}; write .safetensors instead")


def write_in_blocks(member: IO[bytes], array: Array) -> None:
    """Write the bytes of a C-contiguous array, in blocks, since zipfile handles what it is given in one go."""
    values = byte_view(array)
    for start in range(0, len(values), _CHUNK):
        member.write(values[start : start + _CHUNK])


def discard_zip(archive: zipfile.ZipFile) -> None:
    """Close an unfinished archive whatever happens; else its destructor would write to a closed file later."""
    with contextlib.suppress(Exception):
        archive.close()
