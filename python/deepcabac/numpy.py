"""``safetensors.numpy`` for .dcb files: the same functions, so that changing an import is all that code needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy.typing as npt

from . import files
from .checkpoint.base import Array, PathLike
from .dcb.bases import BaseLike
from .dcb.writer import Report
from .slices import safe_open

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on

    from .options import OptionFields

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save_file(
    tensor_dict: Mapping[str, npt.ArrayLike],
    filename: PathLike,
    metadata: Mapping[str, str] | None = None,
    **settings: Unpack[OptionFields],
) -> Report:
    """:func:`deepcabac.save_file`: arrays by name, compressed into a .dcb file, with ``metadata``, strings by name.

    ``settings`` are the fields of :class:`deepcabac.Options` by name; the default, ``quality=30``, rounds weights, and
    ``lossless=True`` keeps every bit.
    """
    return files.save_file(tensor_dict, filename, metadata=metadata, **settings)


def load_file(
    filename: PathLike, *, base: BaseLike | None = None, max_bytes: int | None = None, threads: int | None = None
) -> dict[str, Array]:
    """:func:`deepcabac.load_file`: all tensors of a .dcb file as arrays."""
    return files.load_file(filename, base=base, max_bytes=max_bytes, threads=threads)


def save(
    tensor_dict: Mapping[str, npt.ArrayLike],
    metadata: Mapping[str, str] | None = None,
    **settings: Unpack[OptionFields],
) -> bytes:
    """:func:`deepcabac.compress`: :func:`save_file` to memory."""
    return files.compress(tensor_dict, metadata=metadata, **settings)


def load(data: bytes, *, max_bytes: int | None = None, threads: int | None = None) -> dict[str, Array]:
    """:func:`deepcabac.decompress`: :func:`load_file` from memory."""
    return files.decompress(data, max_bytes=max_bytes, threads=threads)


def __dir__() -> list[str]:
    return __all__
