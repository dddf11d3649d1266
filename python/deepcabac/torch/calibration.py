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
from torch.utils import checkpoint as checkpoints

from ..atomic import AtomicFile
from ..checkpoint.base import parse_json
from ..curvature import Curvature, Factors
from ..errors import CalibrationError, CheckpointError, OptionError, naming
from ..options import is_vector
from ..quantize.scales import matrix_shape
from . import running
from .collector import CONVOLUTIONS, Collector, Kind, Use, Weight
from .graph import Graph
from .running import Sampling

#: Sides of factors above this many rows or columns are not collected: 8192 squared in float32, twice, is 512 MiB.
LARGEST = 8192
#: What the uses of a weight may leave unexplained of its gradient if something scales its rows first.
_SCALED = 0.7
#: Fewer samples than this are worth a note.
FEW_SAMPLES = 32


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: running.Loss = None,
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

    ``loss`` defines what a change hurts:

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

    Every matrix that inputs are multiplied by gets factors, and so do kernels of convolutions and embeddings, whether
    a layer of a known kind or a function computes that; matrices of several experts may be stacked in one parameter.
    Every other parameter with a gradient gets the mean square of its gradients, and so do layers with more than
    ``largest`` columns. (More rows than that, as in a layer that predicts words: the diagonal of the rows.) A note
    names the matrices without factors. Parameters of which nothing depends on the samples are in
    ``Curvature.unreached``. Whatever weakens the result is in ``Curvature.notes``, and in a warning.

    Factors take 8 (rows^2 + columns^2) bytes per layer. If that is too much at once, ``layers_at_once`` (a number) or
    ``max_memory`` (bytes) splits the layers into groups, and ``batches`` is iterated once per group. The model computes
    in its own dtype; sums are float32.

    ``checkpoint`` names a file that keeps finished groups; called again after an interruption with the
    same model and arguments, ``calibrate`` continues after the last finished group. In the end it is a file for
    :meth:`Curvature.load`, and the result reads from it.

    The model runs in eval mode and is left as it was, also after an error.

    Raises :class:`CalibrationError` (values that are not finite, no samples, an output without gradient),
    :class:`OptionError`, :class:`CheckpointError` (``checkpoint`` cannot be written or is of another calibration), and
    anything the model itself raises.
    """
    _check_options(model, batches, loss, forward, draws, seed, positions, largest, layers_at_once, max_memory)
    sampling = Sampling("outputs" if loss is None else loss, forward or running.forward, draws, seed, positions)
    state = _State()
    weights = _find_weights(model, largest, max_memory, state)
    groups = _groups(weights, layers_at_once, max_memory)
    if len(groups) > 1 and isinstance(batches, Iterator):
        raise OptionError(
            f"batches is an iterator, and {len(groups)} passes are needed; give a list or a DataLoader, or "
            "raise layers_at_once or max_memory"
        )
    order = [name for name in model.state_dict(keep_vars=True) if isinstance(name, str)]
    parts: list[Curvature] = []
    label = ""
    if checkpoint is not None:
        label = _fingerprint(model, groups, sampling, largest)
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
                state = _State.of(metadata["unfinished"])
        else:
            AtomicFile(Path(checkpoint)).abort()  # a place that cannot be written to is said now, not in an hour

    with running.as_it_was(model):
        for number in range(state.done, len(groups)):
            found = _run(model, batches, groups[number], sampling, largest, state)
            state.done = number + 1
            parts.append(Curvature(found, samples=state.samples, loss=sampling.name))
            if checkpoint is not None and state.done < len(groups):
                parts = [_write(parts, order, sampling, state, Path(checkpoint), label)]
    if not any(len(part) for part in parts):
        raise CalibrationError(
            "no parameter had a gradient: the output does not depend on any, or was computed without gradients "
            "(torch.no_grad or detach in the model)"
        )
    parts.append(_statistics(model, parts, sampling, state))
    notes = _all_notes(state)
    result = Curvature.joined(parts, order, samples=state.samples, loss=sampling.name)
    result.notes, result.unreached = tuple(notes), tuple(name for name in order if name in set(state.unreached))
    if checkpoint is not None:
        result.write(checkpoint, {"calibration": label})
        for part in parts:
            part.close()
        result = Curvature.load(checkpoint)
    if result.unreached:
        notes = [*notes, f"no sample reached {_listed(result.unreached)}"]
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
    if loss is not None and loss not in running.LOSSES and not callable(loss):
        raise OptionError(f"loss must be one of {', '.join(running.LOSSES)} or a function, not {loss!r}")
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


@dataclass
class _State:
    """What is known besides the factors; it goes into the checkpoint."""

    done: int = 0  #: finished groups
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    few: list[list[Any]] = field(default_factory=list)  #: [name, positions, columns] of layers with too few positions
    without: list[list[str]] = field(default_factory=list)  #: [name, why] of matrices without factors

    @classmethod
    def of(cls, text: str) -> _State:
        value = parse_json(text.encode(), "the state of the calibration", CheckpointError)
        if not isinstance(value, dict) or value.keys() != asdict(cls()).keys() or type(value["done"]) is not int:
            raise CheckpointError("the state of the calibration is damaged; delete the file")
        return cls(**value)


def _find_weights(model: nn.Module, largest: int, max_memory: int | None, state: _State) -> list[Weight]:
    """All parameters of floating point, in the state dict's order, and the layers that use them."""
    weights: dict[int, Weight] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter) and value.is_floating_point():
            if value.is_meta:
                raise OptionError(f"the model's {name} is on the meta device and has no values; load it first")
            weights.setdefault(id(value), Weight(value)).names.append(name)
    if not weights:
        raise OptionError("the model has no parameters of floating point to calibrate")
    for number, (name, module) in enumerate(model.named_modules()):
        # From _parameters, since with a parametrization module.weight is made anew from other parameters each time.
        weight = weights.get(id(module._parameters.get("weight")))
        kind = _kind(module)
        if weight is not None and kind is not None:
            shape = tuple(weight.parameter.shape)
            swapped = kind == "embedding"
            weight.way = "modules"
            weight.uses.append(Use(name or "the model", kind, shape, largest, module, number, swapped))
    for weight in weights.values():
        shape = tuple(weight.parameter.shape)
        natural = None if is_vector(shape) else matrix_shape(shape)
        if weight.way == "none" and natural is not None:
            weight.way = "graph"
        why = ""
        if weight.way != "none" and (weight.uses[0].d if weight.uses else natural[2] if natural else 0) > largest:
            why = f"more than {largest} columns"
        elif len({use.groups for use in weight.uses}) > 1:
            why = "shared by layers with different groups"
        elif max_memory is not None and weight.way != "none" and weight.nbytes > max_memory:
            why = f"its factors alone would take {weight.nbytes} bytes of memory"
        if why:
            _give_up(weight, why, state)
    return list(weights.values())


def _kind(module: nn.Module) -> Kind | None:
    """What a layer does with its weight; None: something else."""
    if isinstance(module, nn.Linear):
        return "product"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "convolution" if isinstance(module, CONVOLUTIONS) else None


def _give_up(weight: Weight, why: str, state: _State) -> None:
    """Let a weight have its diagonal only."""
    state.without.append([weight.names[0], why])
    for use in weight.uses:
        use.drop()
    weight.uses, weight.way = [], "none"


def _groups(weights: list[Weight], layers_at_once: int | None, max_memory: int | None) -> list[list[Weight]]:
    groups: list[list[Weight]] = [[]]
    layers = nbytes = 0
    for weight in weights:
        layers += weight.way != "none"
        nbytes += weight.nbytes
        too_many = layers_at_once is not None and layers > layers_at_once
        if groups[-1] and (too_many or (max_memory is not None and nbytes > max_memory)):
            groups.append([])
            layers, nbytes = int(weight.way != "none"), weight.nbytes
        groups[-1].append(weight)
    return groups


def _fingerprint(model: nn.Module, groups: list[list[Weight]], sampling: Sampling, largest: int) -> str:
    """What must be the same for a checkpoint to be continued."""
    digest = hashlib.sha256()
    for weight in itertools.chain.from_iterable(groups):
        value = weight.parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        layers = [use.name for use in weight.uses]
        digest.update(repr((weight.names, list(weight.parameter.shape), layers, zlib.crc32(value.data))).encode())
    chosen = (sampling.name, sampling.draws, sampling.seed, sampling.positions, largest, [len(g) for g in groups])
    digest.update(repr(chosen).encode())
    return digest.hexdigest()


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    group: list[Weight],
    sampling: Sampling,
    largest: int,
    state: _State,
) -> dict[str, Factors]:
    """Go through all batches once for the weights of ``group``; their factors, by name."""
    collector = Collector(sampling)
    graph = Graph(group, collector, largest)
    device = next(model.parameters()).device
    count = 0
    with contextlib.ExitStack() as stack:
        for weight in group:
            weight.parameter.requires_grad_(True)
            stack.callback(weight.parameter.requires_grad_, False)
            for use in weight.uses:
                hook = partial(collector.watch, weight, use)
                stack.callback(use.layer.register_forward_hook(hook, with_kwargs=True).remove)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(running.every_step())
        torch.manual_seed(sampling.derived(0))  # a DataLoader that shuffles does so alike in every pass
        for number, batch in enumerate(batches):
            batch = running.moved(batch, device)
            while not _one_batch(model, batch, number, group, sampling, collector, graph, state):
                for weight in group:  # the first batch, which shows what explains gradients, once more
                    weight.forget()
            count += collector.samples
    if count < 2:
        problem = "batches gave no samples" if count == 0 else "batches gave one sample, and two halves are compared"
        raise CalibrationError(f"{problem}; give some hundred, and at least 2")
    if state.samples not in (0, count):
        raise CalibrationError(f"batches gave {state.samples} samples in one pass and {count} in another")
    state.samples = count
    found: dict[str, Factors] = {}
    for weight in group:
        if not weight.reached:
            state.unreached += weight.names
            continue
        result = _finish(weight, count * sampling.draws, sampling.draws, state)
        found.update((name, result) for name in weight.names)
        weight.forget()
    return found


def _one_batch(
    model: nn.Module,
    batch: Any,
    number: int,
    group: list[Weight],
    sampling: Sampling,
    collector: Collector,
    graph: Graph,
    state: _State,
) -> bool:
    """Run forward and back. False if the first batch showed that a weight is used in another way than thought."""
    torch.manual_seed(sampling.derived(1, number))
    outputs = sampling.forward(model, batch)
    collector.batch = number
    collector.samples = running.samples_in(batch) or running.samples_in(outputs) or 1
    collector.problems = {}
    for draw in range(sampling.draws):
        collector.draw = draw
        collector.visited = []
        try:
            finite = running.backward(outputs, batch, sampling, number, draw, graph.watch)
        except checkpoints.CheckpointError:
            # What is recomputed on the way back can be looked at once only.
            followed = [weight for weight in group if weight.way == "graph"]
            if number > 0 or not followed:
                raise
            for weight in followed:
                _give_up(weight, "activations are recomputed: turn gradient checkpointing off", state)
            return False
        if not finite:
            running.blame(model, batch, sampling, f"the output in batch {number}")
        if not _add_gradients(model, batch, group, collector, state):
            return False
    return True


def _add_gradients(
    model: nn.Module, batch: Any, group: list[Weight], collector: Collector, state: _State
) -> bool:
    """Take the gradients of one batch into the sums and clear them. False if the batch is to be repeated."""
    scalars: list[tuple[Weight, Use | None, Tensor]] = []
    settled = True
    for weight, why in collector.problems.items():
        settled &= not weight.uses or _fall_back(weight, why, collector, state)
    if not settled:
        for weight in group:
            weight.parameter.grad = None
        return False
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
        if weight.way != "none" and not weight.trusted:
            settled &= _check_uses(weight, grad, collector, state)
        if weight.scaled or any(use.groups > 1 for use in weight.uses):
            squares = grad.reshape(weight.uses[0].r, -1).square().sum(1)
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
        running.blame(model, batch, collector.sampling, what)
    for (weight, use, _), norm in zip(scalars, norms, strict=True):
        if use is None:
            weight.squares += norm**2
        else:
            use.trace += norm**2
    return settled


def _check_uses(weight: Weight, grad: Tensor, collector: Collector, state: _State) -> bool:
    """Compare a gradient with what the uses explain, once. False if the batch is to be repeated with other uses.

    Something else is there if the matrix is used as a function's argument too, a subclass does something of its own in
    forward, or the weight is no matrix for what uses it.
    """
    size = float(torch.linalg.vector_norm(grad))
    if size == 0 or not math.isfinite(size):
        return True
    parts = [use.part for use in weight.uses if use.part is not None]
    apart = size
    # Products of float32 may be of TF32; narrower types round as they go.
    tolerance = 1e-2 if weight.parameter.dtype in (torch.float32, torch.float64) else 5e-2
    if parts:
        known = sum(parts[1:], parts[0]).to(grad.device)
        grad = grad.reshape(known.shape)
        if weight.scaled:
            # By row, as well as a factor can do it: a norm's part of the gradient is left out.
            energy = known.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            known = known * ((known * grad).sum(1, keepdim=True) / energy)
            tolerance = _SCALED
        apart = float(torch.linalg.vector_norm(grad - known))
    weight.trusted = True
    return apart <= tolerance * size or _fall_back(weight, "its gradient has another cause", collector, state)


def _fall_back(weight: Weight, why: str, collector: Collector, state: _State) -> bool:
    """Look for a weight's uses in the graph, or let it have its diagonal. False if the batch is to be repeated."""
    first = collector.batch == 0 and collector.draw == 0
    if first and weight.way == "modules" and matrix_shape(tuple(weight.parameter.shape)) is not None:
        for use in weight.uses:
            use.drop()
        weight.uses, weight.way = [], "graph"
    else:
        _give_up(weight, why if weight.uses else "it is not what inputs are multiplied by", state)
    return not first


def _finish(weight: Weight, count: int, draws: int, state: _State) -> Factors:
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
            state.few.append([weight.names[0], use.positions, use.d])
        columns = use.columns.cpu()
        traces = columns.diagonal(dim1=-2, dim2=-1).sum((1, 2))
        if (traces == 0).sum() == 1:
            columns = columns.sum(0, keepdim=True).expand_as(columns)
            state.notes.append(f"{weight.names[0]} was reached by one half of the samples only")
        rows = None if use.rows is None else use.rows.cpu()
        if rows is not None and rows.dim() == 3 and (rows.diagonal(dim1=-2, dim2=-1).sum(1) == 0).sum() == 1:
            rows = rows.sum(0, keepdim=True).expand_as(rows)
        if use.swapped:
            columns = columns / draws
        elif rows is not None:
            rows = rows / draws
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


def _statistics(model: nn.Module, parts: list[Curvature], sampling: Sampling, state: _State) -> Curvature:
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
    return Curvature(found, samples=state.samples, loss=sampling.name)


def _all_notes(state: _State) -> list[str]:
    notes = list(state.notes)
    if state.without:
        names: dict[str, list[str]] = {}
        for name, why in state.without:
            names.setdefault(why, []).append(name)
        listed = "; ".join(f"{_listed(some)} ({why})" for why, some in names.items())
        notes.append(f"a diagonal instead of factors for {listed}")
    if state.samples < FEW_SAMPLES:
        notes.append(f"{state.samples} samples are few; a few hundred are better")
    if state.few:
        name, got, wanted = min(state.few, key=lambda few: few[1] / few[2])
        others = f" (and {len(state.few) - 1} more)" if len(state.few) > 1 else ""
        notes.append(f"fewer positions than columns, so correlations are rough, in {name}: {got} for {wanted}{others}")
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _write(
    parts: list[Curvature], order: list[str], sampling: Sampling, state: _State, path: Path, label: str
) -> Curvature:
    """Put what is done into the checkpoint; what it holds is then read from there."""
    whole = Curvature.joined(parts, order, samples=state.samples, loss=sampling.name)
    whole.write(path, {"calibration": label, "unfinished": json.dumps(asdict(state))})
    for part in parts:
        part.close()
    return Curvature.open_any(path)[0]
