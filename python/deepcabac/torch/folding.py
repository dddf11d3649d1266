"""Batch norms folded into the layers before them. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import OptionError
from . import running

Module = TypeVar("Module", bound=nn.Module)

#: The folded model's outputs may differ by so much of the largest, which is more than rounding ever does.
_TOLERANCE = 1e-3


def fold_batch_norm(
    model: Module, batch: Any, *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Module:
    """A copy of ``model`` in which what each batch norm multiplies by is part of the convolution or linear layer before
    it, and all that it adds is in its bias.

    The copy computes the same, and its state dict has the same names and shapes and loads into the same classes: folded
    batch norms have running means of 0, variances of 1 - eps and weights of 1, which take next to no bytes. Fold before
    calibrating, since a curvature belongs to the weights that it was measured on.

    ``batch`` is one that the model takes (see :func:`~deepcabac.torch.calibrate`, as for ``forward``): running it shows
    which layer's output goes into which batch norm, and that the copy computes the same. Batch norms without weights,
    without running statistics, or that follow anything but the output of one layer stay as they are.

    Raises :class:`OptionError` if there is nothing to fold, or if the copy computes something else: the output of a
    layer before a batch norm is used elsewhere too.
    """
    run = forward or running.forward
    folded = copy.deepcopy(model)
    moved = running.moved(batch, next(model.parameters()).device)
    with running.as_it_was(model), running.as_it_was(folded), torch.no_grad():
        pairs = _pairs(folded, lambda: run(folded, moved))
        if not pairs:
            raise OptionError("the model has no batch norm that follows a convolution or linear layer: nothing to fold")
        wanted = running.output_of(run(model, moved))
        for layer, norm in pairs:
            _fold(layer, norm)
        found = running.output_of(run(folded, moved))
        if not (found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max():
            raise OptionError(
                "the folded model computes something else: a layer's output is used beside its batch norm; compress "
                "the model as it is"
            )
    return folded


def _pairs(model: nn.Module, run: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """Layers, and the batch norm that takes each one's output."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors are held, for an id to be of one tensor only
    uses: dict[nn.Module, int] = {}
    found: dict[nn.Module, nn.Module | None] = {}

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        uses[module] = uses.get(module, 0) + 1
        made[id(output)] = (module, output)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        layer = made[id(inputs[0])][0] if id(inputs[0]) in made else None
        found[module] = layer if module not in found else None

    hooks = []
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, _BatchNorm) and module.track_running_stats and module.affine:
            hooks.append(module.register_forward_pre_hook(before))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [(layer, norm) for norm, layer in found.items() if layer is not None and uses[layer] == 1]


def _fold(layer: Any, norm: Any) -> None:
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    added = norm.bias.double() - gain * norm.running_mean.double()
    if layer.bias is not None:
        added += gain * layer.bias.double()
        layer.bias.zero_()
    layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)).to(layer.weight.dtype))
    norm.bias.copy_(added)
    norm.weight.fill_(1.0)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
