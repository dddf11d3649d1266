"""Making weights zero while a model trains: ``deepcabac.torch.sparsify``. Needs torch.

Zeros cost next to nothing in a .dcb file and stay zeros in it, so a model that was made sparse first becomes several
times smaller at the same accuracy. Both methods fit into your own training loop.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Self

#: A weight whose noise is e^3 times its own size or more is of no use (Molchanov et al. 2017).
_LOG_ALPHA = 3.0


@overload
def sparsify(
    model: nn.Module,
    method: Literal["magnitude"] = "magnitude",
    *,
    sparsity: float | Mapping[str, float],
    steps: int,
    every: int = 100,
) -> MagnitudePruning: ...
@overload
def sparsify(
    model: nn.Module, method: Literal["variational"], *, samples: int, warm_up: int = 0
) -> VariationalDropout: ...
def sparsify(model: nn.Module, method: str = "magnitude", **settings: Any) -> MagnitudePruning | VariationalDropout:
    """Make the weights of a model sparse while it is trained, in a loop of your own.

    Magnitude pruning with fine-tuning, on a schedule::

        pruning = sparsify(model, sparsity=0.95, steps=8 * len(loader))
        for epoch in range(12):  # the last four with all zeros in place
            for inputs, labels in loader:
                optimizer.zero_grad()
                cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                pruning.step()  # after every step of the optimizer
        save_model(model, "model.dcb")

    Sparse variational dropout, which finds by itself how many weights are needed::

        with sparsify(model, "variational", samples=len(dataset), warm_up=5 * len(loader)) as dropout:
            optimizer.add_param_group({"params": dropout.parameters()})
            for ...:
                (cross_entropy(model(inputs), labels) + dropout.penalty()).backward()
                optimizer.step()
                dropout.step()
        # useless weights are zero now; to fine-tune the others:
        pruning = sparsify(model, sparsity=0, steps=1)

    Only the weights of Linear and convolution layers are pruned. Weights that are zero already stay zero. Settings: see
    :class:`MagnitudePruning` and :class:`VariationalDropout`. Raises :class:`OptionError`, :class:`UnsupportedError` (a
    model without such layers).
    """
    if method == "magnitude":
        return MagnitudePruning(model, **settings)
    if method == "variational":
        return VariationalDropout(model, **settings)
    raise OptionError(f"method must be magnitude or variational, not {method!r}")


class MagnitudePruning:
    """Makes more and more weights zero, the smallest first, and keeps them so.

    ``sparsity`` is the share of zeros at the end: a number for all layers together, or a mapping of name patterns to
    numbers, each for the weights that match. Among layers, weights compete by the share of their layer's energy that
    would be lost with them and all larger ones kept, ``w^2 / sum of squares of w and all larger`` (LAMP, Lee et al.
    2021), so that no layer loses all. ``steps`` is the number of calls of :meth:`step` until then; the share grows as
    ``sparsity (1 - (1 - t / steps)^3)`` (Zhu & Gupta 2017), anew every ``every`` steps.
    """

    def __init__(
        self, model: nn.Module, *, sparsity: float | Mapping[str, float], steps: int, every: int = 100
    ) -> None:
        for name, number in (("steps", steps), ("every", every)):
            if type(number) is not int or number < 1:
                raise OptionError(f"{name} must be a whole number of at least 1, not {number!r}")
        layers = {name: weight for name, _, weight in _layers(model)}
        shares = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
        self._groups: list[tuple[float, list[nn.Parameter]]] = []
        for pattern, share in shares.items():
            if isinstance(share, bool) or not (isinstance(share, (int, float)) and 0 <= share < 1):
                raise OptionError(f"sparsity must be at least 0 and below 1, not {share!r}")
            chosen = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
            if not chosen:
                raise OptionError(f"no layer's weight matches {pattern!r}, or only ones that have a sparsity already")
            self._groups.append((float(share), [layers.pop(name) for name in chosen]))
        self._groups.append((0.0, list(layers.values())))  # what is zero there stays zero too
        self._steps, self._every, self._done = steps, every, 0
        self._masks: list[tuple[nn.Parameter, Tensor]] = []
        self._prune()

    @property
    def sparsity(self) -> float:
        """The current share of zeros among the weights of all layers."""
        zeros = sum(int((mask == 0).sum()) for _, mask in self._masks)
        return zeros / sum(mask.numel() for _, mask in self._masks)

    def step(self) -> None:
        """Call this after every step of the optimizer."""
        self._done += 1
        if self._done <= self._steps and (self._done % self._every == 0 or self._done == self._steps):
            self._prune()
        else:
            self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)

    def _prune(self) -> None:
        left = 1 - min(self._done / self._steps, 1.0)
        self._apply()
        self._masks = []
        for share, weights in self._groups:
            now = share * (1 - left**3)
            scores = [_lamp(weight.detach().float()) for weight in weights]
            count = sum(score.numel() for score in scores)
            drop = round(now * count)
            if drop > 0:
                threshold = torch.cat([score.reshape(-1) for score in scores]).kthvalue(drop).values
                scores = [torch.where(score <= threshold, 0.0, score) for score in scores]
            self._masks += [(w, (score > 0).to(w.dtype)) for w, score in zip(weights, scores, strict=True)]
        self._apply()


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.reshape(-1).double().square()
    order = squares.argsort()
    larger = squares[order].flip(0).cumsum(0).flip(0)  # of it and all larger ones
    scores = torch.zeros_like(squares)
    scores[order] = squares[order] / larger.clamp_min(1e-300)
    return scores.reshape(weight.shape)


class VariationalDropout:
    """Sparse variational dropout (Molchanov, Ashukha & Vetrov 2017), in training mode.

    Each weight is a Gaussian, whose variance is trained too. Layers put out a random draw (local reparametrisation: the
    outputs' mean and variance are computed, not the weights drawn), and :meth:`penalty` is the divergence from the
    log-uniform prior for a loss that is a MEAN over samples: divided by ``samples``, the number of training samples,
    and raised from nothing over the first ``warm_up`` steps. In eval mode, layers use only useful weights:
    those with ``log(sigma^2 / w^2)`` below 3. :meth:`finish` makes the others zero for good.
    """

    def __init__(self, model: nn.Module, *, samples: int, warm_up: int = 0) -> None:
        if type(samples) is not int or samples < 1:
            raise OptionError(f"samples must be a whole number of at least 1, not {samples!r}")
        if type(warm_up) is not int or warm_up < 0:
            raise OptionError(f"warm_up must be a whole number of at least 0, not {warm_up!r}")
        self._samples, self._warm_up, self._done = samples, warm_up, 0
        self._layers: list[tuple[nn.Module, nn.Parameter, nn.Parameter]] = []
        for name, layer, weight in _layers(model):
            if "forward" in vars(layer):
                raise UnsupportedError(f"the layer of {name!r} has a forward of its own already")
            log_variance = nn.Parameter(torch.full_like(weight, -10.0))
            self._layers.append((layer, weight, log_variance))
        for layer, weight, log_variance in self._layers:
            layer.forward = _Noisy(layer, weight, log_variance)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Logarithms of the variances, for the optimizer; Adam suits them."""
        return (log_variance for _, _, log_variance in self._layers)

    def penalty(self) -> Tensor:
        """What to add to the loss, a scalar."""
        weight = min(1.0, (self._done + 1) / self._warm_up) if self._warm_up else 1.0
        return torch.stack([divergence(log_alpha(w, v)) for _, w, v in self._layers]).sum() * (weight / self._samples)

    def step(self) -> None:
        """Call this after every step of the optimizer."""
        self._done += 1
        with torch.no_grad():
            for log_variance in self.parameters():
                log_variance.clamp_(-20, 4)

    @property
    def sparsity(self) -> float:
        """The current share of useless weights."""
        useless = sum(int((log_alpha(w, v) >= _LOG_ALPHA).sum()) for _, w, v in self._layers)
        return useless / sum(w.numel() for _, w, _ in self._layers)

    def standard_deviations(self, model: nn.Module) -> dict[str, Any]:
        """Sigma of the layers' weights by name: float32 arrays. ``1 / sigma^2`` is an importance."""
        sigma = {id(w): (v.detach() / 2).exp().float().cpu().numpy() for _, w, v in self._layers}
        return {name: sigma[id(weight)] for name, _, weight in _layers(model) if id(weight) in sigma}

    def finish(self) -> None:
        """Make useless weights zero and restore the layers. Calling it twice does no harm."""
        with torch.no_grad():
            for layer, weight, log_variance in self._layers:
                if isinstance(vars(layer).get("forward"), _Noisy):
                    weight.mul_(log_alpha(weight, log_variance) < _LOG_ALPHA)
                    del layer.forward

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class _Noisy:
    """The forward of a layer whose weights are Gaussians."""

    def __init__(self, layer: nn.Module, weight: nn.Parameter, log_variance: nn.Parameter) -> None:
        self._layer, self._weight, self._log_variance = layer, weight, log_variance

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self._layer
        if not layer.training:
            useful = log_alpha(self._weight, self._log_variance) < _LOG_ALPHA
            return self._apply(x, self._weight * useful, layer.bias)
        mean = self._apply(x, self._weight, layer.bias)
        variance = self._apply(x * x, self._log_variance.exp(), None)
        return mean + (variance.clamp_min(0) + 1e-8).sqrt() * torch.randn_like(mean)

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self._layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, bias)
        outputs: Tensor = layer._conv_forward(x, weight, bias)
        return outputs


def log_alpha(weight: Tensor, log_variance: Tensor) -> Tensor:
    """``log(sigma^2 / w^2)`` of each weight, between -10 and 10."""
    return (log_variance - (weight * weight + 1e-16).log()).clamp(-10, 10)


def divergence(log_alpha: Tensor) -> Tensor:
    """KL(q || log-uniform prior), summed, up to a constant (equation 14 of Molchanov et al. 2017)."""
    return -(0.63576 * torch.sigmoid(1.87320 + 1.48695 * log_alpha) - 0.5 * functional.softplus(-log_alpha)).sum()


def _layers(model: nn.Module) -> list[tuple[str, nn.Module, nn.Parameter]]:
    """Linear and convolution layers with their weights and the weights' names; a tied weight once."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    found: dict[int, tuple[str, nn.Module, nn.Parameter]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and weight is not None:
            found.setdefault(id(weight), (f"{name}.weight" if name else "weight", module, weight))
    if not found:
        raise UnsupportedError("the model has no Linear or convolution layer with a weight of its own to make sparse")
    return list(found.values())
