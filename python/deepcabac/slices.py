"""``safe_open``: single tensors of a .dcb file, and slices of them, with the names that safetensors has."""

from __future__ import annotations

import math
import operator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint.base import Array, PathLike
from .checkpoint.safetensors_file import TAG_OF_DTYPE
from .checkpoint.sharded import stored_metadata
from .dcb.bases import BaseLike
from .dcb.reader import OpenFile
from .errors import OptionError, UnsupportedError, unknown
from .files import open_file
from .tensors import to_torch, torch_device

if TYPE_CHECKING:
    from typing_extensions import Self

_FRAMEWORKS = {"pt": "torch", "torch": "torch", "np": "numpy", "numpy": "numpy"}


class safe_open:
    """A .dcb file, opened to decode single tensors or slices: ``safetensors.safe_open`` for .dcb files.

    ``framework`` is ``"pt"`` for tensors of PyTorch, on ``device``, or ``"np"`` for numpy arrays. A context manager.
    ``base``, ``max_bytes`` and ``threads`` as for :func:`deepcabac.open_file`.

    Raises :class:`DamagedFileError`, :class:`CheckpointError` or :class:`OptionError`.
    """

    def __init__(
        self,
        filename: PathLike,
        framework: str,
        device: Any = "cpu",
        *,
        base: BaseLike | None = None,
        max_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        if framework not in _FRAMEWORKS:
            known = ", ".join(_FRAMEWORKS)
            raise UnsupportedError(f"framework must be one of {known}, not {framework!r}: for others, 'np'")
        self._device = None
        if _FRAMEWORKS[framework] == "torch":
            self._device = torch_device(device)
        elif str(device) != "cpu":
            raise OptionError(f"numpy's arrays are on the CPU, not on {device!r}")
        self._file: OpenFile | None = open_file(filename, base=base, max_bytes=max_bytes, threads=threads)

    @property
    def _opened(self) -> OpenFile:
        if self._file is None:
            raise OptionError("the file is closed")
        return self._file

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._opened)

    def offset_keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return self._opened.keys()

    def metadata(self) -> dict[str, str] | None:
        """What the safetensors file that it was made from says about itself, or what was saved as ``metadata``."""
        return stored_metadata(self._opened.kind, self._opened.extra)

    def get_tensor(self, name: str) -> Any:
        """Decode a tensor. Raises :class:`OptionError` for an unknown name, and :class:`DamagedFileError`."""
        return self._given(name, self._opened[self._known(name)])

    def get_tensors(self) -> dict[str, Any]:
        """Decode all tensors, in the file's order. On the CPU, tied ones share memory."""
        return {name: self._given(name, array) for name, array in self._opened.items(keep=True)}

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor that is decoded when it is indexed, and only where it is indexed."""
        return TensorSlice(self, self._known(name))

    def _known(self, name: str) -> str:
        if name not in self._opened:
            raise OptionError(unknown("tensor", str(name), self._opened))
        return name

    def _given(self, name: str, array: Array) -> Any:
        if self._device is None:
            return array
        return to_torch(name, array).to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class TensorSlice:
    """A tensor of a file, to be indexed like an array: ``[2:5]``, ``[3, :, 0]``, ``[...]``.

    Only chunks of the elements between the first and the last that the leading indices ask for are decoded.
    """

    def __init__(self, owner: safe_open, name: str) -> None:
        self._owner, self._name = owner, name
        self._info = owner._opened.info(name)

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """The tensor's data type, as safetensors writes it: ``"F32"``, ``"BF16"``, ``"I64"``."""
        return TAG_OF_DTYPE.get(self._info.dtype, self._info.dtype.name.upper())

    def __getitem__(self, index: Any) -> Any:
        """The elements at ``index``, as numpy's indexing has it. Raises IndexError for one outside the tensor."""
        start, block, rest = _leading(index if isinstance(index, tuple) else (index,), self._info.shape)
        flat = self._owner._opened.span(self._name, start, start + math.prod(block))
        array = np.asarray(flat.reshape(block)[rest])
        if array.size < flat.size or not array.flags.c_contiguous:
            array = np.array(array, order="C")  # so that the block that was decoded for it can go
        return self._owner._given(self._name, array)


def _leading(items: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], tuple[Any, ...]]:
    """Where leading whole numbers, and a slice after them, lead: the first element, and the shape, of a block of
    adjacent elements, and the index into that block that is left.
    """
    start, axis = 0, 0
    while axis < len(shape) and axis < len(items) and _is_integer(items[axis]):
        place, length = operator.index(items[axis]), shape[axis]
        if not -length <= place < length:
            raise IndexError(f"index {place} is out of bounds for dimension {axis} with size {length}")
        start += place % length * math.prod(shape[axis + 1 :])
        axis += 1
    left, block = items[axis:], shape[axis:]
    if left and block and isinstance(left[0], slice):
        places = range(*left[0].indices(block[0]))
        low, high = (min(places[0], places[-1]), max(places[0], places[-1]) + 1) if places else (0, 0)
        inside = slice(None, None, left[0].step)  # from whichever end it began
        return start + low * math.prod(block[1:]), (high - low, *block[1:]), (inside, *left[1:])
    return start, block, left


def _is_integer(item: Any) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool)
