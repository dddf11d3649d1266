"""Uses of weights in the graph that autograd recorded: products with a matrix, whoever computed them. Needs torch.

Layers that are no module of a known kind (``Conv1D`` of transformers, attention's ``in_proj``, recurrent layers,
stacked experts, plain functions) end in the same few operations. Between the parameter and such an operation lie views
of it, and what a parametrization computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..quantize.scales import matrix_shape
from .collector import Collector, Use, Weight

#: Operations that multiply by a matrix: the arguments that may be one, and what they keep of these.
_PRODUCTS = {
    "MmBackward0": ((0, "_saved_self"), (1, "_saved_mat2")),
    "AddmmBackward0": ((1, "_saved_mat1"), (2, "_saved_mat2")),
    "BmmBackward0": ((0, "_saved_self"), (1, "_saved_mat2")),
    "BaddbmmBackward0": ((1, "_saved_batch1"), (2, "_saved_batch2")),
}
_CONVOLUTION, _EMBEDDING = "ConvolutionBackward0", "EmbeddingBackward0"
_VIEWS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"))
#: What puts elements elsewhere, or takes some of them.
_PLACING = _VIEWS | {
    "TBackward0",
    "TransposeBackward0",
    "TransposeBackward1",
    "PermuteBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "SelectBackward0",
    "SliceBackward0",
    "SplitBackward0",
    "SplitWithSizesBackward0",
    "UnsafeSplitBackward0",
    "UnbindBackward0",
    "AsStridedBackward0",
    "ExpandBackward0",
}
#: What leaves values as they are, and what changes them element by element, or by row.
_SAME = frozenset(("CloneBackward0", "ToCopyBackward0", "AliasBackward0"))
_SCALING = frozenset(
    ("MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0", "WeightNormInterfaceBackward0")
)
#: Operations between a parameter and a product, at most.
_FAR = 16


@dataclass(frozen=True)
class _Place:
    """Where one of a weight's stacked matrices is in a matrix that something is multiplied by, [batch, i, j]."""

    stack: int
    batch: int
    swapped: bool  #: rows of the weight lie along i
    at: Tensor | None  #: its rows that are there; None: all
    rows: Tensor | None  #: where these lie; None: in order
    columns: Tensor | None  #: where its columns lie; None: in order


class Graph:
    """Finds the uses of weights in graphs and has them collected."""

    def __init__(self, weights: list[Weight], collector: Collector, largest: int) -> None:
        self._weights = {id(weight.parameter): weight for weight in weights}
        self._collector, self._largest = collector, largest
        self._known: dict[Any, list[_Place] | None] = {}
        self._uses: dict[Any, Use] = {}

    def watch(self, outputs: Tensor) -> list[Any]:
        """Have all uses collected on the way back from ``outputs``. Returns handles to remove in the end."""
        wanted = {key: weight for key, weight in self._weights.items() if weight.way == "graph"}
        found = []
        for node, before in _nodes(outputs.grad_fn) if wanted and outputs.grad_fn is not None else ():
            name = node.name()
            if name in _PRODUCTS:
                for number, (argument, _) in enumerate(_PRODUCTS[name]):
                    chain = _chain(node.next_functions[argument], wanted)
                    if chain is not None:
                        found.append(self._watch_product(node, before, *chain, number))
            elif name in (_CONVOLUTION, _EMBEDDING):
                chain = _chain(node.next_functions[int(name == _CONVOLUTION)], wanted)
                if chain is not None and not any(step.name() in _PLACING for step, _ in chain[1]):
                    found.append(self._watch_layer(node, *chain, name))
        return [handle for handle in found if handle is not None]

    def _use(self, weight: Weight, **what: Any) -> Use:
        """The use of a weight of this kind, made when it is first seen."""
        key = (id(weight), what["kind"], what.get("swapped", False), repr(what.get("layer")))
        use = self._uses.get(key)
        if use is None or use not in weight.uses:
            number = list(self._weights).index(id(weight.parameter))
            shape = tuple(weight.parameter.shape)
            use = Use(weight.names[0], shape=shape, largest=self._largest, number=number, **what)
            if weight.uses and use.groups != weight.uses[0].groups:
                return use  # nothing is collected in it, so the gradient will not be explained
            self._uses[key] = use
            weight.uses.append(use)
        return use

    def _watch_product(
        self, node: Any, before: tuple[int, ...] | None, weight: Weight, chain: list[tuple[Any, int]], number: int
    ) -> Any:
        weight.scaled = weight.scaled or any(step.name() in _SCALING for step, _ in chain)
        key = (id(weight), number, *map(_described, chain))
        if key not in self._known:
            self._known[key] = _places(_matrix(node, number, chain), chain, tuple(weight.parameter.shape))
        places = self._known[key]
        if places is None:
            return None
        uses = [
            # Where the weight is the first factor, i are outputs; else they are inputs.
            self._use(weight, kind="product", swapped=place.swapped == bool(number))
            for place in places
        ]
        return node.register_prehook(partial(self._collect_product, node, before, weight, uses, places, number))

    def _collect_product(
        self,
        node: Any,
        before: tuple[int, ...] | None,
        weight: Weight,
        uses: list[Use],
        places: list[_Place],
        number: int,
        gradients: tuple[Tensor | None, ...],
    ) -> None:
        g = gradients[0]
        if g is None or not weight.uses or any(use not in weight.uses for use in uses):
            return
        g = g * getattr(node, "_saved_alpha", 1)
        other = getattr(node, _PRODUCTS[node.name()][1 - number][1]).detach()
        # Of the product x W: x and its gradient, [batch, positions, i] and [batch, positions, j]; of W x likewise.
        i, j = (other, g) if number else (g.mT, other.mT)
        i, j = (side if side.dim() == 3 else side[None] for side in (i, j))
        for place, use in zip(places, uses, strict=True):
            # A batch below 0: the same matrix in all of the batch.
            sides = [side.flatten(0, 1) if place.batch < 0 else side[place.batch] for side in (i, j)]
            row, column = sides if place.swapped else sides[::-1]
            row, column = (
                side if at is None else side[:, at] for side, at in ((row, place.rows), (column, place.columns))
            )
            if before is not None and math.prod(before) == len(row):
                row, column = (side.reshape(*before, -1) for side in (row, column))
            self._collector.collect_product(weight, use, place.stack, place.at, row, column)

    def _watch_layer(self, node: Any, weight: Weight, chain: list[tuple[Any, int]], name: str) -> Any:
        weight.scaled = weight.scaled or any(step.name() in _SCALING for step, _ in chain)
        shape = weight.parameter.shape
        layer: Any
        if name == _EMBEDDING:
            if node._saved_scale_grad_by_freq or node._saved_sparse or len(shape) != 2:
                return None
            # Kept as an unsigned number; -1 is none.
            padding = node._saved_padding_idx
            layer = SimpleNamespace(padding_idx=padding if padding < shape[0] else None)
            use = self._use(weight, kind="embedding", layer=layer, swapped=True)
        else:
            numbers = {part: tuple(getattr(node, f"_saved_{part}")) for part in ("stride", "padding", "dilation")}
            layer = SimpleNamespace(
                **numbers, groups=int(node._saved_groups), kernel_size=tuple(shape[2:]), padding_mode="zeros"
            )
            use = self._use(weight, kind="convolution", layer=layer, swapped=bool(node._saved_transposed))

        def collect(gradients: tuple[Tensor | None, ...]) -> None:
            g = gradients[0]
            if g is None or use not in weight.uses:
                return
            inputs = (node._saved_indices if name == _EMBEDDING else node._saved_input).detach()
            # A transposed convolution takes its outputs' gradients to its inputs' as a convolution does.
            transposed = use.kind == "convolution" and use.swapped
            self._collector.collect(weight, use, *((g, inputs) if transposed else (inputs, g)))

        return node.register_prehook(collect)


def _nodes(root: Any) -> Iterator[tuple[Any, tuple[int, ...] | None]]:
    """All operations, and where the result is viewed as something of more dimensions, its shape but for the last."""
    seen: dict[Any, None] = {root: None}
    left: list[tuple[Any, tuple[int, ...] | None]] = [(root, None)]
    while left:
        node, before = left.pop()
        yield node, before
        shape = tuple(node._input_metadata[0].shape)[:-1] if node.name() in _VIEWS else None
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen[child] = None
                left.append((child, shape))


def _chain(
    step: tuple[Any, int], wanted: Mapping[int, Weight], left: int = _FAR
) -> tuple[Weight, list[tuple[Any, int]]] | None:
    """The weight that a matrix is computed from, and the operations from the matrix to it, with their output's number.

    None if the matrix is computed from something else, or in another way.
    """
    node, output = step
    if node is None or left == 0:
        return None
    variable = getattr(node, "variable", None)
    if variable is not None:
        weight = wanted.get(id(variable))
        return None if weight is None else (weight, [])
    name = node.name()
    if name in _PLACING or name in _SAME:
        children = node.next_functions[:1]
    elif name in _SCALING:
        shape = node._input_metadata[0].shape
        children = tuple(
            (child, number)
            for child, number in node.next_functions
            if child is not None and child._input_metadata[number].shape == shape
        )
    else:
        return None
    for child, number in children:
        found = _chain((child, number), wanted, left - 1)
        if found is not None:
            return found[0], [(node, output), *found[1]]
    return None


def _described(step: tuple[Any, int]) -> Any:
    """What tells where an operation puts elements."""
    node, output = step
    parts = ("dim", "dim0", "dim1", "dims", "index", "start", "end", "step", "split_size", "split_sizes")
    kept = tuple(str(getattr(node, f"_saved_{part}", None)) for part in parts)
    return node.name(), output, tuple(tuple(one.shape) for one in node._input_metadata), kept


def _matrix(node: Any, number: int, chain: list[tuple[Any, int]]) -> tuple[int, ...] | None:
    """The shape of the matrix at the end of a chain; None if it is the parameter itself."""
    if not chain:
        return None
    first, output = chain[0]
    return tuple(first._input_metadata[output].shape)


def _places(
    matrix: tuple[int, ...] | None, chain: list[tuple[Any, int]], shape: tuple[int, ...]
) -> list[_Place] | None:
    """Where a weight of this shape lies in a matrix. None if its rows and columns are not the matrix's."""
    natural = matrix_shape(shape)
    if natural is None:
        return None
    stacks, height, width = natural
    placing = [step for step in chain if step[0].name() in _PLACING]
    if not placing and len(shape) in (2, 3) and (stacks > 1 or len(shape) == 2):
        return [_Place(stack, stack, True, None, None, None) for stack in range(stacks)]
    if [step.name() for step, _ in placing] == ["TBackward0"] and len(shape) == 2:
        return [_Place(0, 0, False, None, None, None)]
    matrix = matrix or shape
    if len(matrix) not in (2, 3):
        return None
    # Views are linear: the gradient of a matrix of numbers shows which element of the weight each comes from.
    numbers = torch.arange(1, math.prod(matrix) + 1, dtype=torch.float64)
    shared = any(step.name() == "ExpandBackward0" for step, _ in placing)
    if shared:
        numbers[math.prod(matrix[-2:]) :] = 0
    came = numbers.reshape(matrix)
    for node, output in placing:
        given = [torch.zeros(tuple(one.shape), dtype=torch.float64) for one in node._input_metadata]
        given[output] = came.reshape(given[output].shape)
        result = node(*given)
        came = result[0] if isinstance(result, tuple) else result
    if came.numel() != math.prod(shape):
        return None
    places = []
    for stack, block in enumerate(came.reshape(stacks, height // stacks, width).long() - 1):
        used = (block >= 0).any(1)
        if not used.any():
            continue
        block = block[used]
        if (block < 0).any():
            return None
        batch, inside = block // math.prod(matrix[-2:]), block % math.prod(matrix[-2:])
        i, j = inside // matrix[-1], inside % matrix[-1]
        at = None if bool(used.all()) else used.nonzero()[:, 0]
        if bool((batch != batch[0, 0]).any()):
            return None
        where = -1 if shared else int(batch[0, 0])
        if bool((i == i[:, :1]).all() and (j == j[:1]).all()):
            places.append(_Place(stack, where, True, at, i[:, 0], j[0]))
        elif bool((j == j[:, :1]).all() and (i == i[:1]).all()):
            places.append(_Place(stack, where, False, at, j[:, 0], i[0]))
        else:
            return None
    return places
