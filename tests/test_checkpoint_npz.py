"""NumPy's .npz files."""

from __future__ import annotations

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from deepcabac.checkpoint import TensorSpec, create_checkpoint, open_checkpoint
from deepcabac.checkpoint.base import NUMPY_DTYPES
from deepcabac.errors import CheckpointError, UnsupportedError


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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["text"]), "'the member' has dtype <U4"),
        (np.array([1j]), "'the member' has dtype complex128"),
        (np.array([{}], object), "'the member' has dtype object"),
        (np.array([b"x"]), "'the member' has dtype"),
        (np.zeros(2, [("x", "f4")]), "'the member'"),
        (np.zeros(2, "m8[s]"), "'the member' has dtype"),
        (np.zeros(2, ml_dtypes.bfloat16), r"'the member' has dtype .*\.safetensors"),
    ],
)
def test_an_array_that_is_no_supported_number_is_refused_by_name(tmp_path, array, message):
    np.savez(tmp_path / "m.npz", **{"the member": array})
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(tmp_path / "m.npz")


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    np.savez(tmp_path / "m.npz", bomb=np.array([Bomb()], object))
    with pytest.raises(UnsupportedError, match="object"):
        open_checkpoint(tmp_path / "m.npz")


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
