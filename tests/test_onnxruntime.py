"""ONNX Runtime sessions of .dcb files, models with int8 weights, and models in two files."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import deepcabac
from deepcabac import DamagedFileError, OptionError, UnsupportedError
from deepcabac.cli import program
from deepcabac.curvature import Factors

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - only with onnx

from deepcabac.onnxruntime import session  # noqa: E402

RNG = np.random.default_rng(11)


def normal(*shape, dtype=np.float32):
    return (RNG.standard_normal(shape) / 8).astype(dtype)


def model(dtype=np.float32, opset=19):
    """A convolution, matrices as initializers and as a Constant, a small bias, and a tensor in a branch."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["m", f"w_{name}"], [f"out_{name}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"out_{name}", kind, [1, 40])],
            [numpy_helper.from_array(normal(40, 40, dtype=dtype), f"w_{name}")],
        )
        for name in ("then", "else")
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Constant", [], ["w2"], value=numpy_helper.from_array(normal(60, 40, dtype=dtype))),
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("If", ["condition"], ["y"], **branches),
    ]
    initializers = {"kernel": normal(16, 3, 3, 3, dtype=dtype), "bias": normal(16, dtype=dtype)}
    initializers["w1"] = normal(16 * 64, 60, dtype=dtype)
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", kind, [1, 3, 8, 8]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", kind, [1, 40])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def quantized_model():
    """Weights in int8, with DequantizeLinear nodes, as quantisation tools export them."""
    weights = RNG.integers(-100, 100, (64, 50), dtype=np.int8)
    scale = numpy_helper.from_array(np.float32(0.01), "scale")
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 50])],
        [numpy_helper.from_array(weights, "q"), scale],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def outputs(ran, condition=True):
    """What a session gives for inputs that are always the same."""
    rng = np.random.default_rng(1)
    feeds = {}
    for one in ran.get_inputs():
        dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(one.type)
        feeds[one.name] = np.array(condition) if dtype is None else rng.standard_normal(one.shape).astype(dtype)
    return ran.run(None, feeds)[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


MODELS = {"float32": model, "float16": lambda: model(np.float16), "int8": quantized_model}


@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
@pytest.mark.parametrize("name", MODELS)
def test_a_session_gives_what_the_restored_model_gives_and_writes_nothing(here, name, lossless):
    onnx.save(MODELS[name](), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx", lossless=lossless)
    deepcabac.decompress_checkpoint("m.dcb", "back.onnx")
    before = sorted(os.listdir())
    for condition in (True, False):
        assert np.array_equal(
            outputs(session("m.dcb"), condition), outputs(ort.InferenceSession("back.onnx"), condition)
        )
        if lossless:
            assert np.array_equal(
                outputs(session("m.dcb"), condition), outputs(ort.InferenceSession("m.onnx"), condition)
            )
    assert sorted(os.listdir()) == before


def test_bfloat16_weights_reach_the_session(here):
    weights = normal(64, 50, dtype=ml_dtypes.bfloat16)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "v"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 50])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx", lossless=True)
    assert np.array_equal(outputs(session("m.dcb")), outputs(ort.InferenceSession("m.onnx")))


def test_options_and_providers_are_passed_on(here):
    onnx.save(model(), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    ran = session("m.dcb", options, ["CPUExecutionProvider"])
    assert ran.get_providers() == ["CPUExecutionProvider"] and ran.get_session_options().intra_op_num_threads == 1
    with pytest.raises(deepcabac.LimitError):
        session("m.dcb", max_bytes=1000)


def test_files_that_have_no_graph_are_refused(here):
    deepcabac.save_file({"w": normal(4, 4)}, "m.dcb")
    with pytest.raises(OptionError, match=r"m\.dcb: was made from arrays, not from an ONNX model"):
        session("m.dcb")
    np.savez("n.npz", w=normal(4, 4))
    deepcabac.compress_checkpoint("n.npz")
    with pytest.raises(OptionError, match="of kind npz"):
        session("n.dcb")
    with pytest.raises(OptionError, match=r"int8 is for an \.onnx file"):
        deepcabac.decompress_checkpoint("m.dcb", "m.safetensors", int8=True)


@pytest.mark.parametrize("call", [session, lambda path: deepcabac.decompress_checkpoint(path, "o.onnx", int8=True)])
def test_a_graph_that_does_not_fit_the_tensors_is_damage(here, call):
    onnx.save(model(), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx")
    with deepcabac.open_file("m.dcb") as opened:
        extra = opened.extra
    from deepcabac.dcb import writer
    from deepcabac.source import Arrays

    for graph in (extra, extra[:100], b"text"):
        source = Arrays({"other": normal(4, 4)})
        source.kind, source.extra = "onnx", graph
        with open("bad.dcb", "wb") as file:
            writer.compress(source, file, deepcabac.Options())
        with pytest.raises(DamagedFileError, match="stored ONNX graph"):
            call("bad.dcb")
    assert not os.path.exists("o.onnx")


# Weights as integers


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_weights_give_the_same_within_rounding(here, dtype):
    onnx.save(model(dtype), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx", options=deepcabac.Options(sqnr=30))
    deepcabac.decompress_checkpoint("m.dcb", "float.onnx")
    deepcabac.decompress_checkpoint("m.dcb", "int8.onnx", int8=True)
    onnx.checker.check_model("int8.onnx", full_check=True)
    small = {one.name: one for one in onnx.load("int8.onnx").graph.initializer}
    assert small["w1_levels"].data_type == TensorProto.INT8 and "w1" not in small
    assert list(small["kernel_levels"].dims) == [16, 3, 3, 3] and "bias" in small
    basic = ort.SessionOptions()
    basic.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for condition in (True, False):
        expected = outputs(ort.InferenceSession("float.onnx", basic), condition)
        found = outputs(ort.InferenceSession("int8.onnx", basic), condition)
        assert found.dtype == dtype
        assert abs(found - expected).max() <= (1e-5 if dtype == np.float32 else 1e-2) * abs(expected).max()
    levels = deepcabac.load_file("m.dcb", quantized=True)["w1"].levels
    assert np.array_equal(numpy_helper.to_array(small["w1_levels"]), levels)


def test_scales_of_rows_and_of_columns_become_axes_and_both_stay_floats(here):
    weights = {name: normal(64, 64) for name in ("rows", "columns", "both")}
    nodes = [helper.make_node("MatMul", ["x", "rows"], ["a"]), helper.make_node("MatMul", ["a", "columns"], ["b"])]
    nodes.append(helper.make_node("MatMul", ["b", "both"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), "m.onnx")

    def matters(uneven):
        values = np.logspace(-2, 2, 64) if uneven else np.ones(64)
        return np.broadcast_to(np.diag(values), (2, 64, 64)).astype(np.float32)

    factors = {
        "rows": Factors(matters(False)[:, None], matters(True), 1.0, None),
        "columns": Factors(matters(True)[:, None], matters(False), 1.0, None),
        "both": Factors(matters(True)[:, None], matters(True), 1.0, None),
    }
    curvature = deepcabac.Curvature(factors, samples=100, loss="custom")
    deepcabac.compress_checkpoint("m.onnx", curvature=curvature, sqnr=20)
    with deepcabac.open_file("m.dcb") as file:
        infos = {name: (file.info(name).row_scales, file.info(name).column_scales) for name in file}
    assert infos == {"rows": (64, 0), "columns": (0, 64), "both": (64, 64)}
    deepcabac.decompress_checkpoint("m.dcb", "float.onnx")
    deepcabac.decompress_checkpoint("m.dcb", "int8.onnx", int8=True)
    onnx.checker.check_model("int8.onnx", full_check=True)
    nodes = [node for node in onnx.load("int8.onnx").graph.node if node.op_type == "DequantizeLinear"]
    assert {node.output[0]: node.attribute[0].i for node in nodes} == {"rows": 0, "columns": 1}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    expected, found = (outputs(ort.InferenceSession(name, options)) for name in ("float.onnx", "int8.onnx"))
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


def test_what_does_not_fit_int8_stays_a_float_and_is_named(here):
    onnx.save(model(), "m.onnx")
    result = CliRunner().invoke(program, ["compress", "m.onnx", "--tensor", "w1=sqnr:60"])
    assert result.exit_code == 0
    result = CliRunner().invoke(program, ["decompress", "m.dcb", "-o", "int8.onnx", "--int8"])
    assert result.exit_code == 0 and "note: int8.onnx: stay floats" in result.stderr and "w1" in result.stderr
    names = {one.name for one in onnx.load("int8.onnx").graph.initializer}
    assert "w1" in names and "kernel_levels" in names
    assert np.isfinite(outputs(ort.InferenceSession("int8.onnx"))).all()


def test_operators_that_are_too_old_are_refused(here):
    onnx.save(model(opset=9), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx")
    with pytest.raises(UnsupportedError, match="operators of version 9"):
        deepcabac.decompress_checkpoint("m.dcb", "int8.onnx", int8=True)
    assert not os.path.exists("int8.onnx")


def test_initializers_that_are_inputs_too_stay_floats(here):
    proto = model()
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [1024, 60]))
    onnx.save(proto, "m.onnx")
    deepcabac.compress_checkpoint("m.onnx", options=deepcabac.Options(sqnr=30))
    deepcabac.decompress_checkpoint("m.dcb", "int8.onnx", int8=True)
    assert {"w1", "kernel_levels"} <= {one.name for one in onnx.load("int8.onnx").graph.initializer}


# Two files, and the command line


def test_weights_go_to_a_file_beside_the_model_if_asked(here):
    onnx.save_model(model(), "m.onnx", save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    deepcabac.compress_checkpoint("m.onnx", lossless=True)
    result = CliRunner().invoke(program, ["decompress", "m.dcb", "-o", "back.onnx", "--external-data"])
    assert result.exit_code == 0 and os.path.getsize("back.onnx.data") > os.path.getsize("back.onnx")
    assert np.array_equal(outputs(ort.InferenceSession("back.onnx")), outputs(ort.InferenceSession("m.onnx")))
    assert np.array_equal(outputs(session("m.dcb")), outputs(ort.InferenceSession("m.onnx")))


@pytest.mark.parametrize(
    "arguments",
    [
        ("m.dcb", "-o", "x.onnx", "--int8", "--external-data"),
        ("m.dcb", "-o", "-", "--external-data"),
        ("m.dcb", "-o", "x.safetensors", "--int8"),
        ("a.dcb", "-o", "x.safetensors", "--int8"),
        ("a.dcb", "-o", "x.onnx", "--external-data"),
    ],
)
def test_options_that_make_no_sense_are_refused(here, arguments):
    onnx.save(model(), "m.onnx")
    deepcabac.compress_checkpoint("m.onnx")
    deepcabac.save_file({"w": normal(4, 4)}, "a.dcb")
    before = sorted(os.listdir())
    result = CliRunner().invoke(program, ["decompress", *arguments])
    assert result.exit_code == 2 and result.stderr.count("error: ") == 1
    assert sorted(os.listdir()) == before


def test_compress_says_that_integers_shrink_little(here):
    onnx.save(quantized_model(), "m.onnx")
    result = CliRunner().invoke(program, ["compress", "m.onnx", "-q"])
    assert "note: most weights are 8-bit integers already" in result.stderr


# Levels


def test_levels_times_step_and_scales_are_the_values(here):
    tensors = {"w": normal(300, 200), "h": normal(40, 30, 3, 3, dtype=np.float16), "fine": normal(200, 200)}
    tensors |= {"count": np.arange(5), "tied": tensors["w"]}
    deepcabac.save_file(tensors, "m.dcb", overrides={"fine": {"sqnr": 70}})
    values, levels = deepcabac.load_file("m.dcb"), deepcabac.load_file("m.dcb", quantized=True)
    assert isinstance(levels["count"], np.ndarray) and levels["tied"] is levels["w"]
    for name, dtype in (("w", np.int8), ("h", np.int8), ("fine", np.int16)):
        one = levels[name]
        assert one.levels.dtype == dtype and one.levels.shape == values[name].shape and one.row_scales is None
        assert one.dequantize().dtype == values[name].dtype
        assert np.array_equal(one.dequantize(), values[name])
    with deepcabac.open_file("m.dcb") as file:
        assert np.array_equal(file.levels("tied").levels, levels["w"].levels)
        with pytest.raises(OptionError, match="tensor 'count' is stored exactly"):
            file.levels("count")
        with pytest.raises(KeyError):
            file.levels("none")


def test_differences_to_a_base_have_no_levels_of_their_own(here):
    base = {"w": normal(300, 200)}
    deepcabac.save_file({"w": base["w"] + 0.01 * normal(300, 200)}, "u.dcb", base=base)
    with deepcabac.open_file("u.dcb", base=base) as file, pytest.raises(OptionError, match="difference to a base"):
        file.levels("w")
    levels = deepcabac.load_file("u.dcb", base=base, quantized=True)
    assert np.array_equal(levels["w"], deepcabac.load_file("u.dcb", base=base)["w"])
