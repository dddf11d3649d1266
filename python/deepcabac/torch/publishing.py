"""The weights of a model that is being trained, sent step by step to where it is used."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..atomic import AtomicFile
from ..checkpoint.base import Array, TensorSpec
from ..dcb import reader, writer
from ..dcb.reader import Changed, OpenFile
from ..dcb.updates import Base
from ..dcb.writer import Report
from ..errors import CheckpointError, OptionError, UnsupportedError
from ..files import check_output
from ..options import Options
from ..tensors import from_torch, to_torch, torch_memory, torch_spec
from .models import Tensors

#: What holds the weights: a module, or a flat dict of tensors like its ``state_dict()``.
Weights = torch.nn.Module | Mapping[str, torch.Tensor]


class Publisher:
    """Publishes a model's weights as exact updates, each of the one before.

    A trainer calls :meth:`publish` after a step and sends the bytes; each receiver gives them to :func:`apply`. The
    first file, and every ``every``-th from there on, holds the whole model, so that a receiver may join or recover
    there. The others hold what changed since the last one, which they know by a digest. All are without loss.

    The publisher keeps a copy of what it published last, in the memory of the CPU.
    """

    def __init__(
        self,
        model: Weights,
        *,
        every: int = 100,
        dtype: torch.dtype | None = None,
        threads: int | None = None,
    ) -> None:
        """``model`` is read at each :meth:`publish`: a module, or a flat dict whose tensors are changed in place.

        With a ``dtype``, floating-point tensors are cast to it first: ``torch.bfloat16`` where an optimiser keeps
        float32 weights and samplers use bfloat16. ``every`` is the number of files from one whole model to the next; 0
        stands for never again. Raises :class:`OptionError`.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise OptionError(f"every must be a whole number, not {every!r}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise OptionError(f"dtype must be a floating-point type of torch, not {dtype!r}")
        self._model = model
        self._every = every
        self._dtype = dtype
        self._options = Options(lossless=True, threads=threads)
        self._last: dict[str, Array] | None = None
        #: Files published so far.
        self.published = 0
        self._since_whole = 0

    def publish(self, *, whole: bool | None = None) -> bytes:
        """The next file, in memory. The model must not change meanwhile.

        ``whole`` says whether it holds the whole model, if not by ``every``: for a receiver that has missed one. After
        an error it is as if nothing had been called. Raises :class:`UnsupportedError` for tensors that a file cannot
        hold.
        """
        file = io.BytesIO()
        self._publish(file, whole)
        return file.getvalue()

    def publish_file(self, path: str | os.PathLike[str], *, whole: bool | None = None) -> Report:
        """:meth:`publish` into a file, which appears whole or not at all. Raises :class:`CheckpointError` too."""
        # What counts as published has to be there: so the state follows the file.
        with AtomicFile(check_output(Path(path))) as target:
            source, base, report = self._write(target.file, whole)
        self._keep(source, base is None)
        return report

    def _publish(self, file: BinaryIO, whole: bool | None) -> None:
        source, base, _ = self._write(file, whole)
        self._keep(source, base is None)

    def _write(self, file: BinaryIO, whole: bool | None) -> tuple[_Cast, Base | None, Report]:
        source = _Cast(self._model, self._dtype)
        if whole is None:
            whole = self._last is None or (self._every > 0 and self._since_whole + 1 >= self._every)
        last = self._last
        if last is None and not whole:
            raise OptionError("the first file holds the whole model: there is nothing yet that it could change")
        base = None
        if not whole and last is not None:
            specs = [TensorSpec(name, array.dtype, array.shape) for name, array in last.items()]
            base = Base("", specs, last.__getitem__)
        return source, base, writer.compress(source, file, self._options, base=base)

    def _keep(self, source: _Cast, whole: bool) -> None:
        last = self._last or {}
        kept: dict[str, Array] = {}
        for spec in source.specs:
            if spec.tied_to is None:
                array, old = source.read(spec.name), last.get(spec.name)
                if old is None or (old.dtype, old.shape) != (array.dtype, array.shape):
                    old = np.empty_like(array)
                np.copyto(old, array)
                kept[spec.name] = old
        self._last = kept
        self._since_whole = 0 if whole else self._since_whole + 1
        self.published += 1


def apply(
    update: bytes | bytearray | memoryview | str | os.PathLike[str],
    model: Weights,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> None:
    """Turn ``model``'s weights into the next version, in place, from what :meth:`Publisher.publish` made.

    ``update`` is a file's bytes or path: an update of just these weights, or a whole model. ``model`` is a module or a
    flat dict of tensors. File and model must have the same names, shapes and dtypes. Everything is checked and decoded
    before a weight is written, so an update that is refused leaves the model as it was. Only what changes is held in
    memory besides the model (of tensors that changed widely, one at a time); the tensors stay where they are, on any
    device. Tensors that share memory keep sharing it.

    Raises :class:`OptionError` (the model is not the version that the update was made from),
    :class:`DamagedFileError`, :class:`LimitError` (a tensor takes more than ``max_bytes``) or
    :class:`CheckpointError` (the file does not fit the model, or cannot be read).
    """
    targets = _flat(model)
    if isinstance(update, str | os.PathLike):
        opened = reader.open_path(update, max_bytes=max_bytes, threads=threads)
    else:
        opened = reader.open_bytes(update, max_bytes=max_bytes, threads=threads)
    with opened, torch.no_grad():
        _check_fit(opened, targets)
        if opened.base_name is not None:
            infos = [opened.info(name) for name in opened]
            specs = [TensorSpec(info.name, info.dtype, info.shape) for info in infos]
            opened.base = Base("model", specs, lambda name: from_torch(targets[name]))
        for name, changes in opened.prepare().items():
            if changes is None:
                targets[name].copy_(to_torch(name, opened[name]))
            elif changes:
                _change(name, targets[name], changes)
        for name in opened:
            source = opened.info(name).tied_to or opened.info(name).equal_to
            if source is not None and targets[source].data_ptr() != targets[name].data_ptr():
                targets[name].copy_(targets[source])


def _change(name: str, target: torch.Tensor, changes: Sequence[Changed]) -> None:
    """Write what changes of a tensor: in its memory, or if that is elsewhere or out of order through a copy."""
    array = torch_memory(target)
    if array is None:
        array = from_torch(target)
        array = array if array.flags.writeable else array.copy()
    for change in changes:
        array.reshape(-1).view(change.patterns.dtype)[change.where][change.places] = change.patterns
    if torch_memory(target) is None:
        target.copy_(to_torch(name, array))


def _flat(model: Weights) -> dict[str, torch.Tensor]:
    """The tensors of a model by name. Raises :class:`OptionError` if it is none."""
    tensors = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(tensors, Mapping):
        raise OptionError(f"give a model or a flat dict of tensors, not a {type(model).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UnsupportedError(f"{name!r} is a {type(tensor).__name__}: publish a flat dict of tensors, by name")
    return dict(tensors)


class _Cast(Tensors):
    """The tensors of a model, floating-point ones cast to a type, as a source for the compressor."""

    def __init__(self, model: Weights, dtype: torch.dtype | None) -> None:
        super().__init__(_flat(model), "", b"")
        self._dtype = dtype
        if dtype is not None:
            cast = torch_spec("", torch.empty(0, dtype=dtype)).dtype
            floats = [self._tensors[spec.name].is_floating_point() for spec in self.specs]
            self.specs = [
                replace(spec, dtype=cast) if is_float else spec
                for spec, is_float in zip(self.specs, floats, strict=True)
            ]

    def read(self, name: str) -> Array:
        return from_torch(self._cast(self._tensors[name].detach()))

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor


def _check_fit(opened: OpenFile, targets: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError unless the file has just these tensors."""
    missing = [name for name in targets if name not in opened]
    unexpected = [name for name in opened if name not in targets]
    other = []
    for name in opened:
        if name in targets:
            info, target = opened.info(name), targets[name]
            if target.is_meta:
                raise OptionError(f"the model's {name} is on the meta device: give it memory first, with to_empty()")
            spec = torch_spec(name, target)
            if (info.shape, info.dtype) != (spec.shape, spec.dtype):
                other.append(f"{name} ({info.dtype} {list(info.shape)} for {target.dtype} {list(target.shape)})")
    problems = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (
            ("missing from the file", missing),
            ("not in the model", unexpected),
            ("of another type or shape", other),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"the update does not fit the model; {'; '.join(problems)}")
