"""Settings by keyword: known to type checkers and editors, refused at run time if unknown; and what dir() shows."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepcabac
from deepcabac import OptionError, Options
from deepcabac.options import TARGETS, OptionFields, SearchFields

TENSORS = {"w": np.ones((4, 4), np.float32)}
PARENT = Path(deepcabac.__file__).parent.parent


def test_the_keywords_of_functions_are_the_fields_of_the_options():
    fields = {field.name: field.type for field in dataclasses.fields(Options)}
    keywords = {name: kind.__forward_arg__ for name, kind in OptionFields.__annotations__.items()}
    assert keywords == fields
    assert OptionFields.__required_keys__ == frozenset()
    assert set(SearchFields.__annotations__) == set(fields) - {*TARGETS, "lossless"}


ACCEPTED = """\
import deepcabac
deepcabac.save_file({}, "a.dcb", sqnr=30, preset="small", threads=2)
deepcabac.compress({}, bits=3.5, overrides={"*": {"exact": True}})
deepcabac.compress_checkpoint("a.npz", size=1000)
deepcabac.search("a.npz", lambda tensors: 1.0, max_drop=0.1, preset="fast")
deepcabac.ErrorAccumulation().compress({}, sqnr=3)
"""
REFUSED = """\
import deepcabac
deepcabac.save_file({}, "a.dcb", sqrn=30)
deepcabac.compress({}, bits="3")
deepcabac.compress_checkpoint("a.npz", preset="slow")
deepcabac.search("a.npz", lambda tensors: 1.0, max_drop=0.1, sqnr=30)
deepcabac.ErrorAccumulation().compress({}, sqrn=3)
"""
TORCH = """\
import deepcabac.torch
deepcabac.torch.save_model({}, "a.dcb", sqnr=30)
deepcabac.torch.save_model({}, "a.dcb", sqrn=30)
"""


def test_a_type_checker_accepts_the_known_and_refuses_the_unknown(tmp_path):
    pytest.importorskip("mypy")
    for name, text in (("accepted", ACCEPTED), ("refused", REFUSED), ("torch_", TORCH)):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "mypy.ini").write_text("[mypy]\nignore_missing_imports = true\nfollow_imports = silent\n")
    path = {} if PARENT.name == "site-packages" else {"MYPYPATH": str(PARENT)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "."],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")} | path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {":".join(line.split(":")[:2]) for line in done.stdout.splitlines() if ": error:" in line}
    assert found == {f"refused.py:{line}" for line in range(2, 7)} | {"torch_.py:3"}, done.stdout + done.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda path: deepcabac.save_file(TENSORS, path, sqrn=30),
        lambda path: deepcabac.compress(TENSORS, sqrn=30),
        lambda path: deepcabac.compress_checkpoint("model.npz", path, sqrn=30),
        lambda path: deepcabac.search(TENSORS, len, max_drop=0, output=path, sqrn=30),
    ],
)
def test_an_unknown_keyword_is_an_error_that_names_the_nearest(tmp_path, call):
    with pytest.raises(OptionError, match=r"unknown option 'sqrn': did you mean 'sqnr'\?"):
        call(tmp_path / "a.dcb")
    assert not list(tmp_path.iterdir())


def test_an_unknown_keyword_unlike_any_lists_them_all():
    with pytest.raises(OptionError, match="unknown option 'zzz': choose from quality, sqnr, bits"):
        deepcabac.compress(TENSORS, zzz=1)


def test_every_function_takes_settings_by_keyword(tmp_path):
    np.savez(tmp_path / "m.npz", **TENSORS)
    path, _ = deepcabac.compress_checkpoint(tmp_path / "m.npz", lossless=True)
    assert deepcabac.load_file(path)["w"].tolist() == TENSORS["w"].tolist()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt", "a.onnx", "a.nnc", "a.safetensors.index.json"])
def test_a_dcb_file_is_not_written_under_another_kinds_name(tmp_path, name):
    np.savez(tmp_path / "m.npz", **TENSORS)
    calls = [
        lambda path: deepcabac.save_file(TENSORS, path),
        lambda path: deepcabac.compress_checkpoint(tmp_path / "m.npz", path),
        lambda path: deepcabac.search(TENSORS, len, max_drop=0, output=path),
    ]
    for call in calls:
        with pytest.raises(OptionError, match=r"written is a \.dcb file"):
            call(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]
    with pytest.raises(OptionError, match=r"name it a\.dcb"):
        deepcabac.save_file(TENSORS, tmp_path / "a.safetensors")


def test_a_model_is_not_saved_under_another_kinds_name(tmp_path):
    torch = pytest.importorskip("torch")
    from deepcabac.torch import save_model

    with pytest.raises(OptionError, match=r"name it a\.dcb"):
        save_model({"w": torch.ones(3)}, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_dir_shows_the_public_names_alone():
    assert dir(deepcabac) == sorted([*deepcabac.__all__, "__version__"])
    assert all(hasattr(deepcabac, name) for name in deepcabac.__all__)


@pytest.mark.parametrize("name", ["torch", "nnc", "dc2019"])
def test_dir_of_a_public_module_shows_the_public_names_alone(name):
    if name == "torch":
        pytest.importorskip("torch")
    front = importlib.import_module(f"deepcabac.{name}")
    assert dir(front) == sorted(front.__all__)
    assert all(hasattr(front, name) for name in front.__all__)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "deepcabac", "--help"], capture_output=True, text=True, check=True, cwd=PARENT
    )
    assert "compress" in done.stdout and "decompress" in done.stdout
