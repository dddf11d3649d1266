"""Hostile streams of ISO/IEC 15938-17 (.nnc) and of 2019 (.dc2019), for ``make.py``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from deepcabac import _streams, dc2019
from deepcabac.errors import DamagedFileError, DeepCabacError, LimitError, OptionError, UnsupportedError
from deepcabac.nnc import syntax
from deepcabac.nnc.bits import BitWriter
from deepcabac.nnc.syntax import Codebook, DataHeader, Parent, Payload, UnitType

LEVELS = np.random.default_rng(7).integers(-3, 4, (16, 20)).astype(np.int32)
HEADER = DataHeader(Payload.FLOATS, ("w",), (LEVELS.shape,), ("",))
BEGINNING = syntax.write_beginning(2, False)
START = BEGINNING[:4]
PARAMETERS = syntax._unit(UnitType.MODEL_PARAMETER_SET, b"\x81\0\x40\0\x80")

#: Name of the file, what is wrong, part of the message, the error, and what makes it.
STREAMS: list[tuple[str, str, str, type[DeepCabacError], Callable[[], bytes]]] = []


def stream(
    name: str, what: str, says: str, make: Callable[[], bytes], error: type[DeepCabacError] = DamagedFileError
) -> None:
    """Register."""
    STREAMS.append((name, what, says, error, make))


def payload(**changes: object) -> bytes:
    """The levels, coded."""
    job = _streams.NncTensor(LEVELS.copy(), qp_bits=8, qp=-8)
    for name, value in changes.items():
        setattr(job, name, value)
    return _streams.nnc_encode([job])


def good(code: bytes | None = None, updates: bool = False, **changes: object) -> bytes:
    """A stream with one tensor, with something else about its header."""
    header = replace(HEADER, **changes)  # type: ignore[arg-type]
    return syntax.write_beginning(2, updates) + syntax.write_data(header, payload() if code is None else code, updates)


def after_name(*numbers: int) -> bytes:
    """A data unit whose header goes wrong behind the tensor's name: groups of 8 bits."""
    return BEGINNING + syntax._unit(UnitType.COMPRESSED_DATA, bytes([0x09, *b"w\0", *numbers]))


def book(values: tuple[int, ...], zero: int, size: int | None = None) -> bytes:
    """A stream with a codebook that claims to have ``size`` values."""
    writer = BitWriter()
    writer.unsigned(8, 0x09)
    writer.text("w")
    writer.unsigned(1, 0)  # nothing about parameters
    writer.unsigned(1, 1)
    writer.unsigned(4, 0)
    writer.golomb(2, len(values) if size is None else size)
    writer.signed_golomb(2, zero - (len(values) >> 1))
    writer.signed_golomb(7, values[0])
    writer.align()
    return BEGINNING + syntax._unit(UnitType.COMPRESSED_DATA, writer.data())


def blocks(state: int) -> bytes:
    """Blocks of eight, whose entry point is another."""
    code = payload(block=8)
    entries = np.zeros(1, np.uint64)
    job = _streams.NncTensor(np.zeros_like(LEVELS), block=8, qp_bits=8, entries=entries)
    _streams.nnc_decode(code, [job])
    return good(code, scan=1, entries=(int(entries[0]) ^ state,))


def skipped_rows() -> bytes:
    """2^23 zeros in a few bytes, legally."""
    levels = np.zeros((8, 1 << 20), np.int32)
    return good(_streams.nnc_encode([_streams.NncTensor(levels, qp_bits=8, skip_rows=True)]), shapes=(levels.shape,))


def one_value() -> bytes:
    """2^30 levels of a codebook with one value, which take no bits at all."""
    job = _streams.NncTensor(np.zeros((2, 2), np.int32), qp_bits=8, codebook=(1, 0))
    return good(_streams.nnc_encode([job]), shapes=((1 << 15, 1 << 15),), codebook=Codebook((1,), 0, 0))


stream("empty.nnc", "no bytes at all", "ends before", lambda: b"")
stream("cut.nnc", "the last byte is missing", "a unit claims", lambda: good()[:-1])
stream("appended.nnc", "a byte follows", "header ends early", lambda: good() + b"\0")
stream(
    "unit-size-0.nnc",
    "a unit of no bytes, for a reader that never moves on",
    "claims 0 bytes",
    lambda: START + bytes(4),
)
stream("unit-size-max.nnc", "a unit of 2^31 - 1 bytes", "claims 2,147,483,647", lambda: START + b"\xff" * 4 + b"\6")
stream("no-start.nnc", "no start unit", "no start unit", lambda: PARAMETERS)
stream("two-starts.nnc", "two start units", "a second start unit", lambda: START + START)
stream("profile-255.nnc", "profile 255", "profile 255", lambda: b"\0\4\2\xff" + good()[4:], UnsupportedError)
stream("unit-kind-63.nnc", "a unit of a kind that is not", "kind 63", lambda: START + b"\0\4\xfe\0", UnsupportedError)
stream(
    "no-parameters.nnc",
    "a tensor without parameters of the model",
    "no model parameter set",
    lambda: START + good()[len(BEGINNING) :],
)
stream(
    "two-parameters.nnc",
    "parameters of the model twice",
    "a second model parameter set",
    lambda: BEGINNING + BEGINNING[4:],
)
stream(
    "name-endless.nnc",
    "a name without an end",
    "no end",
    lambda: BEGINNING + syntax._unit(UnitType.COMPRESSED_DATA, b"\x09" + b"w" * 99),
)
stream("name-twice.nnc", "two tensors of one name", "two tensors are called", lambda: good() + good()[len(BEGINNING) :])
stream("number-endless.nnc", "a number of 2^33 and more", "too large", lambda: after_name(0x80, *bytes(9)))
stream("codebook-0.nnc", "a codebook of no values", "a codebook claims", lambda: book((1, 2), 5))
stream(
    "codebook-max.nnc", "a codebook of 2^30 values in no bytes", "a codebook claims", lambda: book((1, 2), 1, 1 << 30)
)
stream(
    "codebook-wraps.nnc",
    "a value of a codebook that does not fit 32 bits",
    "does not fit 32 bits",
    lambda: good(codebook=Codebook(((1 << 31) - 1, 1 << 31), 0, 0)),
)
stream("elements-2-to-40.nnc", "2^40 elements in some bytes", "cannot hold", lambda: good(shapes=((1 << 30, 1 << 10),)))
stream("elements-wrap.nnc", "320 elements modulo 2^64", "cannot hold", lambda: good(shapes=((1 << 32, 1 << 32, 20),)))
stream(
    "one-row-more.nnc",
    "a tensor with one row less than its header says",
    "not what an encoder wrote",
    lambda: good(shapes=((17, 20),)),
)
stream(
    "one-row-less.nnc",
    "a tensor with one row more than its header says",
    "not what an encoder wrote",
    lambda: good(shapes=((15, 20),)),
)
stream(
    "raw-too-few.nnc",
    "raw floats for half of the elements",
    "raw elements",
    lambda: good(bytes(640), payload=Payload.RAW_FLOATS),
)
stream("skipped-rows.nnc", "legal: 2^23 zeros in skipped rows", "max_bytes", skipped_rows, LimitError)
stream("one-value.nnc", "legal: 2^30 levels of one value, in no bits", "max_bytes", one_value, LimitError)
stream(
    "entry-state.nnc",
    "an entry point with another state of the code",
    "not what an encoder wrote",
    lambda: blocks(1 << 3),
)
stream("entry-far.nnc", "an entry point 2^40 bits on", "not what an encoder wrote", lambda: blocks(1 << 51))
stream(
    "update-alone.nnc",
    "an update whose contexts depend on a base that is not given",
    "as base=",
    lambda: good(updates=True, parent=Parent(True), depth=1),
    OptionError,
)


def layers() -> bytes:
    """A good stream of 2019."""
    return dc2019.encode([(LEVELS.astype(np.float32), 1.0, 0.5, 0.0)])


def layer_header(shape: tuple[int, ...], step: float, behind: bytes) -> bytes:
    """A header in a stream of 2019: bits without contexts, in a range of 510 of 512."""
    job = BitWriter()
    job.unsigned(4, 6)
    job.unsigned(2, len(shape) >> 1)
    for size in shape:
        job.unsigned(16, size)
    (bits,) = struct.unpack("<I", struct.pack("<f", step))
    job.unsigned(16, bits & 0xFFFF)
    job.unsigned(16, bits >> 16)
    count = job.bits
    value = int.from_bytes(job.data() + bytes([job._bits << (8 - job._count) & 255]), "big") >> (-count % 8)
    code = value * 510 << 64 >> 9
    total = count + 64
    return (code << (-total % 8)).to_bytes((total + 7) // 8, "big")[: (count + 15) // 8] + behind


stream("empty.dc2019", "no bytes at all", "damaged", lambda: b"")
stream("cut.dc2019", "the last byte is missing", "damaged", lambda: layers()[:-1])
stream("appended.dc2019", "a byte follows", "damaged", lambda: layers() + b"\0")
stream("zeros.dc2019", "nothing but zeros", "damaged", lambda: bytes(64))
stream("ones.dc2019", "nothing but ones", "damaged", lambda: b"\xff" * 64)
stream(
    "elements-2-to-64.dc2019",
    "four dimensions of 65,535",
    "damaged",
    lambda: layer_header((0xFFFF,) * 4, 0.5, bytes(64)),
)
stream(
    "elements-2-to-32.dc2019",
    "two dimensions of 65,535",
    "damaged",
    lambda: layer_header((0xFFFF,) * 2, 0.5, bytes(64)),
)
