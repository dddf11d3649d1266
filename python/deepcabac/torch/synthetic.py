"""Inputs for calibration where there are none: what a network itself says of what it was trained on.

A batch norm keeps the mean and the variance of what it saw in training. Noise is moved by gradient descent until it
gives the same (Cai et al. 2020, "ZeroQ"; Yin et al. 2020, "Dreaming to distill"). A causal language model writes text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CalibrationError, OptionError
from . import running

#: Size of a step of gradient descent (Adam), in standard deviations of the inputs.
_RATE = 0.05
#: Correlation of channels at the start: colours of images are alike.
_CHANNELS = 0.9
#: What the spread of the predicted classes counts beside the mean squared distance of the statistics.
_CLASSES = 0.1
#: Keeps the logarithm of a channel's variance finite where the channel is dead.
_TINY = 1e-8


def synthetic_inputs(
    model: nn.Module,
    shape: Sequence[int],
    samples: int = 256,
    *,
    batch: int = 64,
    steps: int = 60,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> list[Tensor]:
    """Inputs that fit the batch norms of ``model``, for :func:`calibrate` and :func:`correction` when there is no data.

    ``shape`` is that of one sample without the batch: ``(3, 224, 224)``. Returns batches of up to ``batch`` samples,
    ``[batch, *shape]``, of the model's dtype and on its device. The mean and the variance of what each batch norm sees
    in a batch come close to those that it saw in training, and the predicted classes differ from sample to sample. With
    ``steps`` steps of gradient descent for each batch, this takes about as long as training on ``steps * samples``
    samples. Smaller batches take less memory and match less well.

    Inputs are expected to be normalised to about mean 0 and standard deviation 1, as most image networks want them.
    ``forward`` is as for :func:`calibrate`. The model is left as it was.

    Raises :class:`CalibrationError` if the model has no batch norm with statistics, and :class:`OptionError`.
    """
    if not shape or min(shape) < 1 or min(samples, batch) < 1 or steps < 0:
        raise OptionError("shape, samples and batch must be positive, steps must not be negative")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        raise CalibrationError(
            "the model has no batch norm that says what its inputs were like; calibrate with real inputs, or, if it is "
            "a causal language model, with synthetic_tokens"
        )
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    found = []
    with running.as_it_was(model):
        for start in range(0, samples, batch):
            noise = _noise(min(batch, samples - start), tuple(shape), generator)
            inputs = noise.to(first.device, first.dtype)
            found.append(_matched(model, norms, inputs, steps, forward or running.forward))
    return found


def synthetic_tokens(
    model: nn.Module,
    samples: int = 128,
    length: int = 256,
    *,
    start: int | Tensor = 1,
    batch: int = 16,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> list[Tensor]:
    """Text that a causal language model writes, for :func:`calibrate` when there is no data.

    Returns batches of token ids, int64 ``[up to batch, length]``, drawn one after the other from the model's own
    predictions (temperature 1). They begin with ``start``: a token, usually the tokenizer's ``bos_token_id``, or ids
    ``[samples, any length]``, prompts. ``model(ids)`` must return the logits of the next tokens, ``[batch, length,
    vocabulary]``, by itself or as ``logits``; ``forward`` is as for :func:`calibrate`. Each token takes a pass through
    the model: with a large one, draw ids by its own ``generate(do_sample=True, top_k=0)``, which is faster, and give
    them to :func:`calibrate`.

    Raises :class:`CalibrationError` if what the model returns is not that, and :class:`OptionError`.
    """
    prompts = start if isinstance(start, Tensor) else torch.full((samples, 1), start, dtype=torch.long)
    if min(samples, batch) < 1 or prompts.dim() != 2 or len(prompts) != samples or not 0 < prompts.shape[1] < length:
        raise OptionError("start must be a token, or [samples, fewer than length] of them")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    found = []
    with running.as_it_was(model), torch.no_grad():
        for ids in torch.split(prompts, batch):
            while ids.shape[1] < length:
                logits = running.output_of((forward or running.forward)(model, ids.to(device)))
                if logits.shape[:2] != ids.shape or logits.dim() != 3:
                    raise CalibrationError(
                        f"the model returned {list(logits.shape)} for {list(ids.shape)} tokens, not the next tokens' "
                        "logits; it has to be a causal language model"
                    )
                likely = logits[:, -1].float().softmax(-1).cpu()
                ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], dim=1)
            found.append(ids.to(device))
    return found


def _noise(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise whose amplitudes fall with the frequency, as those of images do; mean 0 and variance 1."""
    noise = torch.randn(samples, *shape, generator=generator)
    if len(shape) > 1:
        places = tuple(range(2, 1 + len(shape)))
        squares = torch.zeros(())
        for size in shape[1:]:
            squares = squares.unsqueeze(-1) + torch.fft.fftfreq(size).square()
        lowest = 1 / max(shape[1:])
        noise = torch.fft.ifftn(torch.fft.fftn(noise, dim=places) / squares.sqrt().clamp_min(lowest), dim=places).real
        common = noise.mean(1, keepdim=True) * shape[0] ** 0.5
        noise = (1 - _CHANNELS) ** 0.5 * noise + _CHANNELS**0.5 * common
    others = tuple(place for place in range(noise.dim()) if place != 1)
    deviation = noise.std(others, correction=0, keepdim=True).clamp_min(1e-6)
    return (noise - noise.mean(others, keepdim=True)) / deviation


def _matched(
    model: nn.Module,
    norms: Sequence[_BatchNorm],
    inputs: Tensor,
    steps: int,
    forward: Callable[[nn.Module, Any], Any],
) -> Tensor:
    """``inputs`` after so many steps towards the statistics of the norms."""
    apart: list[Tensor] = []

    def look(norm: _BatchNorm, seen: Any) -> None:
        apart.append(_distance(norm, seen[0]))

    inputs = inputs.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([inputs], lr=_RATE)
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(look).remove)
        for _ in range(steps):
            apart.clear()
            outputs = forward(model, inputs)
            if not apart:
                raise CalibrationError("no batch norm was reached; look at shape and forward")
            loss = torch.stack(apart).mean() + _CLASSES * _sameness(running.output_of(outputs))
            if not bool(torch.isfinite(loss.detach())):
                raise CalibrationError("what reaches a batch norm is not finite; look at shape, or use model.float()")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return inputs.detach()


def _distance(norm: _BatchNorm, seen: Tensor) -> Tensor:
    """How far the mean and the variance of what a norm sees are from its own: squared, in its standard deviations."""
    seen = seen.float()
    others = [place for place in range(seen.dim()) if place != 1]
    mean, variance = seen.mean(others), seen.var(others, correction=0)
    expected_mean, expected_variance = _statistics(norm)
    apart = (mean - expected_mean).square() / (expected_variance + norm.eps)
    return (apart + (variance / (expected_variance + norm.eps) + _TINY).log().square()).mean()


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise CalibrationError("a batch norm keeps no statistics")
    return norm.running_mean.float(), norm.running_var.float()


def _sameness(outputs: Tensor) -> Tensor:
    """Little if every sample has one class and all classes occur: entropy of a sample's less that of the mean."""
    likely = outputs.float().reshape(-1, outputs.shape[-1]).softmax(-1)
    return _entropy(likely).mean() - _entropy(likely.mean(0))


def _entropy(likely: Tensor) -> Tensor:
    return -(likely * likely.clamp_min(1e-9).log()).sum(-1)
