"""Whole model folders: compressed, restored, looked at, searched."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import deepcabac
from deepcabac import CheckpointError, DamagedFileError, OptionError, UnsupportedError, compress_folder
from deepcabac.cli import program

RNG = np.random.default_rng(3)
linked = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(*arguments):
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def contents(folder):
    """Bytes of all files, by their paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tmp_path):
    """A sharded model with an adapter, as it lies in a clone, and a pipeline's parts in folders."""
    folder = tmp_path / "model"
    for inside in ("unet", "text_encoder", "scheduler", ".git"):
        (folder / inside).mkdir(parents=True)
    shards = {"model-00001-of-00002.safetensors": {"a.weight": normal(60, 50)}}
    shards["model-00002-of-00002.safetensors"] = {"b.weight": normal(70, 50), "b.bias": normal(70)}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"lora_A.weight": normal(8, 50)}, folder / "adapter_model.safetensors")
    save_file({"a.weight": normal(30, 20)}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    np.savez(folder / "text_encoder" / "weights.npz", embedding=normal(40, 30))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.model").write_bytes(bytes(range(256)))
    (folder / "vocab.bin").write_bytes(b"not PyTorch's")
    (folder / ".gitattributes").write_text("* lfs")
    (folder / ".git" / "HEAD").write_text("main")
    return folder


WEIGHTS = [
    "adapter_model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "text_encoder/weights.npz",
    "unet/diffusion_pytorch_model.fp16.safetensors",
]
OTHERS = {
    ".gitattributes",
    "config.json",
    "model.safetensors.index.json",
    "scheduler/scheduler_config.json",
    "tokenizer.model",
    "vocab.bin",
}


def test_a_folder_has_the_same_shape_with_dcb_files_in_place_of_weights(model):
    report = compress_folder(model)
    made, original = contents(report.path), contents(model)
    assert report.path == model.with_name("model-dcb")
    assert set(made) == OTHERS | {name + ".dcb" for name in WEIGHTS}
    assert all(made[name] == original[name] for name in OTHERS)
    assert list(report.files) == WEIGHTS and set(report.copied) == OTHERS and report.notes == []
    assert report.file_bytes == sum(len(made[name + ".dcb"]) for name in WEIGHTS) < report.raw_bytes / 3
    assert report.bits_per_weight == pytest.approx(8 * report.file_bytes / (report.raw_bytes / 4))
    deepcabac.compress_checkpoint(model / WEIGHTS[0], model.with_name("alone.dcb"))
    assert made[WEIGHTS[0] + ".dcb"] == model.with_name("alone.dcb").read_bytes()


def test_lossless_gives_the_original_back(model):
    compress_folder(model, model.with_name("small"), lossless=True)
    back = deepcabac.decompress_folder(model.with_name("small"), model.with_name("back"))
    original, restored = contents(model), contents(back)
    assert set(restored) == set(original) - {".git/HEAD"}
    assert all(restored[name] == original[name] for name in OTHERS)
    for name in WEIGHTS:
        before, after = ((np.load if name.endswith("npz") else load_file)(one / name) for one in (model, back))
        assert set(before) == set(after)
        assert all(np.array_equal(before[key], after[key]) for key in before)
    assert restored["model-00001-of-00002.safetensors"] == original["model-00001-of-00002.safetensors"]


def test_the_names_of_folders_that_nobody_gives(model, monkeypatch):
    monkeypatch.chdir(model)
    assert compress_folder(".").path == model.with_name("model-dcb")
    model.rename(model.with_name("away"))
    assert deepcabac.decompress_folder(model.with_name("model-dcb")) == model
    compress_folder(model, model.with_name("other"))
    assert deepcabac.decompress_folder(model.with_name("other")) == model.with_name("other-restored")


@linked
def test_links_into_a_cache_of_blobs_are_followed(model, tmp_path):
    """As the Hugging Face hub's cache has them."""
    hub = tmp_path / "models--org--name"
    (hub / "blobs").mkdir(parents=True)
    for number, (name, data) in enumerate(contents(model).items()):
        place = hub / "snapshots" / "abc" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (hub / "blobs" / f"{number}").write_bytes(data)
        place.symlink_to(os.path.relpath(hub / "blobs" / f"{number}", place.parent))
    (hub / "snapshots" / "abc" / ".git" / "HEAD").unlink()
    compress_folder(model, tmp_path / "one")
    compress_folder(hub / "snapshots" / "abc", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not any(path.is_symlink() for path in (tmp_path / "two").rglob("*"))
    with pytest.raises(CheckpointError, match=r"cache of the Hugging Face hub; give a snapshot, .*abc"):
        compress_folder(hub)
    (hub / "blobs" / "0").unlink()
    with pytest.raises(CheckpointError, match="link to a file that is not there"):
        compress_folder(hub / "snapshots" / "abc", tmp_path / "three")


@linked
def test_links_to_folders_are_followed_but_not_in_circles(model, tmp_path):
    (model / "unet").rename(tmp_path / "elsewhere")
    (model / "unet").symlink_to(tmp_path / "elsewhere")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in compress_folder(model, tmp_path / "one").files
    (model / "loop").symlink_to(model)
    with pytest.raises(CheckpointError, match="link to a folder around it"):
        compress_folder(model, tmp_path / "two")


@linked
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a FIFO")
def test_what_is_neither_file_nor_folder_is_refused(model):
    os.mkfifo(model / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is neither a file nor a folder"):
        compress_folder(model)


def test_files_that_are_no_weights_alone_are_copied_and_named(model, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state": {0: torch.ones(50, 50)}}, model / "optimizer.pt")
    torch.save({"w": torch.randn(50, 40)}, model / "pytorch_model.bin")
    (model / "extra.bin").write_bytes(pickle.dumps(Path("x"), protocol=2))
    (model / "tf_model.h5").write_bytes(b"\x89HDF")
    report = compress_folder(model, tmp_path / "out")
    assert [note.split(": ")[0] for note in report.notes] == ["extra.bin", "optimizer.pt", "tf_model.h5"]
    assert "not safe to load" in report.notes[0] and "state of a training" in report.notes[1]
    assert {"extra.bin", "optimizer.pt", "tf_model.h5"} <= set(report.copied)
    back = deepcabac.decompress_folder(tmp_path / "out", tmp_path / "back")
    assert torch.load(back / "pytorch_model.bin", weights_only=True)["w"].shape == (50, 40)
    for name in report.copied:
        assert (back / name).read_bytes() == (model / name).read_bytes()


def test_files_beside_an_onnx_model_that_hold_its_weights_are_part_of_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(normal(100, 80), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 80])],
        [weights],
    )
    (tmp_path / "model" / "onnx").mkdir(parents=True)
    proto = helper.make_model(graph)
    path = tmp_path / "model" / "onnx" / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    report = compress_folder(tmp_path / "model")
    assert list(contents(report.path)) == ["onnx/model.onnx.dcb"]
    back = deepcabac.decompress_folder(report.path, tmp_path / "back")
    assert onnx.load(back / "onnx" / "model.onnx").graph.initializer[0].dims == [100, 80]


def left(folder):
    """What there is in a folder, temporary things too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_nothing(model, tmp_path):
    data = (model / WEIGHTS[2]).read_bytes()
    (model / WEIGHTS[2]).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        compress_folder(model)
    assert left(tmp_path) == ["model"]
    (model / WEIGHTS[2]).write_bytes(data)
    compress_folder(model)
    small = tmp_path / "model-dcb" / (WEIGHTS[2] + ".dcb")
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=WEIGHTS[2]):
        deepcabac.decompress_folder(tmp_path / "model-dcb", tmp_path / "back")
    assert left(tmp_path) == ["model", "model-dcb"]


def test_an_interrupt_leaves_nothing(model, tmp_path):
    def stop(done, total):
        assert 0 <= done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_folder(model, progress=stop)
    assert left(tmp_path) == ["model"]


def test_errors_while_writing_name_the_folder_that_was_asked_for(model, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(CheckpointError) as error:
        compress_folder(model)
    assert str(error.value).startswith(f"{tmp_path / 'model-dcb' / '.gitattributes'}: cannot be written: no space")
    assert left(tmp_path) == ["model"]


def test_what_is_there_is_kept_unless_asked(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    compress_folder(model, out)  # empty: nothing to lose
    (out / "mine.txt").write_text("mine")
    (out / "config.json").write_text("old")
    before = contents(out)
    with pytest.raises(OptionError, match=r"out: exists; overwrite=True replaces it"):
        compress_folder(model, out)
    assert contents(out) == before
    compress_folder(model, out, overwrite=True, sqnr=20)
    after = contents(out)
    assert after["mine.txt"] == b"mine" and after["config.json"] == b'{"model_type": "llama"}'
    assert all(len(after[name + ".dcb"]) < len(before[name + ".dcb"]) for name in WEIGHTS[1:])
    (out / "config.json").unlink()
    (out / "config.json").mkdir()
    before = contents(out)
    with pytest.raises(CheckpointError, match="a folder where a file is to be written"):
        compress_folder(model, out, overwrite=True)
    assert contents(out) == before and left(tmp_path) == ["model", "out"]


def test_folders_that_cannot_be_written_or_read(model, tmp_path):
    for target in (model, model / "inside", tmp_path):
        with pytest.raises(OptionError, match="is the folder to read, or one around or in it"):
            compress_folder(model, target)
    with pytest.raises(CheckpointError, match=r"the folder .*none does not exist"):
        compress_folder(model, tmp_path / "none" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: is not a folder"):
        compress_folder(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match="no such folder"):
        compress_folder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        compress_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no weights"):
        compress_folder(tmp_path / "empty")
    with pytest.raises(OptionError, match=r"holds no compressed file"):
        deepcabac.decompress_folder(tmp_path / "empty")
    report = compress_folder(model)
    with pytest.raises(OptionError, match="is compressed already"):
        compress_folder(report.path)


def test_a_distributed_checkpoint_of_pytorch_is_refused_with_the_way_which_leads_there(tmp_path):
    """What torch's own converter makes of it is compressed like any file."""
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    weights = {"model": {"a.weight": torch.randn(60, 50)}, "step": 3}
    dcp.save(weights, checkpoint_id=tmp_path / "checkpoint" / "step-3")
    for folder, words in (("checkpoint/step-3", "is a"), ("checkpoint", "holds step-3, which is a")):
        result = run("compress", tmp_path / folder)
        assert result.exit_code == 2 and "format_utils dcp_to_torch FOLDER model.pt" in result.stderr
        assert result.stderr.startswith(f"error: {tmp_path / folder}: {words} distributed checkpoint of PyTorch; ")
    assert left(tmp_path) == ["checkpoint"]
    dcp_to_torch_save(tmp_path / "checkpoint" / "step-3", tmp_path / "model.pt")
    deepcabac.compress_checkpoint(tmp_path / "model.pt", lossless=True)
    deepcabac.decompress_checkpoint(tmp_path / "model.dcb", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["step"] == 3 and torch.equal(back["model"]["a.weight"], weights["model"]["a.weight"])


def test_a_folder_of_orbax_is_refused_with_the_way(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    for name in ("manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA", "d/437b27d56d66"):
        (tmp_path / "state" / name).write_text("{}")
    with pytest.raises(UnsupportedError, match="checkpoint of Orbax; restore it and give its arrays"):
        compress_folder(tmp_path / "state")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.weights.h5", "file of Keras; load it in Keras and give deepcabac.save_file"),
        ("model.keras", "file of Keras; load it in Keras and give deepcabac.save_file"),
        ("flax_model.msgpack", r"file of Flax; .*msgpack_restore"),
        ("w.npy", r"single array; .*numpy\.load"),
        ("__0_0.distcp", "give its folder"),
        ("model.tflite", "has none of the suffixes of checkpoints: "),
    ],
)
def test_files_that_are_not_read_are_refused_with_the_way(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"some bytes")
    with pytest.raises(deepcabac.DeepCabacError, match=words) as error:
        deepcabac.compress_checkpoint(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert left(tmp_path) == [name]


def test_a_folder_of_which_nothing_can_be_compressed_is_an_error(tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"a": normal(4)}, tmp_path / "model" / "m.safetensors")
    data = (tmp_path / "model" / "m.safetensors").read_bytes().replace(b'"F32"', b'"F4X"')
    (tmp_path / "model" / "m.safetensors").write_bytes(data)
    with pytest.raises(UnsupportedError, match="no file could be compressed"):
        compress_folder(tmp_path / "model")
    assert left(tmp_path) == ["model"]


def test_settings_for_one_file_are_refused_for_several(model, tmp_path):
    with pytest.raises(OptionError, match="size is for one file of weights, and there are 5: use bits"):
        compress_folder(model, size=10_000)
    for name in WEIGHTS[1:]:
        (model / name).unlink()
    assert compress_folder(model, size=500).file_bytes == pytest.approx(500, rel=0.05)


def test_patterns_are_judged_by_all_files(model, tmp_path):
    overrides = {"a.*": {"exact": True}, "c.*": {"exact": True}}
    report = compress_folder(model, overrides=overrides)
    assert report.notes == ["no tensor's name matches the pattern 'c.*'"]
    assert report.files[WEIGHTS[1]].tensors[0].method == "exact"


def test_two_files_that_become_one_are_refused(model, tmp_path):
    out = compress_folder(model, tmp_path / "out").path
    (out / "adapter_model.safetensors").write_text("not ours")
    with pytest.raises(OptionError, match=r"both become adapter_model\.safetensors"):
        deepcabac.decompress_folder(out, tmp_path / "back")


def test_a_dcb_file_with_a_name_of_its_own_is_restored_by_its_kind(model, tmp_path):
    out = compress_folder(model, tmp_path / "out").path
    (out / "adapter_model.safetensors.dcb").rename(out / "adapter.dcb")
    back = deepcabac.decompress_folder(out, tmp_path / "back")
    assert (back / "adapter.safetensors").exists()


# The command line


def test_commands_take_folders(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("compress", "model", "--sqnr", "25")
    assert result.exit_code == 0, result.stderr
    assert "bytes of tensors in 5 files" in result.stdout and "6 other files copied" in result.stdout
    result = run("inspect", "model-dcb")
    assert "a folder with 5 compressed files" in result.stdout and "all files" in result.stdout
    result = run("inspect", "model-dcb", "--json")
    decoder, text, seen = json.JSONDecoder(), result.stdout, []
    while text.strip():
        value, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        seen.append(value["path"])
    assert seen == [str(Path("model-dcb", *(name + ".dcb").split("/"))) for name in WEIGHTS]
    result = run("verify", "model-dcb")
    assert (result.exit_code, result.stdout.count("good")) == (0, 5)
    result = run("decompress", "model-dcb", "-o", "back")
    assert result.exit_code == 0 and "back: restored in" in result.stdout
    assert set(contents(Path("back"))) == OTHERS | set(WEIGHTS)
    damaged = Path("model-dcb", WEIGHTS[0] + ".dcb")
    data = bytearray(damaged.read_bytes())
    data[40] ^= 1
    damaged.write_bytes(data)
    result = run("verify", "model-dcb")
    assert (result.exit_code, result.stdout.count(": good")) == (1, 4) and "1 of 1 tensor damaged" in result.stderr


def test_folders_on_the_command_line_that_exist_or_make_no_sense(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("compress", "model", "-q").exit_code == 0
    result = run("compress", "model")
    assert result.exit_code == 2 and result.stderr.startswith("error: model-dcb: exists; --force replaces it")
    assert run("compress", "model", "--force").exit_code == 0
    for arguments in (
        ("compress", "model", "-o", "-"),
        ("compress", "model", "--format", "nnc", "-o", "x"),
        ("compress", "model", "--size", "10kB", "-o", "x"),
        ("compress", "model", "--base", "model", "-o", "x"),
        ("decompress", "model-dcb", "-o", "-"),
        ("decompress", "model", "-o", "x"),
        ("inspect", "model"),
        ("verify", "model"),
        ("compress", "model-dcb", "-o", "x"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and result.stderr.startswith("error: "), arguments
        assert result.stderr.count("\n") == 1, arguments
    assert left(tmp_path) == ["model", "model-dcb"]


def test_several_folders_go_into_one(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    result = run("compress", "model", "model/unet", "-o", "small")
    assert result.exit_code == 0, result.stderr
    assert left(Path("small")) == ["model-dcb", "unet-dcb"]
    monkeypatch.chdir(model)
    result = run("compress", ".", "-o", "../dot")
    assert result.exit_code == 0 and (tmp_path / "dot" / "config.json").exists(), result.stderr


def test_a_search_writes_a_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (model / "unet", model / "text_encoder"):
        for file in path.iterdir():
            file.unlink()
    original = load_file(model / WEIGHTS[1])["a.weight"]
    (tmp_path / "judge.py").write_text(
        "import numpy as np\n"
        f"original = np.load({str(tmp_path / 'a.npy')!r})\n"
        "def score(tensors):\n"
        "    assert set(tensors) == {'a.weight', 'b.weight', 'b.bias', 'lora_A.weight'}\n"
        "    return -float(np.abs(tensors['a.weight'] - original).mean())\n"
    )
    np.save(tmp_path / "a.npy", original)
    result = run("search", "model", "--eval", "judge.py:score", "--max-drop", "0.05", "--evaluations", "8")
    assert result.exit_code == 0, result.stderr
    assert {"model-dcb", "model-dcb.search.csv", "model-dcb.search.png"} <= set(left(tmp_path))
    assert (tmp_path / "model-dcb" / "config.json").exists()
    back = deepcabac.decompress_folder(tmp_path / "model-dcb", tmp_path / "back")
    assert 0 < np.abs(load_file(back / WEIGHTS[1])["a.weight"] - original).mean() <= 0.05
    result = run("search", "model", "--eval", "judge.py:score", "--max-drop", "0.05")
    assert result.exit_code == 2 and "exists" in result.stderr


def test_a_search_over_parts_with_equal_names_is_refused(model):
    with pytest.raises(OptionError, match=r"has a tensor .a\.weight., and so has another file"):
        deepcabac.search(model, lambda tensors: 1.0, max_drop=1)
