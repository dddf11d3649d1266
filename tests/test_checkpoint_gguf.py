"""GGUF files."""

from __future__ import annotations

import lzma
import struct

import numpy as np
import pytest

import deepcabac
from deepcabac.checkpoint import create_checkpoint, open_checkpoint
from deepcabac.checkpoint.gguf_blocks import LAYOUTS, OPAQUE, finish, join, split
from deepcabac.errors import CheckpointError, DamagedFileError, UnsupportedError

PLAIN = {0: "<f4", 1: "<f2", 24: "i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8", 30: "<u2"}
BLOCKS = {kind: (layout.elements, layout.size) for kind, layout in LAYOUTS.items()} | OPAQUE
#: Every type of metadata: numbers, a bool, a text, arrays of numbers, of texts and of arrays.
METADATA = b"".join(
    [
        *(
            struct.pack("<Q", 2) + b"k%d" % kind + struct.pack("<I", kind) + bytes([1]) + bytes(size - 1)
            for kind, size in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1))
        ),
        *(struct.pack("<Q", 3) + b"k%d" % kind + struct.pack("<I", kind) + bytes(8) for kind in (10, 11, 12)),
        struct.pack("<Q", 2) + b"k8" + struct.pack("<IQ", 8, 3) + b"abc",
        struct.pack("<Q", 2) + b"k9" + struct.pack("<IIQ", 9, 4, 3) + bytes(12),
        struct.pack("<Q", 3) + b"k9s" + struct.pack("<IIQQ", 9, 8, 2, 1) + b"x" + bytes(8),
        struct.pack("<Q", 3) + b"k9a" + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 2) + b"ab",
    ]
)
ENTRIES = 15


def nbytes_of(kind, shape):
    size = int(np.prod(shape))
    if kind in PLAIN:
        return size * np.dtype(PLAIN[kind]).itemsize
    elements, nbytes = BLOCKS[kind]
    return size // elements * nbytes


def gguf(tensors, metadata=METADATA, entries=ENTRIES, alignment=32, version=3):
    """A file of (name, type, shape, bytes) as the specification has it."""
    text = b"GGUF" + struct.pack("<IQQ", version, len(tensors), entries) + metadata
    offset = 0
    for name, kind, shape, raw in tensors:
        text += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        text += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, offset)
        offset += len(raw) + -len(raw) % alignment
    data = b"".join(raw + bytes(-len(raw) % alignment) for _, _, _, raw in tensors)
    return text + bytes(-len(text) % alignment) + data


def every_type():
    rng = np.random.default_rng(0)
    shapes = [(kind, (3, 40)) for kind in PLAIN]
    shapes += [(kind, (2, 3, 2 * elements)) for kind, (elements, _) in BLOCKS.items()]
    return [(f"t{kind}.weight", kind, shape, rng.bytes(nbytes_of(kind, shape))) for kind, shape in shapes]


@pytest.mark.parametrize("lossless", [True, False])
def test_every_type_comes_back_bit_for_bit(tmp_path, lossless):
    tensors = [*every_type(), ("scalar", 0, (), bytes(4)), ("empty", 0, (0, 3), b"")]
    if not lossless:  # what may be rounded is tested elsewhere
        tensors = [tensor for tensor in tensors if tensor[1] not in (0, 1, 28, 30)]
    whole = gguf(tensors)
    (tmp_path / "m.gguf").write_bytes(whole)
    compressed, _ = deepcabac.compress_checkpoint(tmp_path / "m.gguf", lossless=lossless)
    (tmp_path / "m.gguf").unlink()
    assert deepcabac.decompress_checkpoint(compressed) == tmp_path / "m.gguf"
    assert (tmp_path / "m.gguf").read_bytes() == whole


def test_plain_floats_are_rounded_as_in_any_checkpoint(tmp_path):
    weights = np.random.default_rng(0).normal(size=(40, 50)).astype("<f2")
    (tmp_path / "m.gguf").write_bytes(gguf([("w", 1, (40, 50), weights.tobytes())]))
    _, report = deepcabac.compress_checkpoint(tmp_path / "m.gguf")
    assert 29 < report.tensors[0].sqnr < 31


def test_blocks_become_codes_and_scales(tmp_path):
    scale = np.array([[0.5], [2]], "<f2")
    codes = np.arange(64, dtype=np.uint8).reshape(2, 32) % 16
    packed = codes[:, :16] | codes[:, 16:] << 4
    raw = np.concatenate([scale.view(np.uint8), packed], axis=1).tobytes()
    (tmp_path / "m.gguf").write_bytes(gguf([("w", 2, (2, 32), raw), ("w.d", 0, (2,), bytes(8))]))
    with open_checkpoint(tmp_path / "m.gguf") as reader:
        assert [(spec.name, spec.dtype.name, spec.shape) for spec in reader.specs] == [
            ("w", "uint4", (2, 32)),
            ("w.d~2", "float16", (2, 1)),
            ("w.d", "float32", (2,)),
        ]
        assert reader.read("w").astype(int).tolist() == codes.tolist()
        assert reader.read("w.d~2").tolist() == scale.tolist()
        assert reader.roles() == {"w.d~2": "scale"}
    _, report = deepcabac.compress_checkpoint(tmp_path / "m.gguf")
    assert [tensor.method for tensor in report.tensors] == ["exact"] * 3


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_bit_of_a_block_belongs_to_one_number(kind):
    layout = LAYOUTS[kind]
    blocks = np.random.default_rng(kind).integers(0, 256, (300, layout.size), dtype=np.uint8)
    blocks[::7, :4] = [0, 0, 0, 0x3C]  # a scale of zero, where scales come first
    again, bits = np.zeros_like(blocks), 0
    for field in layout.fields:
        numbers = split(blocks, field)
        assert numbers.shape == (300, field.count) and numbers.dtype == field.dtype
        join(again, field, numbers)
        bits += field.count * (sum(piece.width for piece in field.pieces) or 8 * field.dtype.itemsize)
    finish(again, layout)
    assert bits == 8 * layout.size and again.tobytes() == blocks.tobytes()


NONLINEAR = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))


def spread(scales, each):
    return np.repeat(scales, each, axis=1)


def from_zero(n, count):
    return np.mod(n[""] + np.rint(np.float32(-n["m"]) / np.float32(n["d"])), count)


VALUES = {
    "Q4_0": lambda n: n["d"] * (n[""] - 8),
    "Q4_1": lambda n: n["d"] * from_zero(n, 16) + n["m"],
    "Q5_0": lambda n: n["d"] * (n[""] - 16),
    "Q5_1": lambda n: n["d"] * from_zero(n, 32) + n["m"],
    "Q8_0": lambda n: n["d"] * n[""],
    "Q2_K": lambda n: n["d"] * spread(n["s"], 16) * n[""] - n["dmin"] * spread(n["m"], 16),
    "Q3_K": lambda n: n["d"] * spread(n["s"] - 32, 16) * (n[""] - 4),
    "Q4_K": lambda n: n["d"] * spread(n["s"], 32) * n[""] - n["dmin"] * spread(n["m"], 32),
    "Q5_K": lambda n: n["d"] * spread(n["s"], 32) * n[""] - n["dmin"] * spread(n["m"], 32),
    "Q6_K": lambda n: n["d"] * spread(n["s"], 16) * (n[""] - 32),
    "IQ4_NL": lambda n: n["d"] * NONLINEAR[n[""].astype(int)],
    "IQ4_XS": lambda n: n["d"] * spread(n["s"] - 32, 32) * NONLINEAR[n[""].astype(int)],
    "TQ2_0": lambda n: n["d"] * (n[""] - 1),
}


@pytest.mark.parametrize("name", VALUES)
def test_codes_are_in_the_order_of_the_elements(name):
    library = pytest.importorskip("gguf")
    kind = library.GGMLQuantizationType[name]
    layout, rng = LAYOUTS[int(kind)], np.random.default_rng(1)
    numbers = {field.suffix: split(rng.integers(0, 256, (20, layout.size), np.uint8), field) for field in layout.fields}
    blocks = np.zeros((20, layout.size), np.uint8)
    for field in layout.fields:
        if field.dtype == np.float16:
            numbers[field.suffix] = rng.normal(size=(20, field.count)).astype(np.float16)
        join(blocks, field, numbers[field.suffix])
    finish(blocks, layout)
    expected = library.quants.dequantize(blocks.reshape(-1), kind).reshape(20, -1)
    found = VALUES[name]({suffix: array.astype(np.float64) for suffix, array in numbers.items()})
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_quantised_weights_are_smaller_than_by_xz(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(256, 1024)).reshape(-1, 32)
    scale = (np.abs(weights).max(axis=1, keepdims=True) / 7).astype("<f2")
    codes = np.clip(np.rint(weights / scale) + 8, 0, 15).astype(np.uint8)
    raw = np.concatenate([scale.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1).tobytes()
    (tmp_path / "m.gguf").write_bytes(gguf([("w", 2, (256, 1024), raw)]))
    _, report = deepcabac.compress_checkpoint(tmp_path / "m.gguf")
    assert report.file_bytes < len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def test_another_kind_gets_the_arrays_and_says_what_is_left_out(tmp_path, caplog):
    (tmp_path / "m.gguf").write_bytes(gguf([("w", 8, (2, 32), bytes(range(68)))]))
    compressed, _ = deepcabac.compress_checkpoint(tmp_path / "m.gguf")
    deepcabac.decompress_checkpoint(compressed, tmp_path / "m.safetensors")
    assert caplog.messages[-1].endswith("only tensors are kept, not the metadata")
    with open_checkpoint(tmp_path / "m.safetensors") as reader:
        assert [(spec.name, spec.shape) for spec in reader.specs] == [("w", (2, 32)), ("w.d", (2, 1))]
    with pytest.raises(UnsupportedError, match="metadata"):
        create_checkpoint(tmp_path / "n.gguf", kind="gguf", specs=[], extra=b"", extra_kind="safetensors")


def one(**change):
    fields = {"name": "w", "kind": 2, "shape": (2, 32), "raw": bytes(36)} | change
    return [(fields["name"], fields["kind"], fields["shape"], fields["raw"])]


TWO = [*one(), *one(name="v")]
HOSTILE = {
    "another magic": b"GGML" + gguf(one())[4:],
    "an endless table": gguf(one())[:8] + struct.pack("<QQ", 1 << 60, 0) + bytes(100),
    "endless metadata": gguf(one())[:8] + struct.pack("<QQ", 0, 1 << 60) + bytes(100),
    "an endless text": gguf([], struct.pack("<Q", 1 << 62) + b"k", 1),
    "an endless array": gguf([], struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 62), 1),
    "an endless array of texts": gguf([], struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 62), 1),
    "arrays without end": gguf([], struct.pack("<Q", 1) + b"k\t\0\0\0" + struct.pack("<IQ", 9, 1) * 50, 1),
    "a value of type 13": gguf([], struct.pack("<Q", 1) + b"k" + struct.pack("<I", 13), 1),
    "a name that is not UTF-8": gguf(one(name="w")).replace(b"\1\0\0\0\0\0\0\0w", b"\1\0\0\0\0\0\0\0\xff"),
    "alignment 0": gguf(one(), struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0), 1),
    "rows that are no blocks": gguf(one(shape=(32, 2))),
    "dimensions that overflow": gguf(one(kind=0, shape=(1 << 40, 1 << 40), raw=b"")),
    "9 dimensions": gguf(one(kind=0, shape=(1,) * 9, raw=bytes(4))),
    "two of a name": gguf([*one(), *one()]),
    "bytes missing": gguf(one())[:-40],
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path, attack):
    (tmp_path / "m.gguf").write_bytes(HOSTILE[attack])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value) and str(tmp_path / "m.gguf") in str(caught.value)


def test_every_truncation_is_noticed_at_once(tmp_path):
    whole = gguf(one())
    for length in range(1, len(whole) - 28):  # what is after the last tensor is only alignment
        (tmp_path / "m.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "m.gguf")


def test_tensors_that_overlap_and_data_between_them_are_refused(tmp_path):
    whole = gguf(TWO)
    second = whole.index(struct.pack("<IQ", 2, 64))
    (tmp_path / "m.gguf").write_bytes(whole[: second + 4] + struct.pack("<Q", 32) + whole[second + 12 :])
    with pytest.raises(CheckpointError, match="overlaps"):
        open_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(whole[:-1] + b"x")
    with pytest.raises(UnsupportedError, match="belong to no tensor"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions_are_refused(tmp_path, version, message):
    (tmp_path / "m.gguf").write_bytes(gguf(one(), version=version))
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(tmp_path / "m.gguf")


def test_an_unknown_type_is_named_with_its_tensor(tmp_path):
    whole = bytearray(gguf(one()))
    place = whole.index(struct.pack("<IQ", 2, 0))
    whole[place] = 99
    (tmp_path / "m.gguf").write_bytes(whole)
    with pytest.raises(UnsupportedError, match="'w' is of type 99"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_stored_header_that_does_not_fit_is_damage_and_writes_nothing(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf(TWO))
    with open_checkpoint(tmp_path / "m.gguf") as reader:
        specs, extra = reader.specs, reader.extra
    (tmp_path / "m.gguf").unlink()
    text = extra[8:]
    second = text.index(struct.pack("<IQ", 2, 64))
    bad = [
        b"1234567",
        extra[:-1],
        extra + b"x",
        extra[:8] + b"GGML" + text[4:],
        struct.pack("<Q", 1 << 50) + text,
        struct.pack("<Q", 100) + text,
        extra[:8] + text.replace(b"\1\0\0\0\0\0\0\0v", b"\1\0\0\0\0\0\0\0x"),
        extra[:8] + text[: second + 4] + struct.pack("<Q", 32) + text[second + 12 :],
        *(extra[:length] for length in range(8, len(extra), 7)),
    ]
    for one_of_them in bad:
        with pytest.raises((DamagedFileError, UnsupportedError)):
            create_checkpoint(tmp_path / "m.gguf", kind="gguf", specs=specs, extra=one_of_them, extra_kind="gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_alignment_of_its_own_is_kept(tmp_path):
    alignment = struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 4096)
    whole = gguf(TWO, alignment, 1, alignment=4096)
    (tmp_path / "m.gguf").write_bytes(whole)
    compressed, _ = deepcabac.compress_checkpoint(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    assert deepcabac.decompress_checkpoint(compressed).read_bytes() == whole
