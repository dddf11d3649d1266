"""How much each single weight matters: a diagonal Fisher matrix, or standard deviations trained for it. Needs torch.

``fisher`` gives what :attr:`deepcabac.Options.importance` takes; ``variational`` gives sigma, and 1 / sigma^2 is an
importance. ``calibrate`` knows more than a diagonal and makes smaller files; these are what DeepCABAC (Wiedemann et
al. 2020) weights errors by.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.base import Float32
from ..errors import CalibrationError, OptionError
from . import running
from .sparsity import divergence, log_alpha

Forward = Callable[[nn.Module, Any], Any]


def fisher(
    model: nn.Module,
    batches: Iterable[Any],
    loss: running.Loss = "likelihood",
    *,
    forward: Forward | None = None,
    draws: int = 1,
    seed: int = 0,
) -> dict[str, Float32]:
    """The diagonal of the Fisher matrix: for each weight the mean over samples of its squared gradient.

    ``batches``, ``forward``, ``draws`` and ``seed`` are as for :func:`calibrate`, and so is ``loss``: "likelihood" (the
    Fisher matrix itself: labels are drawn from the model's prediction), "outputs" or "logits" (the Gauss-Newton matrix
    of their squared change), or a function of ``(outputs, batch)``. That function returns the loss of each sample, [n];
    then gradients of samples get random signs, so that the square of a batch's gradient has the sum of their squares as
    its mean (a scalar, the sum over samples, is right only for batches of one, or if labels are drawn).

    Returns float32 arrays like the parameters, by their names in the state dict. Parameters that no sample reached are
    left out, with a warning. The model runs in eval mode and is left as it was.

    Raises :class:`CalibrationError` (no samples, or what is not finite), :class:`OptionError`, and whatever the model
    raises.
    """
    if loss is None:
        loss = "likelihood"
    if loss not in running.LOSSES and not callable(loss):
        raise OptionError(f"loss must be one of {', '.join(running.LOSSES)} or a function, not {loss!r}")
    if type(draws) is not int or draws < 1:
        raise OptionError(f"draws must be a whole number of at least 1, not {draws!r}")
    measured = _signed(loss) if callable(loss) else loss
    sampling = running.Sampling(measured, forward or running.forward, draws, seed, None)
    parameters = _parameters(model)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    samples = 0
    with running.as_it_was(model):
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        device = next(iter(parameters.values())).device
        for number, batch in enumerate(batches):
            batch = running.moved(batch, device)
            torch.manual_seed(sampling.derived(1, number))
            outputs = sampling.forward(model, batch)
            samples += running.samples_in(batch) or running.samples_in(outputs) or 1
            for draw in range(draws):
                if not running.backward(outputs, batch, sampling, number, draw):
                    running.blame(model, batch, sampling, f"the output in batch {number}")
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        sums[name] += parameter.grad.float().square()
                        parameter.grad = None
    if samples == 0:
        raise CalibrationError("batches gave no samples; give some hundred")
    found = {name: (total / (samples * draws)).cpu().numpy() for name, total in sums.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise CalibrationError(f"the gradients of {name!r} are not finite; use model.float(), and look at the loss")
    return _reached(found)


def variational(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    *,
    samples: int | None = None,
    passes: int = 3,
    learning_rate: float = 0.1,
    forward: Forward | None = None,
    seed: int = 0,
) -> dict[str, Float32]:
    """Standard deviations of the weights' posterior, trained with the means fixed at what the weights are.

    The posterior is a Gaussian for each weight, q(w) = N(mean, sigma^2). Maximised over sigma is the variational
    bound ::

        -samples * E_q[loss(w)] - KL(q || prior),  with the log-uniform prior p(|w|) ~ 1 / |w|,

    whose divergence depends on alpha = sigma^2 / mean^2 alone. It is approximated as in Molchanov et al. 2017 (equation
    14): ``-KL = 0.63576 sigmoid(1.87320 + 1.48695 log alpha) - 0.5 log(1 + 1 / alpha)`` up to a constant. The
    expectation is that of one draw a batch, ``w = mean + sigma * noise`` (Kingma & Welling 2014), and sigma starts
    where bound and curvature balance, ``1 / sqrt(samples * F)``.

    ``batches`` (iterated ``passes`` times, and once more for F, so not a generator) are as for :func:`calibrate`.
    ``loss`` is a function of ``(outputs, batch)`` that returns the MEAN negative log-likelihood of the batch.
    ``samples`` is the number of samples that the model was trained on, by default that of ``batches``.
    ``learning_rate`` is Adam's, for log sigma, and falls to zero.

    Returns float32 arrays like the parameters, all above zero, by their names in the state dict. Sigma is at most the
    root mean square of its tensor. The model runs in eval mode and is left as it was.

    To compress by them, make them an importance; the paper's own rule is in :mod:`deepcabac.dc2019`::

        sigma = variational(model, batches, loss)
        importance = {name: 1 / np.square(values) for name, values in sigma.items()}
        save_model(model, "model.dcb", bits=3, importance=importance)

    Raises :class:`CalibrationError`, :class:`OptionError` and whatever the model raises.
    """
    if isinstance(batches, Iterator):
        raise OptionError("batches are iterated several times; give a list or a DataLoader, not a generator")
    if not callable(loss):
        raise OptionError(f"loss must be a function of outputs and batch, not {loss!r}")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise OptionError(f"samples must be a whole number of at least 1, not {samples!r}")
    if type(passes) is not int or passes < 1:
        raise OptionError(f"passes must be a whole number of at least 1, not {passes!r}")
    if not (isinstance(learning_rate, (int, float)) and 0 < learning_rate <= 1):
        raise OptionError(f"learning_rate must be above 0 and at most 1, not {learning_rate!r}")
    counts = [running.samples_in(batch) for batch in batches]

    def summed(outputs: Any, batch: Any) -> Tensor:
        return loss(outputs, batch) * running.samples_in(batch)

    # Squares of whole batches' gradients: near a minimum the mean gradient hardly counts, and this is a start only.
    start = fisher(model, batches, summed, forward=forward, seed=seed)
    total = sum(counts) if samples is None else samples
    run = forward or running.forward
    parameters = {name: parameter for name, parameter in _parameters(model).items() if name in start}
    largest = {n: max(float(p.detach().float().square().mean().sqrt()), 1e-12) for n, p in parameters.items()}
    logs = {}
    for name, parameter in parameters.items():
        curvature = torch.from_numpy(start[name]).to(parameter.device)
        floor = 1e-8 * curvature.mean().clamp_min(1e-30)
        sigma = (1 / (total * curvature.clamp_min(floor))).sqrt().clamp(1e-6 * largest[name], largest[name])
        logs[name] = sigma.log().requires_grad_(True)
    optimizer = torch.optim.Adam(logs.values(), lr=learning_rate)
    steps, step = passes * len(counts), 0
    with running.as_it_was(model), torch.random.fork_rng([]):
        torch.manual_seed(seed)
        device = next(iter(parameters.values())).device
        for _ in range(passes):
            for batch in batches:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                batch = running.moved(batch, device)
                noisy = {
                    name: parameter.detach() + log.exp().to(parameter.dtype) * torch.randn_like(parameter)
                    for (name, parameter), log in zip(parameters.items(), logs.values(), strict=True)
                }
                outputs = run(_Replaced(model, noisy), batch)
                penalty = sum(
                    divergence(log_alpha(parameter.detach().float(), 2 * log))
                    for log, parameter in zip(logs.values(), parameters.values(), strict=True)
                )
                cost = loss(outputs, batch) + penalty / total
                if not bool(torch.isfinite(cost.detach())):
                    raise CalibrationError(f"the loss is not finite in step {step}; give a smaller learning_rate")
                optimizer.zero_grad()
                cost.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    for name, log in logs.items():
                        log.clamp_(math.log(1e-6 * largest[name]), math.log(largest[name]))
                step += 1
    return {name: log.detach().exp().float().cpu().numpy() for name, log in logs.items()}


class _Replaced(nn.Module):
    """A model that runs with other tensors in place of its parameters."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        # Not registered: it keeps its parameters.
        self.__dict__["run"] = partial(torch.func.functional_call, model, tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["run"](args, kwargs)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of floating point by their names in the state dict; of tied ones the first."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter) and value.is_floating_point():
            if value.is_meta:
                raise OptionError(f"the model's {name} is on the meta device and has no values; load it first")
            found.setdefault(id(value), (name, value))
    if not found:
        raise OptionError("the model has no parameters of floating point")
    return dict(found.values())


def _signed(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The sum of losses, each with a random sign."""

    def value(outputs: Any, batch: Any) -> Tensor:
        losses = loss(outputs, batch)
        if isinstance(losses, Tensor) and losses.dim() == 1:
            return (losses * (torch.randint(0, 2, losses.shape) * 2 - 1).to(losses)).sum()
        return losses

    return value


def _reached(found: dict[str, Float32]) -> dict[str, Float32]:
    unreached = [name for name, values in found.items() if not values.any()]
    if len(unreached) == len(found):
        raise CalibrationError("no parameter had a gradient: the loss does not depend on any")
    if unreached:
        warnings.warn(f"no sample reached {', '.join(unreached[:5])}", stacklevel=3)
    return {name: values for name, values in found.items() if name not in unreached}
