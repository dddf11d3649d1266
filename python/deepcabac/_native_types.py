"""What the native core offers, for type checkers and for people: its functions, and the structures that they take.

maturin makes the module ``deepcabac._native`` from ``src/ffi/``, without types. :func:`differences` compares the two
whenever the module is loaded, so that neither can change alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")

Size = Annotated[int, "uintptr_t"]
UInt8 = Annotated[int, "uint8_t"]
UInt16 = Annotated[int, "uint16_t"]
UInt32 = Annotated[int, "uint32_t"]
UInt64 = Annotated[int, "uint64_t"]
Int32 = Annotated[int, "int32_t"]
Single = Annotated[float, "float"]
Double = Annotated[float, "double"]
Bool = Annotated[bool, "_Bool"]
Status = Annotated[int, "DcStatus"]

#: C types by what pointers point to, if that is a scalar.
_SCALARS: dict[Any, str] = {
    bool: "_Bool",
    int: "uintptr_t",
    np.uint8: "uint8_t",
    np.uint16: "uint16_t",
    np.uint32: "uint32_t",
    np.uint64: "uint64_t",
    np.int32: "int32_t",
    np.float32: "float",
    np.float64: "double",
}


class Pointer(Generic[T]):
    """A C pointer: to array elements (T is their numpy type), to a plain int or bool, or to structures.

    For type checkers only: all that cffi makes is of one class.
    """

    def __getitem__(self, index: int) -> T:
        raise NotImplementedError


@dataclass(kw_only=True)
class DcBuffer:
    """A buffer for a result whose size only the core knows."""

    start: Pointer[np.uint8]
    capacity: Size
    length: Size = 0  #: set


@dataclass(kw_only=True)
class DcSample:
    """Some elements of a tensor: levels, or weights to be quantised."""

    levels: Pointer[np.int32]
    weights: Pointer[np.float32]
    count: Size
    step: Single


@dataclass(kw_only=True)
class DcFit:
    """A tensor to choose coding parameters for."""

    shape: Pointer[np.uint64]
    dimensions: Size
    state_bits: UInt8
    preset: UInt8
    regression: Bool


@dataclass(kw_only=True)
class DcParams:
    """What stored parameters say."""

    width: Size
    lanes: Size
    coder: UInt8
    state_bits: UInt8


@dataclass(kw_only=True)
class DcMeasure:
    """What is known of a run of weights."""

    energy: Double
    largest: Double
    special: Size


@dataclass(kw_only=True)
class DcSums:
    """Sums over the weights and levels of a chunk."""

    energy: Double
    error: Double
    correlation: Double
    levels: Double


@dataclass(kw_only=True)
class DcQuantize:
    """A chunk of weights to quantise."""

    params: Pointer[np.uint8]
    params_length: Size
    weights: Pointer[np.float32]
    count: Size
    importance: Pointer[np.float32]
    levels: Pointer[np.int32]
    step: Single
    rate_weight: Single
    limit: Int32
    keeps_zeros: Bool


@dataclass(kw_only=True)
class DcQuantizeCoupled:
    """Rows of a matrix to quantise with error feedback."""

    params: Pointer[np.uint8]
    params_length: Size
    weights: Pointer[np.float32]
    count: Size
    height: Size
    width: Size
    block: Size
    first_row: Size
    columns: Pointer[np.float32]
    common: Pointer[np.float32]
    group_rows: Size
    rows: Pointer[np.float32]
    errors: Pointer[np.float32]
    levels: Pointer[np.int32]
    rate_weight: Single
    limit: Int32
    keeps_zeros: Bool


@dataclass(kw_only=True)
class DcJob:
    """A chunk to decode."""

    params: Pointer[np.uint8]
    params_length: Size
    bytes: Pointer[np.uint8]
    bytes_length: Size
    count: Size
    levels: Pointer[np.int32]
    values: Pointer[np.float32]
    step: Single
    good: Bool = False  #: set


@dataclass(kw_only=True)
class DcExact:
    """Exact values, and how they become levels and refinement bits."""

    values: Pointer[np.uint8]
    base: Pointer[np.uint8]
    count: Size
    width: Size
    centre: UInt64
    exponent: UInt32
    method: UInt8
    mantissa: UInt8
    item: UInt8


@dataclass(kw_only=True)
class DcLeveled:
    """Levels that were chosen for exact values."""

    exponent: UInt32
    params_length: Size
    refinement_length: Size


@dataclass(kw_only=True)
class DcFloats:
    """A chunk of floating-point values, to be coded or decoded."""

    values: Pointer[np.uint8]
    bytes: Pointer[np.uint8]
    bytes_length: Size
    count: Size
    width: Size
    mantissa: UInt8
    item: UInt8
    good: Bool = False  #: set


@dataclass(kw_only=True)
class DcChanges:
    """Values of a base, and the rates at which they change."""

    base: Pointer[np.uint8]
    count: Size
    codes: Pointer[np.uint8]
    codes_length: Size
    first: Size
    mantissa: UInt8
    item: UInt8


@dataclass(kw_only=True)
class DcCodebook:
    """A codebook, as far as its indices' code depends on it."""

    entries: Size
    width: Size
    usual: UInt16


@dataclass(kw_only=True)
class DcNncTensor:
    """A tensor of a unit of ISO/IEC 15938-17."""

    rows: Size
    width: Size
    block: Size
    unary: Size
    base: Pointer[np.int32]
    history: Pointer[np.uint8]
    levels: Pointer[np.int32]
    entries: Pointer[np.uint64]
    entries_count: Size
    codebook_size: UInt32
    codebook_zero: UInt32
    qp_bits: UInt32
    qp: Int32
    dependent: Bool
    extended: Bool
    update: Bool
    skip_rows: Bool
    choose_settings: Bool
    entries_known: Bool


@dataclass(kw_only=True)
class DcLayer:
    """A layer of a stream of 2019."""

    shape: Pointer[np.uint64]
    dimensions: Size
    weights: Pointer[np.float32]
    intervals: Pointer[np.float32]
    intervals_count: Size
    step: Single
    rate_weight: Single


_STRUCTURES = (
    DcBuffer,
    DcSample,
    DcFit,
    DcParams,
    DcMeasure,
    DcSums,
    DcQuantize,
    DcQuantizeCoupled,
    DcJob,
    DcExact,
    DcLeveled,
    DcFloats,
    DcChanges,
    DcCodebook,
    DcNncTensor,
    DcLayer,
)

Bytes = Pointer[np.uint8]
Out = Pointer[DcBuffer]


class Library(Protocol):
    """The functions of the native core: what they do is said in ``src/ffi/``."""

    DC_STATUS_OK: int
    DC_STATUS_ARGUMENT: int
    DC_STATUS_DAMAGED: int
    DC_STATUS_ROOM: int
    DC_STATUS_RANGE: int
    DC_STATUS_BUG: int

    # src/ffi/levels.rs
    def dc_fit(self, given: Pointer[DcFit], sample: Pointer[DcSample], out: Out, /) -> Status: ...
    def dc_try_regression(
        self, params: Bytes, params_length: Size, first: Pointer[DcSample], pays: Pointer[bool], /
    ) -> Status: ...
    def dc_chunk_levels(self, params: Bytes, params_length: Size, /) -> Size: ...
    def dc_params(self, params: Bytes, params_length: Size, out: Pointer[DcParams], /) -> Status: ...
    def dc_measure(self, weights: Pointer[np.float32], count: Size, out: Pointer[DcMeasure], /) -> Status: ...
    def dc_encode(
        self, params: Bytes, params_length: Size, levels: Pointer[np.int32], count: Size, out: Out, /
    ) -> Status: ...
    def dc_quantize(self, given: Pointer[DcQuantize], sums: Pointer[DcSums], out: Out, /) -> Status: ...
    def dc_quantize_coupled(
        self, given: Pointer[DcQuantizeCoupled], sums: Pointer[DcSums], out: Out, /
    ) -> Status: ...
    def dc_decode(self, jobs: Pointer[DcJob], count: Size, /) -> Status: ...
    def dc_most_levels(self, bytes_length: Size, /) -> Size: ...
    def dc_crc32(self, data: Bytes, count: Size, /) -> UInt32: ...
    def dc_encode_bytes(self, data: Bytes, count: Size, out: Out, /) -> Status: ...
    def dc_decode_bytes(self, coded: Bytes, coded_length: Size, data: Bytes, count: Size, /) -> Status: ...

    # src/ffi/exact.rs
    def dc_split(self, given: Pointer[DcExact], levels: Pointer[np.int32], out: Out, /) -> Status: ...
    def dc_encode_exact(
        self,
        params: Bytes,
        params_length: Size,
        given: Pointer[DcExact],
        refinement_length: Pointer[int],
        out: Out,
        /,
    ) -> Status: ...
    def dc_encode_leveled(
        self, given: Pointer[DcExact], tensor: Pointer[DcFit], tries: UInt32, chosen: Pointer[DcLeveled], out: Out, /
    ) -> Status: ...
    def dc_join(
        self, given: Pointer[DcExact], levels: Pointer[np.int32], refinement: Bytes, refinement_length: Size, /
    ) -> Status: ...
    def dc_encode_floats(self, given: Pointer[DcFloats], scaled: Bool, out: Out, /) -> Status: ...
    def dc_decode_floats(self, jobs: Pointer[DcFloats], count: Size, /) -> Status: ...
    def dc_encode_indices(
        self, book: Pointer[DcCodebook], indices: Pointer[np.uint16], count: Size, out: Out, /
    ) -> Status: ...
    def dc_decode_indices(
        self, book: Pointer[DcCodebook], coded: Bytes, coded_length: Size, indices: Pointer[np.uint16], count: Size, /
    ) -> Status: ...

    # src/ffi/changes.rs
    def dc_change_chunk(self, /) -> Size: ...
    def dc_fit_changes(
        self, given: Pointer[DcChanges], values: Pointer[np.uint8], first: Pointer[int], out: Out, /
    ) -> Status: ...
    def dc_encode_changes(self, given: Pointer[DcChanges], values: Pointer[np.uint8], out: Out, /) -> Status: ...
    def dc_decode_changes(
        self, given: Pointer[DcChanges], coded: Bytes, coded_length: Size, values: Pointer[np.uint8], /
    ) -> Status: ...
    def dc_list_changes(
        self,
        given: Pointer[DcChanges],
        coded: Bytes,
        coded_length: Size,
        places: Pointer[np.uint32],
        values: Pointer[np.uint8],
        found: Pointer[int],
        /,
    ) -> Status: ...

    # src/ffi/streams.rs
    def dc_nnc_encode(self, tensors: Pointer[DcNncTensor], count: Size, out: Out, /) -> Status: ...
    def dc_nnc_decode(
        self, data: Bytes, data_length: Size, tensors: Pointer[DcNncTensor], count: Size, /
    ) -> Status: ...
    def dc_most_bins(self, bytes_length: Size, /) -> Size: ...
    def dc_nnc_quantize(
        self,
        given: Pointer[DcNncTensor],
        weights: Pointer[np.float32],
        count: Size,
        step: Single,
        rate_weight: Double,
        /,
    ) -> Status: ...
    def dc_dc2019_encode(self, layers: Pointer[DcLayer], count: Size, out: Out, /) -> Status: ...
    def dc_dc2019_decode(self, data: Bytes, data_length: Size, out: Out, /) -> Status: ...


def _c_type(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return str(hint.__metadata__[0])
    (target,) = get_args(hint)
    return f"{_SCALARS.get(target) or target.__name__} *"


def declared() -> dict[str, str]:
    """The C declaration of each name in this module that the native module should have."""
    found = {}
    for structure in _STRUCTURES:
        hints = get_type_hints(structure, include_extras=True)
        found[structure.__name__] = ", ".join(f"{_c_type(hint)} {name}" for name, hint in hints.items())
    for name, function in vars(Library).items():
        if name.startswith("dc_"):
            *arguments, result = map(_c_type, get_type_hints(function, include_extras=True).values())
            found[name] = f"{result}({', '.join(arguments)})"
    return found | dict.fromkeys(Library.__annotations__, "constant")


def built(ffi: Any, lib: Any) -> dict[str, str]:
    """The same of a module that cffi made."""
    found = {}
    for name in ffi.list_types()[0]:
        kind = ffi.typeof(name)
        if kind.kind == "struct":
            found[name] = ", ".join(f"{field.type.cname} {label}" for label, field in kind.fields)
    for name in dir(lib):
        value = getattr(lib, name)
        found[name] = "constant" if isinstance(value, int) else _signature(ffi.typeof(value))
    return found


def _signature(kind: Any) -> str:
    names = (one.cname.removeprefix("struct ").removeprefix("enum ") for one in (kind.result, *kind.args))
    result, *arguments = names
    return f"{result}({', '.join(arguments)})"


def differences(ffi: Any, lib: Any) -> list[str]:
    """Names that the native module and this one declare differently, or that only one of them has."""
    expected, found = declared(), built(ffi, lib)
    return sorted(name for name in expected | found if expected.get(name) != found.get(name))
