"""Where the base of an update comes from: what the caller names, or the file of that name beside the update."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..atomic import reading
from ..checkpoint import open_checkpoint
from ..checkpoint.base import PathLike, TensorSpec
from ..errors import OptionError
from . import container, reader
from .reader import OpenFile
from .updates import Base

#: What may be given as ``base=``: a checkpoint or .dcb file, arrays by name, or a chain of files, the oldest first.
BaseLike = PathLike | Mapping[str, npt.ArrayLike] | Sequence[PathLike]


def open_based(path: PathLike, base: BaseLike | None, *, max_bytes: int | None, threads: int | None) -> OpenFile:
    """Open a .dcb file, an update on ``base`` or, if none is given, on the file beside it that it names.

    Raises :class:`OptionError` if a base is given that is not needed.
    """
    return _open(Path(path), base, (Path(path).absolute(),), max_bytes, threads)


def open_base(base: BaseLike, *, max_bytes: int | None = None, threads: int | None = None) -> Base:
    """The tensors that an update is, or will be, a difference to."""
    return _base(base, (), max_bytes, threads)


def _open(
    path: Path, base: BaseLike | None, above: tuple[Path, ...], max_bytes: int | None, threads: int | None
) -> OpenFile:
    """``above``: the updates that need this file, so that none rests on itself."""
    opened = reader.open_path(path, max_bytes=max_bytes, threads=threads)
    try:
        if base is None and opened.base_name:
            beside = path.parent / opened.base_name
            if beside.is_file():
                opened.base = _base(beside, above, max_bytes, threads)
        elif base is not None and opened.base_name is None:
            raise OptionError(f"{path}: base was given, but the file is not an update and needs none")
        elif base is not None:
            opened.base = _base(base, above, max_bytes, threads)
        return opened
    except BaseException:
        opened.close()
        raise


def _base(base: BaseLike, above: tuple[Path, ...], max_bytes: int | None, threads: int | None) -> Base:
    if isinstance(base, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in base.items()}
        specs = [TensorSpec(name, array.dtype, array.shape) for name, array in arrays.items()]
        return Base("", specs, arrays.__getitem__)
    if isinstance(base, str | os.PathLike):
        base = [base]
    if not isinstance(base, Sequence) or not base or not all(isinstance(one, str | os.PathLike) for one in base):
        raise OptionError(
            f"base must be a path, a list of paths (the oldest first) or a mapping of arrays, not {base!r}"
        )
    *older, last = [Path(one) for one in base]
    if last.absolute() in above:
        raise OptionError(f"{last}: circular chain of bases: this update needs itself; name another base")
    if _is_dcb(last):
        opened = _open(last, older or None, (*above, last.absolute()), max_bytes, threads)
        infos = [opened.info(name) for name in opened]
        specs = [TensorSpec(info.name, info.dtype, info.shape, info.tied_to) for info in infos]
        return Base(last.name, specs, opened.__getitem__, opened.close)
    if older:
        raise OptionError(f"{last}: is a checkpoint and needs no base: name only the updates after it")
    checkpoint = open_checkpoint(last)
    return Base(last.name, checkpoint.specs, checkpoint.read, checkpoint.close)


def _is_dcb(path: Path) -> bool:
    with reading(path), path.open("rb") as file:
        return file.read(len(container.MAGIC)) == container.MAGIC
