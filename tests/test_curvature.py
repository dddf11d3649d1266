"""The file of a calibration. Needs neither torch nor samples."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import deepcabac
from deepcabac import Curvature, DeepCabacError, OptionError
from deepcabac.checkpoint.safetensors_file import SafetensorsReader
from deepcabac.curvature import Factors


def some(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def example(**more):
    linear = Factors(some((2, 1, 3, 3)), some((2, 4, 4)), 2.5, None)
    factors = {
        "embedding.weight": Factors(some((2, 1, 3, 3)), some(7), 1 / 3, None),
        "linear.weight": linear,
        "linear.bias": Factors(None, None, 0.0, some(4)),
        "scale": Factors(None, None, 1.5, some(())),
        "head.weight": linear,
    }
    settings = {"samples": 64, "loss": "logits", "notes": ["a note — ü"], "unreached": ["none"]}
    return Curvature(factors, **(settings | more))


def same(one, two):
    assert one.names() == two.names() and list(one) == list(two) and len(one) == len(two)
    for field in ("samples", "loss", "notes", "unreached"):
        assert getattr(one, field) == getattr(two, field)
    for name in one:
        assert one[name].total == two[name].total
        for part in ("columns", "rows", "diagonal"):
            a, b = getattr(one[name], part), getattr(two[name], part)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype == np.float32 and a.shape == b.shape and (a == b).all())


def test_a_file_gives_back_what_was_saved_and_the_same_bytes_again(tmp_path):
    example().save(tmp_path / "a")
    with Curvature.load(tmp_path / "a") as loaded:
        same(example(), loaded)
        assert "scale" in loaded and "other" not in loaded
        loaded.save(tmp_path / "b")
        loaded.save(tmp_path / "a")  # onto itself
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_tied_tensors_are_stored_once(tmp_path):
    example().save(tmp_path / "a")
    names = [spec.name for spec in SafetensorsReader(tmp_path / "a").specs]
    assert "linear.weight.columns" in names and not any(name.startswith("head") for name in names)


def test_other_programs_can_read_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    example().save(tmp_path / "a")
    assert (safetensors.load_file(tmp_path / "a")["linear.bias.diagonal"] == example()["linear.bias"].diagonal).all()


def test_it_is_read_only_when_asked(tmp_path, monkeypatch):
    example().save(tmp_path / "a")
    read = []
    real = SafetensorsReader.read
    monkeypatch.setattr(SafetensorsReader, "read", lambda self, name: read.append(name) or real(self, name))
    loaded = Curvature.load(tmp_path / "a")
    assert loaded.names() and "scale" in loaded and not read
    assert loaded["head.weight"].total == 2.5
    assert read == ["linear.weight.columns", "linear.weight.rows"]
    loaded.close()
    with pytest.raises(OptionError, match=r"linear\.bias.*closed"):
        loaded["linear.bias"]
    with pytest.raises(KeyError):
        loaded["other"]


def test_nothing_needs_torch(tmp_path):
    example().save(tmp_path / "a")
    code = "import sys, deepcabac; deepcabac.Curvature.load(sys.argv[1])['scale']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)


def test_factors_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        example()["scale"].total = 2.0


@pytest.mark.parametrize(
    "factors",
    [
        Factors(None, None, 1.0, None),
        Factors(some((2, 1, 3, 3)), None, 1.0, None),
        Factors(some((1, 1, 3, 3)), some(4), 1.0, None),
        Factors(some((2, 1, 3, 2)), some(4), 1.0, None),
        Factors(some((2, 1, 3, 3)), some((2, 4, 3)), 1.0, None),
        Factors(None, None, -1.0, some(4)),
        Factors(None, None, float("nan"), some(4)),
        Factors(None, None, 1.0, np.full(4, np.inf, np.float32)),
        Factors(None, None, 1.0, some(4).astype(np.float64)),
        Factors(None, None, 1.0, [1.0]),
    ],
)
def test_factors_that_make_no_sense_are_refused(factors):
    with pytest.raises(OptionError, match="the name"):
        Curvature({"the name": factors}, samples=1, loss="outputs")


def rewrite(path, change):
    """Change the metadata of a file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def header(**fields):
    return lambda m: m.update(header=json.dumps(json.loads(m["header"]) | fields))


def names(**fields):
    return lambda m: m.update(names=json.dumps(json.loads(m["names"]) | fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("format"), "Curvature.save"),
        (lambda m: m.update(version="2"), "update deepcabac"),
        (lambda m: m.pop("names"), "names"),
        (lambda m: m.update(names="[]"), "names"),
        (lambda m: m.update(header="{"), "header"),
        (header(samples=0), "counts"),
        (header(samples="64"), "counts"),
        (header(notes=[1]), "notes"),
        (header(unreached="x"), "unreached"),
        (names(scale=True), "scale"),
        (names(scale=-1.0), "scale"),
        (names(scale="nowhere"), "nowhere"),
        (names(more=1.0), "more"),
        (lambda m: m.update(names=json.dumps({"scale": 1.0})), "belongs to no name"),
        (lambda m: m.update(names='{"scale":1e999}'), "total"),
        (lambda m: m.update(unfinished="{}"), "interrupted"),
    ],
)
def test_damaged_metadata_is_an_error_that_names_the_file(tmp_path, change, words):
    path = tmp_path / "some.file"
    example().save(path)
    rewrite(path, change)
    with pytest.raises(DeepCabacError, match=words) as caught:
        Curvature.load(path)
    assert "some.file" in str(caught.value) and "\n" not in str(caught.value)


def test_every_prefix_and_every_changed_byte_loads_or_is_an_error(tmp_path):
    path = tmp_path / "a"
    Curvature({"w": Factors(some((2, 1, 1, 1)), some(1), 1.0, None)}, samples=1, loss="").save(path)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(DeepCabacError):
            Curvature.load(path)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            with Curvature.load(path) as loaded:
                dict(loaded)
        except DeepCabacError:
            pass


def test_values_that_are_not_finite_are_damage(tmp_path):
    path = tmp_path / "a"
    Curvature({"w": Factors(None, None, 1.0, some(2))}, samples=1, loss="").save(path)
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    with Curvature.load(path) as loaded, pytest.raises(deepcabac.DamagedFileError, match="'w'"):
        loaded["w"]


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(deepcabac.CheckpointError):
        Curvature.load(tmp_path / "missing")
    with pytest.raises(deepcabac.CheckpointError):
        example().save(tmp_path / "no folder" / "a")
    (tmp_path / "text").write_text("something else altogether")
    with pytest.raises(deepcabac.CheckpointError):
        Curvature.load(tmp_path / "text")


def test_merged_curvatures_add_sums_and_weigh_means_by_samples(tmp_path):
    one, two = example(samples=30), example(samples=90, notes=[])
    merged = Curvature.merged([one, two])
    assert merged.samples == 120 and merged.notes == ("part 1: a note — ü",) and merged.unreached == ("none",)
    assert merged.names() == one.names() and merged.loss == "logits"
    for name in one:
        assert merged[name].total == pytest.approx(one[name].total)
        for part in ("columns", "rows", "diagonal"):
            before, after = getattr(one[name], part), getattr(merged[name], part)
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_allclose(after, before if part == "diagonal" else 2 * before, rtol=1e-6)
    merged.save(tmp_path / "merged")
    with Curvature.load(tmp_path / "merged") as loaded:
        same(loaded, merged)
    same(Curvature.merged([one]), example(samples=30, notes=["part 1: a note — ü"]))


def test_what_one_part_did_not_reach_comes_from_the_other():
    reached = Factors(None, None, 3.0, np.float32([1, 2]))
    zero = Factors(some((2, 1, 3, 3)) * 0, some(7) * 0, 0.0, None)
    one = Curvature({"a": reached, "b": reached}, samples=10, loss="outputs", unreached=["c"])
    two = Curvature({"a": zero, "c": reached}, samples=30, loss="outputs", unreached=["b"])
    merged = Curvature.merged([one, two])
    assert merged.unreached == () and set(merged) == {"a", "b", "c"}
    assert (merged["a"].diagonal == np.float32([0.25, 0.5])).all() and merged["a"].total == 0.75
    assert (merged["b"].diagonal == np.float32([0.25, 0.5])).all()
    assert (merged["c"].diagonal == np.float32([0.75, 1.5])).all()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Curvature({}, samples=1, loss="outputs"), "part 2 was measured with loss 'outputs', the first with 'logits'"),
        (Curvature({}, samples=1, loss="logits"), "part 2 is of another model: it has no tensor 'embedding.weight'"),
        (example(unreached=[]), "part 2 is of another model: it has no tensor 'none'"),
    ],
)
def test_curvatures_of_different_calibrations_are_not_merged(other, words):
    with pytest.raises(OptionError, match=words):
        Curvature.merged([example(), other])
    with pytest.raises(OptionError, match="there is no curvature to merge"):
        Curvature.merged([])


def test_curvatures_of_other_shapes_or_ties_are_not_merged():
    linear, scale = Factors(some((2, 1, 3, 3)), some((2, 4, 4)), 2.5, None), Factors(None, None, 1.0, some(4))
    one = Curvature({"a": linear, "b": linear}, samples=1, loss="logits")
    with pytest.raises(OptionError, match="'b' is tied to another tensor"):
        Curvature.merged([one, Curvature({"a": linear, "b": scale}, samples=1, loss="logits")])
    with pytest.raises(OptionError, match="tensor 'a': the parts are of different models or arguments"):
        Curvature.merged([one, Curvature({"a": scale, "b": scale}, samples=1, loss="logits")])
