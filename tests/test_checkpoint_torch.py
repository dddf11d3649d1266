"""PyTorch files."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter, OrderedDict

import ml_dtypes
import numpy as np
import pytest

from deepcabac import compress_checkpoint, decompress_checkpoint
from deepcabac.checkpoint import TensorSpec, create_checkpoint, open_checkpoint, torch_types
from deepcabac.checkpoint import torch_file as torch_module
from deepcabac.checkpoint.kinds import restored_suffix
from deepcabac.checkpoint.packing import pack
from deepcabac.errors import CheckpointError, DamagedFileError, UnsupportedError

torch = pytest.importorskip("torch")

F4 = np.dtype("<f4")


def copy(source, target):
    with (
        open_checkpoint(source) as reader,
        create_checkpoint(
            target, kind="torch", specs=reader.specs, extra=reader.extra, extra_kind=reader.kind
        ) as writer,
    ):
        for spec in reader.specs:
            if spec.tied_to is None:
                writer.write(spec.name, reader.read(spec.name))


def through(tmp_path, value, **options):
    """Save ``value``, copy the file, load the copy."""
    torch.save(value, tmp_path / "source.pt", **options)
    copy(tmp_path / "source.pt", tmp_path / "target.pt")
    return torch.load(tmp_path / "target.pt", weights_only=True)


def same_bits(one, two):
    return one.dtype == two.dtype and one.shape == two.shape and bits(one) == bits(two)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def every_dtype():
    generator = torch.Generator().manual_seed(0)
    names = [*(name for name, _ in torch_types.TYPES.values()), *torch_types.ONLY_TORCH]
    tensors = OrderedDict()
    for name in names:
        dtype = getattr(torch, name)
        limit = 2 if name == "bool" else 256
        raw = torch.randint(0, limit, (24 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        tensors[f"t.{name}"] = raw.view(dtype).reshape(2, 3, 4)
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "one": torch.ones(1, 1, 1)}
    return tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype_survives_bit_for_bit(tmp_path, zipped):
    tensors = every_dtype()
    if not zipped:  # the old format cannot hold the newer types
        tensors = {
            n: t
            for n, t in tensors.items()
            if not any(word in n for word in ("float8", "float4", "uint16", "uint32", "complex32", "uint64", "bits"))
        }
    result = through(tmp_path, tensors, _use_new_zipfile_serialization=zipped)
    assert list(result) == list(tensors) and type(result) is type(tensors)
    for name, tensor in tensors.items():
        assert same_bits(result[name], tensor), name
    with open_checkpoint(tmp_path / "source.pt") as reader:
        for spec in reader.specs:
            array = reader.read(spec.name)
            assert pack(array).tobytes() == bits(tensors[spec.name])
            assert array.flags.owndata and array.flags.c_contiguous and array.shape == spec.shape


@pytest.mark.parametrize("offsets_known", [True, False])
def test_views_come_out_contiguous_and_only_exact_ties_are_ties(tmp_path, monkeypatch, offsets_known):
    if not offsets_known:  # as with a torch that does not note offsets: through memory mapping
        monkeypatch.setattr(torch_module, "_storage_offset", lambda tensor: None)
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "tie": base,
        "transposed": base.t(),
        "tail": base[1:],
        "column": base[:, 2],
        "steps": base[::2, 1::2],
        "expanded": torch.tensor([7.0]).expand(3, 2),
        "tie of a view": base.t(),
        "equal but apart": base.clone(),
        "nothing": base[:0],
        "nothing too": base[:0],
    }
    torch.save(tensors, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as reader:
        ties = {spec.name: spec.tied_to for spec in reader.specs if spec.tied_to}
        assert ties == {"tie": "base", "tie of a view": "transposed"}
        for name, tensor in tensors.items():
            assert reader.read(name).tolist() == tensor.tolist()


def test_ties_share_storage_after_restoring(tmp_path):
    weight, byte = torch.randn(3, 2), torch.ones(2, dtype=torch.uint16)
    result = through(tmp_path, {"a": weight, "b": torch.ones(1), "c": weight, "x": byte, "y": byte})
    assert result["a"].data_ptr() == result["c"].data_ptr()
    assert result["x"].data_ptr() == result["y"].data_ptr()
    result["a"][0, 0] = 5
    assert result["c"][0, 0] == 5
    assert zipfile.ZipFile(tmp_path / "target.pt").testzip() is None
    assert sum("/data/" in name for name in zipfile.ZipFile(tmp_path / "target.pt").namelist()) == 3


def test_a_state_dict_with_versions_loads_into_its_module(tmp_path):
    def make():
        return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())

    model, other = make(), make()
    state = model.state_dict()
    result = through(tmp_path, state)
    assert type(result) is OrderedDict and list(result) == list(state)
    assert result._metadata == state._metadata and type(result._metadata) is OrderedDict
    assert str(other.load_state_dict(result)) == "<All keys matched successfully>"
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.eval()(inputs), other.eval()(inputs))


def test_a_training_checkpoint_keeps_its_structure(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": float("inf"),
        "loss": 0.1,
        "name": "nét \U0001f600",
        "flags": (True, None, [], {}, -0.0, 1 << 80),
        "shape": torch.Size([2, 3]),
        "milestones": Counter({30: 1, 60: 1}),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "raw": bytearray(b"\x00\xff"),
        "complex": complex(1, float("nan")),
        "set": {"b", "a"},
        7: {"seven": [torch.ones(1), (torch.zeros(2),)]},
    }
    result = through(tmp_path, checkpoint)
    assert list(result) == list(checkpoint)
    assert result["optimizer"]["param_groups"] == checkpoint["optimizer"]["param_groups"]
    for index, state in checkpoint["optimizer"]["state"].items():
        for key, value in state.items():
            assert same_bits(result["optimizer"]["state"][index][key], value)
    tensorless = [key for key in checkpoint if key not in ("model", "optimizer", 7)]
    for key in tensorless:
        assert repr(result[key]) == repr(checkpoint[key]) or result[key] == checkpoint[key]
        assert type(result[key]) is type(checkpoint[key])
    with open_checkpoint(tmp_path / "source.pt") as reader:
        names = [spec.name for spec in reader.specs]
    assert names[:2] == ["model.weight", "model.bias"]
    assert "optimizer.state.0.exp_avg" in names and names[-2:] == ["7.seven.0", "7.seven.1.0"]


def test_parameters_stay_parameters(tmp_path):
    value = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "fixed": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "g": torch.ones(2, requires_grad=True),
        "i": torch.ones(2, dtype=torch.uint16),
    }
    result = through(tmp_path, value)
    assert [type(t) for t in result.values()] == [type(t) for t in value.values()]
    assert [t.requires_grad for t in result.values()] == [True, False, True, False]


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2), torch.zeros(1)], {}, {"a": 1}, 3])
def test_a_file_need_not_hold_a_dict(tmp_path, value):
    result = through(tmp_path, value)
    assert type(result) is type(value) and repr(result) == repr(value)


def test_names_of_an_outermost_dict_are_exact_and_all_names_are_unique(tmp_path):
    t = [torch.full((1,), float(i)) for i in range(5)]
    value = {"a": {"b": t[0], "b~2": t[1]}, "a.b": t[2], "list": [t[3]], "list.0": t[4]}
    torch.save(value, tmp_path / "source.pt")
    with open_checkpoint(tmp_path / "source.pt") as reader:
        assert [(spec.name, reader.read(spec.name)[0]) for spec in reader.specs] == [
            ("a.b~2", 0),
            ("a.b~2~2", 1),
            ("a.b", 2),
            ("list.0~2", 3),
            ("list.0", 4),
        ]
    assert repr(through(tmp_path, value)) == repr(value)


def test_the_stored_structure_of_a_state_dict_does_not_repeat_the_names(tmp_path):
    torch.save({f"layer.{i}.weight": torch.ones(1) for i in range(100)}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as reader:
        assert reader.extra == b'[1,["d",100]]'


def test_a_compressed_archive_is_read_too(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "plain.pt")
    rezip(tmp_path / "plain.pt", tmp_path / "m.pt", compression=zipfile.ZIP_DEFLATED)
    with open_checkpoint(tmp_path / "m.pt") as reader:
        assert reader.read("a").tolist() == list(range(1000))


def rezip(source, target, compression=zipfile.ZIP_STORED, order=lambda names: names):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in order(old.namelist()):
            new.writestr(name, old.read(name))


def test_an_archive_in_another_order_gives_every_tensor_its_own_values(tmp_path):
    tensors = {f"t{i}": torch.full((16,), float(i)) for i in range(12)}
    torch.save(tensors, tmp_path / "plain.pt")
    for order in (sorted, lambda names: names[::-1]):
        rezip(tmp_path / "plain.pt", tmp_path / "m.pt", order=order)
        with open_checkpoint(tmp_path / "m.pt") as reader:
            assert reader._loaded is None
            for name, tensor in tensors.items():
                assert reader.read(name).tolist() == tensor.tolist()


def test_an_archive_without_checksums_is_read(tmp_path):
    torch.save({"a": torch.arange(10.0)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        checksums = [info.CRC.to_bytes(4, "little") for info in archive.infolist() if info.file_size]
    content = (tmp_path / "m.pt").read_bytes()
    for checksum in checksums:
        content = content.replace(checksum, bytes(4))
    (tmp_path / "m.pt").write_bytes(content)
    with open_checkpoint(tmp_path / "m.pt") as reader:
        assert reader.read("a").tolist() == list(range(10))


def test_storages_are_aligned_for_memory_mapping(tmp_path):
    through(tmp_path, {"odd": torch.ones(3, dtype=torch.uint8), "a": torch.arange(5.0), "b": torch.arange(7.0)})
    mapped = torch.load(tmp_path / "target.pt", weights_only=True, mmap=True)
    assert mapped["b"].tolist() == list(range(7)) and mapped["b"].data_ptr() % 64 == 0
    with zipfile.ZipFile(tmp_path / "target.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"the.w": torch.ones(2, 2).to_sparse()}, r"'the\.w' is sparse"),
        ({"the.w": torch.empty(2, device="meta")}, r"'the\.w' has no values"),
        ({"the.w": torch.ones(2).untyped_storage()}, r"the\.w is a torch\.storage"),
        ({"module": torch.nn.Linear(1, 1)}, r"torch\.nn\.modules\.linear\.Linear.*not safe to load.*state_dict"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_kept_is_refused_by_name_in_one_line(tmp_path, value, message):
    torch.save(value, tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match=message) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_tensor_is_refused_by_name(tmp_path):
    try:
        value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    except (RuntimeError, AttributeError):
        pytest.skip("this torch has no quantised tensors")
    torch.save({"q": value}, tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match=r"'q' has dtype torch\.qint8"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "m.pt"))
    with pytest.raises(UnsupportedError, match=r"TorchScript.*state_dict"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_structure_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("deepcabac.checkpoint.skeleton._MAX_NODES", 10_000)
    value = []
    for _ in range(40):
        value = [value, value]
    deep = []
    for _ in range(5_000):
        deep = [deep]
    for laughs in (value, deep):
        import pickle

        structure = io.BytesIO()
        if laughs is deep:
            structure.write(b"\x80\x02" + b"]" * 5_001 + b"a" * 5_000 + b".")
        else:
            pickle.Pickler(structure, 2).dump(laughs)
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
            archive.writestr("archive/data.pkl", structure.getvalue())
            archive.writestr("archive/version", "3\n")
        with pytest.raises(UnsupportedError, match="state dict alone"):
            open_checkpoint(tmp_path / "m.pt")


def test_a_truncated_file_is_refused_at_any_length(tmp_path):
    for zipped in (True, False):
        torch.save({"a": torch.arange(10.0)}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "m.pt").read_bytes()
        for length in range(1, len(whole), 37):
            (tmp_path / "m.pt").write_bytes(whole[:length])
            with pytest.raises((CheckpointError, UnsupportedError)) as caught:
                open_checkpoint(tmp_path / "m.pt")
            assert "\n" not in str(caught.value)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "source.pt")
    with zipfile.ZipFile(tmp_path / "source.pt") as source, zipfile.ZipFile(tmp_path / "m.pt", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):  # shape (2, 3) becomes (9, 3), the storage's 6 elements 27
                content = content.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86").replace(b"K\x06t", b"K\x1bt")
            target.writestr(name, content)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "tree",
    [
        ["d", 1],
        ["d", 3],
        ["d", -1],
        ["d", ["a", ["t"]]],
        ["d", ["a", ["t"], "b"]],
        ["d", [["l", []], ["t"], "b", ["t"]]],
        ["d", ["a", ["t"], "b", ["?"]]],
        ["d", ["a", ["t"], "b", ["y", "nn"]]],
        ["d", ["a", ["t"], "b", ["v", "no such device"]]],
        ["d", ["a", ["t"], "b", ["x", "zz"]]],
        ["d", ["a", ["t"], "b", []]],
        ["d", ["a", ["d", 2]]],
        ["l", 5],
        {"a": 1},
        None,
    ],
)
def test_a_malformed_stored_structure_is_damage(tmp_path, tree):
    specs = [TensorSpec("a", F4, ()), TensorSpec("b", F4, ())]
    for extra in (json.dumps([1, tree]).encode(), json.dumps(tree).encode(), b"\xff", b"[" * 100_000):
        with pytest.raises(DamagedFileError):
            create_checkpoint(tmp_path / "m.pt", kind="torch", specs=specs, extra=extra, extra_kind="torch")
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_read_as_the_type_of_ml_dtypes(tmp_path):
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as reader:
        assert reader.read("a").dtype == ml_dtypes.bfloat16
        assert reader.read("a").astype(F4).tolist() == [1.5, -2.0]


def test_negated_views_have_the_values_that_torch_shows(tmp_path):
    base, other = torch.randn(4, 3), torch.randn(4, 3)
    conjugated = torch.complex(base, other).conj()
    tensors = {
        "imaginary": conjugated.imag,
        "real": conjugated.real,
        "negated": torch._neg_view(base),
        "base": base,
        "integers": torch._neg_view(torch.arange(5)),
        "negated again": torch._neg_view(base),
        "half": torch._neg_view(base.to(torch.bfloat16)),
    }
    assert tensors["imaginary"].is_neg() and tensors["half"].is_neg()
    result = through(tmp_path, tensors)
    for name, tensor in tensors.items():
        assert torch.equal(result[name], tensor), name
    with open_checkpoint(tmp_path / "source.pt") as reader:
        assert {spec.name: spec.tied_to for spec in reader.specs if spec.tied_to} == {"negated again": "negated"}


def test_attributes_of_tensors_are_kept(tmp_path):
    plain, parameter = torch.ones(3), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    narrow = torch.ones(2, dtype=torch.uint16)
    plain.note, plain.parts = "hi", [1, 2.5, torch.zeros(2)]
    parameter.sharding = {"axis": 1}
    narrow.seen = True
    result = through(tmp_path, {"a": plain, "p": parameter, "u": narrow, "b": torch.zeros(1)})
    assert result["a"].note == "hi" and result["a"].parts[:2] == [1, 2.5] and result["a"].parts[2].tolist() == [0, 0]
    assert type(result["p"]) is torch.nn.Parameter and result["p"].__dict__ == {"sharding": {"axis": 1}}
    assert result["u"].seen is True and result["b"].__dict__ == {}
    with open_checkpoint(tmp_path / "source.pt") as reader:
        assert [spec.name for spec in reader.specs] == ["a", "a's attribute parts.2", "p", "u", "b"]


def numpy_values():
    return {
        "float": np.float64(0.9),
        "integer": np.int64(-3),
        "bool": np.bool_(True),
        "complex": np.complex64(1 - 2j),
        "text": np.str_("größer"),
        "big-endian": np.arange(3, dtype=">i4"),
        "matrix": np.arange(6.0).reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.empty((0, 2), np.float32),
        "random": np.random.RandomState(0).get_state(),
    }


def test_numbers_and_arrays_of_numpy_are_kept(tmp_path):
    values = {"model": {"w": torch.ones(2)}, **numpy_values()}
    torch.save(values, tmp_path / "source.pt")
    copy(tmp_path / "source.pt", tmp_path / "target.pt")
    result, original = (torch.load(tmp_path / name, weights_only=False) for name in ("target.pt", "source.pt"))
    for name in numpy_values():
        value = original[name]
        assert type(result[name]) is type(value), name
        if name == "random":
            np.random.RandomState().set_state(result[name])
            assert result[name][1].tobytes() == value[1].tobytes()
        else:
            assert result[name].dtype == value.dtype and result[name].tolist() == value.tolist()
    with pytest.raises(Exception, match="numpy"):  # torch's list of what files may call is as it was
        torch.load(tmp_path / "source.pt", weights_only=True)


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1, None]), np.datetime64("2026-01-01")])
@pytest.mark.filterwarnings("ignore")
def test_numpy_values_that_are_no_numbers_are_refused_in_one_line(tmp_path, value):
    torch.save({"model": torch.ones(2), "x": value}, tmp_path / "m.pt")
    with pytest.raises((UnsupportedError, CheckpointError)) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "node",
    [
        ["n", "O", "00"],
        ["n", "<f8", "00"],
        ["n", "f8, f8", "00" * 16],
        ["N", "<f4", [1 << 40], "00"],
        ["N", "<f4", [-1, -1], "00000000"],
        ["N", "<U0", [0], ""],
        ["n", "<f8"],
        ["t", ["a"]],
        ["t", [1, 2]],
        ["t", 5],
    ],
)
def test_malformed_numpy_values_and_attributes_are_damage(tmp_path, node):
    tree = ["d", ["a", ["t"], "b", node]]
    specs = [TensorSpec(name, F4, ()) for name in ("a", "b")[: 2 if node[0] == "t" else 1]]
    with pytest.raises(DamagedFileError):
        create_checkpoint(
            tmp_path / "m.pt", kind="torch", specs=specs, extra=json.dumps([1, tree]).encode(), extra_kind="torch"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".tar", ".pth.tar"])
def test_a_file_gets_its_suffix_back(tmp_path, suffix):
    source = tmp_path / f"pytorch_model{suffix}"
    torch.save({"w": torch.ones(2), "epoch": 3}, source)
    compressed, _ = compress_checkpoint(source)
    assert compressed.name == "pytorch_model.dcb"
    source.unlink()
    assert decompress_checkpoint(compressed) == source
    assert torch.load(source, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("suffix", ["../x", "", ".safetensors", "pt/../../x", 5])
def test_a_suffix_that_is_none_is_not_used(suffix):
    assert restored_suffix("torch", json.dumps([1, ["d", 0], suffix]).encode()) == ".pt"


def test_what_another_kind_does_not_keep_is_said(tmp_path, caplog):
    state = {"model": {"w": torch.ones(2)}, "epoch": 3, "vocabulary": ["a", "b"], "lr": np.float32(0.1), "empty": {}}
    torch.save({**state, "scheduler": [{"step": 1, "t": torch.ones(1)}]}, tmp_path / "m.pt")
    compressed, _ = compress_checkpoint(tmp_path / "m.pt")
    decompress_checkpoint(compressed, tmp_path / "m.safetensors")
    assert caplog.messages[-1].endswith(
        "m.safetensors: only tensors are kept, not epoch, vocabulary, lr, empty, scheduler.0.step"
    )
    caplog.clear()
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "n.pt")
    decompress_checkpoint(compress_checkpoint(tmp_path / "n.pt")[0], tmp_path / "n.safetensors")
    assert caplog.messages == []


def test_shards_come_back_with_their_structures_and_folders(tmp_path):
    one, two = {"a": torch.ones(3), "b": torch.zeros(2)}, OrderedDict(c=torch.ones(3), epoch=3)
    (tmp_path / "late").mkdir()
    names = "pytorch_model-00001-of-00002.bin", "late/pytorch_model-00002-of-00002.bin"
    weight_map = {"a": names[0], "b": names[0], "c": names[1]}
    for shard, name in zip((one, two), names, strict=True):
        torch.save(shard, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.fp16.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    compressed, _ = compress_checkpoint(index, lossless=True)
    before = json.loads(index.read_text())
    (tmp_path / "elsewhere").mkdir()
    compressed = compressed.rename(tmp_path / "elsewhere" / "pytorch_model.dcb")
    restored = decompress_checkpoint(compressed)
    assert restored.name == index.name and json.loads(restored.read_text()) == before
    for shard, name in zip((one, two), names, strict=True):
        result = torch.load(restored.parent / name, weights_only=True)
        assert type(result) is type(shard) and repr(result) == repr(shard)
