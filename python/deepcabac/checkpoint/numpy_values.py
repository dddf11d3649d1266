"""NumPy's numbers and arrays beside the tensors of a ``.pt`` file: ``{"model": ..., "best": numpy.float64(0.9)}``.

``torch.load(weights_only=True)`` refuses them, because numpy's own functions for unpickling were not made for files
from strangers. What stands in a file under the names of those functions is called here instead, and accepts only what
describes numbers and texts of a fixed size.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

#: bool, signed, unsigned, float, complex, bytes, text; each with its size.
_DTYPE = re.compile(r"[<>|=]?[?biufcSU][0-9]{0,6}")
#: Bytes of an array that is kept beside the tensors, at most.
MOST_BYTES = 1 << 24

_lock = threading.Lock()  # torch's list of functions that files may call is one for the whole process


def dtype_of(text: Any) -> np.dtype[Any]:
    """The data type of that name. Raises ValueError for objects, structures, and what is no data type."""
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a number's data type")
    try:
        dtype = np.dtype(text)
    except TypeError:
        raise ValueError(f"{text!r} is not a data type") from None
    if dtype.itemsize == 0 or dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{text!r} is too large")
    return dtype


def is_kept(dtype: np.dtype[Any]) -> bool:
    """Whether values of this data type can be kept."""
    return bool(_DTYPE.fullmatch(dtype.str)) and dtype.itemsize > 0


def from_bytes(dtype: np.dtype[Any], raw: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array of its own memory. Raises ValueError where the bytes are not as many as the shape needs."""
    if not isinstance(raw, (bytes, bytearray)) or len(raw) > MOST_BYTES:
        raise ValueError("the values are not bytes, or too many")
    return np.frombuffer(raw, dtype).reshape(shape).copy()


class _Dtype:
    """Stands for ``numpy.dtype`` while a file is loaded."""

    def __init__(self, text: Any, align: Any = False, copy: Any = True) -> None:
        self.dtype = dtype_of(text)

    def __setstate__(self, state: Any) -> None:
        order, parts = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or parts != (None, None, None):
            raise ValueError("a structured data type")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for ``numpy.ndarray`` while a file is loaded; ``value`` is the array."""

    value: npt.NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(shape, tuple):
            raise ValueError("an array without a shape")
        values = from_bytes(_plain(dtype), raw, shape[::-1] if fortran else shape)
        self.value = values.T if fortran else values


def _plain(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, _Dtype):
        return dtype.dtype
    if isinstance(dtype, np.dtype) and is_kept(dtype):  # the caller allowed torch to load numpy's own
        return dtype
    raise ValueError("a data type that is not a number's")


def _scalar(dtype: Any, raw: Any) -> Any:
    return from_bytes(_plain(dtype), raw, ())[()]


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """Pickled bytes if they are none; with any argument it is refused."""
    return b""


_STAND_INS: list[tuple[Any, str]] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_no_bytes, "builtins.bytes"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


@contextmanager
def loading(torch: Any) -> Iterator[None]:
    """While it lasts, ``torch.load(weights_only=True)`` loads numpy's values, arrays as :class:`_Array`.

    Before torch 2.6, which has no way to say so, they stay refused.
    """
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:
        yield
        return
    with _lock, allow(_STAND_INS):
        yield


def loaded(value: Any) -> Any:
    """The array that ``value`` stands for; any other value itself."""
    return getattr(value, "value", value) if type(value) is _Array else value
