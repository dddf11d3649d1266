"""Which kind of checkpoint a file is, and the reader or writer for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, OptionError, UnsupportedError
from .base import CheckpointReader, CheckpointWriter, TensorSpec, open_binary
from .npz import NpzReader, NpzWriter
from .onnx_file import OnnxReader, OnnxWriter
from .safetensors_file import SafetensorsReader, SafetensorsWriter
from .sharded import ShardedReader, ShardedWriter
from .torch_file import TorchReader, TorchWriter

_KIND_OF_SUFFIX = {
    ".safetensors.index.json": "safetensors-sharded",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".onnx": "onnx",
}
_READERS: dict[str, type[SafetensorsReader | ShardedReader | NpzReader | TorchReader | OnnxReader]] = {
    reader.kind: reader for reader in (SafetensorsReader, ShardedReader, NpzReader, TorchReader, OnnxReader)
}
KINDS = tuple(_READERS)


def kind_of_path(path: str | os.PathLike[str]) -> str | None:
    """The kind of checkpoint that a file name's suffix asks for, None if unknown. The file need not exist."""
    name = os.fspath(path).lower()
    return next((kind for suffix, kind in _KIND_OF_SUFFIX.items() if name.endswith(suffix)), None)


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointReader:
    """Open a checkpoint for reading, its kind chosen by the suffix.

    Raises :class:`CheckpointError` when the file is missing, unknown, damaged or unreadable,
    :class:`UnsupportedError` when it holds something that cannot be represented as tensors of the supported dtypes.
    """
    path = Path(path)
    kind = kind_of_path(path)
    if kind is None:
        open_binary(path)[0].close()  # says so if it is missing or a directory, which matters more than its suffix
        raise CheckpointError(f"{path}: has none of the suffixes of checkpoints: {' '.join(_KIND_OF_SUFFIX)}")
    return _READERS[kind](path)


def create_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    specs: Iterable[TensorSpec],
    extra: bytes,
    extra_kind: str,
    overwrite: bool = True,
) -> CheckpointWriter:
    """Begin a checkpoint of ``kind`` at ``path``, which appears when the writer commits.

    ``extra`` is the :attr:`CheckpointReader.extra` of a checkpoint of ``extra_kind``; it is used if that is ``kind``,
    else ignored. It may come from an untrusted file. Raises :class:`UnsupportedError` when ``kind`` cannot hold a
    tensor (or, for ONNX, when there is no graph), :class:`DamagedFileError` when ``extra`` is malformed,
    :class:`CheckpointError` when the file cannot be written, :class:`~deepcabac.atomic.ExistsError` when there is one
    already and ``overwrite`` is false.
    """
    path = Path(path)
    specs = list(specs)
    if extra_kind != kind:
        extra = b""
    if kind == "safetensors":
        return SafetensorsWriter(path, specs, extra, overwrite=overwrite)
    if kind == "safetensors-sharded":
        return ShardedWriter(path, specs, extra, overwrite=overwrite)
    if kind == "npz":
        return NpzWriter(path, specs, overwrite=overwrite)
    if kind == "torch":
        return TorchWriter(path, specs, extra, overwrite=overwrite)
    if kind == "onnx":
        if not extra:
            raise UnsupportedError(
                f"{path}: an ONNX file needs a graph, which a checkpoint of kind {extra_kind} does not have; "
                "write .safetensors instead"
            )
        return OnnxWriter(path, specs, extra, overwrite=overwrite)
    raise OptionError(f"unknown kind of checkpoint {kind!r}; choose one of {' '.join(KINDS)}")
