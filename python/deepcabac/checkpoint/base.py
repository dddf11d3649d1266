"""What every kind of checkpoint offers: tensor specifications, one reader and one writer interface."""

from __future__ import annotations

import abc
import json
import math
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..atomic import Committed, reading, reason
from ..errors import CheckpointError, OptionError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing itself only from Python 3.11 on

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
PathLike = str | os.PathLike[str]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8_E4M3FN = np.dtype(ml_dtypes.float8_e4m3fn)
FLOAT8_E5M2 = np.dtype(ml_dtypes.float8_e5m2)
NUMPY_DTYPES = tuple(
    np.dtype(code) for code in ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "?")
)
DTYPES = (*NUMPY_DTYPES, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)


def _of_ml_dtypes(*names: str) -> dict[str, np.dtype[Any]]:
    """Types by name; those that the installed ml_dtypes lacks are left out."""
    found = {name: getattr(ml_dtypes, name, None) for name in names}
    return {name: np.dtype(kind) for name, kind in found.items() if kind is not None}


#: Types that are always stored exactly, besides integers and bools.
EXACT_DTYPES = _of_ml_dtypes(
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e4m3", "float8_e3m4", "float8_e8m0fnu"),
    *("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn", "int4", "uint4", "int2", "uint2"),
) | {name: np.dtype(name) for name in ("complex64", "complex128")}
_BITS = {"float6_e2m3fn": 6, "float6_e3m2fn": 6, "float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
_BITS_OF_DTYPE = {EXACT_DTYPES[name]: bits for name, bits in _BITS.items() if name in EXACT_DTYPES}
#: The bytes that elements of some types may have: the lowest, and how many follow it.
_BYTES_OF_DTYPE: dict[np.dtype[Any], tuple[int, int]] = {np.dtype("?"): (0, 2)}
for _dtype, _count in _BITS_OF_DTYPE.items():
    _BYTES_OF_DTYPE[_dtype] = (-(1 << _count - 1) if _dtype.name.startswith("int") else 0, 1 << _count)


def bits_of(dtype: np.dtype[Any]) -> int:
    """Bits of an element in a file. In memory the narrowest types take a byte."""
    return _BITS_OF_DTYPE.get(dtype, 8 * dtype.itemsize)


def has_odd_bytes(array: Array) -> bool:
    """Whether a byte of a bool is neither 0 nor 1, or one of a type narrower than a byte is none of its elements."""
    if array.dtype not in _BYTES_OF_DTYPE:
        return False
    lowest, count = _BYTES_OF_DTYPE[array.dtype]
    codes = array.reshape(-1).view(np.uint8)
    return bool((codes - np.uint8(lowest & 255)).max(initial=0) >= count)


def as_parts(array: Array) -> Array:
    """A complex array as its real and imaginary parts: [...] -> [..., 2], a view. Another array is itself."""
    if array.dtype.kind != "c":
        return array
    return np.ascontiguousarray(array).reshape(*array.shape, 1).view(f"<f{array.dtype.itemsize // 2}")


def packed_bytes(dtype: np.dtype[Any], size: int) -> int:
    """Bytes of so many elements in a file, narrow ones packed."""
    return (size * bits_of(dtype) + 7) // 8


#: What a tensor is, where the structure around it or its name says so: used by a layer as its weights; an optimizer's
#: state; what integers are multiplied by to become weights; a constant that a graph computes with.
WEIGHT, OPTIMIZER, SCALE, CONSTANT = "weight", "optimizer", "scale", "constant"

_MAX_DIMENSIONS = 64  # numpy's own limit (32 before numpy 2)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint, without its values.

    ``dtype`` is one of ``DTYPES`` or ``EXACT_DTYPES`` (little-endian). ``tied_to`` names an earlier tensor of the same
    dtype and shape that shares this one's memory exactly; such a tensor is never written itself.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    tied_to: str | None = None

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Number of bytes of the values in memory."""
        return self.size * self.dtype.itemsize

    @property
    def packed_bytes(self) -> int:
        """Number of bytes of the values in a file, where types narrower than a byte are packed."""
        return packed_bytes(self.dtype, self.size)


class CheckpointReader(abc.ABC):
    """An open checkpoint whose tensors are read one at a time. A context manager; for one thread at a time."""

    kind: str
    specs: list[TensorSpec]  # in the order in which the file stores them
    extra: bytes = b""  # what a writer of the same kind needs besides the tensors; same file, same bytes

    @abc.abstractmethod
    def read(self, name: str) -> Array:
        """Return the tensor called ``name``: C-contiguous, owning its memory, bit for bit as stored.

        Raises :class:`CheckpointError` when the file cannot be read or ends early, ``KeyError`` for an unknown name.
        """

    def roles(self) -> dict[str, str]:
        """What the structure around the tensors says they are, by name: WEIGHT, OPTIMIZER or CONSTANT."""
        return {}

    def without(self, names: Collection[str]) -> bytes:
        """``extra`` for a checkpoint that lacks the tensors called ``names``, which are an optimizer's."""
        return self.extra

    def close(self) -> None:  # noqa: B027 - a reader that holds no file has nothing to close
        """Close the files. Safe to call more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CheckpointWriter(Committed):
    """A checkpoint under construction. As a context manager it commits when the block ends and aborts when the block
    raises.

    Subclasses provide ``_put``, ``_commit`` and ``abort``; order, dtypes and shapes are checked here, once for all
    kinds.
    """

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.specs = list(specs)
        _check_specs(self.specs)
        self._aliases: dict[str, list[TensorSpec]] = {}
        for spec in self.specs:
            if spec.tied_to is not None:
                self._aliases.setdefault(spec.tied_to, []).append(spec)
        self._expected = iter([spec for spec in self.specs if spec.tied_to is None])

    def write(self, name: str, array: Array) -> None:
        """Write one tensor. To be called once for every untied spec, in the order of ``specs``.

        Raises :class:`OptionError` when name, dtype or shape is not the next spec's, :class:`CheckpointError` on a
        full disk.
        """
        spec = next(self._expected, None)
        if spec is None or spec.name != name:
            expected = "no further tensor" if spec is None else f"{spec.name!r}"
            raise OptionError(f"tensor {name!r} written out of order: expected {expected}")
        if array.dtype != spec.dtype or array.shape != spec.shape:
            raise OptionError(
                f"tensor {name!r} is {array.dtype.name}{list(array.shape)}, "
                f"announced as {spec.dtype.name}{list(spec.shape)}"
            )
        if not array.flags.c_contiguous:
            array = array.copy(order="C")
        self._put(spec, array)

    def commit(self) -> None:
        """Put the finished checkpoint in place. Raises :class:`OptionError` when a tensor is missing."""
        missing = next(self._expected, None)
        if missing is not None:
            self.abort()
            raise OptionError(f"tensor {missing.name!r} was announced but not written")
        try:
            self._commit()
        except BaseException:
            self.abort()
            raise

    @abc.abstractmethod
    def _put(self, spec: TensorSpec, array: Array) -> None:
        """Store ``array`` (C-contiguous, checked), and again for each alias where the format knows no ties."""

    @abc.abstractmethod
    def _commit(self) -> None: ...



def _check_specs(specs: list[TensorSpec]) -> None:
    seen: dict[str, TensorSpec] = {}
    for spec in specs:
        if spec.name in seen:
            raise OptionError(f"two tensors are called {spec.name!r}")
        if spec.tied_to is not None:
            source = seen.get(spec.tied_to)
            if source is None or source.tied_to is not None or (source.dtype, source.shape) != (spec.dtype, spec.shape):
                raise OptionError(
                    f"tensor {spec.name!r} is tied to {spec.tied_to!r}, "
                    "which is not an earlier tensor of the same dtype and shape"
                )
        seen[spec.name] = spec


def require_dtypes(specs: Iterable[TensorSpec], allowed: Iterable[np.dtype[Any]], what: str, hint: str) -> None:
    """Raise :class:`UnsupportedError` for the first spec whose dtype ``what`` cannot hold."""
    allowed = list(allowed)
    for spec in specs:
        if spec.dtype not in allowed:
            raise UnsupportedError(f"tensor {spec.name!r}: {what} cannot hold {spec.dtype.name}; {hint}")


def open_binary(path: Path) -> tuple[BinaryIO, int]:
    """Open an existing, non-empty regular file for reading; return it and its size in bytes.

    Raises :class:`CheckpointError` for a missing file, a directory, a device, an empty file and a Git LFS pointer.
    """
    try:
        mode = os.stat(path).st_mode  # before opening: opening a FIFO would wait for its writer
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path}: is a directory; give the checkpoint file inside it{_checkpoints_in(path)}")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: is not a regular file")
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the name and the folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
    try:
        with reading(path):
            size = os.fstat(file.fileno()).st_size
            start = file.read(48)
            file.seek(0)
        if size == 0:
            raise CheckpointError(f"{path}: is empty; the download or the save was interrupted, so fetch it again")
        if start.startswith(b"version https://git-lfs.github.com/spec/"):
            raise CheckpointError(
                f"{path}: is a Git LFS pointer, not the model itself; run 'git lfs pull' in its repository"
            )
    except BaseException:
        file.close()
        raise
    return file, size


def _checkpoints_in(folder: Path) -> str:
    """A hint such as ", for example model.safetensors" when the folder holds a checkpoint."""
    suffixes = (".safetensors.index.json", ".safetensors", ".onnx", ".npz", ".pt", ".pth", ".bin")
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return ""
    found = next((name for suffix in suffixes for name in names if name.lower().endswith(suffix)), None)
    return f", for example {found}" if found else ""


def allocate(spec: TensorSpec, path: Path) -> Array:
    """An uninitialised array for ``spec``; :class:`CheckpointError` when the machine cannot give that much memory."""
    try:
        return np.empty(spec.shape, spec.dtype)
    except (MemoryError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: tensor {spec.name!r} needs {spec.nbytes:,} bytes of memory: {reason(error)}"
        ) from error


def own(array: Array) -> Array:
    """``array`` itself if it owns its memory, else a copy."""
    return array if array.flags.owndata else array.copy(order="C")


def byte_view(array: Array) -> memoryview:
    """The bytes of a C-contiguous array as a flat, writable (if the array is) view."""
    return array.reshape(-1).view(np.uint8).data


def read_into(file: BinaryIO, offset: int, array: Array, path: Path) -> None:
    """Fill a C-contiguous array from ``offset`` on. Raises :class:`CheckpointError` when the file ends early."""
    target = byte_view(array)
    with reading(path):
        file.seek(offset)
        done = 0
        while done < len(target):
            got = file.readinto(target[done:])  # type: ignore[attr-defined]
            if not got:
                raise CheckpointError(f"{path}: ends before its tensors do; it is truncated, so fetch it again")
            done += got


def check_shape(shape: Any, name: str, path: Path) -> tuple[int, ...]:
    """Return ``shape`` as a tuple if it is a sequence of non-negative ints that numpy can hold, else raise."""
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int and n >= 0 for n in shape):
        raise CheckpointError(f"{path}: tensor {name!r} has an invalid shape; the file is damaged")
    if (
        len(shape) > _MAX_DIMENSIONS or math.prod(n for n in shape if n) >= 1 << 60
    ):  # numpy multiplies zeros away likewise
        raise CheckpointError(f"{path}: tensor {name!r} has an impossible shape; the file is damaged")
    return tuple(shape)


def parse_json(text: bytes, what: str, error: type[Exception], *, doubled_texts: bool = False) -> Any:
    """Parse strict JSON from untrusted bytes: UTF-8, no duplicate names, no NaN. Raises ``error`` naming ``what``.

    With ``doubled_texts``, of two texts of the same name in an object that holds nothing but texts the last one counts.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs) and not (doubled_texts and all(isinstance(value, str) for _, value in pairs)):
            raise ValueError("a name occurs twice")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate, "\\ud800", is no character
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} is not valid JSON: {reason(cause)}") from cause
    return value


def compact_json(value: Any) -> bytes:
    """``value`` as JSON without spaces, in UTF-8; the order of names is kept."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def is_string_map(value: Any) -> bool:
    """Whether ``value`` is a JSON object with only strings in it."""
    return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
