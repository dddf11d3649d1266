"""The command line, in this process and as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, files, process, run

import deepcabac
from deepcabac.cli import report
from deepcabac.cli.parameters import parse_bytes as _bytes
from deepcabac.curvature import Curvature, Factors

GOLDEN = Path(__file__).parent / "golden"
LENET = Path(__file__).parent.parent / "examples" / "lenet300.safetensors"


@pytest.fixture
def curvatures(folder):
    """Files of curvatures: of the model in the folder, of others, and of none."""
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((2, 500, 48)) * np.linspace(0.1, 4, 48)
    columns = np.einsum("hni,hnj->hij", samples, samples).astype(np.float32)[:, None]
    factors = Factors(columns, np.ones(64, np.float32), 1.0, None)
    Curvature({"a.weight": factors}, samples=500, loss="logits").save("good.curvature")
    Curvature({"c.weight": factors}, samples=500, loss="logits").save("other.curvature")
    narrow = Factors(columns[..., 1:, 1:], np.ones(64, np.float32), 1.0, None)
    Curvature({"a.weight": narrow}, samples=500, loss="logits").save("narrow.curvature")
    indefinite = Factors(columns * (1 - 9 * np.eye(48, dtype=np.float32)), np.ones(64, np.float32), 1.0, None)
    Curvature({"a.weight": indefinite}, samples=500, loss="logits").save("indefinite.curvature")
    data = Path("good.curvature").read_bytes()
    Path("short.curvature").write_bytes(data[:-100])
    Path("nan.curvature").write_bytes(data[:-4] + b"\xff" * 4)
    return folder


# What is printed


def test_compress_says_how_large_and_how_good_the_file_is(folder):
    result = run("compress", LENET, "-o", "l.dcb")
    assert (result.exit_code, result.stderr) == (0, "")
    size = Path("l.dcb").stat().st_size
    assert "1,066,440 bytes of tensors" in result.stdout and f"{size:,} bytes in l.dcb" in result.stdout
    assert re.search(r"ratio +6\.\d\d times smaller, [45]\.\d+ bits per weight", result.stdout)
    assert re.search(r"quality +SQNR [\d.]+ dB \([\d.]+ to [\d.]+\) in 3 quantized tensors; 3 exact", result.stdout)
    assert re.search(r"fc1\.weight +300x784 +float32 +[45]\.\d\d +[23]\d\.\d +\d\d\.\d %", result.stdout)
    assert re.search(r"fc1\.bias +300 +float32 +2\d\.\d\d +exact", result.stdout)
    assert all(line.isascii() and len(line) <= 80 for line in result.stdout.splitlines())


def test_compress_lists_the_largest_tensors_and_sums_up_the_rest(folder):
    np.savez(
        "many.npz", **{f"t{i}": np.frombuffer(np.random.default_rng(i).bytes(80 * i + 80), np.int64) for i in range(12)}
    )
    lines = run("compress", "many.npz").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("t1")] == ["t11", "t10"]
    assert any(re.match(r"4 smaller tensors +\d", line) for line in lines)
    assert "exact: no tensor is quantized" in "".join(lines)


def test_a_decompressed_checkpoint_is_what_the_library_restores(folder):
    assert run("compress", "model.npz", "--sqnr", "40").exit_code == 0
    result = run("decompress", "model.dcb", "-o", "again.npz")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"again\.npz: 72,488 bytes of tensors in \d+\.\d\d s\n", result.stdout)
    expected = deepcabac.load_file("model.dcb")
    with np.load("again.npz") as again:
        assert again.files == list(expected)
        assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_inspect_shows_where_the_bytes_go(folder):
    out = run("inspect", "good.dcb").stdout
    assert "update" not in out
    assert "2 tensors, quantized" in out and "2 tensors, exact" in out and "header and index" in out
    assert re.search(r"a\.weight +64x48 +float32 +\d\.\d\d +0\.\d+ +trellis 32 +\d,\d{3}\n", out)
    assert re.search(r"count +scalar +int64 +64\.00 +exact +raw +8\n", out)


def test_inspect_as_json_is_complete_and_adds_up(folder):
    array = np.random.default_rng(2).standard_normal((50, 60)).astype(np.float32)
    deepcabac.save_file({"one": array, "other": array, "n": np.arange(5)}, "tied.dcb")
    seen = json.loads(run("inspect", "tied.dcb", "--json").stdout)
    assert seen["path"] == "tied.dcb" and seen["format_version"] == 1 and seen["made_from"] == ""
    assert seen["file_bytes"] == Path("tied.dcb").stat().st_size
    assert seen["file_bytes"] == seen["header_bytes"] + seen["index_bytes"] + sum(seen["payload_bytes"].values())
    assert seen["tensor_bytes"] == array.nbytes + 40 and seen["elements"] == array.size + 5
    one, other, n = seen["tensors"]
    assert one["name"] == "one" and one["shape"] == [50, 60] and one["dtype"] == "float32"
    assert one["method"] == "quantized" and one["step"] > 0 and one["tied_to"] is None
    assert one["coded_bytes"] == seen["payload_bytes"]["quantized"]
    assert one["bits_per_weight"] == 8 * one["coded_bytes"] / one["elements"]
    assert other["method"] == "tied" and other["tied_to"] == "one" and other["coded_bytes"] == 0
    assert n["method"] == "exact" and n["step"] is None
    assert "other is one" in run("inspect", "tied.dcb").stdout


def test_inspect_says_which_tensors_are_regressed(folder):
    out = run("inspect", GOLDEN / "regression.dcb").stdout
    assert re.search(r"plain +200x30 +float32 +\d+\.\d\d +0\.\d+ +scalar regression +\d", out)
    assert re.search(r"exact +150x20 +float32 +\d+\.\d\d +exact +coded +\d", out)
    out = run("inspect", GOLDEN / "regression_trellis.dcb").stdout
    assert re.search(r"means +160x24 +float32 +\d+\.\d\d +0\.\d+ +trellis 64 regression +\d", out)
    seen = json.loads(run("inspect", GOLDEN / "regression_trellis.dcb", "--json").stdout)
    coders = {tensor["name"]: tensor["coder"] for tensor in seen["tensors"]}
    assert coders.pop("exact") is None and {*coders.values()} == {"regression"}


def test_inspect_says_which_steps_have_scales(folder):
    out = run("inspect", GOLDEN / "scaled.dcb").stdout
    assert re.search(r"tensor +shape +type +bits +step +times +quantizer +bytes", out)
    assert re.search(r"float32 12x10 rows +12x10 +float32 +\d+\.\d\d +0\.01 +row +trellis 8 ", out)
    assert re.search(r"float16 6x4x3x3 columns +6x4x3x3 +float16 +\d+\.\d\d +0\.001953 +column +\w", out)
    assert re.search(r"float32 20 both +20 +float32 +\d+\.\d\d +0\.01 +row column +trellis 32 ", out)
    assert re.search(r"neither +3x2x2 +float32 +\d+\.\d\d +0\.25 +scalar ", out)
    assert re.search(r"step +quantizer", run("inspect", "good.dcb").stdout)
    seen = json.loads(run("inspect", GOLDEN / "scaled.dcb", "--json").stdout)
    tensors = {tensor["name"]: tensor for tensor in seen["tensors"]}
    assert {tensor["method"] for tensor in seen["tensors"]} == {"quantized"}
    counts = [(tensors[name]["row_scales"], tensors[name]["column_scales"]) for name in tensors]
    assert counts[:3] == [(12, 0), (0, 10), (12, 10)] and tensors["neither"]["row_scales"] == 0
    assert tensors["float32 6x4x3x3 both"]["column_scales"] == 36
    assert seen["scales"] == sum(rows + columns for rows, columns in counts)


def test_verify_says_what_it_checked(folder):
    result = run("verify", "good.dcb")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"good\.dcb: good: the index and 4 tensors checked, .*\n", result.stdout)


def test_verify_names_each_damaged_tensor(folder):
    data = bytearray(Path("good.dcb").read_bytes())
    data[40] ^= 1  # in the first tensor and in a late one
    data[5000] ^= 1
    Path("bad.dcb").write_bytes(data)
    result = run("verify", "bad.dcb")
    assert result.exit_code == 1
    assert [line.split(" is damaged")[0] for line in result.stdout.splitlines()] == [
        "bad.dcb: tensor 'a.weight'",
        "bad.dcb: tensor 'b.weight'",
    ]
    assert result.stderr == "error: bad.dcb: 2 of 4 tensors damaged\n"


def test_verify_of_checksums_alone(folder):
    result = run("verify", "good.dcb", "--checksums")
    assert result.exit_code == 0
    assert re.fullmatch(r"good\.dcb: good: checksums of the index and 4 tensors are right, .*\n", result.stdout)
    data = bytearray(Path("good.dcb").read_bytes())
    data[40] ^= 1
    Path("bad.dcb").write_bytes(data)
    result = run("verify", "bad.dcb", "--checksums")
    assert (result.exit_code, result.stderr) == (1, "error: bad.dcb: 1 of 4 tensors damaged\n")
    result = run("verify", "good.dcb", "--checksums", "--base", "model.npz")
    assert result.exit_code == 2 and "need no base" in result.stderr


def test_quiet_prints_notes_only(folder):
    result = run("compress", "model.npz", "--quiet", "--tensor", "c.*=exact")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "note: no tensor's name matches the pattern 'c.*'\n"
    result = run("decompress", "model.dcb", "-q", "-o", "again.npz")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_target_that_a_tensor_missed_is_noted_on_stderr(folder):
    np.savez("tiny.npz", w=np.array([[0.1, 0.7]], np.float32), big=np.ones((99, 99), np.float32) * 1e-25)
    result = run("compress", "tiny.npz", "--tensor", "big=step:1e-35")
    assert result.exit_code == 0
    assert result.stderr == "note: big: stored exactly: a step of 1e-35 is beyond float32 arithmetic\n"


@pytest.mark.parametrize("command", ["", "compress", "decompress", "inspect", "search", "verify"])
def test_help_fits_80_columns_and_has_examples(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0 and "Examples:" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_a_name_too_long_for_the_terminal_has_its_own_line():
    long = "encoder.layer.11.attention.output.dense.weight"
    assert report.table(["name", ">x"], [["short", "1"], [long, "22"]], 30) == [
        "name                         x",
        "short                        1",
        long,
        " " * 28 + "22",
    ]
    assert report.table(["name", ">x"], [[long, "1"]])[1] == long + "  1"


def test_a_table_too_wide_for_the_terminal_goes_on_in_further_lines():
    rows = [["encoder.weight", "3x4", "float32", "22"], ["rest", "", "", "1"]]
    assert report.table(["name", "shape", "type", ">bytes"], rows, 25) == [
        "name",
        "  shape  type     bytes",
        "encoder.weight",
        "  3x4    float32     22",
        "rest",
        "                      1",
    ]
    assert report.table(["name", "shape", "type", ">bytes"], rows, 20) == [
        "name",
        "  shape  type",
        "  bytes",
        "encoder.weight",
        "  3x4    float32",
        "     22",
        "rest",
        "      1",
    ]


@pytest.mark.parametrize("width", [30, 50, 80])
def test_tables_fit_the_terminal(width):
    name = "encoder.layer.11.attention.output.dense.weight"
    header = ["tensor", "shape", "type", ">bits", ">step", "quantizer", ">bytes"]
    lines = report.table(header, [[name, "30522x384", "float32", "5.06", "0.003125", "trellis 32", "93,275"]], width)
    assert all(len(line) <= width or line == name for line in lines)
    assert "".join("".join(lines).split()) == "".join(["tensorshapetypebitsstepquantizerbytes", name]) + (
        "30522x384float325.060.003125trellis3293,275"
    )


def test_names_cannot_steer_the_terminal(folder):
    deepcabac.save_file({"a\x1b[2J\nb\u202e": np.ones(3)}, "evil.dcb")
    out = run("inspect", "evil.dcb").stdout
    assert r"a\x1b[2J\nb\u202e" in out and "\x1b" not in out
    assert json.loads(run("inspect", "evil.dcb", "--json").stdout)["tensors"][0]["name"] == "a\x1b[2J\nb\u202e"


# Options


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1,234", 1234),
        ("100kB", 100_000),
        ("1.5MB", 1_500_000),
        ("64 KiB", 65536),
        ("2mib", 2 << 20),
        (".5G", 500_000_000),
        ("123456789012345678", 123456789012345678),
    ],
)
def test_sizes_may_have_a_suffix(text, number):
    assert _bytes(text) == number


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (["--quality", "25"], {"quality": 25}),
        (["--sqnr", "25"], {"sqnr": 25}),
        (["--step", "0.1", "--rate-distortion", "0"], {"step": 0.1, "rate_distortion": 0}),
        (["--bits", "4", "--threads", "1"], {"bits": 4}),
        (["--quantizer", "scalar"], {"quantizer": "scalar"}),
        (["--states", "8"], {"states": 8}),
        (["--size", "16kB"], {"size": 16_000}),
        (["--tensor", "a.*=exact", "--tensor", "*.weight=step:.25"]
            , {"overrides": {"a.*": {"exact": True}, "*.weight": {"step": 0.25}}}),
        (["--tensor", "a.*=sqnr:9", "--tensor", "*=exact", "--tensor", "a.*=sqnr:20"]
            , {"overrides": {"*": {"exact": True}, "a.*": {"sqnr": 20}}}),
    ],
)  # fmt: skip
def test_options_mean_what_they_mean_to_the_library(folder, given, settings):
    assert run("compress", "model.npz", *given).exit_code == 0
    deepcabac.compress_checkpoint("model.npz", "expected.dcb", options=deepcabac.Options(**settings))
    assert Path("model.dcb").read_bytes() == Path("expected.dcb").read_bytes()


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ([], {}),
        (["--quality", "20"], {"quality": 20}),
        (["--sqnr", "20"], {"sqnr": 20}),
        (["--bits", "4", "--quantizer", "scalar"], {"bits": 4, "quantizer": "scalar"}),
        (["--size", "16kB"], {"size": 16_000}),
        (["--tensor", "a.*=exact"], {"overrides": {"a.*": {"exact": True}}}),
    ],
)
def test_a_curvature_s_file_means_what_it_means_to_the_library(curvatures, given, settings):
    result = run("compress", "model.npz", "--curvature", "good.curvature", *given)
    assert (result.exit_code, result.stderr) == (0, "")
    with Curvature.load("good.curvature") as curvature:
        options = deepcabac.Options(curvature=curvature, **settings)
        deepcabac.compress_checkpoint("model.npz", "expected.dcb", options=options)
    assert Path("model.dcb").read_bytes() == Path("expected.dcb").read_bytes()
    assert run("verify", "model.dcb").exit_code == 0
    # Tensors of which the curvature knows nothing all get the same SQNR.
    plain = settings | {"sqnr": 30} if "overrides" in settings else settings
    deepcabac.compress_checkpoint("model.npz", "without.dcb", options=deepcabac.Options(**plain))
    assert (Path("model.dcb").read_bytes() == Path("without.dcb").read_bytes()) == ("overrides" in settings)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--curvature missing.curvature", "missing.curvature: "),
        ("--curvature words.txt", "words.txt: "),
        ("--curvature words.safetensors", "words.safetensors: is not a safetensors file"),
        ("--curvature folder", "folder: "),
        ("--curvature model.npz", "model.npz: "),
        ("--curvature model.safetensors", "model.safetensors: is not a file of Curvature.save"),
        ("--curvature empty.dcb", "empty.dcb: "),
        ("--curvature short.curvature", "short.curvature: "),
        ("--curvature nan.curvature", "nan.curvature: "),
        ("--curvature other.curvature", "the curvature has none of these tensors"),
        ("--curvature narrow.curvature", "the curvature of 'a.weight' is not that of a tensor of shape (64, 48)"),
        ("--curvature indefinite.curvature", "'a.weight' has a factor that is not positive semidefinite"),
        ("--curvature good.curvature --step 0.1", "choose one of --curvature and --step"),
        ("--curvature good.curvature -o good.curvature", "good.curvature: is the file to read"),
        ("--curvature good.curvature --size 10", "model.npz: no quality gives a file of 10 bytes"),
    ],
)
def test_a_curvature_that_is_none_or_does_not_fit_is_an_error_of_one_line(curvatures, args, words):
    assert run("decompress", "good.dcb", "-o", "model.safetensors").exit_code == 0
    before = files(curvatures)
    result = run("compress", "model.npz", *args.split())
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and result.stdout == ""
    assert line.startswith("error: ") and words in line and not line.endswith(".")
    assert files(curvatures) == before


def test_version_is_the_package_s():
    assert re.fullmatch(r"deepcabac \d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_without_a_command_there_is_help_on_stderr():
    result = run()
    assert result.exit_code == 2 and result.stdout == "" and "Commands:" in result.stderr


# Errors


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("decompress words.txt", 2, "words.txt: is neither a .dcb nor a .nnc file; check its name"),
        ("decompress empty.dcb", 1, "empty.dcb: "),
        ("decompress folder", 2, "folder: "),
        ("decompress short.dcb", 1, "short.dcb: damaged"),
        ("decompress bad.dcb -o new.npz", 1, "bad.dcb: tensor 'a.weight' is damaged"),
        ("decompress missing.dcb", 2, "missing.dcb: cannot be read"),
        ("decompress good.dcb -o nowhere/new.npz", 2, "nowhere/new.npz: "),
        ("decompress good.dcb -o /proc/new.npz", 2, "/proc/new.npz: "),
        ("decompress good.dcb -o good.dcb", 2, "good.dcb: is the file to read"),
        ("decompress good.dcb -o new.txt", 2, "new.txt: "),
        ("decompress good.dcb -o new.onnx", 2, "new.onnx: "),
        ("decompress good.dcb -o new.npz --max-bytes 10kB", 2, "good.dcb: "),
        ("decompress good.dcb -o new.npz --threads 0", 2, "--threads"),
        ("decompress good.dcb -o new.npz --max-bytes -1", 2, "--max-bytes"),
        ("inspect model.npz", 2, "model.npz: is neither a .dcb nor a .nnc file; 'deepcabac compress model.npz'"),
        ("inspect words.nnc", 2, "words.nnc: is neither a .dcb nor a .nnc file"),
        ("compress model.npz --base words.txt", 2, "words.txt: "),
        ("inspect short.dcb", 1, "short.dcb: damaged"),
        ("inspect missing.dcb", 2, "missing.dcb: "),
        ("inspect folder", 2, "folder: "),
        ("verify words.txt", 2, "words.txt: is neither a .dcb nor a .nnc file"),
        ("verify magic.dcb", 1, "magic.dcb: damaged"),
        ("verify mode.dcb", 1, "mode.dcb: damaged .dcb file: its first bytes were changed"),
        ("verify missing.dcb", 2, "missing.dcb: "),
        ("verify short.dcb", 1, "short.dcb: damaged"),
        ("compress words.txt", 2, "words.txt: "),
        ("compress words.safetensors", 2, "words.safetensors: is not a safetensors file"),
        ("compress missing.npz", 2, "missing.npz: no such file"),
        ("compress folder", 2, "folder: holds no weights that can be compressed"),
        ("compress .", 2, "holds bad.dcb: is compressed already; 'deepcabac decompress'"),
        ("compress good.dcb -o new.dcb", 2, "good.dcb: is compressed already; 'deepcabac decompress' restores it"),
        ("compress good.dcb", 2, "good.dcb: is compressed already; 'deepcabac decompress' restores it"),
        ("compress model.npz -o model.npz", 2, "model.npz: is the file to read"),
        ("compress model.npz -o ./folder/../model.npz", 2, "model.npz: is the file to read"),
        ("compress model.npz -o other.npz", 2, "other.npz: "),
        ("compress model.npz -o nowhere/new.dcb", 2, "nowhere/new.dcb: "),
        ("compress model.npz -o /proc/new.dcb", 2, "/proc/new.dcb: "),
        ("compress model.npz --sqnr -5", 2, "--sqnr"),
        ("compress model.npz --sqnr much", 2, "--sqnr"),
        ("compress model.npz --step nan", 2, "--step"),
        ("compress model.npz --bits 0", 2, "--bits"),
        ("compress model.npz --size 10", 2, "model.npz: no quality gives a file of 10 bytes"),
        ("compress model.npz --size 10parsec", 2, "--size"),
        ("compress model.npz --threads 0", 2, "--threads"),
        ("compress model.npz --rate-distortion nan", 2, "--rate-distortion"),
        ("compress model.npz --sqnr 30 --bits 4", 2, "choose one of --sqnr and --bits"),
        ("compress model.npz --tensor a", 2, "--tensor"),
        ("compress model.npz --tensor a=best", 2, "--tensor"),
        ("compress model.npz --tensor a=exact:1", 2, "--tensor"),
        ("compress model.npz --tensor a=sqnr:-1", 2, "--tensor"),
        ("compress model.npz --lossless --bits 3", 2, "choose one of --bits and --lossless"),
        ("compress model.npz --smaller", 2, "no such option"),
        ("compress model.npz --level fast", 2, "no such option '--level'; 'deepcabac compress --help' says more"),
        ("compress model.npz --sqrn 30", 2, "no such option '--sqrn'; did you mean '--sqnr'?"),
        ("compress model.npz --grid", 2, "no such option '--grid'"),
        ("compress model.npz --sigma model.npz", 2, "no such option '--sigma'"),
        ("compress model.npz --scan-order 1", 2, "no such option '--scan-order'"),
        ("compress model.npz --states 16", 2, "'16' is not one of '8', '32'"),
        ("compress model.npz --states 8 --quantizer scalar", 2, "leave --states out: --quantizer scalar has"),
        ("compress model.npz --states 8 --preset small", 2, "leave --states out: --preset small always takes 64"),
        ("compress model.npz --lossless --quantizer scalar", 2, "choose one of --lossless and --quantizer"),
        ("compress model.npz --lossless --tensor a=exact", 2, "choose one of --lossless and --tensor"),
        ("compress model.npz --quality 130", 2, "--quality"),
        ("compress model.npz --quality 30 --sqnr 30", 2, "choose one of --quality and --sqnr"),
        ("compress model.npz --curvature a --importance b", 2, "choose one of --curvature and --importance"),
        ("compress model.npz --base good.dcb --curvature a", 2, "choose one of --curvature and --base"),
        ("compress model.npz --quiet --verbose", 2, "choose one of --quiet and --verbose"),
        ("compress model.npz --qp 3", 2, "--qp and --vector-qp are for .nnc files: add --format nnc"),
        ("compress model.npz --format nnc --sqnr 3", 2, "--sqnr is for .dcb files: choose the quality of a .nnc file"),
        ("compress model.npz --format nnc -o new.dcb", 2, "new.dcb does not end in .nnc"),
        ("compress model.npz words.safetensors --curvature a", 2, "--curvature was measured on one model"),
        ("decompress good.dcb --apply", 2, "--apply needs --base"),
        ("decompress good.dcb --apply --base model.npz", 2, "good.dcb: --apply is for .nnc files"),
        ("decompress good.dcb --base -", 2, "must be a file; a file called - is ./-"),
        ("compress", 2, "missing argument 'MODEL"),
        ("compres model.npz", 2, "no such command 'compres'"),
        ("search model.npz --eval a:b --max-drop 1 --grid", 2, "no such option '--grid'"),
        ("search - --eval a:b --max-drop 1", 2, "must be a file"),
    ],
)
def test_an_error_is_one_line_that_names_its_cause_and_changes_no_file(folder, args, code, words):
    before = files(folder)
    result = run(*args.split())
    first, *others = result.stderr.splitlines()
    assert result.exit_code == code and result.stdout == ""
    assert first.startswith("error: ") and words in first and not first.endswith(".")
    assert not others
    assert files(folder) == before


def test_a_link_to_the_model_is_not_written_onto(folder):
    Path("link.dcb").symlink_to("model.npz")
    result = run("compress", "model.npz", "-o", "link.dcb")
    assert result.exit_code == 2 and "link.dcb: is the file to read" in result.stderr
    assert Path("link.dcb").is_symlink()


def test_a_message_names_the_file_even_if_it_begins_with_the_same_letters(folder):
    Path("bad.dcb").rename("t")
    assert run("decompress", "t", "-o", "new.npz").stderr.startswith("error: t: tensor 'a.weight' is damaged")
    name = "x" * 300 + ".dcb"
    assert (
        run("compress", "model.npz", "-o", name).stderr == f"error: '{name}': cannot be written: file name too long\n"
    )


def test_an_unexpected_error_is_not_hidden(folder, monkeypatch):
    monkeypatch.setattr("deepcabac.folders.open_compressed", lambda *args, **options: 1 / 0)
    assert isinstance(run("inspect", "good.dcb").exception, ZeroDivisionError)


# As a process


def test_a_pipe_gets_plain_ascii_whatever_the_environment(folder):
    deepcabac.save_file({"größe": np.ones((200, 200), np.float32)}, "umlaut.dcb")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    for args in (["compress", "model.npz"], ["inspect", "umlaut.dcb"], ["inspect", "umlaut.dcb", "--json"], ["--help"]):
        result = process(*args, env=environment)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.isascii() and b"\x1b" not in result.stdout
    assert process("inspect", "missing\x1b\udcff.dcb").stderr.startswith(b"error: missing\\x1b\\udcff.dcb: cannot")


def test_help_needs_neither_torch_nor_onnx_nor_rich():
    code = "import sys; from deepcabac.cli import program; program(['--help'], standalone_mode=False)"
    check = f"""
try:
    {code}
finally:
    print(sorted({{"torch", "onnx", "rich", "importlib.metadata"}} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stderr == "[]\n"


def test_a_reader_that_goes_away_ends_the_program_quietly(folder):
    deepcabac.save_file({f"tensor {i}": np.ones(1) for i in range(5000)}, "many.dcb")
    running = subprocess.Popen(
        [*COMMAND, "inspect", "many.dcb", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(timeout=30) == 141
    running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_an_error_of_one_line(folder):
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, "inspect", "good.dcb"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (2, b"error: the output cannot be written: no space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("sent", "code", "words"), [(signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"")]
)
def test_an_interrupted_compression_leaves_no_file(tmp_path, sent, code, words):
    # 100 MB are coded for seconds; the temporary file shows that it has begun.
    np.savez(tmp_path / "large.npz", weight=np.random.default_rng(3).standard_normal((5000, 5000), np.float32))
    running = subprocess.Popen(
        [*COMMAND, "compress", "large.npz"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    end = time.monotonic() + 30
    while not list(tmp_path.glob(".deepcabac-*")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert running.poll() is None
    running.send_signal(sent)
    start = time.monotonic()
    out, errors = running.communicate(timeout=30)
    assert (running.returncode, out, errors) == (code, b"", words)
    assert time.monotonic() - start < 5  # it takes well under a second, on a machine with nothing else to do
    assert [path.name for path in tmp_path.iterdir()] == ["large.npz"]
