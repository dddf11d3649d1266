"""Files with streams of ISO/IEC 15938-17: loaded, restored to checkpoints, made from them, shown and checked."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import AtomicFile, reading
from ..checkpoint import create_checkpoint, kind_of_path, open_checkpoint
from ..checkpoint.base import Array, PathLike, TensorSpec, open_binary
from ..dcb import reader
from ..dcb.container import MAGIC
from ..errors import DeepCabacError, OptionError, UnsupportedError
from . import syntax
from .reading import Memory, check_sizes, coded_qp, decode_units, load, step_size
from .syntax import Payload
from .writing import Settings, StreamReport, compress

SUFFIX = ".nnc"
_log = logging.getLogger(__name__)


def is_stream(path: PathLike) -> bool:
    """Whether a file is a stream by its first bytes, or at least by its name and not a .dcb file."""
    try:
        with open(path, "rb") as file:
            head = file.read(max(4, len(MAGIC)))
    except (OSError, ValueError):
        return False
    named = os.fspath(path).lower().endswith(SUFFIX) and not head.startswith(MAGIC)
    return named or syntax.recognises(head)


def _bytes(path: PathLike) -> bytes:
    file, _ = open_binary(Path(path))
    with file, reading(path):
        return file.read()


def _base(path: PathLike, threads: int | None) -> bytes | dict[str, Array]:
    """What an update starts from: a stream, or the tensors of another kind of file."""
    if is_stream(path):
        return _bytes(path)
    if kind_of_path(path) is not None:
        with open_checkpoint(path) as checkpoint:
            arrays = {spec.name: checkpoint.read(spec.tied_to or spec.name) for spec in checkpoint.specs}
    else:
        with reader.open_path(path, max_bytes=None, threads=threads) as opened:
            arrays = dict(opened.items())
    return {name: array.reshape(array.shape or (1,)) for name, array in arrays.items()}


def paths_of(base: PathLike | Sequence[PathLike] | None) -> list[PathLike]:
    """One path, several or none."""
    if base is None:
        return []
    return [base] if isinstance(base, (str, os.PathLike)) else list(base)


def load_path(
    path: PathLike,
    base: PathLike | Sequence[PathLike] | None = None,
    *,
    apply: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Array]:
    """:func:`load` from a file. Errors name it."""
    bases = [_base(each, threads) for each in paths_of(base)]
    data = _bytes(path)
    try:
        return load(data, bases, apply=apply, max_bytes=max_bytes, threads=threads)
    except DeepCabacError as error:
        raise type(error)(f"{path}: {error}") from error


def restore(
    path: PathLike,
    model: PathLike | None,
    base: PathLike | Sequence[PathLike] | None = None,
    *,
    apply: bool = False,
    overwrite: bool = False,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> tuple[Path, int]:
    """Write the tensors of a stream as a checkpoint, by default .safetensors. Returns its path and their bytes.

    Raises :class:`~deepcabac.atomic.ExistsError` when there is a file already and ``overwrite`` is false.
    """
    target = Path(path).with_suffix(".safetensors") if model is None else Path(model)
    kind = kind_of_path(target)
    if kind is None:
        raise OptionError(f"{target}: the suffix names no kind of checkpoint; use .safetensors, .npz or .pt")
    arrays = load_path(path, base, apply=apply, max_bytes=max_bytes, threads=threads)
    specs = [TensorSpec(name, array.dtype, array.shape) for name, array in arrays.items()]
    with create_checkpoint(target, kind=kind, specs=specs, extra=b"", extra_kind="", overwrite=overwrite) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
            _log.info("%s: %s bytes", name, f"{array.nbytes:,}")
    return target, sum(array.nbytes for array in arrays.values())


def make(
    model: PathLike,
    path: PathLike | None,
    base: PathLike | Sequence[PathLike] | None,
    settings: Settings,
    threads: int | None,
    *,
    overwrite: bool = False,
) -> tuple[Path, StreamReport]:
    """Compress a checkpoint into a stream, or the difference to ``base``.

    Raises :class:`~deepcabac.atomic.ExistsError` when there is a file already and ``overwrite`` is false.
    """
    target = Path(model).with_suffix(SUFFIX) if path is None else Path(path)
    if kind_of_path(target) is not None:
        raise OptionError(f"{target}: the output is a .nnc file, not a checkpoint")
    bases = [_base(each, threads) for each in paths_of(base)]
    with open_checkpoint(model) as checkpoint:
        arrays = {spec.name: checkpoint.read(spec.tied_to or spec.name) for spec in checkpoint.specs}
        tied = [spec.name for spec in checkpoint.specs if spec.tied_to is not None]
    code, report = compress(arrays, bases=bases, threads=threads, settings=settings)
    for unit in report.tensors:
        _log.info("%s: %s to %s bytes", unit.name, f"{arrays[unit.name].nbytes:,}", f"{unit.coded_bytes:,}")
    if tied:
        count = f"{len(tied):,} tied tensor{'' if len(tied) == 1 else 's'}"
        report.notes.append(f"{count} stored again: a .nnc file cannot share tensors")
    with AtomicFile(target, overwrite=overwrite) as file:
        file.file.write(code)
    return target, report


def described(path: PathLike) -> dict[str, Any]:
    """What ``inspect --json`` prints. Only headers are read."""
    stream = syntax.read(_bytes(path))
    check_sizes(stream, None)
    tensors = []
    for header, payload, unit in stream.units:
        qp = coded_qp(stream, header, payload)
        for name, shape, role in zip(header.names, header.shapes, header.roles, strict=True):
            weight = role in ("", "weight")
            tensors.append(
                {
                    "name": name,
                    "dtype": "int32" if header.payload == Payload.INTEGERS else "float32",
                    "shape": list(shape),
                    "elements": math.prod(shape),
                    "coded_bytes": unit if weight else 0,
                    "method": "raw" if header.payload == Payload.RAW_FLOATS else "exact" if qp is None else "quantized",
                    "quantizer": None if qp is None else "dependent" if header.dependent else "uniform",
                    "qp": qp if header.payload == Payload.FLOATS else None,
                    "step": step_size(qp, stream.density)
                    if header.payload == Payload.FLOATS and qp is not None
                    else None,
                    "codebook": len(header.codebook.values) if weight and header.codebook else None,
                    "block": header.block or None,
                    "update": None if header.parent is None else header.depth,
                    "temporal": header.parent is not None and header.parent.temporal,
                }
            )
    return {
        "path": str(path),
        "format": "ISO/IEC 15938-17",
        "profile": stream.profile,
        "qp_density": stream.density,
        "is_update": any(header.parent is not None for header, _, _ in stream.units),
        "file_bytes": stream.file_bytes,
        "tensors": tensors,
    }


def verify(path: PathLike, threads: int | None) -> tuple[int, int, int]:
    """Decode everything: the number of tensors, their bytes coded, and decoded.

    Raises :class:`UnsupportedError` for a temporal update, which cannot be decoded without its predecessors.
    """
    data = _bytes(path)
    try:
        stream = syntax.read(data)
        check_sizes(stream, None)
        if any(header.parent is not None and header.parent.temporal for header, _, _ in stream.units):
            raise UnsupportedError("an update that depends on those before it: decompress it with --base to check it")
        tensors = decode_units(stream, Memory(), threads)
    except DeepCabacError as error:
        raise type(error)(f"{path}: {error}") from error
    return len(tensors), len(data), sum(4 * math.prod(tensor.shape) for tensor in tensors)
