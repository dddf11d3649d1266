"""Biases and batch norms that compensate for the quantisation of the layers before them. Needs torch.

Quantised weights shift the mean of a layer's outputs, and noise ahead of a ReLU always shifts it upwards; from layer to
layer such shifts add up. Original and quantised model see the same samples, so that what differs between them is
known far better than either's statistics are: the means (Nagel et al. 2019, "bias correction") and, where a batch norm
follows, the deviations are set back to the original's.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..checkpoint.base import Array
from ..errors import CalibrationError, OptionError
from ..source import Correct
from . import running

_MODES = ("match", "means", "estimate")
#: A deviation is changed by a quarter at most: channels that are almost silent have no deviation worth the name.
_MOST = 1.25


def correction(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    batch_norm: Literal["match", "means", "estimate"] = "match",
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Correct:
    """Make biases and batch norms compensate for the quantisation of all other tensors.

    The result is for ``correct=`` of :func:`deepcabac.torch.save_model` and :func:`deepcabac.save_file`: a function
    from the decoded tensors, by name, to new values for some of them. Names and shapes do not change.

    ``model`` is the original, with the names of the tensors that are compressed; it is left as it was. ``batches`` and
    ``forward`` are those of :func:`~deepcabac.torch.calibrate`: a few hundred samples without labels, iterated once.

    Every linear, convolution and norm layer with a bias gets, per channel, the mean output that it had in the original
    model. ``batch_norm`` chooses what else happens to batch norms. With ``"match"``, the standard deviations of their
    outputs become the original's too, by one factor per channel in their weights (or, without weights, in their running
    statistics). With ``"means"``, nothing. With ``"estimate"``, their running means and variances become those of the
    quantised model on ``batches``: the older method, for which a few hundred samples are too few in networks trained on
    a million.

    The function raises :class:`OptionError` (no tensor is the model's, other shapes) and :class:`CalibrationError` (no
    samples, outputs that are not finite).
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, not a {type(model).__name__}")
    if batch_norm not in _MODES:
        raise OptionError(f"batch_norm must be one of {', '.join(_MODES)}, not {batch_norm!r}")

    def correct(decoded: Mapping[str, Array]) -> dict[str, Array]:
        quantised = _with_values(model, decoded)
        with torch.no_grad(), running.as_it_was(model), running.as_it_was(quantised), contextlib.ExitStack() as hooks:
            layers = list(_layers(model, quantised, batch_norm))
            for layer in layers:
                layer.watch(hooks)
            device = next(model.parameters()).device
            for batch in batches:
                moved = running.moved(batch, device)
                with torch.no_grad():
                    for either in (model, quantised):
                        (forward or running.forward)(either, moved)
            if not any(layer.found.count for layer in layers):
                raise CalibrationError("there is nothing to correct: batches gave no samples, or no layer has a bias")
            changed: dict[str, Tensor] = {}
            for layer in layers:
                changed.update(layer.corrected())
        found = {name: value.detach().cpu().numpy() for name, value in changed.items() if name in decoded}
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise CalibrationError(f"the correction of {name!r} is not finite: do the samples fit the model?")
        return found

    return correct


def _with_values(model: nn.Module, decoded: Mapping[str, Array]) -> nn.Module:
    """A copy of the model with the decoded values."""
    quantised = copy.deepcopy(model)
    known = False
    for name, target in quantised.state_dict().items():
        if name in decoded:
            array = decoded[name]
            if tuple(array.shape) != tuple(target.shape):
                raise OptionError(f"tensor {name!r} has shape {array.shape}, the model's has {tuple(target.shape)}")
            # numpy's other types, such as bfloat16, mean nothing to torch.
            plain = array.copy() if array.dtype.isbuiltin == 1 else array.astype(np.float32)
            with torch.no_grad():
                target.copy_(torch.from_numpy(plain))
            known = True
    if not known:
        raise OptionError("no tensor has a name from the model: was the correction made for another model?")
    return quantised


def _layers(model: nn.Module, quantised: nn.Module, batch_norm: str) -> Iterator[_Layer]:
    """Layers whose outputs' means can be set, in the order of the modules."""
    own = dict(quantised.named_modules())
    for name, module in model.named_modules():
        normal = isinstance(module, _BatchNorm) and module.track_running_stats
        by_channel = isinstance(module, (_BatchNorm, _ConvNd, nn.GroupNorm))
        if not by_channel and not isinstance(module, (nn.Linear, nn.LayerNorm)):
            continue
        biased = isinstance(module.bias, Tensor) and module.bias.ndim == 1
        if biased or normal:
            mode = batch_norm if normal else ""
            yield _Layer(f"{name}." if name else "", module, own[name], 1 if by_channel else -1, mode)


@dataclass
class _Sums:
    """Of values, by channel, in float64."""

    count: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, values: Tensor, axis: int) -> None:
        """All values of a tensor whose channels are dimension ``axis``."""
        others = [dimension for dimension in range(values.ndim) if dimension != axis % values.ndim]
        wide = values.double()
        self.count += values.numel() // values.shape[axis]
        self.first = self.first + wide.sum(others)
        self.second = self.second + wide.square().sum(others)

    @property
    def mean(self) -> Tensor:
        """[channels]."""
        return torch.as_tensor(self.first) / self.count

    @property
    def variance(self) -> Tensor:
        """[channels], of the values themselves."""
        return (torch.as_tensor(self.second) / self.count - self.mean.square()).clamp_min(0)


class _Layer:
    """A layer in both models, and the statistics of its outputs."""

    def __init__(self, prefix: str, original: nn.Module, quantised: nn.Module, axis: int, batch_norm: str) -> None:
        self.prefix, self.original, self.quantised, self.axis = prefix, original, quantised, axis
        self.batch_norm = batch_norm  #: what to do with it, "" if it is none
        self.wanted, self.found = _Sums(), _Sums()

    def watch(self, hooks: contextlib.ExitStack) -> None:
        """Collect statistics, and correct each output of the quantised layer by those so far, so that
        the layers after it see what they will see in the end.
        """
        if self.batch_norm == "estimate":

            def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self.found.add(inputs[0], self.axis)
                module.running_mean, module.running_var = (one.float() for one in self._estimated())

            hooks.callback(self.quantised.register_forward_pre_hook(before).remove)
            return

        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.wanted.add(output, self.axis)

        def shift(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            self.found.add(output, self.axis)
            gain, offset = self._affine()
            shape = [1] * output.ndim
            shape[self.axis] = -1
            return (output.double() * gain.view(shape) + offset.view(shape)).to(output.dtype)

        hooks.callback(self.original.register_forward_hook(store).remove)
        hooks.callback(self.quantised.register_forward_hook(shift).remove)

    def _estimated(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the inputs, as a batch norm keeps them."""
        return self.found.mean, self.found.variance * (self.found.count / max(self.found.count - 1, 1))

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Gain and offset that give the outputs the original's mean and, if asked for, deviation."""
        gain = torch.ones_like(self.found.mean)
        if self.batch_norm == "match":
            ratio = (self.wanted.variance / self.found.variance).sqrt()
            gain = torch.where(ratio.isfinite(), ratio, gain).clamp(1 / _MOST, _MOST)
        return gain, self.wanted.mean - gain * self.found.mean

    def corrected(self) -> dict[str, Tensor]:
        """New values of the layer's tensors, by name; none if the samples never reached it."""
        if self.found.count == 0:
            return {}
        layer: Any = self.quantised
        if self.batch_norm == "estimate":
            mean, variance = self._estimated()
            return {f"{self.prefix}running_mean": mean.float(), f"{self.prefix}running_var": variance.float()}
        gain, offset = self._affine()
        if isinstance(layer.bias, Tensor):
            changed = {f"{self.prefix}bias": (gain * layer.bias + offset).to(layer.bias.dtype)}
            if self.batch_norm == "match":
                changed[f"{self.prefix}weight"] = (gain * layer.weight).to(layer.weight.dtype)
            return changed
        # A batch norm without weights, out = (x - mean) / deviation: gain * out + offset by its statistics.
        deviation = (layer.running_var.double() + layer.eps).sqrt()
        return {
            f"{self.prefix}running_mean": (layer.running_mean - offset * deviation / gain).float(),
            f"{self.prefix}running_var": ((deviation / gain).square() - layer.eps).clamp_min(0).float(),
        }
