"""What holds for checkpoints of every kind, and for the atomic files beneath them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deepcabac.atomic import AtomicFile
from deepcabac.checkpoint import KINDS, TensorSpec, create_checkpoint, kind_of_path, open_checkpoint
from deepcabac.errors import CheckpointError, DeepCabacError, OptionError, UnsupportedError

F4 = np.dtype("<f4")
A = np.arange(6, dtype=F4).reshape(2, 3)
SUFFIXES = [".safetensors", ".safetensors.index.json", ".npz", ".pt", ".onnx", ".gguf"]


def specs_of(tensors):
    return [TensorSpec(name, array.dtype, array.shape) for name, array in tensors.items()]


def write(path, tensors, kind, extra=b"", extra_kind="other"):
    with create_checkpoint(path, kind=kind, specs=specs_of(tensors), extra=extra, extra_kind=extra_kind) as writer:
        for name, array in tensors.items():
            writer.write(name, array)


def needs(kind):
    if kind.startswith("torch"):
        pytest.importorskip("torch")


WRITABLE = [
    ("safetensors", "m.safetensors"),
    ("safetensors-sharded", "m.safetensors.index.json"),
    ("npz", "m.npz"),
    ("torch", "m.pt"),
    ("torch-sharded", "m.bin.index.json"),
]


def test_the_kind_follows_from_the_suffix_whatever_its_case():
    names = ("a.safetensors", "b.SAFETENSORS.INDEX.json", "c.npz", "d.pt", "d.bin.index.json", "e.onnx", "f.gguf")
    assert tuple(kind_of_path(name) for name in names) == KINDS
    for name in ("x/model.pth", "pytorch_model.bin", "last.ckpt", "v1.2.pth.tar", "epoch.3.tar"):
        assert kind_of_path(Path(name)) == "torch"
    assert kind_of_path("model.safetensors.index.fp16.json") == "safetensors-sharded"
    assert kind_of_path("folder.pt/readme") is None
    assert kind_of_path("model.h5") is None
    assert kind_of_path("safetensors") is None


@pytest.mark.parametrize(("kind", "name"), WRITABLE)
def test_odd_names_shapes_and_nan_payloads_survive(tmp_path, kind, name):
    needs(kind)
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 40, dtype=np.uint32)
    bits[:4] = 0x7FC01234, 0xFF800001, 0x80000000, 0x00000001  # quiet and signalling NaN, -0, denormal
    tensors = {
        "model/layer 1:weight.ä": bits.view(F4).reshape(2, 2, 1, 1, 5, 1, 2, 1),
        "scalar": np.array(-1.5, F4),
        "empty": np.empty((0, 3), F4),
        "x" * 300: np.empty((2, 0), np.int64),
        "": np.array([True, False]),
        "0": rng.integers(0, 255, (3, 1), dtype=np.uint8),
    }
    write(tmp_path / name, tensors, kind)
    with open_checkpoint(tmp_path / name) as reader:
        assert reader.kind == kind
        assert reader.specs == specs_of(tensors)
        for spec in reader.specs:
            array = reader.read(spec.name)
            assert array.dtype == spec.dtype and array.shape == spec.shape
            assert array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
            assert array.tobytes() == tensors[spec.name].tobytes()


@pytest.mark.parametrize(("kind", "name"), WRITABLE)
def test_a_checkpoint_converts_to_every_kind_that_needs_no_graph(tmp_path, kind, name):
    needs(kind)
    source = tmp_path / "source.safetensors"
    write(source, {"a": A, "b": A[0]}, "safetensors", b'{"format":"pt"}', "safetensors")
    with (
        open_checkpoint(source) as reader,
        create_checkpoint(
            tmp_path / name, kind=kind, specs=reader.specs, extra=reader.extra, extra_kind=reader.kind
        ) as writer,
    ):
        for spec in reader.specs:
            writer.write(spec.name, reader.read(spec.name))
    with open_checkpoint(tmp_path / name) as reader:
        assert reader.read("a").tolist() == A.tolist()
        assert reader.read("b").tolist() == A[0].tolist()


@pytest.mark.parametrize(("kind", "name"), WRITABLE)
def test_the_same_tensors_give_the_same_bytes(tmp_path, kind, name):
    needs(kind)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name, {"a": A, "b": A}, kind)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize(("kind", "name"), WRITABLE)
def test_a_failure_or_an_interrupt_leaves_the_old_file_and_no_temporary(tmp_path, kind, name):
    needs(kind)
    write(tmp_path / name, {"a": A}, kind)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    tensors = {"a": A, "b": A}
    for failure in (KeyboardInterrupt, ValueError):
        with (
            pytest.raises(failure),
            create_checkpoint(tmp_path / name, kind=kind, specs=specs_of(tensors), extra=b"", extra_kind="other") as w,
        ):
            w.write("a", A)
            raise failure
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("kind", "name"), WRITABLE)
def test_tied_tensors_are_written_once_by_the_caller_and_are_all_in_the_file(tmp_path, kind, name):
    needs(kind)
    specs = [
        TensorSpec("a", F4, (2, 3)),
        TensorSpec("tie", F4, (2, 3), tied_to="a"),
        TensorSpec("z", F4, (2, 3)),
        TensorSpec("tie2", F4, (2, 3), tied_to="a"),
    ]
    with create_checkpoint(tmp_path / name, kind=kind, specs=specs, extra=b"", extra_kind="other") as writer:
        writer.write("a", A)
        writer.write("z", A + 1)
    with open_checkpoint(tmp_path / name) as reader:
        assert sorted(spec.name for spec in reader.specs) == ["a", "tie", "tie2", "z"]
        for tied in ("a", "tie", "tie2"):
            assert reader.read(tied).tolist() == A.tolist()


def test_a_writer_refuses_tensors_out_of_order_of_another_shape_or_missing(tmp_path):
    path = tmp_path / "m.safetensors"

    def begin():
        return create_checkpoint(
            path, kind="safetensors", specs=specs_of({"a": A, "b": A}), extra=b"", extra_kind="safetensors"
        )

    with pytest.raises(OptionError, match="out of order"), begin() as writer:
        writer.write("b", A)
    with pytest.raises(OptionError, match="announced as"), begin() as writer:
        writer.write("a", A.T)
    with pytest.raises(OptionError, match="announced as"), begin() as writer:
        writer.write("a", A.astype(">f4"))
    with pytest.raises(OptionError, match="'b' was announced but not written"), begin() as writer:
        writer.write("a", A)
    with pytest.raises(OptionError, match="no further"), begin() as writer:
        for name in "abc":
            writer.write(name, A)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "specs",
    [
        [TensorSpec("a", F4, (2,)), TensorSpec("a", F4, (2,))],
        [TensorSpec("b", F4, (2,), tied_to="a"), TensorSpec("a", F4, (2,))],
        [TensorSpec("a", F4, (2,)), TensorSpec("b", F4, (3,), tied_to="a")],
    ],
)
def test_contradictory_specs_are_refused(tmp_path, specs):
    with pytest.raises(OptionError):
        create_checkpoint(tmp_path / "m.npz", kind="npz", specs=specs, extra=b"", extra_kind="npz")
    assert list(tmp_path.iterdir()) == []


def test_a_non_contiguous_array_is_written_in_c_order(tmp_path):
    write(tmp_path / "m.npz", {"t": np.asfortranarray(A)}, "npz")
    with open_checkpoint(tmp_path / "m.npz") as reader:
        assert reader.read("t").tolist() == A.tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"this is only text, renamed", "not|JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "."),
        (b"\x80\x02garbage", "."),
    ],
)
def test_a_file_that_is_not_what_its_suffix_says_gives_one_clear_line(tmp_path, suffix, content, message):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / ("model" + suffix)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((CheckpointError, UnsupportedError), match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_directory_is_refused_with_the_name_of_the_checkpoint_in_it(tmp_path):
    write(tmp_path / "model.safetensors", {"a": A}, "safetensors")
    with pytest.raises(CheckpointError, match=r"is a directory.*for example model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(CheckpointError, match="is a directory"):
        open_checkpoint(tmp_path / "d.npz")
    with pytest.raises(CheckpointError, match="is a directory"):
        write(tmp_path / "d.npz", {"a": A}, "npz")


def test_an_unknown_suffix_is_answered_with_the_known_ones(tmp_path):
    (tmp_path / "model.weights").write_bytes(b"HDF5")
    with pytest.raises(CheckpointError, match=r"\.safetensors .*\.npz \.pt .*\.onnx"):
        open_checkpoint(tmp_path / "model.weights")
    with pytest.raises(OptionError, match="unknown kind"):
        write(tmp_path / "x", {"a": A}, "h5")


def test_a_missing_optional_package_is_named_with_the_command_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pip install 'deepcabac\[torch\]'"):
        open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"pip install 'deepcabac\[torch\]'"):
        write(tmp_path / "n.pt", {"a": A}, "torch")


def test_bfloat16_and_float8_in_npz_are_refused_by_name(tmp_path):
    for scalar in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        with pytest.raises(UnsupportedError, match=r"'w'.*\.safetensors"):
            write(tmp_path / "m.npz", {"w": np.ones(2, scalar)}, "npz")
    assert list(tmp_path.iterdir()) == []


def test_onnx_as_a_target_needs_a_graph(tmp_path):
    with pytest.raises(UnsupportedError, match="needs a graph"):
        write(tmp_path / "m.onnx", {"a": A}, "onnx", b"{}", "safetensors")


# Atomic files


def test_an_atomic_file_appears_on_commit_only_with_the_permissions_of_an_ordinary_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    target = tmp_path / "target"
    with AtomicFile(target) as atomic:
        atomic.file.write(b"abcd")
        atomic.file.seek(1)
        atomic.file.write(b"X")
        atomic.file.seek(0)
        assert atomic.file.read() == b"aXcd"
        assert not target.exists()
    assert target.read_bytes() == b"aXcd"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["ordinary", "target"]


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with AtomicFile(target) as atomic:
        atomic.file.write(b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_replaced_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "blob").write_bytes(b"shared")
    (tmp_path / "link").symlink_to("blob")
    with AtomicFile(tmp_path / "link") as atomic:
        atomic.file.write(b"new")
    assert (tmp_path / "blob").read_bytes() == b"shared"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_an_atomic_file_can_have_the_longest_name_and_refuses_a_longer_one_at_once(tmp_path):
    with AtomicFile(tmp_path / ("n" * 255)) as atomic:
        atomic.file.write(b"x")
    for name in ("n" * 256, "nul\0"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            AtomicFile(tmp_path / name)
    assert os.listdir(tmp_path) == ["n" * 255]


def test_a_missing_folder_and_a_device_give_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"folder .*nowhere does not exist"):
        AtomicFile(tmp_path / "nowhere" / "x.npz")
    with pytest.raises(CheckpointError, match="not a regular file"):
        AtomicFile("/dev/null")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_failing_write_is_reported_for_the_target(tmp_path, monkeypatch):
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda name, flags, mode=0o777: real_open("/dev/full", os.O_RDWR))
    atomic = AtomicFile(tmp_path / "m.npz")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"m\.npz: cannot be written: no space left on device"), atomic:
        atomic.file.write(b"x" * (1 << 20))


def test_every_error_is_a_deepcabac_error():
    assert issubclass(CheckpointError, DeepCabacError) and issubclass(UnsupportedError, DeepCabacError)
