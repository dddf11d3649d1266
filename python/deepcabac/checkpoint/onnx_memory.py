"""ONNX models whose weights are given in another way than in the file: from memory, or as integers with their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from . import protobuf as wire
from .base import Array, TensorSpec, bits_of, byte_view
from .onnx_file import INLINE_BYTES, Message, ModelPiece, StoredTensor, as_it_was, external_body, flatten, parse_stored
from .packing import pack

#: Fields of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto and OperatorSetIdProto.
_OPSETS, _GRAPH = 8, 7
_INITIALIZER, _INPUT = 5, 11
_NODE, _NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE = 1, 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE, _INT = 1, 3, 20, 2
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT, _INT8, _FLOAT16 = 1, 3, 10
_ELEMENT_CODES = {_FLOAT: np.dtype(np.float32), _FLOAT16: np.dtype(np.float16)}
#: Versions of the operators from which DequantizeLinear is there, takes a scale for each slice, and float16.
_OPSET, _OPSET_AXIS, _OPSET_HALF = 10, 13, 19


def without_initializers(
    extra: bytes, specs: list[TensorSpec], read: Callable[[str], Array], least: int
) -> tuple[bytes, dict[str, int]]:
    """The stored model with values in it, but not those of the main graph's initializers of ``least`` bytes or more.

    ``read`` gives the values of a tensor. Also returns the names of those left out, and ONNX's code of their type.
    Raises :class:`DamagedFileError`, and :class:`UnsupportedError` if what is left is more than a model can hold.
    """
    model = parse_stored(extra, specs)
    outside: dict[str, int] = {}

    def put(tensor: StoredTensor) -> list[ModelPiece]:
        if not tensor.marked:
            return as_it_was(tensor, extra)
        whole = bits_of(tensor.spec.dtype) >= 8  # others are packed, as a runtime's own values are not
        if tensor.initializer and whole and tensor.spec.nbytes >= least:
            outside[tensor.label] = tensor.code
            return external_body(tensor, "deepcabac", 0)
        return [tensor.rest, wire.prefix(_RAW_DATA, tensor.spec.packed_bytes), tensor.spec]

    pieces, size = flatten(model, put)
    if size > INLINE_BYTES:
        raise UnsupportedError(f"{size:,} bytes of the model are outside its main graph's initializers: too many")
    parts = (bytes(byte_view(pack(read(one.name)))) if isinstance(one, TensorSpec) else one for one in pieces)
    return b"".join(parts), outside


@dataclass(frozen=True)
class Integers:
    """The values of an initializer: ``levels`` times ``scale``, which has one for each slice of ``axis`` if that is
    not None.
    """

    levels: npt.NDArray[np.int8]
    scale: Array  #: of the initializer's type: a scalar or a vector
    axis: int | None = None


@dataclass
class _Names:
    """What a graph and its model say about themselves outside of tensors."""

    inputs: set[str] = field(default_factory=set)
    opset: int = 1


class IntegerModel:
    """A stored model some of whose weights become int8 initializers, which DequantizeLinear nodes turn into floats."""

    def __init__(self, extra: bytes, specs: list[TensorSpec]) -> None:
        """Raise :class:`DamagedFileError` if ``extra`` and ``specs`` do not belong together."""
        self._extra = extra
        self._model = parse_stored(extra, specs)
        self._graph = next(part[1] for part in self._model.parts if isinstance(part, tuple) and part[0] == _GRAPH)
        self._names = _Names()
        for f in _fields(self._model, _OPSETS):
            entry = {g.number: (f_bytes(f, g), g.value) for g in wire.fields(f, 0, len(f))}
            if entry.get(1, (b"", 0))[0] in (b"", b"ai.onnx"):
                self._names.opset = entry.get(2, (b"", 1))[1]
        assert isinstance(self._graph, Message)
        for f in _fields(self._graph, _INPUT):
            name = next((f[g.start : g.end] for g in wire.fields(f, 0, len(f)) if g.number == 1), b"")
            self._names.inputs.add(name.decode("utf-8", "replace"))
        if self._names.opset < _OPSET:
            raise UnsupportedError(
                f"the model uses operators of version {self._names.opset}; DequantizeLinear is there from {_OPSET} on"
            )

    def takes(self, name: str, *, scaled: bool) -> bool:
        """Whether the tensor ``name`` can become integers, ``scaled`` with a scale for each slice."""
        tensor = next((one for one in self._model.tensors if one.marked and one.label == name), None)
        if tensor is None or not tensor.initializer or name in self._names.inputs or (scaled and not tensor.dims):
            return False
        least = _OPSET_AXIS if scaled else _OPSET
        return tensor.code in _ELEMENT_CODES and self._names.opset >= max(
            least, _OPSET_HALF if tensor.code == _FLOAT16 else 0
        )

    def pieces(self, integers: Mapping[str, Integers], read: Callable[[str], Array]) -> Iterator[bytes | memoryview]:
        """The model file, piece by piece. ``read`` gives the values of the tensors that stay floats.

        Raises :class:`UnsupportedError` for a model beyond 2 GB.
        """
        nodes, scales = [], []
        for name, one in integers.items():
            levels, scale = f"{name}_levels", f"{name}_scale"
            nodes.append((_NODE, _dequantize(levels, scale, name, one.axis)))
            code = next(code for code, dtype in _ELEMENT_CODES.items() if dtype == one.scale.dtype)
            scales.append((_INITIALIZER, _tensor(scale, code, one.scale.shape, one.scale.tobytes())))
        graph = Message([b"".join(wire.bytes_field(number, body) for number, body in nodes + scales)])
        graph.parts += self._graph.parts if isinstance(self._graph, Message) else []
        model = Message([(_GRAPH, graph) if part == (_GRAPH, self._graph) else part for part in self._model.parts])

        def put(tensor: StoredTensor) -> list[ModelPiece]:
            if not tensor.marked:
                return as_it_was(tensor, self._extra)
            if tensor.label in integers:
                spec = TensorSpec(tensor.label, np.dtype(np.int8), tuple(tensor.dims))
                return [_tensor(f"{tensor.label}_levels", _INT8, spec.shape), wire.prefix(_RAW_DATA, spec.size), spec]
            return [tensor.rest, wire.prefix(_RAW_DATA, tensor.spec.packed_bytes), tensor.spec]

        pieces, size = flatten(model, put)
        if size > INLINE_BYTES:
            raise UnsupportedError(f"the model takes {size:,} bytes even so, more than one ONNX file can hold")
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            elif piece.name in integers:
                yield byte_view(np.ascontiguousarray(integers[piece.name].levels))
            else:
                yield byte_view(pack(read(piece.name)))


def _fields(message: Message, number: int) -> Iterator[bytes]:
    """The bodies of the fields of this number among those that hold no tensors."""
    for part in message.parts:
        if isinstance(part, bytes):
            for f in wire.fields(part, 0, len(part)):
                if f.number == number and f.wire == wire.BYTES:
                    yield part[f.start : f.end]


def f_bytes(body: bytes, inner: wire.Field) -> bytes:
    """The bytes of a field of ``body``; none if it is a number."""
    return body[inner.start : inner.end] if inner.wire == wire.BYTES else b""


def _tensor(name: str, code: int, shape: tuple[int, ...], raw: bytes | None = None) -> bytes:
    """A TensorProto; without ``raw`` all of it but the values."""
    head = b"".join(wire.varint_field(_DIMS, size) for size in shape)
    head += wire.varint_field(_DATA_TYPE, code) + wire.bytes_field(_NAME, name.encode())
    return head if raw is None else head + wire.bytes_field(_RAW_DATA, raw)


def _dequantize(levels: str, scale: str, name: str, axis: int | None) -> bytes:
    """A NodeProto that makes the float tensor ``name``."""
    body = b"".join(wire.bytes_field(_NODE_INPUT, one.encode()) for one in (levels, scale))
    body += wire.bytes_field(_NODE_OUTPUT, name.encode()) + wire.bytes_field(_NODE_NAME, f"{name}_dequantize".encode())
    body += wire.bytes_field(_NODE_TYPE, b"DequantizeLinear")
    if axis is not None:
        attribute = wire.bytes_field(_ATTRIBUTE_NAME, b"axis") + wire.varint_field(_ATTRIBUTE_INT, axis)
        body += wire.bytes_field(_NODE_ATTRIBUTE, attribute + wire.varint_field(_ATTRIBUTE_TYPE, _INT))
    return body
