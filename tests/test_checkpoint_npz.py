"""NumPy's .npz files."""

from __future__ import annotations

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest

import deepcabac
from deepcabac.checkpoint import TensorSpec, create_checkpoint, open_checkpoint
from deepcabac.checkpoint.base import NUMPY_DTYPES
from deepcabac.errors import CheckpointError, DamagedFileError, UnsupportedError


def write(path, tensors):
    specs = [TensorSpec(name, array.dtype, array.shape) for name, array in tensors.items()]
    with create_checkpoint(path, kind="npz", specs=specs, extra=b"", extra_kind="npz") as writer:
        for name, array in tensors.items():
            writer.write(name, array)


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_dtype_that_numpy_saved_is_read_and_numpy_reads_what_is_written(tmp_path, save):
    rng = np.random.default_rng(0)
    tensors = {f"t/{d.name}": rng.integers(0, 100, (2, 3, 4)).astype(d) for d in NUMPY_DTYPES}
    tensors |= {"scalar": np.float32(2.5).reshape(()), "empty": np.empty((0, 2), np.int8)}
    save(tmp_path / "source.npz", **tensors)
    with open_checkpoint(tmp_path / "source.npz") as reader:
        assert reader.extra == b""
        write(tmp_path / "target.npz", {spec.name: reader.read(spec.name) for spec in reader.specs})
    with np.load(tmp_path / "target.npz") as target:
        assert list(target.keys()) == list(tensors)
        for name, array in tensors.items():
            assert target[name].dtype == array.dtype and target[name].shape == array.shape
            assert target[name].tobytes() == array.tobytes()


def test_fortran_order_and_big_endian_are_normalised(tmp_path):
    a = np.arange(24.0).reshape(2, 3, 4)
    arrays = {
        "fortran": np.asfortranarray(a),
        "big": a.astype(">f4"),
        "both": np.asfortranarray(a.astype(">i2")),
        "line": np.asfortranarray(a[0, 0]),
        "big scalar": np.array(7, ">u4"),
    }
    np.savez(tmp_path / "m.npz", **arrays)
    with open_checkpoint(tmp_path / "m.npz") as reader:
        for spec in reader.specs:
            array = reader.read(spec.name)
            assert array.dtype == spec.dtype == arrays[spec.name].dtype.newbyteorder("<")
            assert array.flags.c_contiguous and array.flags.owndata and array.shape == spec.shape
            assert array.tolist() == arrays[spec.name].tolist()


RECORD = [("number", "<i4"), ("big", ">f8", (2,)), ("inside", [("text", "<U3")])]
ODD = {
    "text": np.array([["größer", "x"], ["", "abc"]]),
    "columns of text": np.asfortranarray(np.array([["a", "b"], ["c", "d"], ["e", "f"]])),
    "big-endian text": np.array(["ab"], ">U2"),
    "no text": np.array([], "U0"),
    "bytes": np.array([b"a", b"bcd"]),
    "records": np.zeros((2, 3), RECORD),
    "dates": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "times": np.array([5], "m8[s]"),
    "long double": np.array([1.5], np.longdouble),
    "bfloat16": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "float8": np.arange(6, dtype=ml_dtypes.float8_e4m3fn),
    "int4": np.arange(6, dtype=ml_dtypes.int4),
    "complex": np.array([1j, 2]),
}


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_arrays_that_are_no_numbers_come_back_as_they_were(tmp_path, options):
    np.savez(tmp_path / "m.npz", **ODD, w=np.ones(3))
    with np.load(tmp_path / "m.npz") as source:
        before = {name: source[name] for name in source.files}
    deepcabac.compress_checkpoint(tmp_path / "m.npz", **options)
    (tmp_path / "m.npz").unlink()
    deepcabac.decompress_checkpoint(tmp_path / "m.dcb")
    with np.load(tmp_path / "m.npz") as after:
        for name, array in before.items():
            assert after[name].dtype == array.dtype and after[name].shape == array.shape, name
            assert after[name].tobytes() == array.tobytes(), name


def test_another_kind_says_that_types_are_lost(tmp_path, caplog):
    np.savez(tmp_path / "m.npz", text=ODD["text"], w=np.ones(3))
    compressed, _ = deepcabac.compress_checkpoint(tmp_path / "m.npz")
    deepcabac.decompress_checkpoint(compressed, tmp_path / "m.safetensors")
    assert caplog.messages[-1].endswith("only tensors are kept, not the type of text")


def test_a_pickle_in_an_npz_is_never_loaded_and_comes_back(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    before = npy(np.array([Bomb(), None], object))
    make_zip(tmp_path / "m.npz", [("bomb.npy", before)])
    deepcabac.compress_checkpoint(tmp_path / "m.npz")
    (tmp_path / "m.npz").unlink()
    deepcabac.decompress_checkpoint(tmp_path / "m.dcb")
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert archive.read("bomb.npy") == before


@pytest.mark.parametrize(
    "extra",
    [
        {"a": ["<U3", [1]]},
        {"b": ["<U1", [2]]},
        {"a": ["<U1", [-1, -2]]},
        {"a": ["<U1", [[2]]]},
        {"a": ["nonsense", [2]]},
        {"a": [[["x"]], [2]]},
        {"a": "<U1"},
        {"a": [None, [2]]},
        [],
        5,
    ],
)
def test_stored_types_that_do_not_fit_are_damage(tmp_path, extra):
    spec = TensorSpec("a", np.dtype("<u4"), (2, 1))
    for text in (json.dumps(extra).encode(), b"\xff"):
        with pytest.raises(DamagedFileError):
            create_checkpoint(tmp_path / "m.npz", kind="npz", specs=[spec], extra=text, extra_kind="npz")
    assert list(tmp_path.iterdir()) == []


def test_a_zip_that_is_not_an_npz_is_refused(tmp_path):
    make_zip(tmp_path / "m.npz", [("readme.txt", b"hello")])
    with pytest.raises(UnsupportedError, match=r"'readme\.txt'"):
        open_checkpoint(tmp_path / "m.npz")
    make_zip(tmp_path / "m.npz", [("a.npy", b"not an array")])
    with pytest.raises(CheckpointError, match="unreadable header"):
        open_checkpoint(tmp_path / "m.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    make_zip(tmp_path / "m.npz", [("a.npy", npy(np.ones(2)))] * 2)
    with pytest.raises(CheckpointError, match="two arrays called 'a'"):
        open_checkpoint(tmp_path / "m.npz")


@pytest.mark.parametrize("change", [lambda b: b + b"x", lambda b: b[:-1], lambda b: b.replace(b"(2,)", b"(9,)")])
def test_a_member_whose_size_contradicts_its_shape_is_refused(tmp_path, change):
    make_zip(tmp_path / "m.npz", [("a.npy", change(npy(np.ones(2))))])
    with pytest.raises(CheckpointError, match="more or fewer bytes"):
        open_checkpoint(tmp_path / "m.npz")


def test_a_changed_byte_and_a_truncation_are_noticed(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.arange(10_000.0))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(np.float64(50).tobytes())] ^= 1
    path.write_bytes(changed)
    with open_checkpoint(path) as reader, pytest.raises(CheckpointError, match="damaged"):
        reader.read("a")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path)


def test_an_encrypted_member_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.arange(3.0))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match="encrypted"):
        open_checkpoint(path)


def test_a_name_that_zip_would_alter_is_refused(tmp_path):
    for name in ("a\0b", "x" * 70_000, "\ud800"):
        with pytest.raises(UnsupportedError):
            write(tmp_path / "m.npz", {name: np.ones(1)})
    assert list(tmp_path.iterdir()) == []
