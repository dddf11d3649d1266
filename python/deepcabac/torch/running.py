"""Running a caller's model on samples: forward and back, and leaving it as it was. Needs torch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CalibrationError, OptionError

Loss = str | Callable[[Any, Any], Tensor] | None
LOSSES = ("outputs", "logits", "likelihood")


@dataclass(frozen=True)
class Sampling:
    """What the caller chose."""

    loss: str | Callable[[Any, Any], Tensor]
    forward: Callable[[nn.Module, Any], Any]
    draws: int
    seed: int
    positions: int | None

    @property
    def name(self) -> str:
        return self.loss if isinstance(self.loss, str) else "custom"

    def derived(self, *numbers: int) -> int:
        """A seed for one purpose, which does not depend on how layers are grouped."""
        return int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, no parameter wants a gradient or has one, and random numbers are our own."""
    modes = {module: module.training for module in model.modules()}
    wanted = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            model.eval()
            for parameter, _, _ in wanted:
                parameter.grad = None
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(False)
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad, grad in wanted:
            parameter.grad = grad
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def every_step() -> Iterator[None]:
    """Inside, each step of a recurrent layer is in the graph; else its kernel may be one operation for all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that are not for this device
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: ``model(batch)``, or the batch unpacked if it is a tuple, list or mapping."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def moved(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict) or (isinstance(batch, Mapping) and not hasattr(batch, "to")):
        return {key: moved(value, device) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(moved(value, device) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, Mapping):  # such as the BatchEncoding of a tokenizer
        ready: Any = batch
        return ready.to(device)
    return batch


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def samples_in(value: Any) -> int:
    """The number of samples: the leading dimension of the first tensor; 0 without a tensor."""
    first = next(tensors_in(value), None)
    return 0 if first is None else 1 if first.dim() == 0 else first.shape[0]


def output_of(outputs: Any) -> Tensor:
    """The tensor whose change hurts."""
    if isinstance(outputs, Tensor):
        found: Any = outputs
    else:
        found = None
        for name in ("logits", "last_hidden_state"):
            if found is None:
                found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if not isinstance(found, Tensor):
            found = next((tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()), None)
    if found is None or not found.is_floating_point():
        raise CalibrationError(
            f"the model's output, {type(outputs).__name__}, has no tensor of floating point; choose with forward= what "
            "to return, or give a loss of your own"
        )
    output: Tensor = found
    return output


def backward(
    outputs: Any,
    batch: Any,
    sampling: Sampling,
    number: int,
    draw: int,
    watch: Callable[[Tensor], list[Any]] | None = None,
) -> bool:
    """Send a random direction, or the loss's gradient, back through the model. Returns False if it is not finite.

    ``watch`` sees what goes back before it does, and returns handles that are removed in the end.
    """
    again = draw + 1 < sampling.draws
    seed = sampling.derived(2, number, draw)
    if callable(sampling.loss):
        torch.manual_seed(seed)
        value = sampling.loss(outputs, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise OptionError("the loss function must return a scalar tensor: the sum over samples")
    else:
        output = output_of(outputs)
        if not bool(torch.isfinite(output.detach()).all()):
            return False
        generator = torch.Generator().manual_seed(seed)
        classes = output.shape[-1] if output.dim() else 1
        if sampling.loss != "outputs" and classes < 2:
            raise OptionError(f"loss={sampling.loss!r} needs logits of two or more classes in the last dimension")
        if sampling.loss == "likelihood":
            logits = output.reshape(-1, classes).float()
            sums = logits.detach().softmax(-1).cumsum(-1)
            drawn = torch.rand(len(logits), 1, generator=generator).to(output.device) * sums[:, -1:]
            labels = torch.searchsorted(sums, drawn, right=True).clamp_(max=classes - 1).squeeze(1)
            value = functional.cross_entropy(logits, labels, reduction="sum")
        else:
            direction = torch.randn(output.shape, generator=generator).to(output.device)
            if sampling.loss == "logits":
                direction -= direction.mean(-1, keepdim=True)
            value = (output.float() * direction).sum()
    if not bool(torch.isfinite(value.detach()).all()):
        return False
    if value.requires_grad:  # else nothing of this group was used, which shows as unreached
        handles = watch(value) if watch else []
        value.backward(retain_graph=again)  # type: ignore[no-untyped-call]
        for handle in handles:
            handle.remove()
    return True


def blame(model: nn.Module, batch: Any, sampling: Sampling, what: str) -> None:
    """Raise CalibrationError that names the first module with an output that is not finite, else says ``what``."""
    found: list[tuple[str, bool]] = []

    def look(name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        def finite(value: Any) -> bool:
            return all(bool(torch.isfinite(t).all()) for t in tensors_in(value) if t.is_floating_point())

        if not found and not finite(outputs):
            found.append((name or "the model", finite(inputs)))

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(look, name)).remove)
        sampling.forward(model, batch)
    if found:
        name, from_finite = found[0]
        source = "from inputs that are" if from_finite else "and its inputs are not either: look at the batches"
        raise CalibrationError(f"module {name!r} gives values that are not finite, {source} ({what})")
    raise CalibrationError(f"{what} is not finite; use model.float(), and look at the loss and the samples")
