"""Tensors by name to .dcb files and back, with the names and signatures of ``safetensors.torch``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..atomic import AtomicFile
from ..checkpoint.base import PathLike
from ..dcb import reader, writer
from ..dcb.bases import BaseLike
from ..dcb.reader import OpenFile
from ..dcb.writer import Report
from ..errors import OptionError, UnsupportedError
from ..files import check_output, open_file, path_of
from ..options import OptionFields, Options
from ..source import described
from ..tensors import to_torch, torch_device
from .models import Tensors

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: PathLike,
    metadata: Mapping[str, str] | None = None,
    **settings: Unpack[OptionFields],
) -> Report:
    """Compress tensors by name into a .dcb file, which appears whole or not at all, with ``metadata``, strings by name.

    Tensors may be on any device, be non-contiguous, require gradients, or share memory (then they are tied and stored
    once). :func:`save_model` takes whole models and nested state dicts. ``settings`` are the fields of
    :class:`deepcabac.Options` by name; the default, ``quality=30``, rounds weights, ``lossless=True`` keeps every bit.

    Raises :class:`OptionError`, :class:`UnsupportedError` (sparse, quantised, complex or meta tensors) or
    :class:`CheckpointError` (the file cannot be written).
    """
    source, chosen = _source(tensors, metadata), Options.of(None, settings)
    with AtomicFile(check_output(path_of(filename, "save makes bytes"))) as target:
        return writer.compress(source, target.file, chosen)


def save(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, **settings: Unpack[OptionFields]
) -> bytes:
    """:func:`save_file` to memory: the bytes of a .dcb file."""
    file = io.BytesIO()
    writer.compress(_source(tensors, metadata), file, Options.of(None, settings))
    return file.getvalue()


def load_file(
    filename: PathLike,
    device: torch.device | str | int = "cpu",
    *,
    dtype: torch.dtype | None = None,
    base: BaseLike | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a .dcb file, by name, on ``device``. Tied tensors share memory.

    With ``dtype``, floating-point tensors are converted to it one at a time. An update needs its ``base``, as for
    :func:`deepcabac.load_file`. Raises what that function raises, and :class:`OptionError` for an unknown device.
    """
    place = torch_device(device)
    with open_file(path_of(filename, "load takes bytes"), base=base, max_bytes=max_bytes, threads=threads) as opened:
        return _tensors(opened, place, dtype)


def load(
    data: bytes,
    *,
    dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """:func:`load_file` from memory, on the CPU."""
    with reader.open_bytes(data, max_bytes=max_bytes, threads=threads) as opened:
        return _tensors(opened, torch.device("cpu"), dtype)


def _source(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> Tensors:
    kind, extra = described(metadata)
    if not isinstance(tensors, Mapping):
        raise OptionError(f"give tensors by name, not a {type(tensors).__name__}; save_model takes models")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise OptionError(f"names of tensors must be strings, not {name!r}")
        if not isinstance(tensor, torch.Tensor):
            instead = "save_model takes state dicts that hold more than tensors"
            raise UnsupportedError(f"{name!r} is a {type(tensor).__name__}, not a tensor; {instead}")
    return Tensors(tensors, kind, extra)


def _tensors(opened: OpenFile, device: torch.device, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise OptionError(f"dtype must be a floating-point one of PyTorch's, not {dtype!r}")
    found: dict[str, torch.Tensor] = {}
    for name, array in opened.items(keep=device.type == "cpu" and dtype is None):
        tied_to = opened.info(name).tied_to
        if tied_to is not None:
            found[name] = found[tied_to].detach()  # two tensors on one memory, as in a state dict
            continue
        tensor: torch.Tensor = to_torch(name, array)
        found[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    return found
