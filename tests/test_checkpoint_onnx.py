"""ONNX models."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import deepcabac
from deepcabac.checkpoint import TensorSpec, create_checkpoint, open_checkpoint
from deepcabac.checkpoint import onnx_file as onnx_module
from deepcabac.checkpoint.base import bits_of
from deepcabac.checkpoint.packing import from_codes, pack
from deepcabac.errors import CheckpointError, DamagedFileError

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

F4 = np.dtype("<f4")
W1 = np.random.default_rng(0).standard_normal((8, 64)).astype(F4)
W2 = np.random.default_rng(1).standard_normal((64, 64)).astype(F4)
BIAS = np.arange(64, dtype=F4)


def make_model(initializers, nodes=(), inputs=(("x", TensorProto.FLOAT, ["n", 8]),), output="y"):
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 64])],
        initializer=list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network():
    """y = relu(x @ w1) @ constant w2 + bias, with a branch that has an initializer of its own."""
    constant = helper.make_node("Constant", [], ["w2"], value=numpy_helper.from_array(W2, "inner name"))
    small = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, F4)))
    branch = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["inner_" + name], ["out_" + name])],
            name,
            [],
            [helper.make_tensor_value_info("out_" + name, TensorProto.FLOAT, [64])],
            initializer=[numpy_helper.from_array(np.full(64, value, F4), "inner_" + name)],
        )
        for name, value in (("yes", 1.0), ("no", 2.0))
    }
    nodes = [
        constant,
        small,
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["s"]),
        helper.make_node("Mul", ["s", "one"], ["t"]),
        helper.make_node("If", ["condition"], ["i"], then_branch=branch["yes"], else_branch=branch["no"]),
        helper.make_node("Add", ["t", "i"], ["y"]),
    ]
    initializers = [
        numpy_helper.from_array(W1, "w1"),
        helper.make_tensor("bias", TensorProto.FLOAT, [64], BIAS.tolist()),  # in float_data
        helper.make_tensor("condition", TensorProto.BOOL, [], [True]),  # in int32_data
    ]
    return make_model(initializers, nodes)


def run(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 16, dtype=F4).reshape(2, 8)})[0]


def copy(source, target):
    with (
        open_checkpoint(source) as reader,
        create_checkpoint(
            target, kind="onnx", specs=reader.specs, extra=reader.extra, extra_kind=reader.kind
        ) as writer,
    ):
        for spec in reader.specs:
            writer.write(spec.name, reader.read(spec.name))


def read_all(path):
    with open_checkpoint(path) as reader:
        return {spec.name: reader.read(spec.name) for spec in reader.specs}


def test_a_model_computes_the_same_after_a_round_trip(tmp_path):
    onnx.save(network(), tmp_path / "source.onnx")
    copy(tmp_path / "source.onnx", tmp_path / "target.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source.onnx", "target.onnx"]
    onnx.checker.check_model(str(tmp_path / "target.onnx"), full_check=True)
    assert run(tmp_path / "target.onnx").tobytes() == run(tmp_path / "source.onnx").tobytes()
    with open_checkpoint(tmp_path / "source.onnx") as reader:
        assert [spec.name for spec in reader.specs] == ["w2", "inner_no", "inner_yes", "w1", "bias", "condition"]
        assert reader.read("w2").tobytes() == W2.tobytes()
        assert reader.read("bias").tobytes() == BIAS.tobytes()
        assert len(reader.extra) < 2500  # the graph without the weights
        onnx.ModelProto.FromString(reader.extra)


def test_changed_weights_change_what_the_model_computes(tmp_path):
    onnx.save(network(), tmp_path / "source.onnx")
    with (
        open_checkpoint(tmp_path / "source.onnx") as reader,
        create_checkpoint(
            tmp_path / "target.onnx", kind="onnx", specs=reader.specs, extra=reader.extra, extra_kind="onnx"
        ) as writer,
    ):
        for spec in reader.specs:
            array = reader.read(spec.name)
            writer.write(spec.name, array * 0 if spec.name == "w2" else array)
    assert run(tmp_path / "target.onnx").tolist() == [(BIAS + 1).tolist()] * 2


@pytest.mark.parametrize("location", ["weights.bin", None])
def test_external_weights_are_read_and_put_inside(tmp_path, location):
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "source.onnx"
    model = network()
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    onnx.save(
        model,
        source,
        save_as_external_data=True,
        all_tensors_to_one_file=location is not None,
        location=location,
        size_threshold=0,
        convert_attribute=True,
    )
    assert len(list(source.parent.iterdir())) > 1
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "target.onnx"
    copy(source, target)
    assert list(target.parent.iterdir()) == [target]
    assert run(target).tobytes() == run(source).tobytes()
    found = read_all(source)
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes()


def test_a_model_too_large_for_one_file_gets_a_weights_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "INLINE_BYTES", 10_000)
    onnx.save(network(), tmp_path / "source.onnx")
    copy(tmp_path / "source.onnx", tmp_path / "target.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source.onnx", "target.onnx", "target.onnx.data"]
    assert (tmp_path / "target.onnx").stat().st_size < 4000
    assert run(tmp_path / "target.onnx").tobytes() == run(tmp_path / "source.onnx").tobytes()
    before, after = read_all(tmp_path / "source.onnx"), read_all(tmp_path / "target.onnx")
    assert list(before) == list(after)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    # and back into one
    monkeypatch.undo()
    copy(tmp_path / "target.onnx", tmp_path / "again.onnx")
    assert run(tmp_path / "again.onnx").tobytes() == run(tmp_path / "source.onnx").tobytes()
    assert not (tmp_path / "again.onnx.data").exists()


def test_a_failure_leaves_neither_the_model_nor_its_weights_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "INLINE_BYTES", 10_000)
    (tmp_path / "in").mkdir()
    onnx.save(network(), tmp_path / "in" / "m.onnx")
    (tmp_path / "out").mkdir()
    with open_checkpoint(tmp_path / "in" / "m.onnx") as reader:
        specs, extra = reader.specs, reader.extra
        array = reader.read(specs[0].name)
    with (
        pytest.raises(KeyboardInterrupt),
        create_checkpoint(
            tmp_path / "out" / "m.onnx", kind="onnx", specs=specs, extra=extra, extra_kind="onnx"
        ) as writer,
    ):
        writer.write(specs[0].name, array)
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


def typed(code, name, values, count):
    """A tensor whose values are in the typed field of its kind rather than in raw_data."""
    return helper.make_tensor(name, code, [count], values)


@pytest.mark.parametrize("as_raw", [True, False])
def test_every_dtype_survives_bit_for_bit_raw_or_in_a_typed_field(tmp_path, as_raw):
    rng = np.random.default_rng(0)
    expected, initializers = {}, []
    for code, dtype in onnx_module._DTYPE_OF_CODE.items():
        size = 24 if code % 2 else 23  # the last byte of narrow types is filled, or it is not
        codes = rng.integers(0, 2 if dtype.kind == "b" else 256, size * dtype.itemsize, dtype=np.uint8)
        name, spec = "t." + dtype.name, TensorSpec("", dtype, (size,))
        array = from_codes(codes, spec) if bits_of(dtype) < 8 else codes.view(dtype)
        if dtype.kind in "fc" and dtype.itemsize >= 4:  # protobuf's Python changes some NaN
            array = np.nan_to_num(array)
        if as_raw:
            tensor = helper.make_tensor(name, code, [size], pack(array).tobytes(), raw=True)
        else:
            tensor = TensorProto(name=name, data_type=code, dims=[size])
            if dtype.name in ("float32", "complex64"):
                tensor.float_data.extend(array.view(F4).tolist())
            elif dtype.name in ("float64", "complex128"):
                tensor.double_data.extend(array.view("f8").tolist())
            elif dtype.name == "int64":
                tensor.int64_data.extend(array.tolist())
            elif dtype.name in ("uint32", "uint64"):
                tensor.uint64_data.extend(array.tolist())
            elif dtype.kind in "iub":
                tensor.int32_data.extend(int(value) for value in array)
            elif dtype.name.startswith("float6"):
                tensor.int32_data.extend(array.view(np.uint8).tolist())
            elif bits_of(dtype) < 8:
                tensor.int32_data.extend(pack(array).tolist())
            else:  # the bits of a small float
                tensor.int32_data.extend(array.view(f"<u{dtype.itemsize}").tolist())
        assert pack(numpy_helper.to_array(tensor)).tobytes() == pack(array).tobytes(), name  # as onnx sees it
        expected[name] = array.tobytes()
        initializers.append(tensor)
    initializers += [
        numpy_helper.from_array(np.array(3, np.int64), "scalar"),
        numpy_helper.from_array(np.empty((0, 2), F4), "empty"),
    ]
    onnx.save(make_model(initializers), tmp_path / "source.onnx")
    copy(tmp_path / "source.onnx", tmp_path / "target.onnx")
    for path in (tmp_path / "source.onnx", tmp_path / "target.onnx"):
        found = read_all(path)
        assert list(found) == [*expected, "scalar", "empty"]
        for name, raw in expected.items():
            assert found[name].tobytes() == raw, name
            assert found[name].flags.owndata
        assert found["scalar"].shape == () and found["scalar"] == 3 and found["empty"].shape == (0, 2)
    before, after = (onnx.load(path).graph.initializer for path in (tmp_path / "source.onnx", tmp_path / "target.onnx"))
    for one, two in zip(before, after, strict=True):
        assert numpy_helper.to_array(one).tobytes() == numpy_helper.to_array(two).tobytes(), one.name


def test_values_written_one_by_one_instead_of_packed_are_read(tmp_path):
    floats = b"".join(b"\x25" + np.float32(v).tobytes() for v in (1.5, -2.0))  # float_data, wire type 5
    integers = b"\x38\x05\x38" + b"\xff" * 9 + b"\x01"  # int64_data 5, -1
    head = b"\x08\x02"  # dims [2]
    tensors = [head + b"\x10\x01\x42\x01f" + floats, head + b"\x10\x07\x42\x01i" + integers]
    graph = b"".join(onnx_module.wire.bytes_field(5, tensor) for tensor in tensors)
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08" + onnx_module.wire.bytes_field(7, graph))
    found = read_all(tmp_path / "m.onnx")
    assert found["f"].tolist() == [1.5, -2.0] and found["i"].tolist() == [5, -1]


def test_texts_stay_in_the_graph_untouched(tmp_path):
    text = helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"])
    model = make_model([text, numpy_helper.from_array(W1, "w1")])
    model.metadata_props.add(key="author", value="me")
    model.graph.doc_string = "text"
    onnx.save(model, tmp_path / "source.onnx")
    copy(tmp_path / "source.onnx", tmp_path / "target.onnx")
    assert list(read_all(tmp_path / "source.onnx")) == ["w1"]
    assert onnx.load(tmp_path / "target.onnx") == model


def test_an_external_int4_tensor_is_read_and_put_inside(tmp_path):
    tensor = helper.make_tensor("int4", TensorProto.INT4, [4], b"\x21\x43", raw=True)
    (tmp_path / "weights").write_bytes(b"\0\0\x21\x43")
    external = TensorProto(name="int4", data_type=TensorProto.INT4, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", "2"), ("length", "2")):
        external.external_data.add(key=key, value=value)
    onnx.save(make_model([external]), tmp_path / "source.onnx")
    (tmp_path / "out").mkdir()
    copy(tmp_path / "source.onnx", tmp_path / "out" / "target.onnx")
    assert read_all(tmp_path / "source.onnx")["int4"].astype(int).tolist() == [1, 2, 3, 4]
    assert onnx.load(tmp_path / "out" / "target.onnx").graph.initializer[0] == tensor


def external_model(path, **entries):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(make_model([tensor]).SerializeToString())


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "sub/../../secret", "..\\secret", "C:\\secret", "link", "", "a\0b", "\\x"]
)
def test_weights_outside_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(8))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    external_model(folder / "m.onnx", location=location)
    with pytest.raises(CheckpointError, match=r"refused.*outside the model's folder"):
        open_checkpoint(folder / "m.onnx")


def test_a_cache_of_links_to_one_folder_of_blobs_is_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    external_model(blobs / "1234", location="w.data")
    (blobs / "5678").write_bytes(np.ones(2, F4).tobytes())
    (snapshot / "m.onnx").symlink_to("../blobs/1234")
    (snapshot / "w.data").symlink_to("../blobs/5678")
    assert read_all(snapshot / "m.onnx")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone"}, "gone: no such file"),
        ({"location": "w", "offset": "4"}, "fewer or more"),
        ({"location": "w", "offset": "100"}, "truncated"),
        ({"location": "w", "offset": "-4"}, "truncated"),
        ({"location": "w", "length": "80"}, "truncated"),
        ({"location": "w", "length": "4"}, "fewer or more"),
        ({"location": "w", "offset": "x"}, "invalid place"),
    ],
)
def test_external_weights_that_are_missing_or_too_short_are_noticed(tmp_path, entries, message):
    (tmp_path / "w").write_bytes(bytes(8))
    external_model(tmp_path / "m.onnx", **entries)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m.onnx")


def test_a_tensor_with_the_wrong_number_of_values_is_refused(tmp_path):
    for tensor in (
        TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)),
        TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2]),
        TensorProto(name="w", data_type=7, dims=[3], int64_data=[1, 2]),
        TensorProto(name="w", data_type=7, dims=[3], int64_data=[-1]),
        TensorProto(name="w", data_type=7, dims=[-3], int64_data=[-1]),
        TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 40], raw_data=bytes(8)),
        TensorProto(name="w", data_type=1, dims=[3]),
    ):
        (tmp_path / "m.onnx").write_bytes(make_model([tensor]).SerializeToString())
        with pytest.raises(CheckpointError, match=r"fewer or more|impossible shape"):
            read_all(tmp_path / "m.onnx")


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(make_model([numpy_helper.from_array(W1, "w")] * 2).SerializeToString())
    with pytest.raises(CheckpointError, match="two values are called 'w'"):
        open_checkpoint(tmp_path / "m.onnx")


def test_truncated_models_are_refused_at_any_length(tmp_path):
    whole = network().SerializeToString()
    for length in [*range(1, 60), *range(60, len(whole), 997), len(whole) - 1]:
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not an ONNX model"):
            open_checkpoint(tmp_path / "m.onnx")


def test_a_damaged_stored_graph_is_damage_and_writes_nothing(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    with open_checkpoint(tmp_path / "m.onnx") as reader:
        specs, extra = reader.specs, reader.extra
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "m.onnx"

    def create(extra, specs=specs):
        create_checkpoint(target, kind="onnx", specs=specs, extra=extra, extra_kind="onnx").abort()

    create(extra)
    nested = b""
    for _ in range(200):  # graph > node > attribute > graph ...
        nested = onnx_module.wire.bytes_field(
            1, onnx_module.wire.bytes_field(5, onnx_module.wire.bytes_field(6, nested))
        )
    nested = b"\x08\x08" + onnx_module.wire.bytes_field(7, nested)
    cases = [(extra[:n], specs) for n in range(1, len(extra), 101)]
    cases += [(b"\xff" * 50, specs), (nested, specs), (extra, specs[:-1]), (extra, specs[::-1])]
    cases += [(extra, [*specs[:-1], TensorSpec("condition", F4, ())])]
    cases += [(extra, [*specs[:-1], TensorSpec("condition", np.dtype(bool), (1,))])]
    for bad, some in cases:
        with pytest.raises(DamagedFileError):
            create(bad, some)
    assert list(target.parent.iterdir()) == []


def test_mutated_graphs_either_write_a_model_or_are_refused_as_damage(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    with open_checkpoint(tmp_path / "m.onnx") as reader:
        specs, extra = reader.specs, reader.extra
    rng = np.random.default_rng(0)
    (tmp_path / "out").mkdir()
    for position in rng.integers(0, len(extra), 400):
        changed = bytearray(extra)
        changed[position] = rng.integers(0, 256)
        with contextlib.suppress(DamagedFileError):
            create_checkpoint(
                tmp_path / "out" / "m.onnx", kind="onnx", specs=specs, extra=bytes(changed), extra_kind="onnx"
            ).abort()
    assert list((tmp_path / "out").iterdir()) == []


def weights(seed, shape=(16, 64)):
    return np.random.default_rng(seed).standard_normal(shape).astype(F4)


def branch(name, seed, constant=False):
    """A graph with a weight of its own, as an initializer or a Constant, called ``w`` in every branch."""
    tensor, nodes = numpy_helper.from_array(weights(seed), "w"), []
    if constant:
        nodes = [helper.make_node("Constant", [], ["w"], value=tensor)]
    nodes.append(helper.make_node("Identity", ["w"], [f"{name}.out"]))
    out = helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, [16, 64])
    return helper.make_graph(nodes, name, [], [out], initializer=[] if constant else [tensor])


def nested():
    """Weights in the branches of an If, in a Loop's body, in an If in that, in a function, and sparse ones."""
    inner = helper.make_node(
        "If", ["go"], ["picked"], then_branch=branch("a", 1), else_branch=branch("b", 2, constant=True)
    )
    body = helper.make_graph(
        [
            inner,
            helper.make_node("Add", ["before", "step"], ["half"]),
            helper.make_node("Add", ["half", "picked"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [16, 64]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [16, 64]),
        ],
        initializer=[numpy_helper.from_array(weights(3), "step")],
    )
    function = helper.make_function(
        "own",
        "Shift",
        ["x"],
        ["y"],
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights(4))),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Loop", ["count", "go", "w"], ["looped"], body=body),
        helper.make_node("Shift", ["looped"], ["shifted"], domain="own"),
        helper.make_node("MatMul", ["x", "shifted"], ["y"]),
    ]
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(weights(5, (300,)), "sparse"),
        numpy_helper.from_array(np.arange(300, dtype=np.int64) * 2),
        [600],
    )
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        initializer=[
            numpy_helper.from_array(weights(0), "w"),
            numpy_helper.from_array(np.int64(2), "count"),
            numpy_helper.from_array(np.bool_(True), "go"),
        ],
        sparse_initializer=[sparse],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[function])


NESTED = {"w~2": 2, "w~3": 1, "step": 3, "w": 0, "sparse": 5, "w~4": 4}


def test_weights_in_branches_loops_and_functions_are_taken_out_and_put_back(tmp_path):
    onnx.save(nested(), tmp_path / "source.onnx")
    found = read_all(tmp_path / "source.onnx")
    assert set(found) == {*NESTED, "count", "go", "sparse.indices"}
    for name, seed in NESTED.items():
        assert found[name].tobytes() == weights(seed, found[name].shape).tobytes(), name
    copy(tmp_path / "source.onnx", tmp_path / "target.onnx")
    assert onnx.load(tmp_path / "target.onnx") == onnx.load(tmp_path / "source.onnx")
    with open_checkpoint(tmp_path / "source.onnx") as reader:
        assert len(reader.extra) < 2500


def test_weights_in_branches_count_and_are_compressed(tmp_path):
    onnx.save(nested(), tmp_path / "m.onnx")
    _, report = deepcabac.compress_checkpoint(tmp_path / "m.onnx")
    assert report.raw_bytes == 5 * 16 * 64 * 4 + 300 * 4 + 300 * 8 + 8 + 1
    assert report.file_bytes < report.raw_bytes / 4
    (tmp_path / "m.onnx").unlink()
    deepcabac.decompress_checkpoint(tmp_path / "m.dcb")
    error = read_all(tmp_path / "m.onnx")["w~3"] - weights(1)
    assert 0 < np.square(error).sum() < np.square(weights(1)).sum() / 800


def test_a_stored_graph_with_two_weights_of_one_name_in_the_main_graph_is_damage(tmp_path):
    twice = make_model([numpy_helper.from_array(W1, "w"), numpy_helper.from_array(W2, "v")])
    onnx.save(twice, tmp_path / "m.onnx")
    with open_checkpoint(tmp_path / "m.onnx") as reader:
        specs, extra = reader.specs, reader.extra
    with pytest.raises(DamagedFileError):
        create_checkpoint(
            tmp_path / "n.onnx", kind="onnx", specs=specs, extra=extra.replace(b"B\x01v", b"B\x01w"), extra_kind="onnx"
        )
