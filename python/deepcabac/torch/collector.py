"""Sums of outer products of inputs and gradients, collected while a model runs back. Needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn import grad as gradients

from ..quantize.scales import matrix_shape
from .running import Sampling

#: Positions of a convolution that enter its columns, from each sample, at most: neighbours are much alike.
POSITIONS = 128
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Kind = Literal["product", "convolution", "embedding"]


class Use:
    """A way in which a weight is used as a matrix of r rows and d columns, and the sums collected from it."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        shape: tuple[int, ...],
        largest: int,
        layer: Any = None,
        number: int = 0,
        swapped: bool = False,
    ) -> None:
        """``shape`` is the weight's; ``layer`` has the attributes of a convolution's or an embedding's module, and
        ``number`` tells it from others.
        """
        self.name, self.kind, self.layer, self.number = name, kind, layer, number
        self.swapped = swapped  #: columns are those of gradients, rows those of inputs
        self.groups, self.r, self.d = 1, shape[0], math.prod(shape[1:])
        if kind == "convolution":
            self.groups = int(layer.groups)
        elif kind == "product":
            self.groups, self.r, self.d = matrix_shape(shape) or (self.groups, self.r, self.d)
        if kind == "embedding":
            self.row_shape: tuple[int, ...] = (self.r,)
        elif self.groups > 1:
            self.row_shape = ()  # from the weight's own gradient
        else:
            self.row_shape = (2, self.r, self.r) if self.r <= largest else (self.r,)
        self.columns: Tensor | None = None  #: [2, groups, d, d]
        self.rows: Tensor | None = None  #: of ``row_shape``
        self.positions = 0
        self.trace = 0.0  #: sum over batches of the squared norm of this use's part of the gradient
        self.part: Tensor | None = None  #: of the gradient in this batch, [r, d]

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
class Weight:
    """A parameter, with all its names."""

    parameter: nn.Parameter
    names: list[str] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    #: How uses are found: by the "modules" that have the weight, or in the "graph" of a forward pass; or "none" are,
    #: and the weight has its diagonal only
    way: Literal["modules", "graph", "none"] = "none"
    scaled: bool = False  #: a factor for each row, or other small changes, lie between the weight and its uses
    trusted: bool = False  #: the gradient was seen to be what the uses explain
    reached: bool = False
    squares: float = 0.0  #: sum over batches of the gradient's squared norm
    row_squares: Tensor | None = None  #: [r], likewise for each row
    diagonal: Tensor | None = None  #: likewise for each element

    @property
    def nbytes(self) -> int:
        """Memory that its sums will take, about."""
        uses = self.uses
        if not uses and self.way == "graph":
            uses = [Use("", "product", tuple(self.parameter.shape), 1 << 62)]
        return sum(use.nbytes for use in uses) if uses else 4 * self.parameter.numel()

    def forget(self) -> None:
        """Drop all sums."""
        for use in self.uses:
            use.columns = use.rows = use.part = None
            use.positions, use.trace = 0, 0.0
        if self.way != "modules":
            self.uses = []
        self.trusted = self.reached = self.scaled = False
        self.squares, self.row_squares, self.diagonal = 0.0, None, None


class Collector:
    """Takes what passes through the layers: the hooks."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.batch = 0
        self.draw = 0
        self.samples = 1  #: in this batch
        self.visited: list[Weight] = []  #: in the order of the way back
        self.problems: dict[Weight, str] = {}

    def watch(
        self, weight: Weight, use: Use, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """The hook after a layer. Sums are collected in the backward pass, which recomputation does not repeat."""
        inputs = args[0] if args else kwargs.get("input")
        if isinstance(output, Tensor) and isinstance(inputs, Tensor) and output.requires_grad:
            output.register_hook(partial(self.collect, weight, use, inputs.detach()))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def collect(self, weight: Weight, use: Use, a: Tensor, g: Tensor) -> None:
        """The hook on a layer's output: ``a`` came in, ``g`` is the gradient at what came out."""
        self.visited.append(weight)
        if use not in weight.uses or weight in self.problems:
            return
        if use.kind == "product":
            part = self._linear(weight, use, a, g)
        elif use.kind == "embedding":
            part = self._embedding(weight, use, a, g)
        else:
            part = self._convolution(weight, use, a, g)
        if part is not None:
            use.part = part if use.part is None else use.part.add_(part)

    @torch.no_grad()
    def collect_product(
        self, weight: Weight, use: Use, stack: int, at: Tensor | None, row: Tensor, column: Tensor
    ) -> None:
        """``row`` [positions, rows] and ``column`` [positions, d] came together: one of them are inputs, the other
        gradients. The product of the two is the gradient of the ``stack``-th matrix, of its rows ``at`` (None: all).
        """
        self.visited.append(weight)
        columns, rows = use.start(row.device)
        if use.swapped or self.draw == 0:
            for fold, half in self._halves(column):
                half = half.reshape(-1, use.d).float()
                columns[fold, stack].addmm_(half.T, half)
        if self.draw == 0:
            use.positions += column.numel() // use.d
        if rows is not None and (self.draw == 0 or not use.swapped):
            if at is not None:
                every = row.new_zeros((*row.shape[:-1], use.r))
                every[..., at] = row
                self._rows(rows, self._halves(every), use.r)
            else:
                self._rows(rows, self._halves(row), use.r)
        if self._wants_part(weight):
            if use.part is None:
                use.part = torch.zeros(use.r, use.d, device=row.device)
            flat = row.reshape(-1, row.shape[-1]).float(), column.reshape(-1, use.d).float()
            part = use.part.view(use.groups, -1, use.d)[stack]
            part[slice(None) if at is None else at] += flat[0].T @ flat[1]

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
        if x.dim() == 2 and x.shape[0] != self.samples:  # some positions of each sample, in the order of the samples
            yield 0, x[: len(x) // 2]
            yield 1, x[len(x) // 2 :]
            return
        yield 0, x[0::2]
        yield 1, x[1::2]

    def _wants_part(self, weight: Weight) -> bool:
        return not weight.trusted or len(weight.uses) > 1

    def _linear(self, weight: Weight, use: Use, a: Tensor, g: Tensor) -> Tensor | None:
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

    def _embedding(self, weight: Weight, use: Use, tokens: Tensor, g: Tensor) -> Tensor | None:
        tokens, g = (tokens[None], g[None]) if tokens.dim() == 0 else (tokens, g)
        columns, rows = use.start(g.device)
        counted = tokens.reshape(-1)
        padding = use.layer.padding_idx
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

    def _convolution(self, weight: Weight, use: Use, a: Tensor, g: Tensor) -> Tensor | None:
        module: Any = use.layer
        sides = len(module.kernel_size)
        if a.dim() == sides + 1:
            a, g = a[None], g[None]
        padded = _padded(module, a, g.shape[2:])
        if padded is None:
            self.problems[weight] = f"the padding of module {use.name!r} does not follow from its sizes"
            return None
        columns, rows = use.start(g.device)
        if self.draw == 0 or use.swapped:
            places = math.prod(g.shape[2:])
            chosen = np.arange(places)
            # A depthwise kernel of 9 columns needs fewer to be known as well as a matrix of hundreds.
            enough = self.sampling.positions or min(POSITIONS, max(POSITIONS // 4, use.d))
            if places > enough:
                random = np.random.default_rng([self.sampling.seed, 3, use.number, self.batch])
                chosen = np.sort(random.choice(places, enough, replace=False))
            use.positions += len(a) * len(chosen)
            index = torch.from_numpy(np.stack(np.unravel_index(chosen, tuple(g.shape[2:])))).to(a.device)
            for fold, half in self._halves(padded, channels_last=False):
                patches = _patches(module, half, g.shape[2:], index, use.groups)
                columns[fold].baddbmm_(patches.transpose(1, 2), patches, alpha=places / len(chosen))
        if rows is not None and (self.draw == 0 or not use.swapped):
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
        (size + before + after - far - 1) // stride + 1
        for size, (before, after), far, stride in zip(sizes, both, reach, module.stride, strict=True)
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
