"""NumPy's ``.npz``: a zip file of ``.npy`` members, each a small header and one array."""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..atomic import AtomicFile, reading, reason
from ..errors import CheckpointError, UnsupportedError
from .base import (
    NUMPY_DTYPES,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    allocate,
    byte_view,
    check_shape,
    open_binary,
    own,
    require_dtypes,
)

_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest date, so that the same tensors give the same bytes


class NpzReader(CheckpointReader):
    """Reads an ``.npz`` file, compressed or not.

    Fortran-ordered and big-endian members come out in C order, little-endian.
    """

    kind = "npz"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file, _ = open_binary(self.path)
        try:
            self._zip = open_zip(file, self.path, "an .npz file")
            self._members = self._find_members()
            self.specs = [self._spec(name) for name in self._members]
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
            spec = TensorSpec(name, dtype.newbyteorder("<"), shape)
            if self._members[name].file_size - member.tell() != spec.nbytes:
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
        if dtype.newbyteorder("<") not in NUMPY_DTYPES:
            hint = "; numpy cannot store bfloat16 and float8, use .safetensors for them" if dtype.kind == "V" else ""
            raise UnsupportedError(
                f"{self.path}: array {name!r} has dtype {dtype}, which is not a supported number type{hint}"
            )
        return dtype, check_shape(shape, name, self.path), fortran

    def read(self, name: str) -> Array:
        with self._open_member(name) as member:
            dtype, shape, fortran = self._read_header(member, name)
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


class NpzWriter(CheckpointWriter):
    """Writes an uncompressed ``.npz`` file, the same bytes for the same tensors."""

    def __init__(self, path: Path, specs: list[TensorSpec], *, overwrite: bool = True) -> None:
        super().__init__(specs)
        require_dtypes(self.specs, NUMPY_DTYPES, "an .npz file", "write .safetensors instead")
        for spec in self.specs:
            check_member_name(spec.name, "an .npz file")
        self._target = AtomicFile(path, overwrite=overwrite)
        self._zip = zipfile.ZipFile(self._target.file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def _put(self, spec: TensorSpec, array: Array) -> None:
        for place in (spec, *self._aliases.get(spec.name, ())):  # the format knows no ties
            info = zipfile.ZipInfo(place.name + ".npy", _EPOCH)
            info.file_size = spec.nbytes + _CHUNK  # a bound: decides whether the member needs 64-bit sizes
            with self._zip.open(info, "w") as member:
                npy.write_array_header_1_0(member, npy.header_data_from_array_1_0(array))
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
