"""Models and state dicts of PyTorch to .dcb files and back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch

from ..atomic import AtomicFile
from ..checkpoint.base import OPTIMIZER, Array, TensorSpec
from ..checkpoint.optimizer_state import optimizer_names, without
from ..checkpoint.skeleton import Leaf, assemble, dissolve
from ..dcb import writer
from ..dcb.bases import BaseLike
from ..dcb.reader import OnProgress, OpenFile
from ..dcb.writer import Report
from ..errors import CheckpointError, OptionError
from ..files import check_output, open_file, opened_base
from ..options import OptionFields, Options
from ..source import Correct
from ..tensors import from_torch, to_torch, torch_memory, torch_spec

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing itself only from Python 3.11 on

Module = TypeVar("Module", bound=torch.nn.Module)
#: What a model may be an update of.
ModelBase = torch.nn.Module | Mapping[str, Any] | BaseLike


def save_model(
    model: torch.nn.Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    options: Options | None = None,
    progress: OnProgress | None = None,
    correct: Correct | None = None,
    base: ModelBase | None = None,
    **settings: Unpack[OptionFields],
) -> Report:
    """Compress a model, or a state dict, into a .dcb file, which appears whole or not at all.

    Tensors may be on any device, be non-contiguous, require gradients, or share memory (then they are tied and stored
    once). They are moved to the CPU one at a time. Everything else in a state dict (numbers, strings, nested dicts, its
    ``_metadata``) is kept too, so ``deepcabac decompress`` turns the file into a ``.pt`` with the same contents.

    ``settings`` are the fields of :class:`deepcabac.Options` by name: ``sqnr=30`` (dB, the default), ``bits=``,
    ``size=`` or ``step=``; ``rate_distortion=``, ``quantizer=``, ``states=``, ``overrides=``, ``threads=``.
    ``correct=deepcabac.torch.correction(model, batches)`` lets biases and batch norms compensate for quantisation.
    With a ``base`` (a model, a state dict, or what :func:`deepcabac.save_file` takes) the file is an update of it.

    Raises :class:`OptionError`, :class:`UnsupportedError` (sparse, quantised, complex or meta tensors; objects that
    are not plain data) or :class:`CheckpointError` (the file cannot be written).
    """
    source = _state_dict_source(model)
    chosen = Options.of(options, settings)
    with opened_base(_arrays(base), chosen.threads) as opened, AtomicFile(check_output(Path(path))) as target:
        return writer.compress(source, target.file, chosen, progress, base=opened, correct=correct)


@overload
def load_model(
    path: str | os.PathLike[str],
    model: None = None,
    *,
    base: ModelBase | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
    threads: int | None = None,
    device: torch.device | str | int | None = None,
) -> dict[str, Any]: ...
@overload
def load_model(
    path: str | os.PathLike[str],
    model: Module,
    *,
    base: ModelBase | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
    threads: int | None = None,
    device: None = None,
) -> Module: ...
def load_model(
    path: str | os.PathLike[str],
    model: torch.nn.Module | None = None,
    *,
    base: ModelBase | None = None,
    strict: bool = True,
    max_bytes: int | None = None,
    threads: int | None = None,
    device: torch.device | str | int | None = None,
) -> Any:
    """Decode a .dcb file into ``model``, which is returned; without a model, return its state dict.

    With a model, tensors are decoded straight into its parameters and buffers where these are contiguous, on the CPU
    and of the file's dtype; others are copied one at a time. Tied tensors stay tied. Unless ``strict=False``, a name
    that only one side has is an error. Names and shapes are compared before anything is changed, but damage inside the
    file may be found after some tensors are loaded. (A model whose modules customise loading, with hooks or extra
    state, gets a whole state dict through its own ``load_state_dict``.) To see which names do not fit, call
    ``model.load_state_dict(load_model(path), strict=False)``.

    Without a model, the result is the state dict that was saved, with tensors on ``device`` (by default the CPU); tied
    tensors share memory. A file that was not made from PyTorch gives a flat dict of tensors.

    An update needs its ``base``, as :func:`save_model` took it; by default the file that it names is looked for next to
    it. The base may be ``model`` itself, which then becomes the next version. (A base in memory is copied first.)

    Raises :class:`DamagedFileError`, :class:`LimitError` (the tensors take more than ``max_bytes``),
    :class:`CheckpointError` (the file cannot be read, or does not fit the model) or :class:`OptionError` (the base is
    missing, is the wrong one, or is not needed).
    """
    if isinstance(path, torch.nn.Module):  # as safetensors has it
        raise OptionError("load_model takes the file first, then the model")
    if model is not None and device is not None:
        raise OptionError("device is for loading without a model: values go where the model's parameters are")
    arrays = _arrays(base)
    if model is not None and isinstance(arrays, dict):
        arrays = {name: array.copy() for name, array in arrays.items()}  # what is loaded may overwrite it
    with open_file(path, base=arrays, max_bytes=max_bytes, threads=threads) as opened:
        if model is None:
            return _state_dict(opened, torch.device("cpu") if device is None else torch.device(device))
        _load_into(model, opened, str(path), strict)
        return model


def _arrays(base: ModelBase | None) -> BaseLike | None:
    """A base as :mod:`deepcabac.dcb.bases` takes it: models and state dicts become arrays on the tensors' memory."""
    tensors = isinstance(base, torch.nn.Module) or (
        isinstance(base, Mapping) and not all(isinstance(one, np.ndarray) for one in base.values())
    )
    if not tensors:
        return base  # type: ignore[return-value]
    source = _state_dict_source(base)  # type: ignore[arg-type]
    return {spec.name: source.read(spec.name) for spec in source.specs}


def _state_dict_source(model: torch.nn.Module | Mapping[str, Any]) -> Tensors:
    if isinstance(model, torch.nn.Module):
        model = model.state_dict()
    elif not isinstance(model, Mapping):
        raise OptionError(f"give a model or a state dict, not a {type(model).__name__}")
    root = model if isinstance(model, dict) else dict(model)
    tensors, extra = dissolve(root, torch, "the state dict")
    return Tensors(dict(tensors), "torch", extra)


class Tensors:
    """Tensors by name as a source for the compressor, moved to the CPU one at a time. Those on one memory are tied."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], kind: str, extra: bytes) -> None:
        self.kind, self.extra = kind, extra
        self._tensors = dict(tensors)
        self.specs: list[TensorSpec] = []
        first_at: dict[Any, str] = {}
        for name, tensor in self._tensors.items():
            spec = torch_spec(name, tensor)
            place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.stride())
            view = (place, spec.dtype, spec.shape, tensor.is_neg(), tensor.is_conj())
            first = first_at.setdefault(view, name) if tensor.numel() else name
            self.specs.append(replace(spec, tied_to=None if first == name else first))

    def roles(self) -> dict[str, str]:
        return dict.fromkeys(optimizer_names(self.extra, self._tensors), OPTIMIZER) if self.kind == "torch" else {}

    def without(self, names: Collection[str]) -> bytes:
        return without(self.extra, self._tensors, names) if self.kind == "torch" else self.extra

    def read(self, name: str) -> Array:
        return from_torch(self._tensors[name])


@dataclass(frozen=True)
class _Leaf:
    """Where a tensor belongs in a state dict."""

    name: str  #: in the file


def _outline(opened: OpenFile) -> Any:
    """What was saved, with a :class:`_Leaf` for every tensor."""
    if opened.kind == "torch" and opened.extra:
        return assemble(opened.extra, opened, torch, lambda leaf: _Leaf(leaf.name))
    return {name: _Leaf(name) for name in opened}


def _state_dict(opened: OpenFile, device: torch.device) -> Any:
    """What was saved. Tensors that were tied share memory."""
    decoded: dict[str, torch.Tensor] = {}
    for name, array in opened.items(keep=device.type == "cpu"):
        tied_to = opened.info(name).tied_to
        # detach: two tensors on one memory, not one tensor, as in a model's own state dict
        decoded[name] = to_torch(name, array).to(device) if tied_to is None else decoded[tied_to].detach()

    def make(leaf: Leaf) -> torch.Tensor:
        tensor = decoded[leaf.name]
        if leaf.torch_type:
            tensor = tensor.view(getattr(torch, leaf.torch_type))
        if leaf.tag in ("p", "q"):
            tensor = torch.nn.Parameter(tensor, requires_grad=leaf.tag == "p")
        else:
            tensor.requires_grad_(leaf.tag == "g")
        tensor.__dict__.update(leaf.attributes)
        return tensor

    if opened.kind == "torch" and opened.extra:
        return assemble(opened.extra, opened, torch, make)
    return decoded


def _load_into(model: torch.nn.Module, opened: OpenFile, path: str, strict: bool) -> None:
    outline = _outline(opened)
    if not isinstance(outline, dict) or not all(isinstance(key, str) for key in outline):
        raise CheckpointError(f"{path}: does not hold a state dict; load it without a model and pick the part you need")
    if not _only_copies(model):
        try:
            model.load_state_dict(_state_dict(opened, torch.device("cpu")), strict)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: does not fit the model: {' '.join(str(error).split())}") from error
        return
    targets: dict[str, torch.Tensor] = model.state_dict()
    _check_fit(targets, outline, opened, path, strict)
    wanted = {leaf.name: targets[key] for key, leaf in outline.items() if key in targets}
    # Several tensors must not be decoded into one memory at the same time.
    sharing = Counter(target.untyped_storage().data_ptr() for target in wanted.values())
    alone = {name: target for name, target in wanted.items() if sharing[target.untyped_storage().data_ptr()] == 1}
    memory = {name: array for name, target in alone.items() if (array := torch_memory(target)) is not None}
    with torch.no_grad():
        for name, array in opened.items(memory, keep=memory.keys() >= set(opened)):
            # A tied tensor comes in the memory of the first of its name.
            if name in wanted and array.ctypes.data != wanted[name].data_ptr():
                wanted[name].copy_(to_torch(name, array))


def _check_fit(
    targets: Mapping[str, torch.Tensor], outline: Mapping[str, Any], opened: OpenFile, path: str, strict: bool
) -> None:
    """Raise CheckpointError unless the file's tensors can be copied into ``targets``."""
    missing = [key for key in targets if key not in outline] if strict else []
    unexpected = [key for key in outline if key not in targets] if strict else []
    other = []
    for key, target in targets.items():
        if key in outline:
            leaf = outline[key]
            shape = opened.info(leaf.name).shape if isinstance(leaf, _Leaf) else None
            if shape != tuple(target.shape):
                other.append(f"{key} ({'not a tensor' if shape is None else list(shape)} for {list(target.shape)})")
        if target.is_meta:
            raise OptionError(f"the model's {key} is on the meta device: give it memory first, with model.to_empty()")
    problems = [
        f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (("missing from the file", missing), ("not in the model", unexpected), ("other shape", other))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path}: does not fit the model; {'; '.join(problems)}")


def _only_copies(model: torch.nn.Module) -> bool:
    """Whether loading a state dict into ``model`` means copying tensors and nothing else."""
    plain = torch.nn.Module
    # Batch norms only look after state dicts from before they counted batches.
    loaders = {plain._load_from_state_dict, torch.nn.modules.batchnorm._NormBase._load_from_state_dict}
    hooks = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
    return not any(
        type(module)._load_from_state_dict not in loaders
        or type(module).load_state_dict is not plain.load_state_dict
        or type(module).state_dict is not plain.state_dict
        or type(module).get_extra_state is not plain.get_extra_state
        or any(getattr(module, hook, None) for hook in hooks)
        for module in model.modules()
    )
