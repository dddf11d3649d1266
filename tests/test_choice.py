"""What is quantised at all: everything that is no weight comes back exactly, and weights keep their quality."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import deepcabac
from deepcabac.checkpoint.base import OPTIMIZER, SCALE, TensorSpec
from deepcabac.dcb import writer
from deepcabac.errors import OptionError
from deepcabac.options import Options
from deepcabac.quantize import choice
from deepcabac.source import Arrays

F4 = np.float32
Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F4)


def report(tensors: dict[str, Any], **settings: Any) -> writer.Report:
    return writer.compress(Arrays(tensors), io.BytesIO(), Options(**settings))


def why(array: Array, **settings: Any) -> str:
    """Why this tensor is exact; empty if it is quantised."""
    (tensor,) = report({"t": array}, **settings).tensors
    return tensor.reason


def sqnr(before: Array, after: Array) -> float:
    error = float(np.square(before.astype(float) - after.astype(float)).sum())
    return float("inf") if error == 0 else 10 * np.log10(np.square(before.astype(float)).sum() / error)


def specs_of(names: dict[str, tuple[Any, tuple[int, ...]]]) -> list[TensorSpec]:
    return [TensorSpec(name, np.dtype(dtype), shape) for name, (dtype, shape) in names.items()]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.state.0.exp_avg",
        "optimizer_states.0.state.3.momentum_buffer",
        "optimizer_state_dict.base_optimizer_state.state.0.exp_avg_sq",
        "optim.0.weird",
        "g_optim.state.1.foo",
        "optimizerD.state.1.foo",
        "opt_state/0/mu/dense/kernel",
        "discriminator_optimizer/m",
        "state.0.exp_avg_sq_row",
        "model.layer.0.weight.exp_avg",
        "dense/kernel/Adam_1",
        "optimiser/v",
        "state.17.state1",
        "foo.state.0.absmax2",
    ],
)
def test_names_of_optimizer_state_are_recognised(name):
    assert choice.is_optimizer(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.decoder.layers.0.fc1.weight",
        "opt_model.model.decoder.weight",
        "opt_proj.weight",
        "optical_flow.conv.weight",
        "ema.conv.weight",
        "momentum_encoder.conv.weight",
        "state_encoder.weight",
        "option.weight",
        "image_optics.0.weight",
    ],
)
def test_names_of_weights_are_no_optimizer_state(name):
    assert not choice.is_optimizer(name)


def test_everything_beside_known_optimizer_state_is_optimizer_state_too():
    names = {f"state.{k}.{key}": (F4, (64, 64)) for k in (0, 1) for key in ("exp_avg", "something_new")}
    found = choice.roles(specs_of({**names, "layer.weight": (F4, (64, 64))}), {})
    assert found == dict.fromkeys(names, OPTIMIZER)


@pytest.mark.parametrize(
    ("integers", "floats"),
    [
        ({"m.q.qweight": ("i4", (128, 256)), "m.q.g_idx": ("i4", (1024,))}, {"m.q.scales": ("f2", (8, 256))}),
        ({"m.q.weight": ("i1", (256, 256))}, {"m.q.weight_scale": ("f4", (256, 1)), "m.q.odd": ("f4", (2, 256))}),
        ({"m.q.weight": ("u1", (32768, 1))}, {"m.q.weight.absmax": ("f4", (1024,)), "m.q.weight.map": ("f4", (16,))}),
        (
            {"m.q.weight": (ml_dtypes.float8_e4m3fn, (256, 256))},
            {"m.q.weight_scale_inv": ("f4", (2, 128))},
        ),
        ({"qweight": ("i4", (128, 256))}, {"scales": ("f2", (8, 256))}),
        ({"m.q.qweight": ("i4", (128, 256))}, {"scales.m.q": ("f2", (8, 256)), "m.zero_points.q": ("f4", (8, 256))}),
        ({"m/q/W_q": ("u1", (256, 128))}, {"m/q/zero": ("f2", (1024, 1)), "m/q/scale": ("f2", (1024, 1))}),
    ],
)
def test_scales_beside_integers_are_recognised(integers, floats):
    others = {"m.q2.weight": (F4, (64, 64)), "head.weight": (F4, (64, 64))}
    found = choice.roles(specs_of({**integers, **floats, **others}), {})
    assert found == dict.fromkeys(floats, SCALE)


def test_weights_beside_indices_and_masks_are_weights():
    names = {
        "attn.relative_position_index": ("i8", (49, 49)),
        "attn.mask": ("?", (1024, 1024)),
        "attn.in_proj_weight": ("f4", (192, 64)),
        "embeddings.position_ids": ("i8", (1, 512)),
        "embeddings.word": ("f4", (1000, 64)),
        "labels": ("u1", (60000,)),
        "decoder.upscale.conv": ("f4", (64, 64)),
        "multi_scale.fuse": ("f4", (64, 64)),
        "weights": ("f4", (100, 100)),
    }
    assert choice.roles(specs_of(names), {}) == {}


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300,), (300, 1), (1, 300), (1, 300, 1, 1), (1, 1, 300), (300, 1, 1)])
def test_vectors_in_disguise_are_exact(shape):
    assert why(normal(*shape)) == "a vector"


def test_small_tensors_are_exact_and_others_are_not():
    assert why(normal(3, 3, 2)) == "fewer than 128 elements"
    assert why(normal(16, 3, 3, 3)) == ""
    assert why(normal(2, 64)) == ""


def test_what_is_asked_for_by_name_is_quantised_all_the_same():
    small = report({"t": normal(3, 3, 2), "mask": np.tril(np.ones((64, 64), F4))}, overrides={"*": {"sqnr": 20}})
    assert (small.tensors[0].method, small.tensors[0].reason) == ("quantized", "")


# --- values ----------------------------------------------------------------------------------------------------------


def anchors() -> Array:
    """Boxes of a detector, normalised: none a multiple of a power of two."""
    centres = (np.stack(np.meshgrid(np.arange(19), np.arange(19)), -1).reshape(-1, 2) + 0.5) / 19
    sizes = np.array([[0.2, 0.2], [0.141, 0.283], [0.283, 0.141], [0.27, 0.27]])
    return np.concatenate([np.repeat(centres, 4, 0), np.tile(sizes, (361, 1))], 1).astype(F4)


STRUCTURES = {
    "causal mask": np.tril(np.ones((1, 1, 64, 64), F4)),
    "additive mask": np.triu(np.full((64, 64), -1e9, F4), 1),
    "half mask": np.triu(np.full((64, 64), 0.5, F4), 1),
    "ones": np.ones((100, 100), F4),
    "constant": np.full((100, 100), 0.3, F4),
    "arange": np.arange(2000, dtype=F4).reshape(20, 100),
    "linspace": np.linspace(-1, 1, 4000).astype(F4).reshape(2, 2000),
    "coordinates": np.stack(np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 50))).astype(F4),
    "coordinates last": np.stack(np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 50)), -1).astype(F4),
    "centres of cells": np.stack(np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)).reshape(2, -1).astype(F4),
    "anchors": anchors(),
    "blur": np.tile(np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256, (64, 1, 1, 1)).astype(F4),
    "laplacian": np.tile(np.array([[0, 0.3, 0], [0.3, -1.2, 0.3], [0, 0.3, 0]]), (64, 1, 1, 1)).astype(F4),
    "squares": normal(100, 100) ** 2,
    "boxes around points": (
        np.tile(np.stack(np.meshgrid(np.arange(30) * 8, np.arange(30) * 8), -1).reshape(-1, 1, 2), (1, 1, 2))
        + np.array([[-23, -12, 23, 12], [-45.25, -22.6, 45.25, 22.6], [-90.5, -45.3, 90.5, 45.3]])
    ).astype(F4),
    "slopes of positions": -np.abs(np.arange(64)[:, None] - np.arange(64)) * F4(0.3) * np.ones((8, 1, 1), F4),
    "second moments": (normal(100, 100) * np.exp(3 * normal(100, 1, seed=1))) ** 2,
    "integers in float16": np.rint(normal(64, 64) * 50).astype(np.float16),
    "integers in float64": np.rint(normal(64, 64) * 1e12).astype(np.float64),
    "identity": np.eye(100, dtype=F4),
    "bfloat16 mask": np.tril(np.ones((64, 64), ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structural_tensors_are_exact(name):
    array = STRUCTURES[name]
    assert why(array)
    back = deepcabac.decompress(deepcabac.compress({"t": array}))["t"]
    assert back.tobytes() == array.tobytes()


WEIGHTS = {
    "normal": normal(100, 100),
    "bfloat16": normal(100, 100).astype(ml_dtypes.bfloat16),
    "float16": (normal(100, 100) / 10).astype(np.float16),
    "bfloat16 in float32": normal(100, 100).astype(ml_dtypes.bfloat16).astype(F4),
    "laplace": np.random.default_rng(0).laplace(size=(100, 100)).astype(F4),
    "uniform from 0": np.random.default_rng(0).random((100, 100)).astype(F4),
    "sparse": (normal(300, 300) * (np.random.default_rng(1).random((300, 300)) < 0.02)).astype(F4),
    "all zero": np.zeros((100, 100), F4),
    "shifted": 1 + normal(100, 100) / 10,
    "sinusoids": np.sin(np.outer(np.arange(200), 10000 ** -(np.arange(64) / 64))).astype(F4),
    "4-bit grid by rows": np.rint(normal(200, 200) * 2).clip(-7, 7) * np.abs(normal(200, 1)) / F4(7.1),
    "8-bit grid": (np.rint(normal(300, 300) * 40).clip(-127, 127) / F4(40.7)).astype(F4),
    "dead rows": normal(100, 100) * np.where(np.arange(100) < 40, F4(1e-20), F4(1))[:, None],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_quantised(name):
    assert why(WEIGHTS[name]) == ""


def test_weights_of_two_values_in_each_row_are_exact_and_smaller():
    array = np.sign(normal(200, 200)) * np.abs(normal(200, 1))
    assert why(array) == "quantised already, in groups of 200"
    assert len(deepcabac.compress({"t": array})) < array.size / 8 + 4 * 200 + 300


@pytest.mark.parametrize("levels", [2, 3, 7, 15, 31])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_on_a_coarse_grid_stay_on_it_in_no_more_bytes_than_lossless(levels, dtype):
    top = levels // 2 or 1
    grid = np.rint(normal(200, 200) * max(top / 3, 0.8)).clip(-top, top) + 0.0
    array = ((np.where(grid == 0, 1, grid) if levels == 2 else grid) * 0.0431).astype(dtype)
    data = deepcabac.compress({"t": array})
    assert (deepcabac.decompress(data)["t"] == array).all()
    assert len(data) <= len(deepcabac.compress({"t": array}, lossless=True))


@pytest.mark.parametrize("quality", [10, 30, 60, 90])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_nothing_is_lossy_and_larger_than_exact(dtype, quality):
    for array in (normal(128, 128), np.rint(normal(128, 128) * 20) / 63, normal(128, 128) * (normal(128, 128) > 1)):
        stored = array.astype(dtype)
        lossless = len(deepcabac.compress({"t": stored}, lossless=True))
        assert len(deepcabac.compress({"t": stored}, sqnr=quality)) <= lossless


# --- uneven tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [30, 100, 1000, 1e5])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_one_large_channel_leaves_the_others_their_quality(factor, axis, dtype):
    array = normal(64, 32, 3, 3).astype(dtype)
    place = (slice(None),) * axis + (3,)
    array[place] = (array[place].astype(F4) * F4(factor)).astype(dtype)
    plain = len(deepcabac.compress({"t": normal(64, 32, 3, 3).astype(dtype)}))
    data = deepcabac.compress({"t": array})
    back = deepcabac.decompress(data)["t"]
    others = np.delete(np.arange(array.shape[axis]), 3)
    assert sqnr(array.take(others, axis), back.take(others, axis)) > 28
    assert sqnr(array[place], back[place]) > 25
    assert len(data) < 1.1 * plain


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_large_channels_are_seen_at_any_size(unit):
    array = normal(64, 64) * F4(unit)
    array[3] *= 1000
    back = deepcabac.decompress(deepcabac.compress({"t": array}))["t"]
    assert sqnr(array[4:] / F4(unit), back[4:] / F4(unit)) > 28


@pytest.mark.parametrize("place", [(0, 0), (50, 50), (99, 99), (7, 91)])
@pytest.mark.parametrize("size", [1e3, 1e4, -1e6])
def test_one_large_weight_leaves_the_others_their_quality(size, place):
    array = normal(100, 100)
    array[place] = size
    back = deepcabac.decompress(deepcabac.compress({"t": array}))["t"]
    assert back[place] == pytest.approx(size, rel=1e-4)
    array[place] = back[place] = 0
    assert sqnr(array, back) > 28
    assert np.count_nonzero(back) > 9000


def test_weights_of_very_different_sizes_are_exact_where_levels_cannot_hold_them():
    array = normal(100, 100)
    array[3, 4] = 1e12
    assert why(array) == "of very different sizes"


def test_forbidden_transitions_of_a_random_field_leave_the_others_their_quality():
    array = normal(24, 24)
    array[3, :] = array[:, 7] = -10000
    back = deepcabac.decompress(deepcabac.compress({"t": array}))["t"]
    allowed = array > -100
    assert sqnr(array[allowed], back[allowed]) > 27
    np.testing.assert_allclose(back[~allowed], -10000, rtol=1e-4)


@pytest.mark.parametrize("count", [16, 32, 42])
@pytest.mark.parametrize("axis", [0, 1])
def test_many_large_channels_leave_the_others_their_quality(count, axis):
    array = normal(64, 64, 3, 3)
    place = (slice(None),) * axis + (slice(0, count),)
    array[place] *= 300
    back = deepcabac.decompress(deepcabac.compress({"t": array}))["t"]
    others = np.arange(count, 64)
    assert sqnr(array.take(others, axis), back.take(others, axis)) > 27
    assert sqnr(array[place], back[place]) > 27


def test_rows_of_different_sizes_together_still_have_the_quality_that_was_asked_for():
    array = normal(200, 200) * np.exp(2 * normal(200, 1, seed=3))
    for wanted in (15, 30):
        back = deepcabac.decompress(deepcabac.compress({"t": array}, sqnr=wanted))["t"]
        assert sqnr(array, back) > wanted - 0.3


# --- reports and notes -----------------------------------------------------------------------------------------------


def test_a_report_says_why_a_tensor_is_exact():
    tensors = {
        "w": normal(64, 64),
        "bias": normal(64),
        "optimizer.state.0.exp_avg": normal(64, 64),
        "steps": np.arange(10),
        "nan": np.full((64, 64), np.nan, F4),
        "one": F4(1),
    }
    reasons = {one.name: one.reason for one in report(tensors).tensors}
    assert reasons == {
        "w": "",
        "bias": "a vector",
        "optimizer.state.0.exp_avg": "optimizer state",
        "steps": "not floating point",
        "nan": "4,096 of its values are NaN or infinite",
        "one": "a scalar",
    }


def test_optimizer_state_is_kept_with_one_note_or_dropped_without():
    tensors = {"w": normal(64, 64), **{f"optimizer.state.{k}.exp_avg": normal(64, 64, seed=k) for k in (1, 2)}}
    kept = report(tensors)
    (note,) = kept.notes
    assert note.startswith("optimizer state is kept exactly: 2 tensors, ")
    dropped = report(tensors, optimizer="drop")
    assert [one.name for one in dropped.tensors] == ["w"]
    assert (dropped.notes, dropped.dropped) == ([], 2)
    assert report({"w": normal(64, 64)}, optimizer="drop").notes == ["there is no optimizer state to leave out"]
    assert list(deepcabac.decompress(deepcabac.compress(tensors, optimizer="drop"))) == ["w"]


def test_dropping_the_optimizer_says_so_where_nothing_is_left():
    with pytest.raises(OptionError, match="nothing but optimizer state"):
        report({"optimizer.state.0.exp_avg": normal(64, 64)}, optimizer="drop")
    with pytest.raises(OptionError, match="optimizer must be"):
        Options(optimizer="leave")  # type: ignore[arg-type]


def test_a_size_that_optimizer_state_exceeds_is_refused_with_what_to_do():
    tensors = {"w": normal(64, 64), "optimizer.state.0.exp_avg": normal(64, 64)}
    with pytest.raises(OptionError, match=r"optimizer state \(optimizer='drop' leaves it out\)"):
        report(tensors, size=3000)
    assert report(tensors, size=3000, optimizer="drop").file_bytes == pytest.approx(3000, rel=0.01)


def test_the_log_says_why_a_tensor_is_exact(caplog):
    with caplog.at_level("INFO", logger="deepcabac"):
        report({"bias": normal(64), "w": normal(64, 64)}, sqnr=30)
    assert caplog.messages[0].startswith("bias: exact (a vector), 256 to ")
    assert "w: quantized at 30.0 dB, 16,384 to " in caplog.messages[1]


def test_dropped_tensors_may_be_what_others_are_tied_to():
    shared = normal(64, 64)
    tensors = {"optimizer.fp32_flat_groups.0": shared, "w": shared, "v": shared}
    back = deepcabac.decompress(deepcabac.compress(tensors, optimizer="drop", lossless=True))
    assert list(back) == ["w", "v"]
    assert all((one == shared).all() for one in back.values())


def test_rows_that_drown_are_named():
    array = normal(64, 64)
    array[5] /= 100
    (note,) = report({"t": array}).notes
    assert note == (
        "rows (output channels) that are so small that the error is larger: t (1 of 64); "
        "--tensor 'NAME=sqnr:DB' gives a tensor more"
    )


def test_tensors_that_become_almost_all_zero_are_named():
    array = normal(200, 200) * np.exp(6 * normal(200, 200, seed=1))
    notes = report({"t": array, "w": normal(64, 64)}, sqnr=15).notes
    assert any(note.startswith("almost all weights become zero: t (") for note in notes)


def test_a_tensor_much_worse_than_the_others_is_named_unless_it_was_asked_for():
    tensors = {name: normal(64, 64, seed=seed) for seed, name in enumerate("abcd")}
    assert report(tensors, sqnr=30, overrides={"a": {"sqnr": 8}}).notes == []
    (note,) = report(tensors, sqnr=30, overrides={"a": {"offset": -20}}).notes
    assert note.startswith("much worse than the others, at 30.0 dB: a (")


def test_too_few_elements_is_said_only_of_few():
    grid = np.where(normal(300, 300) > 0, 1.5, normal(300, 300) * 1e-3).astype(F4)
    for note in report({"t": grid}, sqnr=3).notes:
        assert "too few elements" not in note


@pytest.mark.parametrize(
    ("direction", "gain"), [("weight_v", "weight_g"), ("p.weight.original1", "p.weight.original0")]
)
def test_no_row_of_a_direction_of_weight_norm_becomes_zero(direction, gain):
    array = normal(64, 32, 3)
    array[:10] /= 1000
    array[20] *= 1e-6
    array[30] = 0
    tensors = {f"m.{gain}": np.ones((64, 1, 1), F4), f"m.{direction}": array}
    back = deepcabac.decompress(deepcabac.compress(tensors))[f"m.{direction}"]
    lengths = np.sqrt(np.square(array, dtype=float).sum((1, 2)))
    lengths *= np.sqrt(np.square(back, dtype=float).sum((1, 2)))
    assert (np.delete((array * back).sum((1, 2)), 30) > 0.999 * np.delete(lengths, 30)).all()
    even = normal(64, 32, 3)
    alone = len(deepcabac.compress({"m.weight_g": np.ones((64, 1, 1), F4), "m.else": even}, sqnr=30))
    assert len(deepcabac.compress({"m.weight_g": np.ones((64, 1, 1), F4), "m.weight_v": even}, sqnr=30)) <= alone + 8


# --- equal tensors ---------------------------------------------------------------------------------------------------


def test_equal_tensors_are_stored_once_and_have_memory_of_their_own():
    array = normal(200, 200)
    tensors = {"a": array, "b": array.copy(), "c": array, "d": array.copy()}
    data = deepcabac.compress(tensors)
    assert len(data) < len(deepcabac.compress({"a": array})) + 60
    back = deepcabac.decompress(data)
    assert all((one == back["a"]).all() for one in back.values())
    assert back["c"] is back["a"] and not np.shares_memory(back["a"], back["b"])
    assert not np.shares_memory(back["b"], back["d"])
    methods = [(one.method, one.raw_bytes) for one in report(tensors).tensors]
    assert methods == [("quantized", 160000), ("equal", 160000), ("tied", 0), ("equal", 160000)]
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        info = opened.info("d")
        assert (info.method, info.coded_bytes, info.tied_to, info.equal_to) == ("equal", 0, None, "a")
        assert (opened["d"] == back["a"]).all() and (opened.span("d", 7, 9) == back["a"].reshape(-1)[7:9]).all()
    with pytest.raises(deepcabac.LimitError):
        deepcabac.decompress(data, max_bytes=3 * array.nbytes - 1)
    assert deepcabac.decompress(data, max_bytes=3 * array.nbytes)


def test_equal_tensors_that_are_to_be_stored_differently_are_not_stored_once():
    array = normal(64, 64)
    tensors = {"a": array, "b": array.copy(), "optimizer.master.a": array.copy(), "e": array.copy()}
    result = report(tensors, overrides={"b": {"exact": True}})
    assert [one.method for one in result.tensors] == ["quantized", "exact", "exact", "equal"]
    almost = {"a": array, "b": array.copy()}
    almost["b"][17, 3] += 1
    assert [one.method for one in report(almost).tensors] == ["quantized", "quantized"]
    zeros = {"a": np.zeros((64, 64), F4), "b": -np.zeros((64, 64), F4)}
    assert np.signbit(deepcabac.decompress(deepcabac.compress(zeros, lossless=True))["b"]).all()


def test_many_equal_tensors_and_what_is_tied_to_them_come_back():
    tensors: dict[str, Any] = {f"{k}": normal(20, 20) for k in range(150)}
    tensors["tied"] = tensors["70"]
    result = report(tensors)
    assert [one.method for one in result.tensors].count("quantized") == 3  # each 64 have one; and one is tied to
    back = deepcabac.decompress(deepcabac.compress(tensors))
    assert all((one == back["0"]).all() for one in back.values()) and back["tied"] is back["70"]


def test_equal_tensors_of_a_corrected_model_are_told_apart_again():
    array = normal(64, 64)
    file = io.BytesIO()
    source = Arrays({"a": array, "b": array.copy()})
    result = writer.compress(source, file, Options(), correct=lambda decoded: {"a": decoded["a"] + F4(1)})
    assert [one.method for one in result.tensors] == ["quantized", "quantized"]
    back = deepcabac.decompress(file.getvalue())
    assert back["a"].mean() - back["b"].mean() == pytest.approx(1, abs=0.01)


# --- updates ---------------------------------------------------------------------------------------------------------


def test_updates_keep_what_is_no_weight_exact():
    old = {"w": normal(64, 64), "optimizer.state.0.exp_avg_sq": normal(64, 64) ** 2, "mask": np.eye(64, dtype=F4)}
    new = {name: array + normal(64, 64, seed=9) * F4(1e-3) * (name != "mask") for name, array in old.items()}
    new["optimizer.state.0.exp_avg_sq"] = new["optimizer.state.0.exp_avg_sq"] ** 2
    back = deepcabac.decompress(deepcabac.compress(new, base=old), base=old)
    assert (back["optimizer.state.0.exp_avg_sq"] == new["optimizer.state.0.exp_avg_sq"]).all()
    assert (back["mask"] == new["mask"]).all()
    assert not (back["w"] == new["w"]).all()


def test_a_note_names_weights_that_are_not_finite():
    w, wide = normal(64, 64), normal(64, 64).astype(float)
    w[0, :2], wide[0, 0] = (np.nan, np.inf), 1e300
    found = report({"w": w, "fine": normal(64, 64), "wide": wide, "mask": np.triu(np.full((64, 64), -np.inf, F4), 1)})
    assert found.notes[:2] == [
        "w: stored exactly: 2 of its values are NaN or infinite",
        "wide: stored exactly: its values are beyond float32",
    ]
    assert not any(note.startswith("mask") for note in found.notes)  # it is no weight
    assert not report({"w": w}, lossless=True).notes
