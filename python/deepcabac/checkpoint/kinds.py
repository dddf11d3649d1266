"""Which kind of checkpoint a file is, and the reader or writer for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, DamagedFileError, OptionError, UnsupportedError
from . import elsewhere, sharded, skeleton
from .base import CheckpointReader, CheckpointWriter, TensorSpec, open_binary, parse_json
from .gguf_file import GgufReader, GgufWriter
from .npz import NpzReader, NpzWriter, opaque
from .onnx_file import OnnxReader, OnnxWriter
from .safetensors_file import SafetensorsReader, SafetensorsWriter
from .sharded import ShardedReader, ShardedTorchReader, ShardedTorchWriter, ShardedWriter
from .suffixes import SUFFIXES, kind_of_path, suffix_of_path
from .torch_file import TorchReader, TorchWriter

_READERS: dict[str, type[SafetensorsReader | ShardedReader | NpzReader | TorchReader | OnnxReader | GgufReader]] = {
    reader.kind: reader
    for reader in (SafetensorsReader, ShardedReader, NpzReader, TorchReader, ShardedTorchReader, OnnxReader, GgufReader)
}
KINDS = tuple(_READERS)


#: Suffix of a restored checkpoint, by the kind that the file was made from, where the file says no other.
_USUAL_SUFFIX = {
    "": ".safetensors",
    "safetensors": ".safetensors",
    "safetensors-sharded": ".safetensors.index.json",
    "npz": ".npz",
    "torch": ".pt",
    "torch-sharded": ".bin.index.json",
    "onnx": ".onnx",
    "gguf": ".gguf",
}
_NAMED = 5  # of what is left out


def restored_suffix(kind: str, extra: bytes) -> str | None:
    """The suffix of the file that a checkpoint of this ``kind`` and ``extra`` was read from; None for unknown kinds.

    ``extra`` may come from an untrusted file: whatever it says, the result is a suffix of its kind.
    """
    usual = _USUAL_SUFFIX.get(kind)
    stored = ""
    try:
        if kind == "torch" and extra:
            stored = "." + skeleton.suffix_of(extra)
        elif kind.endswith("-sharded") and extra:
            stored = sharded.suffix_of(extra)
    except (DamagedFileError, UnsupportedError):  # said when the structure itself is read
        return usual
    return stored if stored and kind_of_path(stored) == kind and suffix_of_path(stored) == stored else usual


def left_out(kind: str, extra: bytes, extra_kind: str) -> str:
    """What a checkpoint of ``kind`` does not keep of one of ``extra_kind`` and its ``extra``, in words; or nothing."""
    if kind == extra_kind or not extra:
        return ""
    names: list[str] = []
    if extra_kind == "torch":
        names = skeleton.beside_tensors(extra)
    elif extra_kind == "onnx":
        names = ["the graph"]
    elif extra_kind == "safetensors":
        names = ["__metadata__"] if set(parse_json(extra, "the stored metadata", DamagedFileError)) - {"format"} else []
    elif extra_kind == "gguf":
        names = ["the metadata"]
    elif extra_kind == "npz":
        names = [f"the type of {name}" for name in opaque(extra)]
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"only tensors are kept, not {', '.join(names[:_NAMED])}{more}"


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointReader:
    """Open a checkpoint for reading, its kind chosen by the suffix.

    Raises :class:`CheckpointError` when the file is missing, unknown, damaged or unreadable,
    :class:`UnsupportedError` when it holds something that cannot be represented as tensors of the supported dtypes.
    """
    path = Path(path)
    kind = kind_of_path(path)
    if kind is None:
        open_binary(path)[0].close()  # says so if it is missing or a directory, which matters more than its suffix
        if (way := elsewhere.way_from_file(path)) is not None:
            raise UnsupportedError(f"{path}: {way}")
        raise CheckpointError(f"{path}: has none of the suffixes of checkpoints: {' '.join(SUFFIXES)}")
    return _READERS[kind](path)


def create_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    specs: Iterable[TensorSpec],
    extra: bytes,
    extra_kind: str,
    overwrite: bool = True,
    external: bool = False,
) -> CheckpointWriter:
    """Begin a checkpoint of ``kind`` at ``path``, which appears when the writer commits.

    ``extra`` is the :attr:`CheckpointReader.extra` of a checkpoint of ``extra_kind``; it is used if that is ``kind``,
    else ignored. It may come from an untrusted file. With ``external`` an ONNX model's weights go to a file beside it.

    Raises :class:`UnsupportedError` when ``kind`` cannot hold a tensor (or, for ONNX, when there is no graph),
    :class:`DamagedFileError` when ``extra`` is malformed, :class:`CheckpointError` when the file cannot be written,
    :class:`~deepcabac.atomic.ExistsError` when there is one already and ``overwrite`` is false.
    """
    path = Path(path)
    specs = list(specs)
    if extra_kind != kind:
        extra = b""
    if kind == "safetensors":
        return SafetensorsWriter(path, specs, extra, overwrite=overwrite)
    if kind == "safetensors-sharded":
        return ShardedWriter(path, specs, extra, overwrite=overwrite)
    if kind == "torch-sharded":
        return ShardedTorchWriter(path, specs, extra, overwrite=overwrite)
    if kind == "npz":
        return NpzWriter(path, specs, extra, overwrite=overwrite)
    if kind == "torch":
        return TorchWriter(path, specs, extra, overwrite=overwrite)
    if kind == "onnx":
        if not extra:
            raise UnsupportedError(
                f"{path}: an ONNX file needs a graph, which a checkpoint of kind {extra_kind} does not have; "
                "write .safetensors instead"
            )
        return OnnxWriter(path, specs, extra, overwrite=overwrite, external=external)
    if kind == "gguf":
        if not extra:
            raise UnsupportedError(
                f"{path}: a GGUF file needs metadata, which a checkpoint of kind {extra_kind} does not have; "
                "write .safetensors instead"
            )
        return GgufWriter(path, specs, extra, overwrite=overwrite)
    raise OptionError(f"unknown kind of checkpoint {kind!r}; choose one of {' '.join(KINDS)}")
