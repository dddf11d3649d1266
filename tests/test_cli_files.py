"""The command line's files: standard input and output, several at once, folders, and what must not be replaced."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, files, process, run

import deepcabac
from deepcabac.atomic import AtomicFile, ExistsError
from deepcabac.checkpoint import KINDS, TensorSpec, create_checkpoint
from deepcabac.checkpoint.kinds import restored_suffix

pytestmark = pytest.mark.usefixtures("folder")


def piped(*args, **options):
    """Run with binary standard input and output, as a process."""
    result = process(*args, **options)
    return result.returncode, result.stdout, result.stderr.decode()


def arrays(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def same(found, expected):
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# Standard input and output


def test_a_pipeline_writes_and_reads_what_files_would_hold():
    assert run("compress", "model.npz").exit_code == 0
    expected = Path("model.dcb").read_bytes()
    code, made, said = piped("compress", "model.npz", "-o", "-")
    assert (code, made) == (0, expected) and "bytes in standard output" in said
    assert piped("compress", "-", "-q", input=Path("model.npz").read_bytes()) == (0, expected, "")
    code, restored, said = piped("decompress", "-", input=expected)
    assert code == 0 and "standard output: 72,488 bytes of tensors" in said
    same(arrays(io.BytesIO(restored)), deepcabac.load_file("model.dcb"))
    assert piped("decompress", "-", "-o", "again.npz", "-q", input=expected) == (0, b"", "")
    same(arrays("again.npz"), deepcabac.load_file("model.dcb"))
    assert not Path("-").exists() and "-.dcb" not in os.listdir()


def test_inspect_and_verify_read_standard_input():
    data = Path("good.dcb").read_bytes()
    code, out, _ = piped("verify", "-", input=data)
    assert code == 0 and out.startswith(b"standard input: good: the index and 4 tensors checked")
    code, out, _ = piped("inspect", "-", input=data)
    assert code == 0 and out.startswith(b"standard input: format version 1")
    code, out, _ = piped("inspect", "-", "--json", input=data)
    assert json.loads(out)["path"] == "standard input"


def test_what_is_wrong_with_standard_input_is_said_in_one_line():
    bad = Path("bad.dcb").read_bytes()
    code, out, said = piped("verify", "-", input=bad)
    assert code == 1 and b"standard input: tensor 'a.weight' is damaged" in out
    assert said == "error: standard input: 1 of 4 tensors damaged\n"
    code, out, said = piped("decompress", "-", "-o", "new.npz", input=bad)
    assert (code, out) == (1, b"") and said.startswith("error: standard input: tensor 'a.weight' is damaged")
    code, out, said = piped("decompress", "-", input=Path("model.npz").read_bytes())
    assert (code, out) == (2, b"")
    hint = "'deepcabac compress -' compresses a checkpoint"
    assert said == f"error: standard input: is neither a .dcb nor a .nnc file; {hint}\n"
    code, out, said = piped("compress", "-", input=b"words")
    assert (code, out) == (2, b"") and said.startswith("error: standard input: has none of the suffixes")
    assert piped("inspect", "-", input=b"")[::2] == (1, "error: standard input: damaged .dcb file: it is empty\n")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch", "onnx", "nnc"])
def test_the_kind_of_a_checkpoint_on_standard_input_is_found(kind, tmp_path):
    if kind == "onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.eye(9, dtype="f4"), "w")])
        onnx.save(onnx.helper.make_model(graph), "w.onnx")
        data = Path("w.onnx").read_bytes()
    elif kind == "nnc":
        assert run("compress", "model.npz", "-o", "w.nnc", "-q").exit_code == 0
        code, made, _ = piped("decompress", "-", input=Path("w.nnc").read_bytes())
        assert code == 0
        data = made
    else:
        if kind == "torch":
            pytest.importorskip("torch")
        suffix = {"safetensors": ".safetensors", "npz": ".npz", "torch": ".pt"}[kind]
        assert run("decompress", "good.dcb", "-o", f"m{suffix}", "-q").exit_code == 0
        data = Path(f"m{suffix}").read_bytes()
    code, made, said = piped("compress", "-", "--lossless", input=data)
    assert code == 0, said
    with deepcabac.open_file(_file("made.dcb", made)) as opened:
        assert opened.kind == {"nnc": "safetensors"}.get(kind, kind)


def _file(name, data):
    Path(name).write_bytes(data)
    return name


def test_a_file_called_minus_is_written_and_read_by_its_path():
    assert run("compress", "model.npz", "-o", "./-").exit_code == 0
    assert Path("-").read_bytes() == deepcabac.compress(arrays("model.npz")) or Path("-").stat().st_size > 0
    assert run("verify", "./-").exit_code == 0


def test_a_terminal_is_neither_read_nor_written():
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    try:
        for args, stream, words in (
            (["compress", "model.npz", "-o", "-"], "stdout", "standard output is a terminal: redirect it"),
            (["decompress", "-"], "stdout", "standard output is a terminal"),
            (["verify", "-"], "stdin", "standard input is a terminal: send a file into it"),
        ):
            result = subprocess.run(
                [*COMMAND, *args], **{"stdin": subprocess.DEVNULL, stream: theirs}, stderr=subprocess.PIPE, timeout=60
            )
            assert result.returncode == 2 and words in result.stderr.decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_standard_output_takes_one_file_and_no_shards():
    for args, words in (
        (["compress", "model.npz", "words.safetensors", "-o", "-"], "standard output takes one file"),
        (["compress", "-", "model.npz"], "standard output takes one file"),
        (["compress", "-", "-o", "folder"], "folder: is a folder, and standard input has no name"),
    ):
        code, out, said = piped(*args, input=Path("model.npz").read_bytes())
        assert (code, out) == (2, b"") and words in said and len(said.splitlines()) == 1
    specs = [TensorSpec("w", np.dtype("<f4"), (9,))]
    with create_checkpoint(
        "m.safetensors.index.json", kind="safetensors-sharded", specs=specs, extra=b"", extra_kind=""
    ) as writer:
        writer.write("w", np.ones(9, np.float32))
    assert run("compress", "m.safetensors.index.json", "-q").exit_code == 0
    code, out, said = piped("decompress", "m.dcb", "-o", "-")
    assert (code, out) == (2, b"") and "m.dcb: was made from several files" in said


def test_a_closed_pipe_ends_the_program_quietly():
    np.savez("large.npz", w=np.random.default_rng(1).standard_normal(1 << 20))
    running = subprocess.Popen(
        [*COMMAND, "compress", "large.npz", "--lossless", "-q", "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.stdout.read(9)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(timeout=60) == 141
    running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_after_a_pipe_is_an_error_of_one_line():
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "compress", "model.npz", "-q", "-o", "-"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (2, b"error: the output cannot be written: no space left on device\n")


# Several files


def test_several_checkpoints_are_compressed_each_beside_itself(folder):
    shutil.copy("model.npz", "folder/other.npz")
    result = run("compress", "model.npz", "folder/other.npz")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("quality") == 2
    assert Path("model.dcb").read_bytes() == Path("folder/other.dcb").read_bytes()
    result = run("decompress", "model.dcb", "folder/other.dcb", "-o", "folder", "--force", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    same(arrays("folder/model.npz"), arrays("folder/other.npz"))
    result = run("verify", "model.dcb", "folder/other.dcb")
    assert result.exit_code == 0 and [line.split(": ")[1] for line in result.stdout.splitlines()] == ["good", "good"]


def test_output_may_be_a_folder(folder):
    assert run("compress", "model.npz", "-o", "folder").exit_code == 0
    assert run("compress", "model.npz", "-o", "folder", "--format", "nnc").exit_code == 0
    assert sorted(os.listdir("folder")) == ["model.dcb", "model.nnc"]
    result = run("compress", "model.npz", "model.npz", "-o", "missing")
    assert result.exit_code == 2 and "missing: is not a folder, which several inputs need" in result.stderr


def test_the_worst_exit_code_is_that_of_all(folder):
    before = files(folder)
    result = run("verify", "bad.dcb", "good.dcb", "short.dcb")
    assert result.exit_code == 1 and "good.dcb: good" in result.stdout
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" bad.dcb", " short.dcb"]
    result = run("verify", "good.dcb", "words.txt", "bad.dcb")
    assert result.exit_code == 2 and "good.dcb: good" in result.stdout and len(result.stderr.splitlines()) == 2
    result = run("inspect", "good.dcb", "missing.dcb")
    assert result.exit_code == 2 and "a.weight" in result.stdout
    result = run("compress", "words.safetensors", "model.npz")
    assert result.exit_code == 2 and "words.safetensors: " in result.stderr
    assert files(folder) == before | {"model.dcb": Path("model.dcb").read_bytes()}


def test_inspect_separates_files_and_prints_an_object_for_each():
    out = run("inspect", "good.dcb", "good.dcb").stdout
    assert out.count("\n\ngood.dcb: format version") == 1
    decoder, text = json.JSONDecoder(), run("inspect", "good.dcb", "good.dcb", "--json").stdout
    first, end = decoder.raw_decode(text)
    second, _ = decoder.raw_decode(text[end:].lstrip())
    assert first == second and first["path"] == "good.dcb"


def test_two_inputs_do_not_become_one_file():
    assert run("decompress", "good.dcb", "-o", "model.safetensors", "-q").exit_code == 0
    result = run("compress", "model.npz", "model.safetensors", "--force")
    assert result.exit_code == 2 and "model.dcb: holds what model.npz became" in result.stderr
    assert deepcabac.open_file("model.dcb").kind == "npz"


# Nothing is replaced unless asked for


@pytest.mark.parametrize(
    ("args", "target"),
    [
        ("decompress good.dcb -o model.safetensors", "model.safetensors"),
        ("decompress model.dcb", "model.npz"),
        ("decompress stream.nnc -o model.safetensors", "model.safetensors"),
        ("compress model.safetensors", "model.dcb"),
        ("compress model.npz --format nnc -o stream.nnc", "stream.nnc"),
        ("compress model.npz -o link.dcb", "link.dcb"),
    ],
)
def test_a_file_is_replaced_only_by_force(folder, args, target):
    for made in ("model.dcb", "stream.nnc", "link-target"):
        assert run("compress", "model.npz", "-o", made, "-q").exit_code == 0
    assert run("decompress", "good.dcb", "-o", "model.safetensors", "-q").exit_code == 0
    Path("link.dcb").symlink_to("link-target")
    before = files(folder)
    result = run(*args.split(), "-q")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {target}: exists; --force replaces it, -o names another file\n"
    assert files(folder) == before
    os.utime(target, (1, 1))
    assert run(*args.split(), "--force", "-q").exit_code == 0
    assert Path(target).stat().st_mtime > 1


@pytest.mark.parametrize("made", ["model.dcb", "model.search.png", "model.search.svg"])
def test_a_search_replaces_neither_its_file_nor_its_plots(folder, made):
    Path(made).write_text("mine")
    before = files(folder)
    result = run("search", "model.npz", "--eval", "nowhere:nothing", "--max-drop", 1)
    expected = f"error: {made}: exists; --force replaces it, -o names another file\n"
    assert (result.exit_code, result.stderr) == (2, expected)
    assert files(folder) == before
    assert "exists" not in run("search", "model.npz", "--eval", "nowhere:nothing", "--max-drop", 1, "--force").stderr


def test_shards_and_external_weights_are_not_replaced_either(folder):
    specs = [TensorSpec("w", np.dtype("<f4"), (9,))]
    with create_checkpoint(
        "m.safetensors.index.json", kind="safetensors-sharded", specs=specs, extra=b"", extra_kind=""
    ) as writer:
        writer.write("w", np.ones(9, np.float32))
    assert run("compress", "m.safetensors.index.json", "-q").exit_code == 0
    Path("m.safetensors.index.json").unlink()
    before = files(folder)
    result = run("decompress", "m.dcb")
    shard = "m-00001-of-00001.safetensors"
    assert result.stderr == f"error: {shard}: exists; --force replaces it, -o names another file\n"
    assert files(folder) == before
    assert run("decompress", "m.dcb", "--force").exit_code == 0


def test_the_library_replaces_checkpoints_only_if_asked_to():
    path, _ = deepcabac.compress_checkpoint("model.npz")
    for act in (
        lambda **more: deepcabac.compress_checkpoint("model.npz", **more),
        lambda **more: deepcabac.compress_checkpoint("model.npz", path, **more),
        lambda **more: deepcabac.decompress_checkpoint(path, **more),
        lambda **more: deepcabac.decompress_checkpoint(path, "model.npz", **more),
    ):
        with pytest.raises(deepcabac.OptionError, match="exists; overwrite=True replaces it"):
            act()
        act(overwrite=True)
    deepcabac.save_file({"w": np.ones(3)}, path)
    assert deepcabac.load_file(path).keys() == {"w"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint_says_that_it_exists(kind, folder):
    suffix = restored_suffix(kind, b"")
    specs, extra = [TensorSpec("w", np.dtype("<f4"), (2,))], b""
    if kind.startswith("torch"):
        pytest.importorskip("torch")
    if kind == "onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(np.ones(2, "f4"), "w")])
        onnx.save(onnx.helper.make_model(graph), "graph.onnx")
        extra = deepcabac.checkpoint.open_checkpoint("graph.onnx").extra
    if kind == "gguf":
        table = struct.pack("<QQ", 1, 0) + struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 2, 0, 0)
        extra = struct.pack("<Q", 72) + b"GGUF" + struct.pack("<I", 3) + table
    path = Path(f"there{suffix}")
    path.write_text("mine")
    with pytest.raises(ExistsError):
        create_checkpoint(path, kind=kind, specs=specs, extra=extra, extra_kind=kind, overwrite=False)
    assert path.read_text() == "mine" and not list(folder.glob(".deepcabac*"))


def test_what_another_kind_does_not_keep_is_noted(folder):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, "last.ckpt")
    assert run("compress", "last.ckpt").exit_code == 0
    result = run("decompress", "last.dcb", "-o", "m.npz")
    assert result.exit_code == 0
    assert result.stderr == "note: m.npz: only tensors are kept, not epoch\n"
    Path("last.ckpt").unlink()
    result = run("decompress", "last.dcb")
    assert result.exit_code == 0 and result.stderr == "" and torch.load("last.ckpt")["epoch"] == 3


def test_a_file_that_appears_meanwhile_is_not_replaced(folder):
    with pytest.raises(ExistsError), AtomicFile("new.bin", overwrite=False) as atomic:
        atomic.file.write(b"ours")
        Path("new.bin").write_bytes(b"theirs")
    assert Path("new.bin").read_bytes() == b"theirs" and not list(folder.glob(".deepcabac*"))
