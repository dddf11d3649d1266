"""Units of ISO/IEC 15938-17: their headers, read and written. What a header claims is checked here and in reading.py,
before anything is allocated.

A stream is a sequence of units. Each has its size and kind, then a header, then a payload: start, model parameter set,
topology, and compressed data units, which hold a tensor each, or the tensors of a layer (a block).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import DamagedFileError, UnsupportedError
from .bits import BitReader, BitWriter


class UnitType(enum.IntEnum):
    """Kinds of units."""

    START = 0
    MODEL_PARAMETER_SET = 1
    LAYER_PARAMETER_SET = 2
    TOPOLOGY = 3
    QUANTIZATION = 4
    COMPRESSED_DATA = 5
    AGGREGATE = 6


class Payload(enum.IntEnum):
    """How a compressed data unit holds its tensors."""

    INTEGERS = 0
    FLOATS = 1
    RAW_FLOATS = 2
    BLOCK = 3


#: Units that no encoder we know of writes, by their names in the standard.
_UNSUPPORTED_UNITS = {
    UnitType.LAYER_PARAMETER_SET: "layer parameter set (NNR_LPS)",
    UnitType.QUANTIZATION: "quantization (NNR_QNT)",
    UnitType.AGGREGATE: "aggregate (NNR_AGG)",
}
_PRUNED, _REFERENCE_LIST = 5, 6  # storage formats of topologies
_PARENT_NODE = 0  # parent_node_id_type: by device, parameter and depth
# compressed_parameter_types
DECOMPOSED, LOCAL_SCALES, BATCH_NORM, BIAS = 1, 2, 4, 8

_MOST_DIMENSIONS = 32
_MOST_SCAN = 4
_MOST_CODEBOOK = 1 << 20


@dataclass(frozen=True)
class Codebook:
    """Values that levels stand for, in steps, ascending; ``values[zero]`` is that of level 0."""

    values: tuple[int, ...]
    zero: int
    order: int  #: of the Exp-Golomb code of their differences


@dataclass(frozen=True)
class Parent:
    """What a unit of an update says about the tensor that it changes."""

    temporal: bool  #: contexts depend on the levels of the last update
    device: int = 0


@dataclass(frozen=True)
class DataHeader:
    """Header of a compressed data unit."""

    payload: Payload
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    roles: tuple[str, ...] = ()  #: what each tensor of a block is for
    device: int = 0
    parameter: int = 0
    depth: int = 0  #: updates before this one
    parent: Parent | None = None
    codebook: Codebook | None = None
    dependent: bool = False
    unary: int = 11
    scan: int = 0  #: 0 row by row, 1 to 4 in blocks of 8, 16, 32, 64
    entries: tuple[int, ...] = ()

    @property
    def block(self) -> int:
        """Edge of a block of the scan, 0 for none."""
        return 4 << self.scan if self.scan else 0


@dataclass
class Stream:
    """A stream taken apart: the parameters of the model, and its data units with their payloads."""

    profile: int
    density: int = 2
    qp: int = 0
    updates: bool = False  #: mps_parent_signalling_enabled_flag
    topology: int | None = None
    units: list[tuple[DataHeader, memoryview, int]] = field(default_factory=list)  #: header, payload, bytes of the unit
    file_bytes: int = 0


def recognises(head: bytes) -> bool:
    """Whether a file that begins like this is a stream: a start unit without anything unusual."""
    return len(head) >= 4 and head[:2] == b"\0\4" and head[2] in (0x00, 0x02)


def read(data: bytes | memoryview) -> Stream:
    """Take a stream apart. Raises DamagedFileError, and UnsupportedError naming what is not supported."""
    stream: Stream | None = None
    has_parameters = False
    view = memoryview(data)
    names: set[str] = set()
    for kind, unit in _units(view):
        reader = BitReader(unit)
        reader.unsigned(32 if unit[0] & 0x80 else 16)
        reader.unsigned(7)  # type, independently decodable
        if reader.flag():
            raise UnsupportedError("units in several parts (partial_data_counter) are not supported")
        if stream is None:
            if kind != UnitType.START:
                raise DamagedFileError("damaged: the first unit is no start unit (NNR_STR)")
            profile = reader.unsigned(8)
            if profile > 1:
                raise UnsupportedError(f"profile {profile} (general_profile_idc) is not supported, only 0 and 1")
            stream = Stream(profile, file_bytes=len(view))
        elif kind == UnitType.START:
            raise DamagedFileError("damaged: a second start unit (NNR_STR)")
        elif kind == UnitType.MODEL_PARAMETER_SET:
            if has_parameters:
                raise DamagedFileError("damaged: a second model parameter set (NNR_MPS)")
            has_parameters = True
            _read_parameters(reader, stream)
        elif kind in _UNSUPPORTED_UNITS:
            raise UnsupportedError(f"units of the kind {_UNSUPPORTED_UNITS[kind]} are not supported")
        elif not has_parameters:
            raise DamagedFileError("damaged: no model parameter set (NNR_MPS) before the first tensor")
        elif kind == UnitType.TOPOLOGY:
            stream.topology = reader.unsigned(8)
            if stream.topology in (_PRUNED, _REFERENCE_LIST):
                raise UnsupportedError("pruned topologies and reference lists are not supported")
            continue  # how layers are connected is nothing that tensors need
        else:
            header = _read_data(reader, stream)
            if not names.isdisjoint(header.names) or len(set(header.names)) != len(header.names):
                raise DamagedFileError(f"damaged: two tensors are called {header.names[0]!r}")
            names.update(header.names)
            stream.units.append((header, unit[reader.byte :], len(unit)))
            continue
        if reader.byte != len(unit):
            raise DamagedFileError(f"damaged: a unit of {len(unit)} bytes has a header of {reader.byte}")
    if stream is None or not has_parameters:
        raise DamagedFileError("damaged: the stream ends before its model parameter set (NNR_MPS)")
    return stream


def _units(view: memoryview) -> Iterator[tuple[UnitType, memoryview]]:
    at = 0
    while at < len(view):
        reader = BitReader(view[at : at + 8])
        size = reader.unsigned(31 if reader.flag() else 15)
        if not reader.byte < size <= len(view) - at:
            raise DamagedFileError(f"damaged: a unit claims {size:,} bytes where {len(view) - at:,} are left")
        kind = reader.unsigned(6)
        if kind > UnitType.AGGREGATE:
            raise UnsupportedError(f"units of the kind {kind} (nnr_unit_type) are not supported")
        yield UnitType(kind), view[at : at + size]
        at += size


def _read_parameters(reader: BitReader, stream: Stream) -> None:
    reader.flag()  # topology_carriage_flag
    maps = [name for name in ("sparsification", "pruning", "unification", "decomposition") if reader.flag()]
    if maps:
        raise UnsupportedError(f"performance maps ({maps[0]}) in the model parameter set are not supported")
    methods = reader.unsigned(3)
    if reader.flag():
        raise UnsupportedError("names by index (mps_topology_indexed_reference_flag) are not supported")
    base_model = performance = metric = False
    if stream.profile == 1:
        base_model, performance, metric, stream.updates = (reader.flag() for _ in range(4))
        reader.unsigned(3)
        if base_model or performance or metric:
            raise UnsupportedError("a base model's name and performance figures are not supported")
    else:
        reader.unsigned(7)
    if methods & 3:
        stream.density, stream.qp = reader.unsigned(3), reader.signed(13)
    reader.align()


def _read_data(reader: BitReader, stream: Stream) -> DataHeader:
    kind = reader.unsigned(5)
    if kind > Payload.BLOCK:
        raise UnsupportedError(f"payloads of type {kind} (nnr_compressed_data_unit_payload_type) are not supported")
    payload = Payload(kind)
    several, has_format, has_parameters = (reader.flag() for _ in range(3))
    if several != (payload == Payload.BLOCK):
        raise UnsupportedError("a tensor split over several elements of the topology is not supported")
    if several:
        count = reader.golomb(7) + 2
        reader.align()
        names = tuple(reader.text() for _ in range(min(count, 16)))
    else:
        names = (reader.text(),)
    device = parameter = depth = 0
    parent = None
    if stream.profile == 1:
        own = reader.flag()
        if own:
            device, parameter, depth = reader.golomb(1), reader.golomb(5), reader.golomb(4)
        if stream.updates and reader.flag():
            identified, temporal = reader.unsigned(2), reader.flag()
            if identified != _PARENT_NODE:
                raise UnsupportedError("an update that names its parent by a hash is not supported")
            parent = Parent(temporal, reader.golomb(1))
            if not own:
                parameter, depth = reader.golomb(5), reader.golomb(4)
    coded = payload in (Payload.FLOATS, Payload.BLOCK)
    codebook = _read_codebook(reader) if coded and reader.flag() else None
    dependent = payload != Payload.RAW_FLOATS and reader.flag()
    if has_format:
        reader.unsigned(7)  # the type that the tensor had
    if not has_parameters:
        raise UnsupportedError(f"tensor {names[0]!r} has its dimensions outside the stream, which is not supported")
    has_dimensions, has_unary = reader.flag(), reader.flag()
    kinds = reader.unsigned(4)
    if kinds & DECOMPOSED:
        raise UnsupportedError(f"tensor {names[0]!r} is decomposed into two of low rank, which is not supported")
    if not has_dimensions:
        raise UnsupportedError(f"tensor {names[0]!r} has its dimensions outside the stream, which is not supported")
    dimensions = reader.golomb(1)
    if dimensions > _MOST_DIMENSIONS:
        raise DamagedFileError(f"damaged: tensor {names[0]!r} claims {dimensions} dimensions")
    shape = tuple(reader.golomb(7) for _ in range(dimensions))
    unary = reader.unsigned(8) + 1 if has_unary else 10
    scan = 0
    entries: tuple[int, ...] = ()
    if len(shape) > 1:
        if stream.profile == 1:
            reader.golomb(1)  # first_tensor_dimension_shift, which NNCodec writes as 0 and ignores
        scan = reader.unsigned(4)
        if scan > _MOST_SCAN:
            raise UnsupportedError(f"tensor {names[0]!r} has the scan order {scan}, above {_MOST_SCAN}")
        if scan:
            entries = _read_entries(reader, max((shape[0] - 1) // (4 << scan), 0), dependent)
    reader.align()
    if payload == Payload.BLOCK:
        names, roles, shapes = _block(names, kinds, shape)
    else:
        roles, shapes = ("",), (shape,)
    return DataHeader(
        payload, names, shapes, roles, device, parameter, depth, parent, codebook, dependent, unary, scan, entries
    )


def _block(
    names: tuple[str, ...], kinds: int, shape: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Tensors of a block in the order of their levels, which is not that of their names."""
    normalisation = ("bn.beta", "bn.gamma", "bn.mean", "bn.var") if kinds & BATCH_NORM else ()
    scales = ("weight.ls",) if kinds & LOCAL_SCALES else ()
    bias = ("bias",) if kinds & BIAS else ()
    named = dict(zip(("weight", *scales, *normalisation, *bias), names, strict=False))
    roles = (*scales, *bias, *normalisation, "weight")
    if len(roles) != len(names) or not shape:
        raise DamagedFileError(f"damaged: a block claims {len(names)} tensors and describes {len(roles)}")
    shapes = tuple(shape if role == "weight" else shape[:1] for role in roles)
    return tuple(named[role] for role in roles), roles, shapes


def _read_codebook(reader: BitReader) -> Codebook:
    order, size = reader.unsigned(4), reader.golomb(2)
    zero = (size >> 1) + reader.signed_golomb(2)
    if not 0 < size <= _MOST_CODEBOOK or not 0 <= zero < size:
        raise DamagedFileError(f"damaged: a codebook claims {size} values, number {zero} for level 0")
    middle = reader.signed_golomb(7)
    left = [middle]
    for _ in range(zero):
        left.append(left[-1] - reader.golomb(order) - 1)
    right = [middle]
    for _ in range(size - zero - 1):
        right.append(right[-1] + reader.golomb(order) + 1)
    values = (*reversed(left), *right[1:])
    if values[0] < -1 << 31 or values[-1] >= 1 << 31:
        raise DamagedFileError("damaged: a codebook's value does not fit 32 bits")
    return Codebook(values, zero, order)


def write_codebook(writer: BitWriter, codebook: Codebook) -> None:
    """The inverse of reading one."""
    values, zero = codebook.values, codebook.zero
    writer.unsigned(4, codebook.order)
    writer.golomb(2, len(values))
    writer.signed_golomb(2, zero - (len(values) >> 1))
    writer.signed_golomb(7, values[zero])
    for at in range(zero, 0, -1):
        writer.golomb(codebook.order, values[at] - values[at - 1] - 1)
    for at in range(zero + 1, len(values)):
        writer.golomb(codebook.order, values[at] - values[at - 1] - 1)


# An entry point: (bits since the last one) << 11 | (value of the code) << 3 | (state of dependent quantisation).


def _read_entries(reader: BitReader, count: int, dependent: bool) -> tuple[int, ...]:
    entries: list[int] = []
    bits = 0
    for number in range(count):
        value = reader.unsigned(8)
        state = reader.unsigned(3) if dependent else 0
        bits = bits + reader.signed_golomb(7) if number else reader.golomb(11)
        if bits < 0:
            raise DamagedFileError("damaged: an entry point lies before the one before it")
        entries.append(bits << 11 | value << 3 | state)
    return tuple(entries)


def _write_entries(writer: BitWriter, entries: tuple[int, ...], dependent: bool) -> None:
    before = None
    for entry in entries:
        writer.unsigned(8, entry >> 3 & 255)
        if dependent:
            writer.unsigned(3, entry & 7)
        if before is None:
            writer.golomb(11, entry >> 11)
        else:
            writer.signed_golomb(7, (entry >> 11) - before)
        before = entry >> 11


def _unit(kind: UnitType, header: bytes, payload: bytes = b"") -> bytes:
    """A unit with its size in front, which counts itself."""
    body = bytes([kind << 2 | 2]) + header + payload
    if len(body) + 2 < 1 << 15:
        return (len(body) + 2).to_bytes(2, "big") + body
    if len(body) + 4 >= 1 << 31:
        raise UnsupportedError("a tensor takes 2 GiB or more, which a unit cannot hold")
    return (len(body) + 4 | 1 << 31).to_bytes(4, "big") + body


def write_beginning(density: int, updates: bool, profile: int = 1) -> bytes:
    """Start unit, model parameter set, and a topology that says nothing."""
    writer = BitWriter()
    writer.unsigned(5, 0b10000)  # topology_carriage_flag, no performance maps
    writer.unsigned(3, 1)  # uniform quantisation, which is what dependent quantisation and codebooks count as too
    writer.unsigned(4, 0)
    writer.unsigned(4, 8 * updates if profile == 1 else 0)
    writer.unsigned(3, density)
    writer.signed(13, 0)
    writer.align()
    return (
        _unit(UnitType.START, bytes([profile]))
        + _unit(UnitType.MODEL_PARAMETER_SET, writer.data())
        + _unit(UnitType.TOPOLOGY, bytes(3))
    )


def write_data(header: DataHeader, payload: bytes, updates: bool, profile: int = 1) -> bytes:
    """A compressed data unit."""
    writer = BitWriter()
    block = header.payload == Payload.BLOCK
    writer.unsigned(5, header.payload)
    writer.unsigned(3, 4 * block + 1)  # no data format, input parameters are present
    if block:
        names = dict(zip(header.roles, header.names, strict=True))
        order = ("weight", "weight.ls", "bn.beta", "bn.gamma", "bn.mean", "bn.var", "bias")
        writer.golomb(7, len(names) - 2)
        writer.align()
        for role in order:
            if role in names:
                writer.text(names[role])
    else:
        writer.text(header.names[0])
    if profile == 1:
        writer.unsigned(1, 1)
        writer.golomb(1, header.device)
        writer.golomb(5, header.parameter)
        writer.golomb(4, header.depth)
        if updates:
            writer.unsigned(1, header.parent is not None)
            if header.parent is not None:
                writer.unsigned(2, _PARENT_NODE)
                writer.unsigned(1, header.parent.temporal)
                writer.golomb(1, header.parent.device)
    if header.payload in (Payload.FLOATS, Payload.BLOCK):
        writer.unsigned(1, header.codebook is not None)
        if header.codebook is not None:
            write_codebook(writer, header.codebook)
    if header.payload != Payload.RAW_FLOATS:
        writer.unsigned(1, header.dependent)
    writer.unsigned(2, 3)  # dimensions and unary length are present
    kinds = {"weight.ls": LOCAL_SCALES, "bn.beta": BATCH_NORM, "bias": BIAS}
    writer.unsigned(4, sum(kinds.get(role, 0) for role in header.roles))
    shape = max(header.shapes, key=len)
    writer.golomb(1, len(shape))
    for size in shape:
        writer.golomb(7, size)
    writer.unsigned(8, header.unary - 1)
    if len(shape) > 1:
        if profile == 1:
            writer.golomb(1, 0)
        writer.unsigned(4, header.scan)
        if header.scan:
            _write_entries(writer, header.entries, header.dependent)
    writer.align()
    return _unit(UnitType.COMPRESSED_DATA, writer.data(), payload)


def sizes(header: DataHeader) -> list[int]:
    """Number of elements of each tensor of a unit."""
    return [math.prod(shape) for shape in header.shapes]
