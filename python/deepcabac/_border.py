"""How Python calls the native core: pointers, structures, buffers for results, and what statuses mean.

Calls release the interpreter lock, so threads run them in parallel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ._native import ffi as _ffi
from ._native import lib as _lib
from ._native_types import DcBuffer, Library, Pointer, differences
from .errors import DamagedFileError, OptionError

ffi: Any = _ffi
lib: Library = _lib

if _different := differences(_ffi, _lib):
    raise ImportError(
        "deepcabac's native library and its Python code are of different versions (they differ in "
        f"{', '.join(_different)}): reinstall deepcabac (in a checkout: pip install -e .)"
    )
if TYPE_CHECKING:
    # If lib were Any, mypy would say that nothing has to be ignored here.
    lib.dc_most_levels("8")  # type: ignore[arg-type]

Number = TypeVar("Number", bound=np.generic)
Structure = TypeVar("Structure")

_KINDS = {
    "f4": "float[]",
    "f8": "double[]",
    "i4": "int32_t[]",
    "u1": "uint8_t[]",
    "u2": "uint16_t[]",
    "u4": "uint32_t[]",
    "u8": "uint64_t[]",
}
#: Results of up to so many bytes are written to memory that a thread keeps.
_LARGEST_ROOM = 1 << 21
_rooms = threading.local()
#: What arrays of structures point to lives as long as they.
_kept: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def pointer(array: npt.NDArray[Number] | None) -> Pointer[Number]:
    """To the first element of an array, which must be contiguous; null for None."""
    if array is None:
        return ffi.NULL  # type: ignore[no-any-return]
    return ffi.from_buffer(_KINDS[array.dtype.str[1:]], array)  # type: ignore[no-any-return]


def bytes_pointer(data: bytes | bytearray | memoryview) -> Pointer[np.uint8]:
    """To the first of some bytes."""
    return ffi.from_buffer("uint8_t[]", data)  # type: ignore[no-any-return]


def structure(fields: Structure) -> Pointer[Structure]:
    """The C structure of the same name, for one call or several."""
    # What its fields point to lives as long as it: its destructor holds them, and does nothing else.
    return ffi.gc(ffi.new(f"{type(fields).__name__} *", vars(fields)), partial(_forget, fields))  # type: ignore[no-any-return]


def result(kind: type[Structure]) -> Pointer[Structure]:
    """A C structure of zeros, for the core to fill in."""
    return ffi.new(f"{kind.__name__} *")  # type: ignore[no-any-return]


def structures(kind: type[Structure], fields: Sequence[Structure]) -> Pointer[Structure]:
    """An array of C structures."""
    native = ffi.new(f"{kind.__name__}[]", [vars(one) for one in fields])
    _kept[native] = fields
    return native  # type: ignore[no-any-return]


def _forget(fields: Any, native: Any) -> None:
    pass


def checked(status: int) -> None:
    """Raise what a status stands for."""
    if status == lib.DC_STATUS_OK:
        return
    if status == lib.DC_STATUS_DAMAGED:
        raise DamagedFileError("damaged data: the coded bytes are not what an encoder wrote")
    if status == lib.DC_STATUS_RANGE:
        raise OptionError("out of range: a value is not finite, or too large for its step: choose a larger step")
    raise AssertionError(f"native call failed with status {status}: please report this as a bug in deepcabac")


def is_undamaged(status: int) -> bool:
    """Whether decoding found what an encoder wrote."""
    if status != lib.DC_STATUS_DAMAGED:
        checked(status)
    return status == lib.DC_STATUS_OK


def _room(capacity: int) -> npt.NDArray[np.uint8]:
    """Bytes to be filled: of this thread's own ones if they are enough, since fresh memory is slow at first."""
    if capacity > _LARGEST_ROOM:
        return np.empty(capacity, np.uint8)  # what is not needed is never touched
    if getattr(_rooms, "bytes", None) is None:
        _rooms.bytes = np.empty(_LARGEST_ROOM, np.uint8)
    return _rooms.bytes[:capacity]  # type: ignore[no-any-return]


def deliver(call: Callable[[Pointer[DcBuffer]], int], capacity: int) -> bytes:
    """The result of a call that takes a buffer: with room for ``capacity`` bytes, and again if it needs more."""
    out = _room(capacity)
    buffer = structure(DcBuffer(start=pointer(out), capacity=out.size))
    status = call(buffer)
    if status == lib.DC_STATUS_ROOM:
        out = np.empty(buffer[0].length, np.uint8)
        buffer = structure(DcBuffer(start=pointer(out), capacity=out.size))
        status = call(buffer)
    checked(status)
    return out[: buffer[0].length].tobytes()
