"""What an ONNX graph does with its constants: which are the weights of a layer, and which are only computed with.

Exporters turn everything that does not depend on the inputs into constants: the grid of a detector, strides, masks.
Nothing about their types, names or shapes tells them from weights, but the graph does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from . import protobuf as wire
from .base import CONSTANT, WEIGHT

#: Inputs that are weights, by operator of the standard: always, or if they do not depend on the graph's inputs.
_ALWAYS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Gemm": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
_IF_CONSTANT = {
    "Gemm": (0,),
    "MatMul": (0, 1),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Einsum": tuple(range(16)),
}
#: Operators whose result is a weight if an input is: layouts, types, scaling of single channels, fake quantisation.
_THROUGH = {
    *("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Pad"),
    *("Mul", "Div", "Add", "Sub", "QuantizeLinear", "DequantizeLinear", "Clip", "Expand", "Tile", "Where"),
}
_STANDARD = ("", "ai.onnx")
#: Fields of a model that hold nodes, the graph and functions, and the field in which they do; that of any graph.
_NODES_OF, _NODE = {7: 1, 25: 7}, 1
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_GRAPHS = (6, 11)
_MAX_DEPTH = 64


@dataclass
class _Node:
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    has_graphs: bool = False


def roles(model: bytes, names: Collection[str]) -> dict[str, str]:
    """WEIGHT or CONSTANT for each of the constants in ``names``; none for those that operators beyond the standard use.

    ``model`` is a ModelProto whose tensors may lack their values. A graph in which no weight is found says nothing.
    """
    try:
        nodes = [
            node
            for part in wire.fields(model, 0, len(model))
            if part.number in _NODES_OF and part.wire == wire.BYTES
            for node in _nodes(model, part.start, part.end, _NODES_OF[part.number], 0)
        ]
    except (wire.WireError, UnicodeDecodeError):
        return {}
    # Names are unique in a graph, but not from one to the next: what one of them uses as a weight is one.
    own = {name: re.sub(r"~\d+$", "", name) for name in names}
    known = set(own.values())
    constant = known | {node.outputs[0] for node in nodes if node.operator == "Constant" and node.outputs}
    made_by: dict[str, _Node] = {}
    for node in nodes:  # in an order in which values are made before they are used
        made_by.update((output, node) for output in node.outputs)
        inputs = [name for name in node.inputs if name]
        if inputs and not node.has_graphs and all(name in constant for name in inputs):
            constant.update(node.outputs)
    weights: set[str] = set()
    unknown: set[str] = set()
    for node in nodes:
        if node.domain not in _STANDARD:
            for name in node.inputs:
                _mark(name, made_by, unknown, constant, always=False)
            continue
        for place in _ALWAYS.get(node.operator, ()):
            if place < len(node.inputs):
                _mark(node.inputs[place], made_by, weights, constant, always=True)
        for place in _IF_CONSTANT.get(node.operator, ()):
            if place < len(node.inputs) and node.inputs[place] in constant:
                _mark(node.inputs[place], made_by, weights, constant, always=False)
    if not weights & known:
        return {}
    return {
        name: WEIGHT if bare in weights else CONSTANT
        for name, bare in own.items()
        if bare in weights or bare not in unknown
    }


def _mark(name: str, made_by: dict[str, _Node], marked: set[str], constant: set[str], always: bool) -> None:
    """Mark a value, and what it is computed from: constants, or whatever it is if it is ``always`` a weight."""
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in marked or not one:
            continue
        marked.add(one)
        node = made_by.get(one)
        if node is not None and (one in constant or (always and node.operator in _THROUGH)):
            waiting += node.inputs


def _nodes(data: bytes, start: int, end: int, number: int, depth: int) -> Iterator[_Node]:
    """The nodes of a graph, those of graphs within it (branches, loops) before the nodes that hold them.

    ``number`` is that of the field that holds nodes.
    """
    for f in wire.fields(data, start, end):
        if f.number != number or f.wire != wire.BYTES:
            continue
        node = _Node()
        for g in wire.fields(data, f.start, f.end):
            if g.wire != wire.BYTES:
                continue
            if g.number in (_INPUT, _OUTPUT, _OP_TYPE, _DOMAIN):
                text = data[g.start : g.end].decode("utf-8")
                if g.number == _INPUT:
                    node.inputs.append(text)
                elif g.number == _OUTPUT:
                    node.outputs.append(text)
                elif g.number == _OP_TYPE:
                    node.operator = text
                else:
                    node.domain = text
            elif g.number == _ATTRIBUTE and depth < _MAX_DEPTH:
                for h in wire.fields(data, g.start, g.end):
                    if h.number in _ATTRIBUTE_GRAPHS and h.wire == wire.BYTES:
                        node.has_graphs = True
                        yield from _nodes(data, h.start, h.end, _NODE, depth + 1)
        yield node
