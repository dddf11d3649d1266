"""ONNX models: the graph's weights as tensors, everything else kept to the byte.

The model is taken apart at the level of the protobuf encoding, not with the ``onnx`` package: no weights have to be
in memory but the one that is being read or written, fields that a later version of ONNX adds survive, and nothing
needs installing.

What becomes a tensor: initializers, and the values of larger Constant nodes, called like the node's output. So it is in
the main graph, in subgraphs (the branches of an If, the body of a Loop) and in functions. Names in the main graph are
unique; one from elsewhere that is taken already gets "~2", "~3" and so on. Texts stay in the graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import AtomicFile, commit_together, reading, reason
from ..errors import CheckpointError, DamagedFileError
from . import onnx_graph
from . import protobuf as wire
from .base import (
    BFLOAT16,
    EXACT_DTYPES,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    Array,
    CheckpointReader,
    CheckpointWriter,
    TensorSpec,
    allocate,
    bits_of,
    byte_view,
    check_shape,
    open_binary,
    own,
    read_into,
)
from .packing import from_codes, pack, unpack

# onnx.TensorProto.DataType, and the field that holds a tensor's values when raw_data does not
_DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    4: np.dtype("<u2"),
    5: np.dtype("<i2"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    12: np.dtype("<u4"),
    13: np.dtype("<u8"),
    14: np.dtype("<c8"),
    15: np.dtype("<c16"),
    16: BFLOAT16,
    17: FLOAT8_E4M3FN,
    19: FLOAT8_E5M2,
}
_NAME_OF_CODE = {
    18: "float8_e4m3fnuz",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}
_DTYPE_OF_CODE |= {code: EXACT_DTYPES[name] for code, name in _NAME_OF_CODE.items() if name in EXACT_DTYPES}
_SIX_BITS = (27, 28)
_FLOAT_DATA, _INT32_DATA, _STRING_DATA, _INT64_DATA, _RAW_DATA, _DOUBLE_DATA, _UINT64_DATA = 4, 5, 6, 7, 9, 10, 11
_TYPED_DATA = {1: _FLOAT_DATA, 14: _FLOAT_DATA, 11: _DOUBLE_DATA, 15: _DOUBLE_DATA}
_TYPED_DATA |= {7: _INT64_DATA, 12: _UINT64_DATA, 13: _UINT64_DATA}  # others: int32
_ALL_DATA = {_FLOAT_DATA, _INT32_DATA, _STRING_DATA, _INT64_DATA, _RAW_DATA, _DOUBLE_DATA, _UINT64_DATA}
_DIMS, _DATA_TYPE, _SEGMENT, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 3, 8, 13, 14

# The fields of each message that can lead to a tensor, and the message that each holds.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
}
_IR_VERSION, _GRAPH = 1, 7  # of a model
_NODE = 1  # of a graph
_OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 2, 4, 5, 7  # of a node
_ATTRIBUTE_TENSOR = 5  # of an attribute
_SPARSE_VALUES = 1  # of a sparse tensor
_MAX_DEPTH = 64  # of messages in messages; protobuf itself stops at 100

CONSTANT_BYTES = 1024  # smaller Constant nodes stay in the graph; they are shapes and axes rather than weights
SMALL_BYTES = 1024  # smaller tensors stay in the model file even beside a weights file: shape inference reads them
INLINE_BYTES = 2_000_000_000  # a protobuf message must stay below 2^31 bytes
_EXTERNAL_ALIGNMENT = 64

# What stands in ``extra`` for the values taken out: TensorProto.external_data = {key: "deepcabac"}.
_MARK_KEY = b"deepcabac"
_MARK = wire.bytes_field(_EXTERNAL_DATA, wire.bytes_field(1, _MARK_KEY))


ModelPiece = bytes | TensorSpec  # of a model file: bytes to copy, or the place of a tensor's values


@dataclass
class StoredTensor:
    """A TensorProto. ``rest`` holds its fields apart from the values and the word where they are."""

    name: str = ""
    code: int = 0
    dims: list[int] = field(default_factory=list)
    rest: bytes = b""
    data: list[wire.Field] = field(default_factory=list)
    external: dict[bytes, bytes] = field(default_factory=dict)
    location: int = 0  # 1: the values are in another file
    segmented: bool = False
    eligible: bool = False  # its place in the model is one whose tensors are taken out
    constant: bool = False  # it is a Constant node's
    main: bool = False  # it belongs to the main graph itself
    initializer: bool = False  # it is a (dense) initializer of the main graph
    label: str = ""  # its name among all tensors

    @property
    def marked(self) -> bool:
        """Whether an :class:`OnnxReader` took the values out."""
        return _MARK_KEY in self.external

    @property
    def spec(self) -> TensorSpec:
        """``dtype`` must be supported, and the dimensions checked."""
        return TensorSpec(self.label or self.name, _DTYPE_OF_CODE[self.code], tuple(self.dims))


@dataclass
class Message:
    """A message with tensors somewhere inside: bytes to copy, and (field number, child) between them."""

    parts: list[bytes | tuple[int, Message | StoredTensor]] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)  # all those inside, in order


def _parse_model(data: wire.Buffer) -> Message:
    """Take apart a ModelProto. Raises :class:`protobuf.WireError`."""
    top = [(f.number, f.wire) for f in wire.fields(data, 0, len(data))]
    if (_IR_VERSION, wire.VARINT) not in top or (_GRAPH, wire.BYTES) not in top:
        raise wire.WireError("there is no graph")
    return _parse(data, 0, len(data), "model", 0, True, "")


def _parse(data: wire.Buffer, start: int, end: int, kind: str, depth: int, main: bool, constant: str) -> Message:
    """Take apart a message of ``kind``.

    ``main`` says that it belongs to the main graph, ``constant`` is the name for the value if it belongs to a
    Constant node.
    """
    if depth > _MAX_DEPTH:
        raise wire.WireError("messages are nested too deeply")
    if kind == "node":
        constant = _constant_name(data, start, end)
    message = Message()
    copied = start  # what comes before is in message.parts
    for f in wire.fields(data, start, end):
        child_kind = _CHILDREN[kind].get(f.number) if f.wire == wire.BYTES else None
        if child_kind is None:
            continue
        child: Message | StoredTensor
        if child_kind == "tensor":
            child = _parse_tensor(data, f.start, f.end)
            if kind == "attribute" and f.number == _ATTRIBUTE_TENSOR and constant:
                child.name, child.eligible, child.constant = constant, True, True
            elif kind == "sparse":
                indices = f"{message.tensors[0].name}.indices" if message.tensors else ""
                child.name = child.name or (constant if f.number == _SPARSE_VALUES else indices)
                child.eligible = child.name != ""
            elif kind == "graph":
                child.eligible, child.initializer = child.name != "", main
            child.main = main
            message.tensors.append(child)
        else:
            still_main = f.number == _GRAPH if kind == "model" else main and child_kind != "graph"
            inside = constant if kind == "node" or child_kind == "sparse" else ""
            child = _parse(data, f.start, f.end, child_kind, depth + 1, still_main, inside)
            if not child.tensors:
                continue  # nothing to take out: one piece of bytes
            message.tensors += child.tensors
        message.parts += [data[copied : f.begin], (f.number, child)]
        copied = f.end
    message.parts.append(data[copied:end])
    return message


def _label(tensors: list[StoredTensor]) -> None:
    """Give the tensors that are taken out of a model, in its order, names of their own."""
    taken = {tensor.name for tensor in tensors if tensor.main}
    for tensor in tensors:
        tensor.label, number = tensor.name, 1
        while not tensor.main and tensor.label in taken:
            number += 1
            tensor.label = f"{tensor.name}~{number}"
        taken.add(tensor.label)


def _constant_name(data: wire.Buffer, start: int, end: int) -> str:
    """The name of the value that a Constant node gives; empty for other nodes."""
    texts: dict[int, list[bytes]] = {}
    for f in wire.fields(data, start, end):
        if f.wire == wire.BYTES and f.number in (_OUTPUT, _OP_TYPE, _DOMAIN):
            texts.setdefault(f.number, []).append(data[f.start : f.end])
    outputs = texts.get(_OUTPUT, [])
    if (
        texts.get(_OP_TYPE) != [b"Constant"]
        or texts.get(_DOMAIN, [b""]) not in ([b""], [b"ai.onnx"])
        or len(outputs) != 1
    ):
        return ""
    return outputs[0].decode("utf-8")


def _parse_tensor(data: wire.Buffer, start: int, end: int) -> StoredTensor:
    tensor = StoredTensor()
    rest = []
    for f in wire.fields(data, start, end):
        if f.number in _ALL_DATA:
            tensor.data.append(f)
            continue
        if f.number == _EXTERNAL_DATA and f.wire == wire.BYTES:
            entry = {g.number: data[g.start : g.end] for g in wire.fields(data, f.start, f.end) if g.wire == wire.BYTES}
            tensor.external[entry.get(1, b"")] = entry.get(2, b"")
            continue
        if f.number == _DATA_LOCATION and f.wire == wire.VARINT:
            tensor.location = f.value
            continue
        rest.append(data[f.begin : f.end])
        if f.number == _DIMS and f.wire == wire.VARINT:
            tensor.dims.append(f.value)
        elif f.number == _DIMS and f.wire == wire.BYTES:
            tensor.dims += wire.decode_varints(np.frombuffer(data[f.start : f.end], np.uint8)).tolist()
        elif f.number == _DATA_TYPE and f.wire == wire.VARINT:
            tensor.code = f.value
        elif f.number == _NAME and f.wire == wire.BYTES:
            tensor.name = data[f.start : f.end].decode("utf-8")
        elif f.number == _SEGMENT:
            tensor.segmented = True
    tensor.rest = b"".join(rest)
    return tensor


def flatten(message: Message, put: Callable[[StoredTensor], list[ModelPiece]]) -> tuple[list[ModelPiece], int]:
    """Put a message together again; ``put`` gives the body of each TensorProto.

    Returns the pieces and their size in bytes.
    """
    pieces: list[ModelPiece] = []
    total = 0
    for part in message.parts:
        if isinstance(part, bytes):
            pieces.append(part)
            total += len(part)
            continue
        number, child = part
        if isinstance(child, StoredTensor):
            inner = put(child)
            size = sum(piece.packed_bytes if isinstance(piece, TensorSpec) else len(piece) for piece in inner)
        else:
            inner, size = flatten(child, put)
        head = wire.prefix(number, size)
        pieces += [head, *inner]
        total += len(head) + size
    return pieces, total


class OnnxReader(CheckpointReader):
    """Reads an ``.onnx`` file and the weights files beside it. ``extra`` is the model without the values."""

    kind = "onnx"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file, size = open_binary(self.path)
        self._weights: tuple[Path, BinaryIO, int] | None = None  # the external file in use, and its size
        self.external_files: set[Path] = set()  #: where it keeps weights, besides itself
        self._tensors: dict[str, StoredTensor] = {}
        try:
            with reading(self.path):
                self._take_apart(wire.FileBytes(self._file, size))
        except BaseException:
            self.close()
            raise
        self.specs = [tensor.spec for tensor in self._tensors.values()]

    def _take_apart(self, data: wire.FileBytes) -> None:
        try:
            model = _parse_model(data)
        except (wire.WireError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{self.path}: is not an ONNX model, or is damaged ({reason(error)}); "
                "check the suffix, or fetch it again"
            ) from error
        for tensor in model.tensors:
            if tensor.marked:
                raise CheckpointError(f"{self.path}: its weights were taken out by deepcabac; give the original model")
            if not self._is_taken(tensor):
                tensor.eligible = False
                continue
            self._check_values(tensor)
        taken = [tensor for tensor in model.tensors if tensor.eligible]
        _label(taken)
        for tensor in taken:
            if tensor.label in self._tensors:
                raise CheckpointError(f"{self.path}: two values are called {tensor.label!r}; the model is damaged")
            self._tensors[tensor.label] = tensor

        def put(tensor: StoredTensor) -> list[ModelPiece]:
            if tensor.eligible:
                return [tensor.rest, _MARK]
            if tensor.location:  # the restored model will not have the file that this points to
                return [tensor.rest, wire.bytes_field(_RAW_DATA, self._read_external(tensor))]
            return as_it_was(tensor, data)

        pieces, _ = flatten(model, put)
        self.extra = b"".join(piece for piece in pieces if isinstance(piece, bytes))

    def _is_taken(self, tensor: StoredTensor) -> bool:
        if not tensor.eligible or tensor.segmented or tensor.code not in _DTYPE_OF_CODE:
            return False
        check_shape(tensor.dims, tensor.name, self.path)
        return not tensor.constant or tensor.spec.nbytes >= CONSTANT_BYTES

    def _check_values(self, tensor: StoredTensor) -> None:
        """Raise unless the values are where the tensor says, as many as its shape needs."""
        expected = tensor.spec.packed_bytes
        if tensor.location:
            _, _, length = self._open_external(tensor)
        else:
            number, wire_types = _values_field(tensor)
            found = [f for f in tensor.data if f.number == number]
            length = sum(f.end - f.start for f in found)
            if any(f.wire not in wire_types for f in found) or (number == _RAW_DATA and len(found) > 1):
                length = -1
            elif wire.VARINT in wire_types and length >= _numbers(tensor):
                length = expected  # how many numbers there are shows only in decoding them
        if length != expected:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} has fewer or more values than its shape; the model is damaged"
            )

    def roles(self) -> dict[str, str]:
        return onnx_graph.roles(self.extra, self._tensors)

    def read(self, name: str) -> Array:
        tensor = self._tensors[name]
        spec = tensor.spec
        narrow = bits_of(spec.dtype) < 8
        array = allocate(TensorSpec(name, np.dtype("u1"), (spec.packed_bytes,)) if narrow else spec, self.path)
        if tensor.location:
            file, offset, _ = self._open_external(tensor)
            read_into(file, offset, array, self.path)
            return own(unpack(array, spec)) if narrow else array
        number, wire_types = _values_field(tensor)
        found = [f for f in tensor.data if f.number == number]
        if wire.VARINT not in wire_types:
            self._gather(found, array.reshape(-1).view(np.uint8))
            return own(unpack(array, spec)) if narrow else array
        encoded = np.empty(sum(f.end - f.start for f in found), np.uint8)
        self._gather(found, encoded)
        try:
            numbers = wire.decode_varints(encoded)
        except wire.WireError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be decoded: {reason(error)}; the model is damaged"
            ) from error
        if len(numbers) != _numbers(tensor):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has fewer or more values than its shape; the model is damaged"
            )
        # Whatever the type, even float16, its bits are the number's lowest.
        if tensor.code in _SIX_BITS:  # not packed here
            return own(from_codes(numbers.astype(np.uint8), spec))
        array.reshape(-1).view(f"<u{array.itemsize}")[:] = numbers.astype(f"<u{array.itemsize}")
        return own(unpack(array, spec)) if narrow else array

    def _gather(self, found: list[wire.Field], target: Array) -> None:
        """Read the payloads of some fields one after the other.  target: u8 [their bytes]"""
        done = 0
        for f in found:
            read_into(self._file, f.start, target[done : done + f.end - f.start], self.path)
            done += f.end - f.start

    def _read_external(self, tensor: StoredTensor) -> bytes:
        file, offset, length = self._open_external(tensor)
        with reading(self.path):
            file.seek(offset)
            return file.read(length)

    def _open_external(self, tensor: StoredTensor) -> tuple[BinaryIO, int, int]:
        """The weights file of a tensor, the offset of its values there, and their length."""
        path = self._external_path(tensor)
        if self._weights is None or self._weights[0] != path:
            if not path.exists():
                raise CheckpointError(
                    f"{path}: no such file, but {self.path.name} keeps weights there; put it beside the model"
                )
            self._close_weights()
            self._weights = (path, *open_binary(path))
        _, file, size = self._weights
        try:
            offset = int(tensor.external.get(b"offset", b"0"))
            length = int(tensor.external.get(b"length", size - offset))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {tensor.name!r} has an invalid place in {path.name}") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise CheckpointError(
                f"{path}: ends before tensor {tensor.name!r} does; it is truncated, so fetch it again"
            )
        return file, offset, length

    def _external_path(self, tensor: StoredTensor) -> Path:
        """A tensor's weights file; inside the model's folder, or a model could read any file of its user's."""
        try:
            location = tensor.external.get(b"location", b"").decode("utf-8")
            parts = location.replace("\\", "/").split("/")
            if parts[0] and ":" not in parts[0] and ".." not in parts and "\0" not in location:
                path = self.path.parent.joinpath(*parts)
                # Links may lead where the model file itself lies: the Hugging Face cache keeps all its files like that.
                homes = (self.path.parent.resolve(), self.path.resolve().parent)
                if any(path.resolve().is_relative_to(home) for home in homes):
                    self.external_files.add(path)
                    return path
        except (UnicodeDecodeError, OSError, RuntimeError):  # no text, no valid name, a loop of links
            pass
        raise CheckpointError(
            f"{self.path}: refused: tensor {tensor.name!r} keeps its weights outside the model's folder"
        )

    def _close_weights(self) -> None:
        if self._weights is not None:
            self._weights[1].close()
            self._weights = None

    def close(self) -> None:
        self._close_weights()
        self._file.close()


def _numbers(tensor: StoredTensor) -> int:
    """How many numbers a tensor in ``int32_data`` and the like takes: narrow ones are packed into bytes."""
    spec = tensor.spec
    return spec.packed_bytes if bits_of(spec.dtype) < 8 and tensor.code not in _SIX_BITS else spec.size


def _values_field(tensor: StoredTensor) -> tuple[int, tuple[int, ...]]:
    """The number of the field that holds the values, and its wire types: packed into one field, or one by one."""
    if any(f.number == _RAW_DATA for f in tensor.data):
        return _RAW_DATA, (wire.BYTES,)
    number = _TYPED_DATA.get(tensor.code, _INT32_DATA)
    return number, (wire.BYTES, {_FLOAT_DATA: wire.FIXED32, _DOUBLE_DATA: wire.FIXED64}.get(number, wire.VARINT))


def parse_stored(extra: bytes, specs: list[TensorSpec]) -> Message:
    """Take apart the model that an :class:`OnnxReader` stored without its values, which ``specs`` describe.

    Raises :class:`DamagedFileError` if it is malformed or they do not belong together.
    """
    try:
        model = _parse_model(extra)
    except (wire.WireError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"the stored ONNX graph is malformed ({reason(error)}); the file is damaged") from error
    marked = [tensor for tensor in model.tensors if tensor.marked]
    _label(marked)
    if (
        any(not tensor.eligible or tensor.code not in _DTYPE_OF_CODE or tensor.data for tensor in marked)
        or [tensor.spec for tensor in marked] != specs  # thus no ties either, which ONNX does not know
    ):
        raise DamagedFileError("the stored ONNX graph does not fit the stored tensors; the file is damaged")
    return model


class OnnxWriter(CheckpointWriter):
    """Writes a model from an :class:`OnnxReader`'s ``extra``.

    One file, or, if it is asked for with ``external`` or the model is beyond ``INLINE_BYTES``, two: the larger tensors
    go to ``MODEL.onnx.data``.
    """

    def __init__(
        self, path: Path, specs: list[TensorSpec], extra: bytes, *, overwrite: bool = True, external: bool = False
    ) -> None:
        super().__init__(specs)
        model = parse_stored(extra, self.specs)

        def put_inline(tensor: StoredTensor) -> list[ModelPiece]:
            if tensor.marked:
                return [tensor.rest, wire.prefix(_RAW_DATA, tensor.spec.packed_bytes), tensor.spec]
            return as_it_was(tensor, extra)

        end = 0
        self._offsets: dict[str, int] = {}  # of the tensors in the weights file

        def put_external(tensor: StoredTensor) -> list[ModelPiece]:
            nonlocal end
            length = tensor.spec.packed_bytes
            if not tensor.marked or length < SMALL_BYTES:
                return put_inline(tensor)
            offset = end + -end % _EXTERNAL_ALIGNMENT
            end = offset + length
            self._offsets[tensor.label] = offset
            return external_body(tensor, path.name + ".data", offset)

        pieces, size = flatten(model, put_inline)
        if external or size > INLINE_BYTES:
            pieces, _ = flatten(model, put_external)
        self._target = AtomicFile(path, overwrite=overwrite)
        self._weights: AtomicFile | None = None
        try:
            if self._offsets:
                self._weights = AtomicFile(path.with_name(path.name + ".data"), overwrite=overwrite)
            self._next = iter(pieces)
            self._copy_pieces()
        except BaseException:
            self.abort()
            raise

    def _copy_pieces(self) -> None:
        """Write the model file up to the next tensor that belongs into it."""
        for piece in self._next:
            if isinstance(piece, TensorSpec):
                return
            self._target.file.write(piece)

    def _put(self, spec: TensorSpec, array: Array) -> None:
        if self._weights is not None and spec.name in self._offsets:
            self._weights.file.seek(self._offsets[spec.name])
            self._weights.file.write(byte_view(pack(array)))
        else:
            self._target.file.write(byte_view(pack(array)))
            self._copy_pieces()

    def _files(self) -> list[AtomicFile]:
        """Weights first: the model is only valid once they are there."""
        return [self._target] if self._weights is None else [self._weights, self._target]

    def _commit(self) -> None:
        commit_together(self._files())

    def abort(self) -> None:
        for file in self._files():
            file.abort()


def external_body(tensor: StoredTensor, location: str, offset: int) -> list[ModelPiece]:
    """The body of a TensorProto whose values lie at ``offset`` of the file ``location``."""
    entries = (("location", location), ("offset", str(offset)), ("length", str(tensor.spec.packed_bytes)))
    return [
        tensor.rest,
        *(_external_entry(key, value) for key, value in entries),
        wire.varint_field(_DATA_LOCATION, 1),
    ]


def _external_entry(key: str, value: str) -> bytes:
    return wire.bytes_field(_EXTERNAL_DATA, wire.bytes_field(1, key.encode()) + wire.bytes_field(2, value.encode()))


def as_it_was(tensor: StoredTensor, data: wire.Buffer) -> list[ModelPiece]:
    """The body of a TensorProto that keeps its values, from the buffer that it was parsed from."""
    return [tensor.rest, *(data[f.begin : f.end] for f in tensor.data)]
