"""What people see who work at a terminal: help, tab completion, progress, and lines as tensors are done."""

from __future__ import annotations

import itertools
import os
import re
import select
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, process, run

import deepcabac
from deepcabac.curvature import Curvature, Factors

pytestmark = pytest.mark.usefixtures("folder")


def large(seed=1):
    return np.random.default_rng(seed).standard_normal((1500, 1000), np.float32)


# Help


def headings(text):
    return re.findall(r"^(\S.*):$", text, re.MULTILINE)


def test_help_lists_options_under_headings_the_common_ones_first():
    text = run("compress", "--help").stdout
    assert headings(text) == [
        "Common options",
        "Quality in detail",
        "Updates",
        ".nnc files (ISO/IEC 15938-17)",
        "Other options",
    ]
    parts = re.split(r"^\S.*:$", text, flags=re.MULTILINE)
    common = ("--output", "--force", "--format", "--quality", "--size", "--lossless", "--preset")
    assert all(option in parts[1] for option in common)
    assert all(option in parts[4] for option in ("--qp", "--vector-qp"))
    flags = re.findall(r"--[a-z-]+", text)
    assert not {"--sigma", "--lambda", "--grid", "--scan-order", "--tca", "--codebook", "--level"} & set(flags)


def test_every_option_has_help_that_ends_like_a_sentence():
    from deepcabac.cli import program

    for command in program.commands.values():
        for option in command.params:
            if option.param_type_name == "option":
                assert re.search(r"[.\])]$", option.help), (command.name, option.name)


# Tab completion


def completed(words, word):
    environment = os.environ | {"_DEEPCABAC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word)}
    result = process(env=environment)
    assert result.returncode == 0 and result.stderr == b""
    return result.stdout.decode().split()


def test_a_shell_gets_a_completion_script_and_completes_commands_options_and_files():
    for shell in ("bash", "zsh", "fish"):
        if shell == "bash" and not any(Path(place, "bash").exists() for place in os.environ["PATH"].split(":")):
            continue
        result = process(env=os.environ | {"_DEEPCABAC_COMPLETE": f"{shell}_source"})
        assert result.returncode == 0 and b"_DEEPCABAC_COMPLETE=" in result.stdout
    assert completed("deepcabac ", 1) == [f"plain,{name}" for name in sorted(deepcabac_commands())]
    assert completed("deepcabac compress --s", 2) == ["plain,--size", "plain,--step", "plain,--sqnr", "plain,--states"]
    assert completed("deepcabac compress --preset ", 3) == ["plain,fast", "plain,default", "plain,small"]
    assert completed("deepcabac compress mo", 2) == ["file,mo"]
    assert completed("deepcabac decompress --base mo", 3) == ["file,mo"]


def deepcabac_commands():
    from deepcabac.cli import program

    return program.commands


# Progress


def test_progress_goes_on_inside_one_tensor_both_ways():
    seen = []
    deepcabac.save_file({"w": large()}, "w.dcb", progress=lambda *now: seen.append(now), threads=1)
    assert seen[-1][0] == seen[-1][1] >= large().nbytes
    assert len({done for done, _ in seen}) > 4
    assert all(before[0] <= after[0] and before[1] <= after[1] for before, after in itertools.pairwise(seen))
    seen.clear()
    deepcabac.decompress_checkpoint("w.dcb", "w.npz", progress=lambda *now: seen.append(now))
    assert seen[-1] == (large().nbytes, large().nbytes) and len({done for done, _ in seen}) > 1
    seen.clear()
    with deepcabac.open_file("w.dcb") as opened:
        assert list(opened.check(lambda *now: seen.append(now))) == []
    assert seen[-1] == (large().nbytes, large().nbytes)


@pytest.mark.parametrize("how", ["exact", "small tensors", "base", "curvature", "nothing", "correct", "size"])
def test_progress_ends_where_it_should_however_tensors_are_coded(how):
    seen, options, tensors = [], {}, {"w": large()[:, :64].copy(), "b": np.ones(64, np.float32), "n": np.arange(9)}
    if how == "exact":
        options = {"lossless": True}
    elif how == "small tensors":
        tensors = {f"w{number}": large(number)[:9, :9].copy() for number in range(30)}
    elif how == "base":
        options = {"base": {name: array + array.dtype.type(1) for name, array in tensors.items()}}
    elif how == "curvature":
        columns = np.broadcast_to(np.eye(64, dtype=np.float32), (2, 1, 64, 64)).copy()
        factors = Factors(columns, np.ones(1500, np.float32), 1.0, None)
        options = {"curvature": Curvature({"w": factors}, samples=500, loss="logits")}
    elif how == "nothing":
        tensors = {"e": np.ones((0, 3), np.float32)}
    elif how == "correct":
        options = {"correct": lambda tensors: {"b": tensors["b"] + 1}}
    else:
        options = {"size": 40_000}
    deepcabac.save_file(tensors, "t.dcb", progress=lambda *now: seen.append(now), **options)
    assert seen[-1][0] == seen[-1][1] >= sum(array.nbytes for array in tensors.values())
    assert all(done <= total for done, total in seen)


def test_a_terminal_shows_a_bar_with_bytes_and_time():
    pty = pytest.importorskip("pty")
    np.savez("large.npz", w=np.random.default_rng(1).standard_normal((4000, 1500), np.float32))
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm"}
    running = subprocess.Popen(
        [*COMMAND, "compress", "large.npz", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while running.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # Linux says so at the end
                break
    assert running.wait(timeout=60) == 0 and b"bytes in large.dcb" in running.stdout.read()
    running.stdout.close()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    amounts = {float(amount) for amount in re.findall(r"([0-9.]+)/24\.0 MB", text)}
    assert len(amounts) > 2 and re.search(r"\d:\d\d:\d\d left", text)
    assert "?" not in text


# Lines as tensors are done


def test_verbose_prints_a_line_for_each_tensor():
    result = run("compress", "model.npz", "-v")
    assert result.exit_code == 0
    first, *others = result.stderr.splitlines()
    assert re.fullmatch(r"a\.weight: quantized at [23]\d\.\d dB, 12,288 to \d,\d{3} bytes", first) and len(others) == 3
    assert run("verify", "model.dcb", "--verbose").stderr.splitlines() == [
        f"{name}: good" for name in ("a.weight", "a.bias", "b.weight", "count")
    ]
    assert run("decompress", "model.dcb", "-v", "-o", "m.npz").stderr.splitlines()[0] == "a.weight: 12,288 bytes"
    assert run("compress", "model.npz", "-v", "-o", "m.nnc").stderr.count("bytes") == 4
    assert run("decompress", "m.nnc", "-v", "-o", "n.npz").stderr.count("bytes") == 4
    assert run("verify", "model.dcb").stderr == ""


def test_quiet_verify_prints_nothing_for_a_good_file():
    result = run("verify", "good.dcb", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_python_m_runs_the_program():
    command = [COMMAND[0], "-m", "deepcabac", "verify", "good.dcb"]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0 and result.stdout.startswith(b"good.dcb: good")
