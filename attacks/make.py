"""Makes the hostile files of this folder: ``python attacks/make.py``.

Each is what the real writer writes with one thing wrong, and with checksums made right again (unless the checksum is
the thing). ``tests/test_attacks.py`` opens every one of them.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import forge  # noqa: E402
import streams  # noqa: E402
from forge import Parts, entry, levels_rest, plain_index, stored, with_stored  # noqa: E402

import deepcabac  # noqa: E402
from deepcabac import _core, dc2019, nnc  # noqa: E402
from deepcabac.dcb import container  # noqa: E402
from deepcabac.dcb.container import HEADER, LEVELS, MAGIC, MAX_INDEX, RAW, TIED  # noqa: E402
from deepcabac.errors import (  # noqa: E402
    DamagedFileError,
    DeepCabacError,
    LimitError,
    OptionError,
    UnsupportedError,
    WrongKindError,
)
from deepcabac.wire import blob, varint  # noqa: E402

#: What every attack is opened with.
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Attack:
    """One hostile file."""

    name: str  #: of the file
    what: str  #: is wrong
    error: type[DeepCabacError]  #: what opening and decoding it must raise
    says: str  #: part of its message
    make: Callable[[], bytes]


ATTACKS: list[Attack] = []


def attack(
    name: str, what: str, says: str, error: type[DeepCabacError] = DamagedFileError
) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Register a maker."""

    def register(make: Callable[[], bytes]) -> Callable[[], bytes]:
        ATTACKS.append(Attack(name, what, error, says, make))
        return make

    return register


WEIGHTS = np.random.default_rng(1).normal(size=(16, 20)).astype(np.float32)
#: Too random to be coded.
BIAS = (np.random.default_rng(2).integers(0, 1 << 32, 20, np.uint32) & np.uint32(0xBFFFFFFF)).view(np.float32)


def good() -> bytes:
    """A file with a quantised, an exact and a tied tensor."""
    return deepcabac.compress({"w": WEIGHTS, "b": BIAS, "again": WEIGHTS}, sqnr=20)


def parts() -> Parts:
    """That, taken apart."""
    return Parts.of(good())


def w() -> tuple[bytes, bytes, float]:
    """Parameters, code and step of its quantised tensor."""
    file = parts()
    first = file.index().entries[0]
    assert first.method == LEVELS and len(first.chunks) == 1
    return first.params, file.payload[: first.chunks[0].length], first.step


def one_tensor(name: bytes = b"w", dtype: int = 2, shape: tuple[int, ...] = (16, 20), method: int = LEVELS) -> bytes:
    """A file of that tensor alone, with other words about it."""
    params, code, step = w()
    return Parts(code, plain_index([entry(name, dtype, shape, method, levels_rest([code], params, step))])).file()


def with_step(step: float) -> bytes:
    """That tensor with another step."""
    params, code, _ = w()
    return Parts(code, plain_index([entry(b"w", 2, (16, 20), LEVELS, levels_rest([code], params, step))])).file()


def with_params(params: bytes) -> bytes:
    """That tensor with other coding parameters."""
    _, code, step = w()
    return Parts(code, plain_index([entry(b"w", 2, (16, 20), LEVELS, levels_rest([code], params, step))])).file()


def with_code(code: bytes, length: int | None = None) -> bytes:
    """That tensor with another chunk, of which the index may lie."""
    params, _, step = w()
    rest = levels_rest([code], params, step, None if length is None else [length])
    return Parts(code, plain_index([entry(b"w", 2, (16, 20), LEVELS, rest)])).file()


def with_rows(rows: int) -> bytes:
    """That tensor said to have another number of rows, all in its one chunk."""
    params, code, step = w()
    assert params[3] == 16
    rest = levels_rest([code], params[:3] + bytes([rows]) + params[4:], step)
    return Parts(code, plain_index([entry(b"w", 2, (rows, 20), LEVELS, rest)])).file()


def with_shape(shape_bytes: bytes, dimensions: int) -> bytes:
    """That tensor with dimensions given as bytes."""
    params, code, step = w()
    head = blob(b"w") + bytes([2, dimensions]) + shape_bytes + bytes([LEVELS])
    return Parts(code, plain_index([head + levels_rest([code], params, step)])).file()


# Header ---------------------------------------------------------------------------------------------------------------

attack("empty.dcb", "no bytes at all", "it is empty")(lambda: b"")
attack("text.dcb", "a text file", "not a .dcb file", WrongKindError)(
    lambda: b"This is not a model, it only looks like one.\n" * 3
)
attack("bad-magic.dcb", "the first byte's top bit is lost, as on a 7-bit line", "its first bytes were changed")(
    lambda: bytes([MAGIC[0] & 127]) + good()[1:]
)
attack("newlines.dcb", "line ends converted, as by FTP in text mode", "its first bytes were changed")(
    lambda: good().replace(b"\r\n", b"\n")
)
attack("header-cut.dcb", "ends inside the header", "ends after 20 bytes")(lambda: good()[:20])
attack("version-2.dcb", "a newer version", "version 2", UnsupportedError)(
    lambda: good()[:8] + struct.pack("<I", 2) + good()[12:]
)
attack("version-max.dcb", "version 2^32 - 1", "version 4294967295", UnsupportedError)(
    lambda: good()[:8] + b"\xff" * 4 + good()[12:]
)
attack("cut.dcb", "the last byte is missing", "should have")(lambda: good()[:-1])
attack("appended.dcb", "a byte follows the index", "should have")(lambda: good() + b"\0")


def _header(offset: int | None = None, length: int | None = None) -> bytes:
    data = good()
    magic, version, crc, there, long = HEADER.unpack(data[: HEADER.size])
    head = HEADER.pack(magic, version, crc, there if offset is None else offset, long if length is None else length)
    return head + data[HEADER.size :]


attack("index-beyond-the-end.dcb", "the index lies outside the file", "should have")(lambda: _header(offset=1 << 40))
attack("index-in-the-header.dcb", "the index overlaps the header", "should have")(
    lambda: _header(offset=HEADER.size - 1, length=len(good()) - HEADER.size + 1)
)
attack("index-offset-wraps.dcb", "offset + length is right modulo 2^64", "should have")(
    lambda: _header(offset=(1 << 64) - 16, length=len(good()) + 16)
)
attack("index-length-max.dcb", "an index of 2^64 - 1 bytes", "should have")(lambda: _header(length=(1 << 64) - 1))
attack("no-index.dcb", "an index of no bytes", "ends early")(lambda: with_stored(parts().payload, b""))

# Index as a whole -----------------------------------------------------------------------------------------------------

attack("index-checksum.dcb", "one bit of the index is turned", "checksum of the index")(
    lambda: good()[:-1] + bytes([good()[-1] ^ 1])
)
attack("index-claims-too-much.dcb", "claims more than the largest index allowed", "allowed")(
    lambda: with_stored(parts().payload, stored(parts().plain, claimed=MAX_INDEX + 1))
)
attack("index-claims-2-to-62.dcb", "claims 2^62 bytes", "allowed")(
    lambda: with_stored(parts().payload, stored(parts().plain, claimed=1 << 62))
)
attack("index-beyond-expansion.dcb", "claims more than its bytes can stand for", "cannot stand for")(
    lambda: with_stored(parts().payload, stored(b"", claimed=60_000))
)
attack("index-one-longer.dcb", "claims one byte more than it has", "not what an encoder wrote")(
    lambda: with_stored(parts().payload, stored(parts().plain, claimed=len(parts().plain) + 1))
)
attack("index-one-shorter.dcb", "claims one byte less than it has", "")(
    lambda: with_stored(parts().payload, stored(parts().plain, claimed=len(parts().plain) - 1))
)
attack("index-trailing-byte.dcb", "a byte follows the last tensor", "bytes too many")(
    lambda: Parts(parts().payload, parts().plain + b"\0").file()
)
attack("index-bomb.dcb", "2 MB of zeros as metadata in 1.5 kB", "more than the")(
    lambda: Parts(b"", plain_index([], extra=bytes(1 << 21))).file()
)
attack("index-plain-cut.dcb", "an index that is not coded, without its last byte", "ends early")(
    lambda: with_stored(parts().payload, b"\0" + parts().plain[:-1])
)
attack("extra-too-long.dcb", "metadata longer than the index", "ends early")(
    lambda: Parts(b"", blob(b"") + varint(1 << 40) + b"short").file()
)
attack("kind-not-utf8.dcb", "the kind of checkpoint is not UTF-8", "not UTF-8")(
    lambda: Parts(b"", plain_index([], kind=b"\xc0\x80")).file()
)
attack("too-many-tensors.dcb", "claims 2^60 tensors", "ends early")(
    lambda: Parts(b"", plain_index([], count=1 << 60)).file()
)
attack("payload-of-nobody.dcb", "payload without a tensor", "belong to no tensor")(
    lambda: Parts(b"hidden", plain_index([])).file()
)

# Entries --------------------------------------------------------------------------------------------------------------

ZERO = struct.pack("<I", 0)
attack("same-name.dcb", "two tensors of one name", "two tensors are called")(
    lambda: Parts(b"", plain_index([entry(shape=(0,)), entry(shape=(0,))])).file()
)
attack("name-not-utf8.dcb", "a name that is not UTF-8", "not UTF-8")(lambda: one_tensor(name=b"w\xff"))
attack("name-surrogate.dcb", "a name with half a character, as UTF-8", "not UTF-8")(
    lambda: one_tensor(name=b"\xed\xa0\x80")
)
attack("name-too-long.dcb", "a name longer than the index", "ends early")(
    lambda: Parts(b"", plain_index([varint(1 << 30) + b"w" * 20])).file()
)
attack("dtype-0.dcb", "data type 0", "unknown data type")(lambda: one_tensor(dtype=0))
attack("dtype-31.dcb", "a data type that does not exist yet", "unknown data type")(lambda: one_tensor(dtype=31))
attack("method-20.dcb", "a method that does not exist yet", "unknown method")(lambda: one_tensor(method=20))
attack("method-255.dcb", "the last method that could ever exist", "unknown method")(lambda: one_tensor(method=255))
attack("method-3.dcb", "levels, said to be exact values", "damaged")(lambda: one_tensor(method=3))
attack("33-dimensions.dcb", "more dimensions than numpy once allowed", "33 dimensions")(
    lambda: one_tensor(shape=(16, 20) + (1,) * 31)
)
attack("255-dimensions.dcb", "more dimensions than anything allows", "255 dimensions")(
    lambda: one_tensor(shape=(1,) * 255)
)
attack("product-overflows.dcb", "2^31 x 2^31 elements", "a tensor of shape")(
    lambda: one_tensor(shape=(1 << 31, 1 << 31))
)
attack("product-wraps-to-320.dcb", "dimensions whose product is 320 modulo 2^64", "a tensor of shape")(
    lambda: one_tensor(shape=(1 << 32, 1 << 32, 20))
)
attack("zero-times-huge.dcb", "an empty tensor with impossible other dimensions", "a tensor of shape")(
    lambda: Parts(b"", plain_index([entry(shape=(0, 1 << 40, 1 << 40))])).file()
)
attack("dimension-minus-one.dcb", "a dimension of 2^70 - 1, as a sloppy reader's -1", "malformed")(
    lambda: with_shape(b"\xff" * 9 + b"\x7f" + varint(20), 2)
)
attack("dimension-overlong.dcb", "16 written as two bytes", "malformed")(
    lambda: with_shape(b"\x90\x00" + varint(20), 2)
)
attack("dimension-endless.dcb", "a number without an end", "malformed")(lambda: with_shape(b"\x80" * 40, 2))
attack("index-cut.dcb", "the index ends inside a tensor", "ends early")(
    lambda: Parts(w()[1], plain_index([entry(b"w", 2, (16, 20), LEVELS, b"\0\0")])).file()
)

for label, step in {"nan": np.nan, "inf": np.inf, "zero": 0.0, "minus-zero": -0.0, "negative": -0.5}.items():
    attack(f"step-{label}.dcb", f"a step of {step}", "has step")(lambda step=step: with_step(step))
attack("levels-of-integers.dcb", "quantised int32", "has step")(lambda: one_tensor(dtype=8))
attack("levels-of-bools.dcb", "quantised bool", "has step")(lambda: one_tensor(dtype=15))


def _tied(shape: tuple[int, ...], number: int, dtype: int = 2) -> bytes:
    file = parts()
    index = file.index()
    params, code, step = w()
    assert index.entries[1].method == RAW
    first = entry(b"w", 2, (16, 20), LEVELS, levels_rest([code], params, step))
    bias = entry(b"b", 2, (20,), RAW, struct.pack("<I", index.entries[1].chunks[0].crc))
    again = entry(b"again", 2, (16, 20), TIED, varint(0))
    last = entry(b"t", dtype, shape, TIED, varint(number))
    return Parts(file.payload, plain_index([first, bias, again, last])).file()


attack("tied-to-itself.dcb", "a tensor tied to itself", "does not come before it")(lambda: _tied((16, 20), 3))
attack("tied-to-later.dcb", "a tensor tied to one that does not exist", "does not come before it")(
    lambda: _tied((16, 20), 4)
)
attack("tied-to-2-to-62.dcb", "a tensor tied to number 2^62", "does not come before it")(
    lambda: _tied((16, 20), 1 << 62)
)
attack("tied-to-tied.dcb", "a tensor tied to a tied one", "does not come before it")(lambda: _tied((16, 20), 2))
attack("tied-to-other-shape.dcb", "a tensor tied to one of another shape", "another type or shape")(
    lambda: _tied((20, 16), 0)
)
attack("tied-to-other-type.dcb", "a tensor tied to one of another type", "another type or shape")(
    lambda: _tied((16, 20), 0, dtype=8)
)

def _equal(count: int) -> bytes:
    """A file with so many tensors that equal its first one."""
    params, code, step = w()
    first = entry(b"w", 2, (16, 20), LEVELS, levels_rest([code], params, step))
    others = [entry(f"{number}".encode(), 2, (16, 20), 12, varint(0)) for number in range(count)]
    return Parts(code, plain_index([first, *others])).file()


attack("equal-to-equal.dcb", "a tensor equal to one that equals another", "does not come before it")(
    lambda: Parts(
        w()[1],
        plain_index(
            [
                entry(b"w", 2, (16, 20), LEVELS, levels_rest([w()[1]], w()[0], w()[2])),
                entry(b"v", 2, (16, 20), 12, varint(0)),
                entry(b"u", 2, (16, 20), 12, varint(1)),
            ]
        ),
    ).file()
)
attack("equal-65.dcb", "65 tensors equal to one, which take 65 times its memory", "more than 64 tensors")(
    lambda: _equal(65)
)

# Scales ---------------------------------------------------------------------------------------------------------------


def scaled(
    rows: bytes = bytes(16),
    columns: bytes = bytes(20),
    *,
    dtype: int = 2,
    shape: tuple[int, ...] = (16, 20),
    step: float | None = None,
    params: bytes | None = None,
    codes: list[bytes] | None = None,
) -> bytes:
    """That tensor with scales, or with something else about it."""
    right, code, good_step = w()
    codes = [code] if codes is None else codes
    params, step = right if params is None else params, good_step if step is None else step
    rest = levels_rest(codes, params, step, rows=rows, columns=columns)
    return Parts(b"".join(codes), plain_index([entry(b"w", dtype, shape, LEVELS, rest)])).file()


ONE, ODD = bytes([0, 96, 1, 1]), bytes([0, 96, 7, 5])  # chunks of 1 and of 35 levels
NOT_THEIRS = "scales that do not fit its shape"
LIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "rows-15": ("a row scale too few", lambda: scaled(rows=bytes(15))),
    "rows-17": ("a row scale too many", lambda: scaled(rows=bytes(17))),
    "columns-19": ("a column scale too few", lambda: scaled(columns=bytes(19))),
    "columns-21": ("a column scale too many", lambda: scaled(columns=bytes(21))),
    "each-element": ("a row scale for every element", lambda: scaled(rows=bytes(320))),
    "swapped": ("scales of rows and columns swapped", lambda: scaled(bytes(20), bytes(16))),
    "of-inner-rows": (
        "row scales by the first two dimensions, and column scales by the last",
        lambda: scaled(bytes(16), bytes(5), shape=(4, 4, 20)),
    ),
    "of-a-scalar": (
        "scales of a tensor without dimensions",
        lambda: scaled(b"\0", b"\0", shape=(), params=ONE, codes=[_code(ONE, 1)]),
    ),
    "of-nothing": ("scales of a tensor of 16 x 0 elements", lambda: scaled(columns=b"", shape=(16, 0), codes=[])),
    "of-no-rows": ("scales of a tensor of 0 x 20 elements", lambda: scaled(rows=b"", shape=(0, 20), codes=[])),
    "of-nothing-one": (
        "one column scale for no elements: a sloppy reader takes the width of nothing to be 1",
        lambda: scaled(b"", b"\0", shape=(0, 20), codes=[]),
    ),
    "across-chunks": (
        "chunks of 35 levels, so that rows of 20 begin and end inside",
        lambda: scaled(params=ODD, codes=[_code(ODD, 35)] * 9 + [_code(ODD, 5)]),
    ),
    "wider-than-chunks": (
        "rows of 2^21 elements, wider than any chunk",
        lambda: scaled(
            b"\0\0", b"", shape=(2, 1 << 21), params=WIDE, codes=[_core.encode(WIDE, np.zeros(1 << 20, np.int32))] * 4
        ),
    ),
}


def _code(params: bytes, count: int) -> bytes:
    """A chunk of zeros."""
    return _core.encode(params, np.zeros(count, np.int32))


for label, (what, make_lie) in LIES.items():
    attack(f"scales-{label}.dcb", what, NOT_THEIRS)(make_lie)

for label, step in {"nan": np.nan, "inf": np.inf, "zero": 0.0}.items():
    attack(f"scales-step-{label}.dcb", f"scales and a step of {step}", "has step")(lambda step=step: scaled(step=step))
attack("scales-of-integers.dcb", "scales of int32", "has step")(lambda: scaled(dtype=8))
attack("scales-too-long.dcb", "2^62 row scales", "ends early")(
    lambda: Parts(
        w()[1],
        plain_index([entry(b"w", 2, (1 << 59,), LEVELS, struct.pack("<f", 1) + varint(1 << 62) + bytes(16))]),
    ).file()
)
attack("scales-cut.dcb", "the index ends inside the scales", "ends early")(
    lambda: Parts(w()[1], plain_index([entry(b"w", 2, (16, 20), LEVELS, struct.pack("<f", 1) + b"\x10\0\0")])).file()
)
attack("scales-params-none.dcb", "scales, and no parameters", "parameters")(lambda: scaled(params=b""))
attack("scales-chunk-damaged.dcb", "scales, and a chunk that does not decode, checksum right", "does not decode")(
    lambda: scaled(codes=[w()[1][:-1]])
)


# Exact values and updates ---------------------------------------------------------------------------------------------

PLAIN = bytes([0, 96, 20, 16])  # chunks of 16 rows of 20
REFINEMENT = b"\0" + bytes(80)  # every value is below half of 2^0 units: a sign and nothing else, 320 bits of them
FLOATS_AT_0 = bytes([3, 0])  # method 3, k = 0


def exact(
    head: bytes = FLOATS_AT_0,
    params: bytes | None = PLAIN,
    *,
    code: bytes | None = None,
    refinement: bytes = REFINEMENT[:41],
    dtype: int = 2,
    shape: tuple[int, ...] = (16, 20),
    behind: bytes = b"",
) -> bytes:
    """320 zeros stored exactly, or with something else about them."""
    code = _code(PLAIN, 320) if code is None else code
    rest = head[1:] + (blob(params) if params is not None else b"") + varint(len(code)) + varint(len(refinement))
    rest += struct.pack("<I", zlib.crc32(code + refinement))
    return Parts(code + refinement, plain_index([entry(b"w", dtype, shape, head[0], rest)]) + behind).file()


def codebook(
    entries: int = 2,
    usual: int = 0,
    width: int = 20,
    rows: int = 16,
    values: bytes | None = None,
    code: bytes | None = None,
    dtype: int = 14,
) -> bytes:
    """320 times the byte 7 of a codebook of 7 and 9, or with something else about it."""
    values = b"\7\2" if values is None else values
    code = _core.encode_indices(np.zeros(320, np.uint16), 2, 0, 20) if code is None else code
    head = b"\6" + b"".join(map(varint, (entries, usual, width, rows))) + values
    return exact(head, None, code=code, refinement=b"", dtype=dtype)


def _bits(value: int, count: int) -> str:
    return format(value, f"0{count}b")[::-1]


def _number(value: int) -> str:
    """A number of variable length (FORMAT.md, 10.6)."""
    length = (value + 1).bit_length() - 1
    return "0" * length + "1" + (_bits(value + 1 - (1 << length), length) if length else "")


def _ones(first: bool = True) -> bytes:
    """The code of 320 times symbol 1, which has 4095 places of 4096; the ``first`` one may be symbol 0."""
    states, words = [1 << 16] * 8, b""
    for k in range(319, -1, -1):
        start, places = (0, 1) if k == 0 and not first else (1, 4095)
        if states[k % 8] >= places << 20:
            words = struct.pack("<H", states[k % 8] % 65536) + words
            states[k % 8] >>= 16
        states[k % 8] = (states[k % 8] // places << 12) + start + states[k % 8] % places
    return struct.pack("<8I", *states) + words


ONE_RUN, NO_SCALES = _number(0) + _number(0), "0"
#: Symbols 0 and 1, of grades 1 and 128.
TABLE = _bits(0, 8) + _bits(1, 8) + _number(2) + _number(254)


def symbols(
    *,
    low: str = _bits(21, 6),
    escapes: int = 0,
    runs: str = ONE_RUN,
    scales: str = NO_SCALES,
    table: str = TABLE,
    fill: str = "",
    copied: bytes = bytes(880),
    escaped: bytes = b"",
    code: bytes | None = None,
    rows: tuple[int, int] = (20, 16),
    **others: Any,
) -> bytes:
    """320 ones as symbols, or with something else about them."""
    head = low + _bits(507, 10) + _number(escapes) + runs + scales + table + fill
    head += "0" * (-len(head) % 8)
    chunk = int(head[::-1], 2).to_bytes(len(head) // 8, "little") + copied + escaped
    chunk += _ones() if code is None else code
    fields = b"\x0b" + varint(rows[0]) + varint(rows[1])
    return exact(fields, None, **{"code": chunk, "refinement": b"", **others})


def multiples(
    group: int = 20, signed: int = 0, steps: npt.ArrayLike = (1.0,) * 16, refinement: bytes | None = None, **others: Any
) -> bytes:
    """320 zeros in groups with a step each, or with something else about them."""
    if refinement is None:
        patterns = np.array(steps, np.float32).view(np.uint32)
        refinement = _core.encode_floats(_core.Floats(patterns, 23, 1 << 16), scaled=False)
    return exact(b"\x0e" + varint(group) + bytes([signed]), **{"refinement": refinement, **others})


def update(head: bytes = b"\x09", name: bytes = b"old.dcb", **others: Any) -> bytes:
    """An update that says something about its base."""
    if head == b"\x09":
        behind = others.get("behind", bytes(32) + blob(name))
        return Parts(b"", plain_index([entry(b"w", 2, (16, 20), 9)]) + behind).file()
    return exact(head, **{"params": None, "behind": bytes(32) + blob(name), **others})


def changes(
    first: int = 0, codes: bytes = b"\x20", code: bytes = b"\x80", dtype: int = 2, shape: tuple[int, ...] = (16, 20)
) -> bytes:
    """An update of which some values changed, or with something else about it."""
    rest = varint(first) + blob(codes) + varint(len(code)) + struct.pack("<I", zlib.crc32(code))
    return Parts(code, plain_index([entry(b"w", dtype, shape, 13, rest)]) + bytes(32) + blob(b"old.dcb")).file()


DECODES_NOT = "does not decode"
FALSEHOODS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "exact-and-a-base": ("exact values, and a base", "bytes too many", lambda: exact(behind=bytes(33))),
    "update-without-a-base": ("differences to a base that is not named", "ends early", lambda: exact(b"\7\0")),
    "exact-floats-of-integers": ("int32 as floats", "is stored with method 3", lambda: exact(dtype=8)),
    "exact-integers-of-floats": ("float32 as integers", "is stored with method 5", lambda: exact(b"\5" + bytes(5))),
    "exact-k": ("a step beyond all numbers", "a step of 2^2201", lambda: exact(b"\3" + varint(2201))),
    "exact-k-2-to-62": ("a step of 2^(2^62)", "a step of 2^", lambda: exact(b"\3" + varint(1 << 62))),
    "exact-params-none": ("no parameters", "parameters", lambda: exact(params=b"")),
    "exact-refinement-cut": (
        "refinement bits without their last byte",
        DECODES_NOT,
        lambda: exact(refinement=REFINEMENT[:40]),
    ),
    "exact-refinement-added": (
        "a byte of refinement bits too many",
        DECODES_NOT,
        lambda: exact(refinement=REFINEMENT[:42]),
    ),
    "exact-refinement-none": ("no refinement bits", DECODES_NOT, lambda: exact(refinement=b"")),
    "exact-precision": ("24 of 23 bits left out", DECODES_NOT, lambda: exact(refinement=b"\x18" + REFINEMENT[1:41])),
    "exact-row-precision": ("rows of 63 bits left out", DECODES_NOT, lambda: exact(refinement=b"\xff" * 41)),
    "exact-levels-cut": ("levels without their last byte", DECODES_NOT, lambda: exact(code=_code(PLAIN, 320)[:-1])),
    "exact-levels-none": ("refinement bits and no levels", "no bytes", lambda: exact(code=b"")),
    "exact-levels-bomb": (
        "2^40 values in a chunk for 320",
        "ends early",
        lambda: exact(shape=(1 << 20, 1 << 20)),
    ),
    "exact-beyond-expansion": (
        "2^20 values in 3 bytes",
        "cannot hold",
        lambda: exact(params=WIDE, code=b"abc", shape=(16, 1 << 16)),
    ),
    "exact-row-unmoved": (
        "integers: a row without differences, and with levels",
        DECODES_NOT,
        lambda: exact(b"\5" + bytes(5), code=_core.encode(PLAIN, np.ones(320, np.int32)), refinement=bytes(2), dtype=8),
    ),
    "exact-bool-2": (
        "a bool of 2",
        "neither 0 nor 1",
        lambda: exact(b"\5\0\2", refinement=bytes(2), dtype=15),
    ),
    "multiples-of-integers": ("multiples of type int32", "is stored with method 14", lambda: multiples(dtype=8)),
    "multiples-of-float8": (
        "multiples of a type without levels",
        "is stored with method 14",
        lambda: multiples(dtype=18),
    ),
    "multiples-group-0": ("groups of nothing", "groups of 0", lambda: multiples(0)),
    "multiples-group-not-of-chunks": (
        "a group in two chunks",
        "do not fit its chunks",
        lambda: multiples(11, shape=(16, 22)),
    ),
    "multiples-group-not-of-size": (
        "half a group",
        "groups of 160",
        lambda: multiples(160, steps=[1.0], shape=(16, 15), code=_code(PLAIN, 240)),
    ),
    "multiples-group-2-to-62": ("a group of 2^62 elements", "do not fit its chunks", lambda: multiples(1 << 62)),
    "multiples-signed-2": ("zeros that are signed twice", "do not fit its chunks", lambda: multiples(signed=2)),
    "multiples-params-none": ("multiples without parameters", "parameters", lambda: multiples(params=b"")),
    "multiples-levels-none": ("steps and no levels", "no bytes", lambda: multiples(code=b"")),
    "multiples-steps-none": ("levels and no steps", "cannot hold the steps", lambda: multiples(refinement=b"")),
    "multiples-steps-beyond": (
        "320 steps in 39 bytes",
        "cannot hold the steps",
        lambda: multiples(1, refinement=bytes(39)),
    ),
    "multiples-steps-few": ("15 steps of 16 groups", DECODES_NOT, lambda: multiples(steps=[1.0] * 15)),
    "multiples-steps-damaged": ("steps that do not decode", DECODES_NOT, lambda: multiples(refinement=bytes(99))),
    **{
        f"multiples-step-{label}": (
            f"one of 16 steps is {step}",
            DECODES_NOT,
            lambda step=step: multiples(steps=[*[1.0] * 15, step]),
        )
        for label, step in (("zero", 0.0), ("negative", -1.0), ("inf", math.inf), ("nan", math.nan))
    },
    "symbols-of-integers": ("int32 as symbols", "is stored with method 11", lambda: symbols(dtype=8)),
    "symbols-width-0": ("rows of no values", "has rows of", lambda: symbols(rows=(0, 16))),
    "symbols-width-65537": ("rows that are too wide", "has rows of", lambda: symbols(rows=(65537, 1))),
    "symbols-rows-0": ("chunks of no rows", "has rows of", lambda: symbols(rows=(20, 0))),
    "symbols-chunk": ("chunks of 2^21 values", "has rows of", lambda: symbols(rows=(1 << 16, 32))),
    "symbols-beyond-copied-bits": (
        "801 values in 100 bytes",
        "cannot hold",
        lambda: exact(b"\x0b" + varint(801) + b"\1", None, code=bytes(100), refinement=b"", shape=(801,)),
    ),
    "symbols-refinement": ("refinement bits", "that its method does not have", lambda: symbols(refinement=b"\0")),
    "symbols-low": ("24 of 23 bits copied", DECODES_NOT, lambda: symbols(low=_bits(24, 6))),
    "symbols-joined": ("8 bits of the mantissa in a symbol", DECODES_NOT, lambda: symbols(low=_bits(15, 6))),
    "symbols-number": ("a number of 2^24 values", DECODES_NOT, lambda: symbols(runs="0" * 24 + "1" * 40)),
    "symbols-run-zeros": (
        "22 of 21 bits left out",
        DECODES_NOT,
        lambda: symbols(runs=_number(0) + _number(22), copied=b""),
    ),
    "symbols-run-long": (
        "a run of 321 values of 320",
        DECODES_NOT,
        lambda: symbols(runs=_number(1) + _number(0) + _number(320) + _number(0)),
    ),
    "symbols-run-empty": (
        "a run after the last value",
        DECODES_NOT,
        lambda: symbols(runs=_number(1) + _number(0) + _number(319) + _number(0)),
    ),
    "symbols-runs": ("16,777,215 runs", DECODES_NOT, lambda: symbols(runs=_number((1 << 24) - 2) + "1" * 4000)),
    "symbols-parts": ("32 tables", DECODES_NOT, lambda: symbols(scales="1" + _number(5) + "00", table=TABLE * 32)),
    "symbols-scale": (
        "a scale of 32",
        DECODES_NOT,
        lambda: symbols(scales="1" + _number(0) + "1" + _number(32) + _number(0) * 15 + "0"),
    ),
    "symbols-table-of-one": (
        "a table of one symbol",
        DECODES_NOT,
        lambda: symbols(table=_bits(1, 8) * 2 + _number(256)),
    ),
    "symbols-table-reversed": (
        "the last symbol before the first one",
        DECODES_NOT,
        lambda: symbols(table=_bits(1, 8) + _bits(0, 8)),
    ),
    "symbols-grade-negative": (
        "a grade of -1",
        DECODES_NOT,
        lambda: symbols(table=_bits(0, 8) + _bits(1, 8) + _number(1) + _number(254)),
    ),
    "symbols-grade": (
        "a grade of 129",
        DECODES_NOT,
        lambda: symbols(table=_bits(0, 8) + _bits(1, 8) + _number(2) + _number(256)),
    ),
    "symbols-table-none": ("no table", DECODES_NOT, lambda: symbols(table="")),
    "symbols-head-fill": ("a one after the head", DECODES_NOT, lambda: symbols(fill="1")),
    "symbols-copied-cut": ("a byte of copied bits less", DECODES_NOT, lambda: symbols(copied=bytes(879))),
    "symbols-escapes-max": ("16,777,215 escapes", DECODES_NOT, lambda: symbols(escapes=(1 << 24) - 2)),
    "symbols-escape-unused": ("an escaped value too many", DECODES_NOT, lambda: symbols(escapes=1, escaped=bytes(4))),
    "symbols-escape-none": ("an escape without its value", DECODES_NOT, lambda: symbols(code=_ones(first=False))),
    "symbols-states-cut": ("states alone, the last one cut", DECODES_NOT, lambda: symbols(code=_ones()[:31])),
    "symbols-state-wrong": ("a state that ends elsewhere", DECODES_NOT, lambda: symbols(code=b"\xff" + _ones()[1:])),
    "symbols-word-left": ("a word too many", DECODES_NOT, lambda: symbols(code=_ones() + bytes(2))),
    "symbols-half-word": ("half a word too many", DECODES_NOT, lambda: symbols(code=_ones() + b"\0")),
    "codebook-none": ("a codebook of no entries", "a codebook of", lambda: codebook(0, values=b"")),
    "codebook-4097": ("a codebook of too many entries", "a codebook of", lambda: codebook(4097, values=bytes(4097))),
    "codebook-2-to-62": ("a codebook of 2^62 entries", "a codebook of", lambda: codebook(1 << 62)),
    "codebook-usual": ("the most frequent entry is none", "a codebook of", lambda: codebook(usual=2)),
    "codebook-width-0": ("rows of no numbers", "a codebook of", lambda: codebook(width=0)),
    "codebook-width-65537": ("rows that are too wide", "a codebook of", lambda: codebook(width=65537)),
    "codebook-rows-0": ("chunks of no rows", "a codebook of", lambda: codebook(rows=0)),
    "codebook-chunk": ("chunks of 2^21 numbers", "a codebook of", lambda: codebook(width=1 << 16, rows=32)),
    "codebook-equal": ("two equal entries", "do not ascend", lambda: codebook(values=b"\7\0")),
    "codebook-wraps": ("entries that ascend modulo 256", "do not ascend", lambda: codebook(values=b"\7\xfe")),
    "codebook-cut": ("the codebook ends early", "ends early", lambda: codebook(4096, values=b"\7\2")),
    "codebook-number": (
        "number 3 of 3 entries",
        DECODES_NOT,
        lambda: codebook(3, values=b"\7\2\1", code=_core.encode_indices(np.full(320, 3, np.uint16), 4, 0, 20)),
    ),
    "codebook-code-cut": ("numbers without their last byte", DECODES_NOT, lambda: codebook(code=b"\xff")),
    "codebook-bool-2": ("a bool of 7", "neither 0 nor 1", lambda: codebook(dtype=15)),
    "codebook-uint2": ("a uint2 of 7", "a byte is no", lambda: codebook(dtype=30)),
    "update-digest-none": ("an update that names no base", "ends early", lambda: update(behind=b"")),
    "update-digest-cut": ("a digest of 31 bytes", "ends early", lambda: update(behind=bytes(31))),
    "update-name-missing": ("a digest and no name", "ends early", lambda: update(behind=bytes(32))),
    "update-name-elsewhere": ("a base in another folder", "not a file's name", lambda: update(name=b"../old.dcb")),
    "update-name-root": ("a base in the root", "not a file's name", lambda: update(name=b"/etc/passwd")),
    "update-name-backslash": ("the same in another spelling", "not a file's name", lambda: update(name=b"..\\old.dcb")),
    "update-name-drive": ("a base on another drive", "not a file's name", lambda: update(name=b"c:old.dcb")),
    "update-name-dots": ("a folder as a base", "not a file's name", lambda: update(name=b"..")),
    "update-step-nan": (
        "a difference in steps of NaN",
        "has step",
        lambda: update(b"\x0a" + struct.pack("<f", np.nan), params=PLAIN),
    ),
    "update-of-integers": (
        "quantised differences of int32",
        "is stored with method 10",
        lambda: update(b"\x0a" + struct.pack("<f", 1), params=PLAIN, dtype=8),
    ),
    "changes-no-rates": ("changes without rates", "rates of change", lambda: changes(codes=b"")),
    "changes-rate-64": ("a rate beyond the largest", "rates of change", lambda: changes(codes=b"\x20\x40")),
    "changes-exponents": ("rates of 257 exponents", "rates of change", lambda: changes(codes=bytes(257))),
    "changes-first": ("a rate of the exponent after the last", "rates of change", lambda: changes(256)),
    "changes-first-2-to-62": ("a rate of exponent 2^62", "rates of change", lambda: changes(1 << 62)),
    "changes-of-integers": ("integers with two exponents", "rates of change", lambda: changes(codes=bytes(2), dtype=8)),
    "changes-too-few-chunks": ("one chunk of 2^40 values", "ends early", lambda: changes(shape=(1 << 40,))),
    "update-quantized-refinement": (
        "quantised differences with refinement bits",
        "that its method does not have",
        lambda: update(b"\x0a" + struct.pack("<f", 1), params=PLAIN),
    ),
}
for label, (what, says, make_falsehood) in FALSEHOODS.items():
    attack(f"{label}.dcb", what, says)(make_falsehood)


@attack("update-without-base.dcb", "legal: an update, and no base", "give it as base", OptionError)
def _() -> bytes:
    return update(name=b"")


@attack("changes-mega.dcb", "legal: 2^18 values in a byte, and no base", "give it as base", OptionError)
def _() -> bytes:
    return changes(shape=(1 << 18,))


@attack("update-tera.dcb", "2^40 values like the base's, and no base", "max_bytes", LimitError)
def _() -> bytes:
    return Parts(b"", plain_index([entry(b"w", 2, (1 << 40,), 9)]) + bytes(32) + blob(b"")).file()


# Chunks ---------------------------------------------------------------------------------------------------------------

attack("chunk-checksum.dcb", "one bit of the payload is turned", "checksum")(
    lambda: good()[: HEADER.size] + bytes([good()[HEADER.size] ^ 1]) + good()[HEADER.size + 1 :]
)
attack("chunk-too-long.dcb", "a chunk reaches into the index", "lies outside the file")(
    lambda: with_code(w()[1], len(w()[1]) + 1)
)
attack("chunk-2-to-62.dcb", "a chunk of 2^62 bytes", "lies outside the file")(lambda: with_code(w()[1], 1 << 62))
attack("chunk-too-short.dcb", "a byte of the payload belongs to no chunk", "belong to no tensor")(
    lambda: with_code(w()[1], len(w()[1]) - 1)
)
attack("chunk-empty.dcb", "a chunk of no bytes", "no bytes")(lambda: with_code(b""))
attack("chunk-bytes-missing.dcb", "a chunk without its last byte, checksum right", "does not decode")(
    lambda: with_code(w()[1][:-1])
)
attack("chunk-bytes-added.dcb", "a chunk with one byte more, checksum right", "does not decode")(
    lambda: with_code(w()[1] + b"\0")
)
attack("chunk-of-ones.dcb", "a chunk of 0xff, which decodes to escapes", "does not decode")(
    lambda: with_code(b"\xff" * len(w()[1]))
)
attack("one-row-more.dcb", "a chunk that holds one row less than the shape says", "does not decode")(
    lambda: with_rows(17)
)
attack("four-rows-less.dcb", "a chunk that holds four rows more than the shape says", "does not decode")(
    lambda: with_rows(12)
)


@attack("chunk-borders-moved.dcb", "two chunks whose border is off by one, checksums right", "does not decode")
def _() -> bytes:
    params, code, step = w()
    both = code + code
    first, second = both[: len(code) + 1], both[len(code) + 1 :]
    entries = [
        entry(name, 2, (16, 20), LEVELS, levels_rest([piece], params, step))
        for name, piece in ((b"v", first), (b"w", second))
    ]
    return Parts(both, plain_index(entries)).file()


@attack("too-many-chunks.dcb", "2^40 chunks of one level", "ends early")
def _() -> bytes:
    _, code, step = w()
    rest = levels_rest([code], bytes([0, 96, 1, 1]), step)
    return Parts(code, plain_index([entry(b"w", 2, (1 << 20, 1 << 20), LEVELS, rest)])).file()


@attack(
    "300-thousand-empty-chunks.dcb",
    "300,000 chunks without bytes, in 1 kB: fills memory with bookkeeping",
    "more than the",
)
def _() -> bytes:
    rest = levels_rest([b""] * 300_000, bytes([0, 96, 1, 1]))
    return Parts(b"", plain_index([entry(b"w", 2, (300_000,), LEVELS, rest)])).file()


@attack("10-thousand-empty-chunks.dcb", "10,000 chunks without bytes", "no bytes")
def _() -> bytes:
    rest = levels_rest([b""] * 10_000, bytes([0, 96, 1, 1]))
    return Parts(b"", plain_index([entry(b"w", 2, (10_000,), LEVELS, rest)])).file()


attack("raw-longer-than-file.dcb", "an exact tensor of 2^40 bytes", "ends early")(
    lambda: Parts(BIAS.tobytes(), plain_index([entry(b"w", 14, (1 << 40,), RAW, ZERO)])).file()
)
attack("raw-a-megabyte-of-nothing.dcb", "an exact tensor of 1 MiB, and 80 bytes of payload", "lies outside the file")(
    lambda: Parts(BIAS.tobytes(), plain_index([entry(b"w", 14, (1 << 20,), RAW, ZERO)])).file()
)
attack("raw-checksum.dcb", "an exact tensor with a wrong checksum", "checksum")(
    lambda: Parts(BIAS.tobytes(), plain_index([entry(b"w", 2, (20,), RAW, ZERO)])).file()
)

attack("bool-2.dcb", "a bool of 2, which numpy takes for granted that there is none", "neither 0 nor 1")(
    lambda: Parts(b"\2", plain_index([entry(b"w", 15, (), RAW, struct.pack("<I", zlib.crc32(b"\2")))])).file()
)

for number, kind, byte in ((27, "int4", 8), (30, "uint2", 4), (26, "float4", 16)):
    attack(f"{kind}-{byte}.dcb", f"a byte of {byte}, which is no {kind}", "a byte is no")(
        lambda number=number, byte=byte: Parts(
            bytes([byte]),
            plain_index([entry(b"w", number, (), RAW, struct.pack("<I", zlib.crc32(bytes([byte]))))]),
        ).file()
    )
for number, what in ((47, "packed codes of bools"), (78, "packed codes of bytes, as wide as they are")):
    attack(f"dtype-{number}.dcb", what, "unknown data type")(lambda number=number: one_tensor(dtype=number))
attack("update-packed.dcb", "a difference of packed codes", "a difference of packed codes")(
    lambda: Parts(b"", plain_index([entry(b"w", 40, (0,), 9, b"")])).file()
)
attack("tied-to-parts.dcb", "a complex number tied to two real ones", "tied to one of another type")(
    lambda: Parts(
        bytes(8),
        plain_index(
            [
                entry(b"w", 2, (2,), RAW, struct.pack("<I", zlib.crc32(bytes(8)))),
                entry(b"z", 16, (), TIED, b"\0"),
            ]
        ),
    ).file()
)

WIDE = bytes([0, 96]) + varint(1 << 16) + varint(16)  # 2^20 levels a chunk


def zeros(count: int, step: float = 1.0) -> bytes:
    """A legal file of ``count`` chunks of 2^20 zeros: 45,600 times smaller than what it stands for."""
    code = _core.encode(WIDE, np.zeros(1 << 20, np.int32))
    rest = levels_rest([code] * count, WIDE, step)
    return Parts(code * count, plain_index([entry(b"w", 2, (count, 1 << 20), LEVELS, rest)])).file()


attack("zeros.dcb", "legal: 100 MB of zeros in 3 kB", "max_bytes", LimitError)(lambda: zeros(24))


@attack("beyond-expansion.dcb", "2^20 levels in 80 bytes, more than bytes can hold", "cannot hold")
def _() -> bytes:
    rest = levels_rest([bytes(80)], WIDE)
    return Parts(bytes(80), plain_index([entry(b"w", 2, (1 << 20,), LEVELS, rest)])).file()


@attack("just-within-expansion.dcb", "2^18 levels in 16 bytes, which other bytes might hold", "does not decode")
def _() -> bytes:
    code = b"\x55" * 16
    rest = levels_rest([code], WIDE)
    return Parts(code, plain_index([entry(b"w", 2, (1 << 18,), LEVELS, rest)])).file()


@attack("tera.dcb", "a tensor of 2^42 bytes over 20 bytes of payload: allocates on a liar's word", "ends early")
def _() -> bytes:
    rest = levels_rest([bytes(20)], WIDE)
    return Parts(bytes(20), plain_index([entry(b"w", 2, (1 << 20, 1 << 20), LEVELS, rest)])).file()


# Coding parameters ----------------------------------------------------------------------------------------------------

BAD_PARAMS = {
    "flags": (bytes([64, 96]) + varint(20) + varint(16), "a flag that does not exist yet"),
    "mean": (bytes([0, 192]) + varint(20) + varint(16), "a mean magnitude out of range"),
    "width-0": (bytes([0, 96]) + varint(0) + varint(16), "rows of no columns"),
    "width-65537": (bytes([0, 96]) + varint(65537) + varint(1), "rows that are too wide"),
    "no-rows": (bytes([0, 96]) + varint(20) + varint(0), "chunks of no rows"),
    "huge-chunk": (bytes([0, 96]) + varint(1 << 10) + varint((1 << 10) + 1), "chunks of more than 2^20 levels"),
    "overlong": (bytes([0, 96, 0x94, 0x00, 16]), "a width in more bytes than it needs"),
    "four-bytes": (bytes([0, 96, 0x94, 0x80, 0x80, 0x01, 16]), "a width in four bytes"),
    "kernel-width-0": (bytes([2, 96, 20, 16, 0, 9, 0, 0, 0, 0, 0]), "kernels of no columns"),
    "kernel-width-65": (bytes([2, 96, 20, 16, 65, 9, 0, 0, 0, 0, 0]), "kernels that are too wide"),
    "kernel-size-0": (bytes([2, 96, 20, 16, 3, 0, 0, 0, 0, 0, 0]), "kernels of no positions"),
    "kernel-size-129": (bytes([2, 96, 20, 16, 3, 129, 0, 0, 0, 0, 0]), "kernels of too many positions"),
    "states-4": (bytes([8, 96, 20, 16, 2]), "a trellis of too few states"),
    "states-128": (bytes([8, 96, 20, 16, 7]), "a trellis of too many states"),
    "sparse-row": (bytes([33, 96, 20, 16, 3, 4, 100]), "the sparse coder with row prediction"),
    "sparse-dense": (bytes([32, 96]) + varint(20) + varint(16) + bytes([161]), "a density above one"),
    "sparse-none": (bytes([32, 96]) + varint(20) + varint(16), "the sparse coder without a density"),
    "regression-kernel": (bytes([50, 96, 20, 16, 3, 9, 0, 0, 0, 0, 0]), "regression and kernel prediction"),
    "regression-wide": (bytes([48, 96]) + varint(8193) + varint(1), "regression of rows that are too wide"),
    "regression-chunk": (bytes([48, 96]) + varint(8192) + varint(513), "regression in more than 2^22 levels"),
    "states-none": (bytes([8, 96, 20, 16]), "a trellis without a number of states"),
    "cut": (bytes([3, 96, 20, 16, 3]), "parameters that end early"),
    "trailing": (bytes([0, 96, 20, 16, 0]), "a byte after the parameters"),
    "none": (b"", "no parameters"),
}
for label, (params, what) in BAD_PARAMS.items():
    attack(f"params-{label}.dcb", what, "parameters")(lambda params=params: with_params(params))

# The fast coder -------------------------------------------------------------------------------------------------------

FAST = bytes([16, 96, 5, 64])


def fast(alter: Callable[[bytes], bytes]) -> bytes:
    """A tensor of 16 strips, with its chunk altered."""
    code = alter(_core.encode(FAST, (np.arange(320, dtype=np.int32) % 7 - 3)))
    return Parts(code, plain_index([entry(b"w", 2, (64, 5), LEVELS, levels_rest([code], FAST, 0.1))])).file()


BAD_FAST: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half-word": (lambda code: code + b"\0", "half a word follows the last"),
    "word-left": (lambda code: code + b"\0\0", "a word follows the last"),
    "word-missing": (lambda code: code[:-2], "the last word is missing"),
    "only-states": (lambda code: code[:64], "all words are missing"),
    "states-cut": (lambda code: code[:62], "the last state is cut in two"),
    "state-small": (lambda code: bytes(4) + code[4:], "a state below 2^16 to begin with"),
    "state-wrong": (lambda code: code[:62] + bytes([code[62] ^ 1]) + code[63:], "a state that ends elsewhere"),
    "state-max": (lambda code: b"\xff" * 64 + code[64:], "the largest states"),
    "words-max": (lambda code: code[:64] + b"\xff" * (len(code) - 64), "the largest words: many escapes"),
    "strips": (lambda code: _core.encode(bytes([16, 96, 5, 63]), np.zeros(315, np.int32)), "one strip instead of 16"),
}
for label, (alter, what) in BAD_FAST.items():
    attack(f"fast-{label}.dcb", what, "does not decode")(lambda alter=alter: fast(alter))
attack("fast-too-many.dcb", "more levels than the chunk's bytes can hold", "cannot hold")(
    lambda: Parts(
        bytes(64),
        plain_index(
            [entry(b"w", 2, (1 << 20,), LEVELS, levels_rest([bytes(64)], bytes([16, 96]) + varint(1024) * 2, 0.1))]
        ),
    ).file()
)


# The sparse coder -----------------------------------------------------------------------------------------------------

SPARSE = bytes([34, 96, 10, 32, 3, 9, 120])


def sparse(alter: Callable[[bytes], bytes]) -> bytes:
    """A tensor of few levels that are not zero, with its chunk altered."""
    code = alter(_core.encode(SPARSE, np.where(np.arange(320) % 13 == 0, np.arange(320) - 150, 0).astype(np.int32)))
    return Parts(code, plain_index([entry(b"w", 2, (32, 10), LEVELS, levels_rest([code], SPARSE, 0.1))])).file()


BAD_SPARSE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "byte-left": (lambda code: code + b"\0", "a byte after the chunk"),
    "byte-missing": (lambda code: code[:-1], "the last byte is missing"),
    "half": (lambda code: code[: len(code) // 2], "half of the chunk is missing"),
    "ones": (lambda code: b"\xff" * len(code), "no bit is zero"),
    "zeros": (lambda code: bytes(len(code)), "no bit is one: all magnitudes escape"),
}
for label, (alter, what) in BAD_SPARSE.items():
    attack(f"sparse-{label}.dcb", what, "does not decode")(lambda alter=alter: sparse(alter))


# Regression -----------------------------------------------------------------------------------------------------------

REGRESSION = bytes([49, 0, 20, 20, 127, 129])


def regression(alter: Callable[[bytes], bytes], extreme: bool = False) -> bytes:
    """A tensor of columns that depend on each other, with its chunk altered."""
    row, column = np.divmod(np.arange(400, dtype=np.int32), 20)
    matrix = row % 7 * (column % 3) - column
    if extreme:  # waves as large as can be: regression's numbers grow, and rounding tells
        matrix = np.where(np.sin(0.37 * row * column) < 0, -32768, 32767).astype(np.int32)
    code = alter(_core.encode(REGRESSION, matrix))
    return Parts(code, plain_index([entry(b"w", 2, (20, 20), LEVELS, levels_rest([code], REGRESSION, 0.1))])).file()


for label, (alter, what) in BAD_SPARSE.items():
    attack(f"regression-{label}.dcb", what, "does not decode")(lambda alter=alter: regression(alter))
attack("regression-extremes.dcb", "the largest levels regressed on each other, and a byte missing", "does not decode")(
    lambda: regression(lambda code: code[:-1], extreme=True)
)


def widest(chunks: int, rows: int, size: int | None = None) -> bytes:
    """As many columns as regression may have, all zero; a byte after the last chunk, or zeros in its place."""
    params = bytes([48, 0]) + varint(8192) + varint(rows)
    code = _core.encode(params, np.zeros(8192 * rows, np.int32))
    codes = [code] * (chunks - 1) + [code + b"\0" if size is None else bytes(size)]
    shape = (chunks * rows, 8192)
    return Parts(b"".join(codes), plain_index([entry(b"w", 2, shape, LEVELS, levels_rest(codes, params))])).file()


attack("regression-widest.dcb", "2^18 levels in rows as wide as regression allows", "does not decode")(
    lambda: widest(1, 32)
)
attack("regression-tiny-chunks.dcb", "as wide, a chunk for each row, a byte each", "does not decode")(
    lambda: widest(32, 1)
)
attack("regression-too-many.dcb", "2^22 levels in 80 bytes, more than they can hold", "cannot hold")(
    lambda: widest(1, 512, 80)
)


# Coded levels, for deepcabac.decode -----------------------------------------------------------------------------------

LEVELS_ARRAY = np.random.default_rng(2).integers(-5, 6, (16, 20))


def good_levels() -> bytes:
    """Coded levels."""
    return deepcabac.encode(LEVELS_ARRAY)


def coded() -> tuple[bytes, bytes]:
    """Their parameters and code."""
    params = _core.fit(LEVELS_ARRAY.shape, LEVELS_ARRAY.astype(np.int32).reshape(-1))
    return params, _core.encode(params, LEVELS_ARRAY.astype(np.int32).reshape(-1))


def levels(
    shape: tuple[int, ...] = (16, 20), params: bytes | None = None, code: bytes | None = None, length: int | None = None
) -> bytes:
    """Coded levels with something else about them."""
    right, good_code = coded()
    params = right if params is None else params
    code = good_code if code is None else code
    table = forge.chunk_table([code], params, None if length is None else [length])
    return forge.coded_levels(shape, table, [code])


attack("empty.levels", "no bytes at all", "not coded levels")(lambda: b"")
attack("text.levels", "a text file", "not coded levels")(lambda: b"levels: 1 2 3\n")
attack("version-2.levels", "a newer version", "version 2", UnsupportedError)(
    lambda: good_levels()[:1] + b"\x02" + good_levels()[2:]
)
attack("cut.levels", "the last byte is missing", "add up")(lambda: good_levels()[:-1])
attack("appended.levels", "a byte follows", "add up")(lambda: good_levels() + b"\0")
attack("header-checksum.levels", "a wrong checksum of the header", "checksum of the header")(
    lambda: levels()[: -len(coded()[1]) - 1] + b"\0" + coded()[1]
)
attack("chunk-checksum.levels", "one bit of the payload is turned", "checksum")(
    lambda: good_levels()[:-1] + bytes([good_levels()[-1] ^ 1])
)
attack("33-dimensions.levels", "33 dimensions", "33 dimensions")(lambda: levels(shape=(16, 20) + (1,) * 31))
attack("product-overflows.levels", "2^62 levels", "a tensor of shape")(lambda: levels(shape=(1 << 31, 1 << 31)))
attack("product-wraps-to-320.levels", "320 levels modulo 2^64", "a tensor of shape")(
    lambda: levels(shape=(1 << 32, 1 << 32, 20))
)
attack("dimension-overlong.levels", "a dimension in more bytes than it needs", "malformed")(
    lambda: b"\xdc\x01\x02\x90\x00" + good_levels()[4:]
)
attack("chunk-2-to-62.levels", "a chunk of 2^62 bytes", "add up")(lambda: levels(length=1 << 62))
attack("chunk-empty.levels", "a chunk of no bytes", "no bytes")(lambda: levels(code=b""))
attack("chunk-bytes-missing.levels", "a chunk without its last byte, checksums right", "does not decode")(
    lambda: levels(code=coded()[1][:-1])
)
attack("chunk-bytes-added.levels", "a chunk with one byte more, checksums right", "does not decode")(
    lambda: levels(code=coded()[1] + b"\0")
)
attack("one-row-more.levels", "a chunk that holds one row less than the shape says", "does not decode")(
    lambda: levels(
        shape=(17, 20), params=bytes([0, 96, 20, 17]), code=_core.encode(bytes([0, 96, 20, 17]), np.ones(320, np.int32))
    )
)
attack("beyond-expansion.levels", "2^20 levels in 80 bytes", "cannot hold")(
    lambda: levels(shape=(1 << 20,), params=WIDE, code=bytes(80))
)
attack("tera.levels", "2^40 levels in 20 bytes", "ends early")(
    lambda: levels(shape=(1 << 20, 1 << 20), params=WIDE, code=bytes(20))
)
attack("params-flags.levels", "a flag that does not exist yet", "parameters")(
    lambda: levels(params=bytes([64, 96, 20, 16]))
)
attack("params-width-0.levels", "rows of no columns", "parameters")(lambda: levels(params=bytes([0, 96, 0, 16])))


@attack("zeros.levels", "legal: 100 MB of zeros in 3 kB", "max_bytes", LimitError)
def _() -> bytes:
    code = _core.encode(WIDE, np.zeros(1 << 20, np.int32))
    return forge.coded_levels((24, 1 << 20), forge.chunk_table([code] * 24, WIDE), [code] * 24)


for name_, what_, says_, error_, make_ in streams.STREAMS:
    attack(name_, what_, says_, error_)(make_)

#: What is stored. Streams that other software reads too are only made when they are tested.
STORED = (".dcb", ".levels")
SUFFIXES = (*STORED, ".nnc", ".dc2019")


def data_of(one: Attack) -> bytes:
    """The stored file, or the stream made anew."""
    return (FOLDER / one.name).read_bytes() if one.name.endswith(STORED) else one.make()


def open_file(name: str, data: bytes, max_bytes: int | None = MAX_BYTES, threads: int | None = None) -> object:
    """Open what a file of this name holds."""
    if name.endswith(".dc2019"):
        return dc2019.decode(data)
    if name.endswith(".levels"):
        return deepcabac.decode(data, max_bytes=max_bytes, threads=threads)
    decode = nnc.decode if name.endswith(".nnc") else deepcabac.decompress
    return decode(data, max_bytes=max_bytes, threads=threads)


def main() -> None:
    """Write every file, remove others, and list them in the README."""
    assert container.VERSION == 1, "attacks of older versions stay: give the new ones new names"
    assert len({a.name for a in ATTACKS}) == len(ATTACKS)
    kept = [a for a in ATTACKS if a.name.endswith(STORED)]
    names = {a.name for a in kept}
    for old in FOLDER.iterdir():
        if old.suffix in SUFFIXES and old.name not in names:
            old.unlink()
    for a in kept:
        data = a.make()
        assert len(data) < 4096, f"{a.name}: {len(data)} bytes"
        (FOLDER / a.name).write_bytes(data)
    rows = [f"| `{a.name}` | {a.what} | `{a.error.__name__}` |" for a in kept]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    head = readme.split("| file |")[0]
    table = "\n".join(["| file | what is wrong | raises |", "| --- | --- | --- |", *rows])
    (FOLDER / "README.md").write_text(f"{head}{table}\n", encoding="utf-8")
    print(f"{len(kept)} files")


if __name__ == "__main__":
    main()
