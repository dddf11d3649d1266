"""The search for the smallest file that keeps a metric."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import deepcabac
from deepcabac import EvaluationError, OptionError
from deepcabac.cli import program
from deepcabac.curvature import Factors
from deepcabac.trials.search import METHODS

ROOT = Path(__file__).parent.parent
LENET = ROOT / "examples" / "lenet300.safetensors"
EVALUATION = ROOT / "examples" / "mnist_eval.py"

#: What errors count, by tensor: a search has something to find out.
WEIGHTS = {"a.weight": 100.0, "b.weight": 1.0, "c.weight": 1.0, "d.weight": 0.01}


def tensors():
    rng = np.random.default_rng(5)
    made = {name: rng.laplace(size=(96, 64)).astype(np.float32) for name in WEIGHTS}
    return made | {"bias": rng.standard_normal(96).astype(np.float32)}


ORIGINAL = tensors()


def quality(decoded):
    """1 for the original, less with errors, counted by :data:`WEIGHTS`. At module level: processes import it."""
    assert list(decoded) == list(ORIGINAL)
    return 1 - sum(
        weight * float(np.mean((decoded[name] - ORIGINAL[name]) ** 2)) for name, weight in WEIGHTS.items()
    )


def loss(decoded):
    return 3 - quality(decoded)


def slow(decoded):
    if not np.array_equal(decoded["a.weight"], ORIGINAL["a.weight"]):
        time.sleep(60)
    return 1.0


def dying(decoded):
    import os

    os._exit(3)


def find(folder, evaluate=quality, max_drop=0.5, **settings):
    return deepcabac.search(ORIGINAL, evaluate, max_drop=max_drop, output=folder / "m.dcb", **settings)


def rows(folder):
    with (folder / "m.search.csv").open() as file:
        return list(csv.DictReader(file))


def smallest_sqnr(max_drop):
    """Bytes of the coarsest common SQNR on a fine grid that keeps the metric."""
    for level in np.arange(20, 50, 0.5):
        data = deepcabac.compress(ORIGINAL, sqnr=float(level))
        if 1 - quality(deepcabac.decompress(data)) <= max_drop:
            return len(data)
    raise AssertionError("the grid does not reach it")


def test_the_result_keeps_the_metric_and_is_what_it_says(tmp_path):
    result = find(tmp_path, evaluations=30)
    decoded = deepcabac.load_file(result.path)
    assert result.path == tmp_path / "m.dcb" and result.path.stat().st_size == result.best.bytes
    assert quality(decoded) == pytest.approx(result.best.metric, abs=1e-12)
    assert result.original == 1 and 1 - result.best.metric <= 0.5
    assert 10 < len(result.trials) <= 29  # and one for the file that was chosen
    assert result.best.bytes == min(trial.bytes for trial in result.trials[1:] if trial.within)
    assert [int(row["trial"]) for row in rows(tmp_path)] == [trial.number for trial in result.trials]


@pytest.mark.parametrize("evaluations", range(4, 9))
def test_few_evaluations_are_enough_for_a_result(tmp_path, evaluations):
    result = find(tmp_path, evaluations=evaluations, max_drop=0.8)
    assert 1 - result.best.metric <= 0.8
    assert len(result.trials) < evaluations


def test_it_finds_the_best_quality(tmp_path):
    result = find(tmp_path, methods=["sqnr"])
    assert result.best.bytes < 1.01 * smallest_sqnr(0.5)
    assert len(result.trials) < 15


def test_sensitivities_pay(tmp_path):
    plain = find(tmp_path, methods=["sqnr"]).best.bytes
    refined = find(tmp_path, methods=["sqnr", "sensitivity"])
    assert refined.best.bytes < 0.95 * plain
    offsets = refined.best.settings["overrides"]
    assert offsets["a.weight"]["offset"] > offsets["b.weight"]["offset"] > offsets["d.weight"]["offset"]


def test_lower_can_be_better(tmp_path):
    result = find(tmp_path, loss, lower_is_better=True, methods=["sqnr"])
    assert result.original == 2 and result.original < result.best.metric <= result.original + 0.5
    assert result.best.bytes == find(tmp_path, methods=["sqnr"]).best.bytes


def test_every_method_is_tried(tmp_path):
    names = [name for name in ORIGINAL if name != "bias"]
    importance = {name: np.full(ORIGINAL[name].shape, WEIGHTS[name]) for name in names}
    halves = np.stack([np.eye(64, dtype=np.float32)[None]] * 2)
    curvature = {
        name: Factors(halves, np.ones(96, np.float32), WEIGHTS[name] * ORIGINAL[name].size, None) for name in names
    }
    tried = set()
    for given in ({}, {"importance": importance}, {"curvature": curvature}):
        result = find(tmp_path, evaluations=24, **given)
        tried |= {trial.method.split(",")[0] for trial in result.trials}
        if "importance" in given or "curvature" in given:
            assert result.best.bytes < 0.95 * smallest_sqnr(0.5)
    assert tried == {*METHODS, "original"} - {"sqnr"}  # that only if asked for


def test_a_grid_is_whole(tmp_path):
    result = find(tmp_path, methods=["sqnr"], grid=True)
    assert [trial.settings["sqnr"] for trial in result.trials[1:]] == list(range(12, 46, 2))


def test_it_goes_on_where_it_was(tmp_path):
    calls = []

    def counted(decoded):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return quality(decoded)

    with pytest.raises(KeyboardInterrupt):
        find(tmp_path, counted, evaluations=20)
    assert len(rows(tmp_path)) == 7 and not (tmp_path / "m.dcb").exists()
    result = find(tmp_path, counted, evaluations=20)
    assert result.repeated == 7
    assert len(calls) == 8 + len(result.trials) - 7 + 1
    again = find(tmp_path, counted, evaluations=20)
    assert again.repeated == len(again.trials) and replace(again.best, seconds=result.best.seconds) == result.best
    (tmp_path / "m.search.csv").unlink()
    fresh = find(tmp_path, counted, evaluations=20)
    assert [trial.settings for trial in fresh.trials] == [trial.settings for trial in result.trials]


def test_trials_of_another_search_do_not_count(tmp_path):
    find(tmp_path, methods=["sqnr"])
    assert find(tmp_path, methods=["sqnr"], quantizer="scalar").repeated == 0
    assert find(tmp_path, loss, methods=["sqnr"], lower_is_better=True).repeated == 0
    assert find(tmp_path, methods=["sqnr"], max_drop=0.25).repeated > 0


def test_jobs_find_the_same(tmp_path):
    alone = find(tmp_path, evaluations=16)
    (tmp_path / "m.search.csv").unlink()
    together = find(tmp_path, evaluations=16, jobs=2)
    assert [(t.settings, t.bytes, t.metric) for t in together.trials] == [
        (t.settings, t.bytes, t.metric) for t in alone.trials
    ]


def test_correction_is_used(tmp_path):
    def correct(decoded):
        return {"bias": np.zeros(96, np.float32)}

    result = find(tmp_path, methods=["sqnr"], correct=correct)
    assert not deepcabac.load_file(result.path)["bias"].any()


def test_patience(tmp_path):
    with pytest.raises(EvaluationError, match=r"trial 2 .*took longer than 3 seconds; 1 finished trials are kept"):
        find(tmp_path, slow, patience=3)
    assert len(rows(tmp_path)) == 1


def test_an_evaluation_that_dies(tmp_path):
    with pytest.raises(EvaluationError, match="ended without a result"):
        find(tmp_path, dying, jobs=2)


def failing(decoded):
    if not np.array_equal(decoded["a.weight"], ORIGINAL["a.weight"]):
        raise RuntimeError("no\nsuch layer")
    return 1.0


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_evaluation_that_raises(tmp_path, jobs):
    with pytest.raises(EvaluationError, match="RuntimeError: no such layer; 1 finished trials are kept"):
        find(tmp_path, failing, jobs=jobs)
    assert len(rows(tmp_path)) == 1 and not (tmp_path / "m.dcb").exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [(float("nan"), "NaN"), ("good", "must be a number"), (None, "must be a number"), (float("inf"), "finite")],
)
def test_results_that_are_no_numbers(tmp_path, value, says):
    with pytest.raises(EvaluationError, match=says):
        find(tmp_path, lambda decoded: value)


def test_infinite_loss_is_only_bad(tmp_path):
    def overflowing(decoded):
        return loss(decoded) if loss(decoded) < 2.2 else float("inf")

    result = find(tmp_path, overflowing, lower_is_better=True, methods=["sqnr"], max_drop=0.5)
    assert result.best.metric < 2.2


def test_a_metric_that_changes_is_found_out(tmp_path):
    calls = []

    def drifting(decoded):
        calls.append(1)
        return -float(len(calls))

    with pytest.raises(OptionError, match="measured"):
        find(tmp_path, drifting, max_drop=len(calls) + 6.5, methods=["sqnr"], evaluations=8)


def test_nothing_keeps_the_metric(tmp_path):
    with pytest.raises(OptionError, match=r"no trial keeps the metric of 1: the closest lost .* are kept in"):
        find(tmp_path, lambda d: float(np.array_equal(d["a.weight"], ORIGINAL["a.weight"])), evaluations=6)
    assert not (tmp_path / "m.dcb").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_drop": -1}, "max_drop"),
        ({"max_drop": float("nan")}, "max_drop"),
        ({"evaluations": 2}, "evaluations"),
        ({"jobs": 0}, "jobs"),
        ({"patience": 0}, "patience"),
        ({"sqnr": 30}, "sqnr is chosen by the search"),
        ({"methods": ["best"]}, "unknown method 'best'"),
        ({"methods": ["curvature"]}, "needs curvature="),
        ({"methods": ["dc-v1"]}, "unknown method 'dc-v1'"),
        ({"methods": []}, "no method is left"),
        ({"evaluate": "quality"}, "evaluate must be a function"),
    ],
)
def test_arguments(tmp_path, given, says):
    with pytest.raises(OptionError, match=says):
        find(tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_functions_that_other_processes_cannot_find(tmp_path):
    with pytest.raises(OptionError, match="cannot be sent to other processes"):
        find(tmp_path, lambda decoded: 1.0, jobs=2)


def test_a_file_that_holds_no_trials(tmp_path):
    (tmp_path / "m.search.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OptionError, match="holds something else"):
        find(tmp_path)


# The command


def run(*args):
    return CliRunner().invoke(program, [str(arg) for arg in args], prog_name="deepcabac")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A current folder with a model and a module that measures it."""
    monkeypatch.chdir(tmp_path)
    np.savez("m.npz", **ORIGINAL)
    Path("measure.py").write_text(
        "import numpy as np\n"
        "original = dict(np.load('m.npz'))\n"
        "def quality(t):\n"
        "    return 1 - sum(float(np.mean((t[n] - original[n]) ** 2)) for n in original)\n"
        "number = 3\n"
    )
    return tmp_path


def test_command(module):
    command = [sys.executable, "-c", "from deepcabac.cli import main; main()", "search", "m.npz"]
    command += ["--eval", "measure:quality", "--max-drop", "0.3", "--evaluations", "12", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "after    metric 0." in done.stdout and "ratio" in done.stdout
    assert "1/12 original" in done.stderr and "best:" in done.stderr
    files = {path.name for path in module.iterdir()}
    assert {"m.dcb", "m.search.csv"} <= files
    if "m.search.png" in files:
        assert Path("m.search.png").read_bytes()[:4] == b"\x89PNG" and b"<svg" in Path("m.search.svg").read_bytes()
    else:
        assert "deepcabac[plot]" in done.stderr
    assert all(json.loads(row["settings"]) for row in rows(module))


@pytest.mark.parametrize(
    ("evaluate", "says"),
    [
        ("measure", "not like MODULE:FUNCTION"),
        ("nothing:quality", "nothing cannot be imported"),
        ("measure:loss", "has no function 'loss'"),
        ("measure:number", "has no function 'number'"),
        ("nothing.py:quality", "nothing.py cannot be imported"),
    ],
)
def test_command_says_what_is_wrong_with_the_function(module, evaluate, says):
    done = run("search", "m.npz", "--eval", evaluate, "--max-drop", "1")
    assert done.exit_code == 2 and says in done.output and len(done.output.splitlines()) == 1


def test_command_with_the_example(tmp_path):
    output = tmp_path / "lenet.dcb"
    done = run(
        "search", LENET, "--eval", f"{EVALUATION}:accuracy", "--max-drop", "0.1", "-o", output, "--evaluations", "10"
    )
    assert done.exit_code == 0, done.output
    assert output.stat().st_size < LENET.stat().st_size / 8
