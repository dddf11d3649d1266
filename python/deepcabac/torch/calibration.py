"""Measures how much a change of each weight hurts, with a few samples: ``deepcabac.torch.calibrate``. Needs torch.

A change D of the weights raises the loss by about D^T F D / 2, where F is the mean over samples of the gradient's outer
product with itself (the Fisher matrix, or the Gauss-Newton matrix of the outputs). For a layer that multiplies inputs a
by a matrix, the gradient at one position is g a^T, g being the gradient at the layer's output, and F is replaced by
the Kronecker product of the sums of g g^T and of a a^T (K-FAC, Martens & Grosse 2015). Both are collected by hooks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn import grad as gradients

from ..atomic import AtomicFile
from ..checkpoint.base import parse_json
from ..curvature import Curvature, Factors
from ..errors import CalibrationError, CheckpointError, OptionError, naming

#: Positions of a convolution that enter its columns, from each sample, at most: neighbours are much alike.
POSITIONS = 128
#: Sides of factors above this many rows or columns are not collected: 8192 squared in float32, twice, is 512 MiB.
LARGEST = 8192
#: Fewer samples than this are worth a note.
FEW_SAMPLES = 32
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LOSSES = ("outputs", "logits", "likelihood")

Loss = str | Callable[[Any, Any], Tensor] | None


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    draws: int = 1,
    seed: int = 0,
    positions: int | None = None,
    largest: int = LARGEST,
    layers_at_once: int | None = None,
    max_memory: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Curvature:
    """Measure with samples how much a change of each weight of ``model`` hurts. A few hundred samples are plenty.

    ``batches`` gives what the model takes: a tensor, called as ``model(batch)``; a tuple or list, ``model(*batch)``; a
    dict, ``model(**batch)``. For anything else there is ``forward``: with pairs of inputs and labels,
    ``forward=lambda model, batch: model(batch[0])``. The leading dimension of a batch's first tensor counts samples,
    which must not depend on each other. Tensors are moved to the device of the model's first parameter.

    ``loss`` says what hurts:

    - None or "outputs": the squared change of the outputs, summed. The output is the tensor that the model returns, or
      of several its ``logits``, its ``last_hidden_state``, or the first of floating point.
    - "logits": the same after subtracting the mean over the last dimension, which a softmax would ignore.
    - "likelihood": the Kullback-Leibler divergence of the predicted classes: the last dimension holds logits, and at
      each position a label is drawn from them. (Move the classes of a segmentation there, with ``forward``.)
    - a function of ``(outputs, batch)`` that returns a scalar: a negative log-likelihood, the SUM over samples, best
      with labels drawn from the model's own prediction, else with the true ones.

    ``draws`` is the number of random directions (or labels) for each batch, ``seed`` fixes them: the same seed gives
    the same values on the same machine and number of threads (on a GPU with ``torch.use_deterministic_algorithms``).
    ``positions`` limits, for each sample, the positions of a convolution from which columns are collected: by default
    to 128, or to the number of columns, but at least 32.

    Linear, convolution and embedding layers get factors; every other parameter with a gradient gets the mean square of
    its gradients, and so do layers with more than ``largest`` columns. (More rows than that, as in a layer that
    predicts words: the diagonal of the rows.) Parameters of which nothing depends on the samples are in
    ``Curvature.unreached``. What weakens the result is in ``Curvature.notes``, and in a warning.

    Factors take 8 bytes for each of rows^2 + columns^2. If that is too much at once, ``layers_at_once`` (a number) or
    ``max_memory`` (bytes) splits the layers into groups, and ``batches`` is gone through once for each. The model
    computes in its own dtype, sums are of float32.

    ``checkpoint`` names a file that keeps what is done, group by group; called again after an interruption with the
    same model and arguments, ``calibrate`` goes on behind the last finished group. In the end it is a file for
    :meth:`Curvature.load`, and the result reads from it.

    The model runs in eval mode and is left as it was, also after an error.

    Raises :class:`CalibrationError` (values that are not finite, no samples, an output without gradient),
    :class:`OptionError`, :class:`CheckpointError` (``checkpoint`` cannot be written or is of another calibration), and
    whatever the model itself raises.
    """
    _check_options(model, batches, loss, forward, draws, seed, positions, largest, layers_at_once, max_memory)
    settings = _Settings("outputs" if loss is None else loss, forward or _forward, draws, seed, positions)
    progress = _Progress()
    weights = _find_weights(model, largest, max_memory, progress.notes)
    groups = _groups(weights, layers_at_once, max_memory)
    if len(groups) > 1 and isinstance(batches, Iterator):
        raise OptionError(
            f"batches can be gone through once and {len(groups)} times are needed; give a list or a DataLoader, or "
            "raise layers_at_once or max_memory"
        )
    order = [name for name in model.state_dict(keep_vars=True) if isinstance(name, str)]
    parts: list[Curvature] = []
    label = ""
    if checkpoint is not None:
        label = _fingerprint(model, groups, settings, largest)
        if Path(checkpoint).exists():
            held, metadata = Curvature.open_any(checkpoint)
            if metadata.get("calibration") != label:
                held.close()
                raise CheckpointError(
                    f"{checkpoint}: is of another model or other arguments; delete it or name another checkpoint"
                )
            if "unfinished" not in metadata:
                return held
            parts = [held]
            with naming(str(checkpoint)):
                progress = _Progress.of(metadata["unfinished"])
        else:
            AtomicFile(Path(checkpoint)).abort()  # a place that cannot be written to is said now, not in an hour

    with _as_it_was(model):
        for number in range(progress.done, len(groups)):
            found = _run(model, batches, groups[number], settings, progress)
            progress.done = number + 1
            parts.append(Curvature(found, samples=progress.samples, loss=settings.name))
            if checkpoint is not None and progress.done < len(groups):
                parts = [_write(parts, order, settings, progress, Path(checkpoint), label)]
    if not any(len(part) for part in parts):
        raise CalibrationError(
            "no parameter had a gradient: the output does not depend on any, or was computed without gradients "
            "(torch.no_grad or detach in the model)"
        )
    parts.append(_statistics(model, parts, settings, progress))
    notes = _all_notes(progress)
    result = Curvature.joined(parts, order, samples=progress.samples, loss=settings.name)
    result.notes, result.unreached = tuple(notes), tuple(name for name in order if name in set(progress.unreached))
    if checkpoint is not None:
        result.write(checkpoint, {"calibration": label})
        for part in parts:
            part.close()
        result = Curvature.load(checkpoint)
    if result.unreached:
        notes = [*notes, f"the samples reached {_listed(result.unreached)} not at all"]
    if notes:
        warnings.warn(f"calibration: {'; '.join(notes)}", stacklevel=2)
    return result


def _check_options(
    model: Any,
    batches: Any,
    loss: Any,
    forward: Any,
    draws: Any,
    seed: Any,
    positions: Any,
    largest: Any,
    layers_at_once: Any,
    max_memory: Any,
) -> None:
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise OptionError(f"batches must be a list or another iterable of batches, not one {type(batches).__name__}")
    if loss is not None and loss not in _LOSSES and not callable(loss):
        raise OptionError(f"loss must be one of {', '.join(_LOSSES)} or a function, not {loss!r}")
    if forward is not None and not callable(forward):
        raise OptionError(f"forward must be a function of the model and a batch, not {forward!r}")
    numbers = {"draws": draws, "positions": positions, "largest": largest}
    numbers |= {"layers_at_once": layers_at_once, "max_memory": max_memory}
    for name, value in numbers.items():
        optional = name in ("positions", "layers_at_once", "max_memory")
        if not (optional and value is None) and (type(value) is not int or value < 1):
            raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
    if type(seed) is not int or seed < 0:
        raise OptionError(f"seed must be a whole number of at least 0, not {seed!r}")


@dataclass(frozen=True)
class _Settings:
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


@dataclass
class _Progress:
    """What is known besides the factors; it goes into the checkpoint."""

    done: int = 0  #: finished groups
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    few: list[list[Any]] = field(default_factory=list)  #: [name, positions, columns] of layers with too few positions

    @classmethod
    def of(cls, text: str) -> _Progress:
        value = parse_json(text.encode(), "the state of the calibration", CheckpointError)
        if not isinstance(value, dict) or value.keys() != asdict(cls()).keys() or type(value["done"]) is not int:
            raise CheckpointError("the state of the calibration is damaged; delete the file")
        return cls(**value)


class _Use:
    """A layer that uses a weight as a matrix, and the sums collected from it."""

    def __init__(self, name: str, number: int, module: nn.Module, weight: Tensor, largest: int) -> None:
        self.name, self.number, self.module = name, number, module
        self.groups = int(module.groups) if isinstance(module, _CONVOLUTIONS) else 1
        self.r, self.d = weight.shape[0], math.prod(weight.shape[1:])
        if isinstance(module, nn.Embedding):
            self.row_shape: tuple[int, ...] = (self.r,)
        elif self.groups > 1:
            self.row_shape = ()  # from the weight's own gradient
        else:
            self.row_shape = (2, self.r, self.r) if self.r <= largest else (self.r,)
        self.columns: Tensor | None = None  #: [2, groups, d, d]
        self.rows: Tensor | None = None  #: of ``row_shape``
        self.positions = 0
        self.trace = 0.0  #: sum over batches of the squared norm of this use's part of the gradient
        self.part: Tensor | None = None  #: of the gradient in this batch

    @property
    def nbytes(self) -> int:
        """Bytes of the sums, and of ``part``."""
        rows = math.prod(self.row_shape) if self.row_shape else 0
        return 4 * (2 * self.groups * self.d**2 + rows + self.r * self.d)

    def start(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The sums, made when the layer is first reached, on the device where it is computed."""
        if self.columns is None:
            self.columns = torch.zeros(2, self.groups, self.d, self.d, device=device)
            if self.row_shape:
                self.rows = torch.zeros(self.row_shape, device=device)
        return self.columns, self.rows

    def drop(self) -> None:
        self.columns = self.rows = self.part = None


@dataclass(eq=False)
class _Weight:
    """A parameter, with all its names."""

    parameter: nn.Parameter
    names: list[str] = field(default_factory=list)
    uses: list[_Use] = field(default_factory=list)
    trusted: bool = False  #: the gradient was seen to be what the uses explain
    reached: bool = False
    squares: float = 0.0  #: sum over batches of the gradient's squared norm
    row_squares: Tensor | None = None  #: [r], likewise for each row
    diagonal: Tensor | None = None  #: likewise for each element

    @property
    def nbytes(self) -> int:
        return sum(use.nbytes for use in self.uses) if self.uses else 4 * self.parameter.numel()


def _find_weights(model: nn.Module, largest: int, max_memory: int | None, notes: list[str]) -> list[_Weight]:
    """All parameters of floating point, in the state dict's order, and the layers that use them."""
    weights: dict[int, _Weight] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter) and value.is_floating_point():
            if value.is_meta:
                raise OptionError(f"the model's {name} is on the meta device and has no values; load it first")
            weights.setdefault(id(value), _Weight(value)).names.append(name)
    if not weights:
        raise OptionError("the model has no parameters of floating point to calibrate")
    for number, (name, module) in enumerate(model.named_modules()):
        # From _parameters, since with a parametrization module.weight is made anew from other parameters each time.
        weight = weights.get(id(module._parameters.get("weight")))
        if weight is not None and isinstance(module, (nn.Linear, nn.Embedding, *_CONVOLUTIONS)):
            weight.uses.append(_Use(name or "the model", number, module, weight.parameter, largest))
    for weight in weights.values():
        why = ""
        if weight.uses and weight.uses[0].d > largest:
            why = f"it has more than {largest} columns"
        elif len({use.groups for use in weight.uses}) > 1:
            why = "layers with different groups share it"
        elif max_memory is not None and weight.uses and weight.nbytes > max_memory:
            why = f"its factors alone would take {weight.nbytes} bytes of memory"
        if why:
            _give_up(weight, why, notes)
    return list(weights.values())


def _give_up(weight: _Weight, why: str, notes: list[str]) -> None:
    """Let a weight have its diagonal only."""
    notes.append(f"{weight.names[0]} has a diagonal instead of factors, since {why}")
    for use in weight.uses:
        use.drop()
    weight.uses = []


def _groups(weights: list[_Weight], layers_at_once: int | None, max_memory: int | None) -> list[list[_Weight]]:
    groups: list[list[_Weight]] = [[]]
    layers = nbytes = 0
    for weight in weights:
        layers += bool(weight.uses)
        nbytes += weight.nbytes
        too_many = layers_at_once is not None and layers > layers_at_once
        if groups[-1] and (too_many or (max_memory is not None and nbytes > max_memory)):
            groups.append([])
            layers, nbytes = int(bool(weight.uses)), weight.nbytes
        groups[-1].append(weight)
    return groups


def _fingerprint(model: nn.Module, groups: list[list[_Weight]], settings: _Settings, largest: int) -> str:
    """What must be the same for a checkpoint to be continued."""
    digest = hashlib.sha256()
    for weight in itertools.chain.from_iterable(groups):
        value = weight.parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        layers = [use.name for use in weight.uses]
        digest.update(repr((weight.names, list(weight.parameter.shape), layers, zlib.crc32(value.data))).encode())
    chosen = (settings.name, settings.draws, settings.seed, settings.positions, largest, [len(g) for g in groups])
    digest.update(repr(chosen).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
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


def _run(
    model: nn.Module, batches: Iterable[Any], group: list[_Weight], settings: _Settings, progress: _Progress
) -> dict[str, Factors]:
    """Go through all batches once for the weights of ``group``; their factors, by name."""
    collector = _Collector(settings)
    device = next(model.parameters()).device
    count = 0
    with contextlib.ExitStack() as stack:
        for weight in group:
            weight.parameter.requires_grad_(True)
            stack.callback(weight.parameter.requires_grad_, False)
            for use in weight.uses:
                hook = partial(collector.watch, weight, use)
                stack.callback(use.module.register_forward_hook(hook, with_kwargs=True).remove)
        torch.manual_seed(settings.derived(0))  # a DataLoader that shuffles does so alike in every pass
        for number, batch in enumerate(batches):
            batch = _moved(batch, device)
            torch.manual_seed(settings.derived(1, number))
            outputs = settings.forward(model, batch)
            collector.batch = number
            collector.samples = _count(batch) or _count(outputs) or 1
            count += collector.samples
            for draw in range(settings.draws):
                collector.draw = draw
                collector.visited = []
                if not _backward(outputs, batch, settings, number, draw):
                    _blame(model, batch, settings, f"the output in batch {number}")
                _add_gradients(model, batch, group, collector, progress)
    if count < 2:
        problem = "batches gave no samples" if count == 0 else "batches gave one sample, and two halves are compared"
        raise CalibrationError(f"{problem}; give some hundred, and at least 2")
    if progress.samples not in (0, count):
        raise CalibrationError(f"batches gave {progress.samples} samples in one pass and {count} in another")
    progress.samples = count
    found: dict[str, Factors] = {}
    for weight in group:
        if not weight.reached:
            progress.unreached += weight.names
            continue
        result = _finish(weight, count * settings.draws, settings.draws, progress)
        found.update((name, result) for name in weight.names)
        for use in weight.uses:
            use.drop()
        weight.diagonal = weight.row_squares = None
    return found


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _moved(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict) or (isinstance(batch, Mapping) and not hasattr(batch, "to")):
        return {key: _moved(value, device) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_moved(value, device) for value in batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, Mapping):  # such as the BatchEncoding of a tokenizer
        moved: Any = batch
        return moved.to(device)
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _count(value: Any) -> int:
    """The number of samples: the leading dimension of the first tensor; 0 without a tensor."""
    first = next(_tensors(value), None)
    return 0 if first is None else 1 if first.dim() == 0 else first.shape[0]


def _output(outputs: Any) -> Tensor:
    """The tensor whose change hurts."""
    if isinstance(outputs, Tensor):
        found: Any = outputs
    else:
        found = None
        for name in ("logits", "last_hidden_state"):
            if found is None:
                found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if not isinstance(found, Tensor):
            found = next((tensor for tensor in _tensors(outputs) if tensor.is_floating_point()), None)
    if found is None or not found.is_floating_point():
        raise CalibrationError(
            f"the model's output, {type(outputs).__name__}, has no tensor of floating point; choose with forward= what "
            "to return, or give a loss of your own"
        )
    output: Tensor = found
    return output


def _backward(outputs: Any, batch: Any, settings: _Settings, number: int, draw: int) -> bool:
    """Send a random direction, or the loss's gradient, back through the model. Returns False if it is not finite."""
    again = draw + 1 < settings.draws
    seed = settings.derived(2, number, draw)
    if callable(settings.loss):
        torch.manual_seed(seed)
        value = settings.loss(outputs, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise OptionError("the loss function must return a scalar tensor: the sum over samples")
    else:
        output = _output(outputs)
        if not bool(torch.isfinite(output.detach()).all()):
            return False
        generator = torch.Generator().manual_seed(seed)
        classes = output.shape[-1] if output.dim() else 1
        if settings.loss != "outputs" and classes < 2:
            raise OptionError(f"loss={settings.loss!r} needs logits of two or more classes in the last dimension")
        if settings.loss == "likelihood":
            logits = output.reshape(-1, classes).float()
            sums = logits.detach().softmax(-1).cumsum(-1)
            drawn = torch.rand(len(logits), 1, generator=generator).to(output.device) * sums[:, -1:]
            labels = torch.searchsorted(sums, drawn, right=True).clamp_(max=classes - 1).squeeze(1)
            value = functional.cross_entropy(logits, labels, reduction="sum")
        else:
            direction = torch.randn(output.shape, generator=generator).to(output.device)
            if settings.loss == "logits":
                direction -= direction.mean(-1, keepdim=True)
            value = (output.float() * direction).sum()
    if not bool(torch.isfinite(value.detach()).all()):
        return False
    if value.requires_grad:  # else nothing of this group was used, which shows as unreached
        value.backward(retain_graph=again)  # type: ignore[no-untyped-call]
    return True


def _blame(model: nn.Module, batch: Any, settings: _Settings, what: str) -> None:
    """Raise CalibrationError that names the first module with an output that is not finite, else says ``what``."""
    found: list[tuple[str, bool]] = []

    def look(name: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        def finite(value: Any) -> bool:
            return all(bool(torch.isfinite(t).all()) for t in _tensors(value) if t.is_floating_point())

        if not found and not finite(outputs):
            found.append((name or "the model", finite(inputs)))

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(look, name)).remove)
        settings.forward(model, batch)
    if found:
        name, from_finite = found[0]
        source = "from inputs that are" if from_finite else "and its inputs are not either: look at the batches"
        raise CalibrationError(f"module {name!r} gives values that are not finite, {source} ({what})")
    raise CalibrationError(f"{what} is not finite; use model.float(), and look at the loss and the samples")


class _Collector:
    """Takes what passes through the layers: the hooks."""

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self.batch = 0
        self.draw = 0
        self.samples = 1  #: in this batch
        self.visited: list[_Weight] = []  #: in the order of the way back
        self.problems: dict[_Weight, str] = {}

    def watch(
        self, weight: _Weight, use: _Use, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """The hook behind a layer. Everything is collected on the way back, which recomputation does not double."""
        inputs = args[0] if args else kwargs.get("input")
        if isinstance(output, Tensor) and isinstance(inputs, Tensor) and output.requires_grad:
            output.register_hook(partial(self.collect, weight, use, inputs.detach()))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def collect(self, weight: _Weight, use: _Use, a: Tensor, g: Tensor) -> None:
        """The hook on a layer's output: ``a`` came in, ``g`` is the gradient at what came out."""
        self.visited.append(weight)
        if use not in weight.uses or weight in self.problems:
            return
        if isinstance(use.module, nn.Linear):
            part = self._linear(weight, use, a, g)
        elif isinstance(use.module, nn.Embedding):
            part = self._embedding(weight, use, a, g)
        else:
            part = self._convolution(weight, use, a, g)
        if part is not None:
            use.part = part if use.part is None else use.part.add_(part)

    def _halves(self, x: Tensor, channels_last: bool = True) -> Iterator[tuple[int, Tensor]]:
        """(fold, its samples) of a tensor whose leading dimension counts samples, or samples times something."""
        if channels_last and x.dim() >= 3 and x.shape[0] != self.samples and x.shape[1] == self.samples:
            x = x.transpose(0, 1)  # sequences come first
        if self.samples == 1 or x.shape[0] == 1:
            yield self.batch % 2, x
            return
        if x.shape[0] > self.samples and x.shape[0] % self.samples == 0:
            x = x.reshape(self.samples, -1, *x.shape[1:])  # several windows, or positions, of each sample
            if not channels_last:
                yield 0, x[0::2].flatten(0, 1)
                yield 1, x[1::2].flatten(0, 1)
                return
        yield 0, x[0::2]
        yield 1, x[1::2]

    def _wants_part(self, weight: _Weight) -> bool:
        return not weight.trusted or len(weight.uses) > 1

    def _linear(self, weight: _Weight, use: _Use, a: Tensor, g: Tensor) -> Tensor | None:
        a, g = (a[None], g[None]) if a.dim() == 1 else (a, g)
        columns, rows = use.start(g.device)
        if self.draw == 0:
            use.positions += a.numel() // use.d
            for fold, half in self._halves(a):
                half = half.reshape(-1, use.d).float()
                columns[fold, 0].addmm_(half.T, half)
        self._rows(rows, self._halves(g), use.r)
        if not self._wants_part(weight):
            return None
        return g.reshape(-1, use.r).float().T @ a.reshape(-1, use.d).float()

    def _rows(self, rows: Tensor | None, halves: Iterator[tuple[int, Tensor]], r: int) -> None:
        if rows is None:
            return
        for fold, half in halves:
            half = half.reshape(-1, r).float()
            if rows.dim() == 1:
                rows += half.square().sum(0)
            else:
                rows[fold].addmm_(half.T, half)

    def _embedding(self, weight: _Weight, use: _Use, tokens: Tensor, g: Tensor) -> Tensor | None:
        tokens, g = (tokens[None], g[None]) if tokens.dim() == 0 else (tokens, g)
        columns, rows = use.start(g.device)
        counted = tokens.reshape(-1)
        padding = use.module.padding_idx
        if isinstance(padding, int):  # which gets no gradient
            g = g * (tokens != padding).unsqueeze(-1)
            counted = counted[counted != padding]
        for fold, half in self._halves(g):
            half = half.reshape(-1, use.d).float()
            columns[fold, 0].addmm_(half.T, half)
        if self.draw == 0:
            use.positions += counted.numel()
            assert rows is not None
            rows += torch.bincount(counted, minlength=use.r)
        if not self._wants_part(weight):
            return None
        flat = g.reshape(-1, use.d).float()
        return torch.zeros(use.r, use.d, device=g.device).index_add_(0, tokens.reshape(-1), flat)

    def _convolution(self, weight: _Weight, use: _Use, a: Tensor, g: Tensor) -> Tensor | None:
        module: Any = use.module
        sides = len(module.kernel_size)
        if a.dim() == sides + 1:
            a, g = a[None], g[None]
        padded = _padded(module, a, g.shape[2:])
        if padded is None:
            self.problems[weight] = f"the padding of module {use.name!r} does not follow from its sizes"
            return None
        columns, rows = use.start(g.device)
        if self.draw == 0:
            places = math.prod(g.shape[2:])
            chosen = np.arange(places)
            # A depthwise kernel of 9 columns needs fewer to be known as well as a matrix of hundreds.
            enough = self.settings.positions or min(POSITIONS, max(POSITIONS // 4, use.d))
            if places > enough:
                random = np.random.default_rng([self.settings.seed, 3, use.number, self.batch])
                chosen = np.sort(random.choice(places, enough, replace=False))
            use.positions += len(a) * len(chosen)
            index = torch.from_numpy(np.stack(np.unravel_index(chosen, tuple(g.shape[2:])))).to(a.device)
            for fold, half in self._halves(padded, channels_last=False):
                patches = _patches(module, half, g.shape[2:], index, use.groups)
                columns[fold].baddbmm_(patches.transpose(1, 2), patches, alpha=places / len(chosen))
        if rows is not None:
            for fold, half in self._halves(g, channels_last=False):
                half = half.flatten(2).float()
                if rows.dim() == 3 and half.shape[2] >= use.r:
                    for one in half:  # as it lies in memory: turning a long one around would take longer
                        rows[fold].addmm_(one, one.T)
                else:
                    self._rows(rows, iter([(fold, half.movedim(1, -1))]), use.r)
        if not self._wants_part(weight):
            return None
        gradient: Any = (gradients.conv1d_weight, gradients.conv2d_weight, gradients.conv3d_weight)[sides - 1]
        shape = weight.parameter.shape
        part: Tensor = gradient(
            padded.float(), shape, g.float(), stride=module.stride, dilation=module.dilation, groups=module.groups
        )
        return part.reshape(use.r, use.d)


def _padded(module: Any, a: Tensor, out: Sequence[int]) -> Tensor | None:
    """The input [n, channels, ...] of a convolution with its padding, so that an output of size ``out`` results.

    A module whose forward pads by itself is given the least padding that gives this size, the smaller half in front,
    as TensorFlow's SAME does. None if there is no such padding.
    """
    reach = [step * (side - 1) for step, side in zip(module.dilation, module.kernel_size, strict=True)]
    if isinstance(module.padding, str):
        both = [(far // 2, far - far // 2) if module.padding == "same" else (0, 0) for far in reach]
    else:
        both = [(side, side) for side in module.padding]
    sizes = a.shape[2:]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    plain = [
        (size + before + behind - far - 1) // stride + 1
        for size, (before, behind), far, stride in zip(sizes, both, reach, module.stride, strict=True)
    ]
    if plain != list(out):
        totals = [
            (wanted - 1) * stride + far + 1 - size
            for size, wanted, far, stride in zip(sizes, out, reach, module.stride, strict=True)
        ]
        if any(total > far for total, far in zip(totals, reach, strict=True)):
            return None  # whole kernels would lie in the padding
        if any(total <= -stride for total, stride in zip(totals, module.stride, strict=True)):
            return None
        both = [(max(total, 0) // 2, max(total, 0) - max(total, 0) // 2) for total in totals]
        mode = "constant"
    if any(map(any, both)):
        a = functional.pad(a, [side for pair in reversed(both) for side in pair], mode=mode)
    return a


def _patches(module: Any, x: Tensor, out: Sequence[int], index: Tensor, groups: int) -> Tensor:
    """What the kernel sees of ``x`` [n, channels, ...] (padded) at positions ``index`` [sides, p]: [groups, n p, d]."""
    ahead = [stride * step for stride, step in zip(x.stride()[2:], module.stride, strict=True)]
    inside = [stride * step for stride, step in zip(x.stride()[2:], module.dilation, strict=True)]
    view = x.as_strided((*x.shape[:2], *out, *module.kernel_size), (*x.stride()[:2], *ahead, *inside))
    taken = view[(slice(None), slice(None), *index)].float()  # [n, channels, p, *kernel]
    n, channels, p = taken.shape[:3]
    taken = taken.reshape(n, groups, channels // groups, p, math.prod(module.kernel_size))
    return taken.permute(1, 0, 3, 2, 4).reshape(groups, n * p, -1)


def _add_gradients(
    model: nn.Module, batch: Any, group: list[_Weight], collector: _Collector, progress: _Progress
) -> None:
    """Take the gradients of one batch into the sums and clear them."""
    scalars: list[tuple[_Weight, _Use | None, Tensor]] = []
    for weight, why in collector.problems.items():
        if weight.uses:
            _give_up(weight, why, progress.notes)
    for weight in group:
        grad = weight.parameter.grad
        if grad is None:
            continue
        weight.parameter.grad = None
        weight.reached = True
        grad = (grad.to_dense() if grad.layout != torch.strided else grad).detach().float()
        scalars.append((weight, None, torch.linalg.vector_norm(grad)))
        for part_of in weight.uses:
            if part_of.part is not None:
                scalars.append((weight, part_of, torch.linalg.vector_norm(part_of.part)))
        if weight.uses and not weight.trusted:
            _check_uses(weight, grad, progress)
        if any(use.groups > 1 for use in weight.uses):
            squares = grad.square().flatten(1).sum(1)
            weight.row_squares = squares if weight.row_squares is None else weight.row_squares.add_(squares)
        if not weight.uses:
            weight.diagonal = torch.zeros_like(grad) if weight.diagonal is None else weight.diagonal
            weight.diagonal.addcmul_(grad, grad)
        for done in weight.uses:
            done.part = None
    where: dict[torch.device, list[int]] = {}
    for number, (_, _, scalar) in enumerate(scalars):
        where.setdefault(scalar.device, []).append(number)
    norms = [0.0] * len(scalars)
    for numbers in where.values():  # one wait for the device, not one for each tensor
        for number, norm in zip(numbers, torch.stack([scalars[n][2] for n in numbers]).tolist(), strict=True):
            norms[number] = norm
    broken = [weight for (weight, _, _), norm in zip(scalars, norms, strict=True) if not math.isfinite(norm)]
    if broken:
        first = next((weight for weight in collector.visited if weight in broken), broken[-1])
        what = f"the gradient of {first.names[0]} in batch {collector.batch}"
        _blame(model, batch, collector.settings, what)
    for (weight, use, _), norm in zip(scalars, norms, strict=True):
        if use is None:
            weight.squares += norm**2
        else:
            use.trace += norm**2


def _check_uses(weight: _Weight, grad: Tensor, progress: _Progress) -> None:
    """Compare a gradient with what the layers explain, once, and give up the factors if something else is there.

    Such as: the matrix is used as a function's argument too, or a subclass does something of its own in forward.
    """
    parts = [use.part for use in weight.uses if use.part is not None]
    known = sum(parts[1:], parts[0]) if parts else torch.zeros(())
    size = float(torch.linalg.vector_norm(grad))
    if size == 0 or not math.isfinite(size):
        return
    # Products of float32 may be of TF32; narrower types round as they go.
    tolerance = 1e-2 if weight.parameter.dtype in (torch.float32, torch.float64) else 5e-2
    apart = float(torch.linalg.vector_norm(grad.flatten(1) - known.to(grad.device))) if parts else size
    if not apart <= tolerance * size:
        layers = ", ".join(repr(use.name) for use in weight.uses)
        _give_up(weight, f"its gradient is not what the inputs and outputs of {layers} explain", progress.notes)
    weight.trusted = True


def _finish(weight: _Weight, count: int, draws: int, progress: _Progress) -> Factors:
    """The factors of one weight, from its sums; ``count`` is samples times draws."""
    total = weight.squares / count
    if weight.uses and not any(use.columns is not None for use in weight.uses):
        # Zero all along, or a gradient that never passed the hooks: then total is zero, for _check_uses saw the rest.
        weight.uses = []
        weight.diagonal = torch.zeros_like(weight.parameter, dtype=torch.float32)
    if not weight.uses:
        assert weight.diagonal is not None
        return Factors(None, None, total, _array(weight.diagonal / count))
    parts = []
    for use in weight.uses:
        if use.columns is None:
            continue
        if use.positions < use.d:
            progress.few.append([weight.names[0], use.positions, use.d])
        columns = use.columns.cpu()
        traces = columns.diagonal(dim1=-2, dim2=-1).sum((1, 2))
        if (traces == 0).sum() == 1:
            columns = columns.sum(0, keepdim=True).expand_as(columns)
            progress.notes.append(f"{weight.names[0]} was reached by one half of the samples only")
        rows = None if use.rows is None else use.rows.cpu()
        if rows is not None and rows.dim() == 3 and (rows.diagonal(dim1=-2, dim2=-1).sum(1) == 0).sum() == 1:
            rows = rows.sum(0, keepdim=True).expand_as(rows)
        if rows is not None and not isinstance(use.module, nn.Embedding):
            rows = rows / draws
        if isinstance(use.module, nn.Embedding):
            columns = columns / draws
        parts.append((columns, rows, use.trace))
    columns, rows, _ = parts[0] if len(parts) == 1 else _combined(parts)
    if weight.row_squares is not None:
        rows = weight.row_squares.cpu() / draws
    assert rows is not None
    return Factors(_array(columns), _array(rows), total, None)


def _combined(parts: list[tuple[Tensor, Tensor | None, float]]) -> tuple[Tensor, Tensor | None, float]:
    """The factors of a weight with several uses: each scaled to its share of the whole."""
    columns = torch.zeros_like(parts[0][0])
    flat = any(rows is not None and rows.dim() == 1 for _, rows, _ in parts)
    together: Tensor | None = None
    for some, rows, trace in parts:
        sums = some.diagonal(dim1=-2, dim2=-1).sum((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)
        columns = columns + trace * some / sums[:, None, None, None]
        if rows is None:
            continue
        if flat:
            rows = rows if rows.dim() == 1 else rows.diagonal(dim1=-2, dim2=-1).sum(0)
            share = trace * rows / rows.sum().clamp_min(torch.finfo(torch.float32).tiny)
        else:
            sums = rows.diagonal(dim1=-2, dim2=-1).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
            share = trace * rows / sums[:, None, None]
        together = share if together is None else together + share
    return columns, together, sum(trace for _, _, trace in parts)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().float().cpu().contiguous().numpy()


def _statistics(model: nn.Module, parts: list[Curvature], settings: _Settings, progress: _Progress) -> Curvature:
    """The diagonals of batch norms' running means and variances, which follow from those of weight and bias.

    The layer computes weight * (x - mean) / sqrt(var + eps) + bias, so the gradient in the mean is that in the bias
    times -weight / sqrt(var + eps), and the gradient in the variance that in the weight times -weight / 2 (var + eps).
    """
    where = {name: part for part in parts for name in part}
    names: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), name)
    found: dict[str, Factors] = {}
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase) or module.running_var is None:
            continue
        weight, bias = (names.get(id(module._parameters.get(part)), "") for part in ("weight", "bias"))
        if weight not in where or bias not in where:
            continue
        gamma = module.weight.detach().double().cpu().numpy()
        spread = module.running_var.detach().double().cpu().numpy() + module.eps
        ratios = {"running_mean": (bias, gamma**2 / spread), "running_var": (weight, (gamma / (2 * spread)) ** 2)}
        for buffer, (source, ratio) in ratios.items():
            known = where[source][source].diagonal
            name = names.get(id(module._buffers[buffer]), "")
            if known is not None and name:
                diagonal = (ratio * known).astype(np.float32)
                if not np.isfinite(diagonal).all():
                    raise CalibrationError(f"{name} with its eps is zero or not finite: the batch norm divides by it")
                found[name] = Factors(None, None, float(diagonal.sum(dtype=np.float64)), diagonal)
    return Curvature(found, samples=progress.samples, loss=settings.name)


def _all_notes(progress: _Progress) -> list[str]:
    notes = list(progress.notes)
    if progress.samples < FEW_SAMPLES:
        notes.append(f"{progress.samples} samples are few; a few hundred are better")
    if progress.few:
        name, got, wanted = min(progress.few, key=lambda few: few[1] / few[2])
        others = f" (and {len(progress.few) - 1} more)" if len(progress.few) > 1 else ""
        notes.append(f"fewer positions than columns, so correlations are rough, in {name}: {got} for {wanted}{others}")
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _write(
    parts: list[Curvature], order: list[str], settings: _Settings, progress: _Progress, path: Path, label: str
) -> Curvature:
    """Put what is done into the checkpoint; what it holds is then read from there."""
    whole = Curvature.joined(parts, order, samples=progress.samples, loss=settings.name)
    whole.write(path, {"calibration": label, "unfinished": json.dumps(asdict(progress))})
    for part in parts:
        part.close()
    return Curvature.open_any(path)[0]
