"""What checkpoints say of their tensors: optimizer state in PyTorch files, weights and constants in ONNX graphs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepcabac
from deepcabac.checkpoint import open_checkpoint
from deepcabac.checkpoint.base import CONSTANT, OPTIMIZER, WEIGHT
from deepcabac.dcb import writer
from deepcabac.options import Options

F4 = np.float32


def roles_of(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as source:
        return source.roles()


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def trained(make: Any) -> tuple[Any, Any]:
    """A small model after two steps of an optimizer."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.ReLU(), torch.nn.Linear(32, 24))
    optimizer = make(torch, model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "Adam": lambda torch, p: torch.optim.Adam(p, amsgrad=True),
    "SGD": lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "RMSprop": lambda torch, p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "Adagrad": lambda torch, p: torch.optim.Adagrad(p),
    "Adadelta": lambda torch, p: torch.optim.Adadelta(p),
    "Adafactor": lambda torch, p: torch.optim.Adafactor(p),
    "Rprop": lambda torch, p: torch.optim.Rprop(p),
    "ASGD": lambda torch, p: torch.optim.ASGD(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_from_a_compressed_checkpoint_whatever_the_optimizer(name, tmp_path):
    torch = pytest.importorskip("torch")
    model, optimizer = trained(OPTIMIZERS[name])
    whole = {"net": model.state_dict(), "foo": optimizer.state_dict(), "epoch": 3}
    torch.save(whole, tmp_path / "a.pt")
    _, result = deepcabac.compress_checkpoint(tmp_path / "a.pt")
    deepcabac.decompress_checkpoint(tmp_path / "a.dcb", tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert back["foo"].keys() == whole["foo"].keys() and back["foo"]["param_groups"] == whole["foo"]["param_groups"]
    for number, state in whole["foo"]["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(back["foo"]["state"][number][key]), torch.as_tensor(value))
    assert not torch.equal(back["net"]["0.weight"], whole["net"]["0.weight"])
    assert len([note for note in result.notes if note.startswith("optimizer state is kept exactly")]) == 1


def test_optimizer_state_is_found_by_its_structure_wherever_it_is(tmp_path):
    torch = pytest.importorskip("torch")
    model, optimizer = trained(OPTIMIZERS["Adam"])
    whole = {"m": {"net": model.state_dict()}, "list": [optimizer.state_dict(), {"x": torch.ones(3)}], "lr": 0.1}
    torch.save(whole, tmp_path / "a.pt")
    found = roles_of(tmp_path / "a.pt")
    assert set(found.values()) == {OPTIMIZER} and all(name.startswith("list.0.state.") for name in found)
    assert len(found) == 4 * 4


def test_dropping_the_optimizer_leaves_a_checkpoint_without_its_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    model, optimizer = trained(OPTIMIZERS["Adam"])
    whole = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "states": [optimizer.state_dict()],
        "mean": torch.ones(5),
        "empty": {},
    }
    torch.save(whole, tmp_path / "a.pt")
    deepcabac.compress_checkpoint(tmp_path / "a.pt", optimizer="drop")
    deepcabac.decompress_checkpoint(tmp_path / "a.dcb", tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(back) == ["model", "epoch", "mean", "empty"] and back["epoch"] == 3
    assert back["model"].keys() == whole["model"].keys()
    model.load_state_dict(back["model"])
    dcb = pytest.importorskip("deepcabac.torch")
    dcb.save_model(whole, tmp_path / "c.dcb", optimizer="drop")
    assert list(dcb.load_model(tmp_path / "c.dcb")) == ["model", "epoch", "mean", "empty"]


def test_dropping_works_in_flat_dicts_and_shards(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    flat = {"w": torch.randn(40, 40), "optimizer.state.0.exp_avg": torch.randn(40, 40), "v": torch.randn(40, 40)}
    torch.save(flat, tmp_path / "a.pt")
    deepcabac.compress_checkpoint(tmp_path / "a.pt", optimizer="drop")
    deepcabac.decompress_checkpoint(tmp_path / "a.dcb", tmp_path / "b.pt")
    assert list(torch.load(tmp_path / "b.pt", weights_only=True)) == ["w", "v"]
    first, second = (f"m-0000{number}-of-00002.safetensors" for number in (1, 2))
    shards = {first: ("w", "optimizer.state.0.exp_avg"), second: ("v",)}
    for shard, names in shards.items():
        save_file({name: flat[name] for name in names}, tmp_path / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (tmp_path / "m.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": ' + str(weight_map).replace("'", '"') + "}"
    )
    deepcabac.compress_checkpoint(tmp_path / "m.safetensors.index.json", optimizer="drop")
    (tmp_path / "out").mkdir()
    deepcabac.decompress_checkpoint(tmp_path / "m.dcb", tmp_path / "out" / "m.safetensors.index.json")
    with open_checkpoint(tmp_path / "out" / "m.safetensors.index.json") as source:
        assert [spec.name for spec in source.specs] == ["w", "v"]


def test_equal_tensors_of_a_checkpoint_are_stored_once_and_share_no_memory_afterwards(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.randn(64, 64)
    torch.save({"a": weight, "b": weight.clone(), "c": weight}, tmp_path / "a.pt")
    _, result = deepcabac.compress_checkpoint(tmp_path / "a.pt")
    assert [one.method for one in result.tensors] == ["quantized", "equal", "tied"]
    deepcabac.decompress_checkpoint(tmp_path / "a.dcb", tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    places = [back[name].untyped_storage().data_ptr() for name in "abc"]
    assert places[0] == places[2] != places[1] and torch.equal(back["a"], back["b"])
    dcb = pytest.importorskip("deepcabac.torch")
    loaded = dcb.load_model(tmp_path / "a.dcb")
    places = [loaded[name].untyped_storage().data_ptr() for name in "abc"]
    assert places[0] == places[2] != places[1]
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 64), "b": torch.nn.Linear(64, 64)})
    model["b"].load_state_dict(model["a"].state_dict())
    dcb.save_model(model, tmp_path / "m.dcb")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    dcb.load_model(tmp_path / "m.dcb", model)
    assert torch.equal(model["a"].weight, model["b"].weight) and model["b"].weight.abs().max() > 0
    assert model["a"].weight.data_ptr() != model["b"].weight.data_ptr()


# --- ONNX ------------------------------------------------------------------------------------------------------------


def graph(nodes: list[Any], constants: dict[str, Any], functions: Any = ()) -> Any:
    onnx = pytest.importorskip("onnx")
    given = [onnx.helper.make_tensor_value_info("x", 1, None)]
    made = [onnx.helper.make_tensor_value_info("y", 1, None)]
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", given, made, initializers), functions=functions)


def save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(F4)


def test_a_graph_tells_weights_from_constants(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    nodes = [
        node("Constant", [], ["points"], value=onnx.numpy_helper.from_array(normal(40, 40), "ignored")),
        node("Conv", ["x", "kernel"], ["a"]),
        node("Transpose", ["tied"], ["tied.T"], perm=[1, 0]),
        node("MatMul", ["a", "tied.T"], ["b"]),
        node("Gather", ["table", "a"], ["c"]),
        node("Mul", ["gain", "direction"], ["normed"]),
        node("Conv", ["c", "normed"], ["d"]),
        node("QuantizeLinear", ["real", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["fake"]),
        node("Gemm", ["d", "fake", "bias"], ["e"]),
        node("Mul", ["styled", "e"], ["modulated"]),
        node("Conv", ["e", "modulated"], ["f"]),
        node("Sub", ["f", "points"], ["g"]),
        node("Mul", ["g", "strides"], ["h"]),
        node("MatMul", ["h", "projection"], ["i"]),
        node("MatMul", ["j0", "k0"], ["unused"]),
        node("LSTM", ["i", "input", "recurrent"], ["y"]),
    ]
    nodes.insert(15, node("Add", ["i", "positions"], ["j0"]))
    nodes.insert(16, node("Sub", ["i", "other"], ["k0"]))
    weights = ["kernel", "tied", "table", "gain", "direction", "real", "styled", "projection", "input", "recurrent"]
    constants = ["scale", "bias", "strides", "positions", "other"]
    values = {name: normal(40, 40) for name in [*weights, *constants]} | {"zero": np.zeros((40, 40), np.int8)}
    found = roles_of(save(graph(nodes, values), tmp_path / "a.onnx"))
    # The scale of fake quantisation is what a weight is made of, as the gain of weight_norm is; both are vectors.
    expected = dict.fromkeys([*weights, "scale", "zero"], WEIGHT) | dict.fromkeys([*constants[1:], "points"], CONSTANT)
    assert found == expected


def test_what_other_operators_do_is_not_known_and_a_graph_without_weights_tells_nothing(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    fused = node("FusedConv", ["x", "w"], ["a"], domain="com.microsoft")
    model = graph([fused, node("MatMul", ["a", "v"], ["y"])], {"w": normal(40, 40), "v": normal(40, 40)})
    assert roles_of(save(model, tmp_path / "a.onnx")) == {"v": WEIGHT}
    alone = save(graph([node("Add", ["x", "w"], ["y"])], {"w": normal(40, 40)}), tmp_path / "b.onnx")
    assert roles_of(alone) == {}


def test_weights_used_in_branches_are_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    own = onnx.numpy_helper.from_array(normal(40, 40), "own")
    branch = onnx.helper.make_graph([node("MatMul", ["x", "outer"], ["t"])], "t", [], [info("t", 1, None)])
    other = onnx.helper.make_graph([node("MatMul", ["x", "own"], ["e"])], "e", [], [info("e", 1, None)], [own])
    nodes = [node("If", ["c"], ["a"], then_branch=branch, else_branch=other), node("Add", ["a", "grid"], ["y"])]
    values = {"outer": normal(40, 40), "grid": normal(40, 40), "c": np.array(True)}
    found = roles_of(save(graph(nodes, values), tmp_path / "a.onnx"))
    assert found == {"outer": WEIGHT, "own": WEIGHT, "grid": CONSTANT, "c": CONSTANT}


def test_equal_weights_of_a_graph_are_stored_once(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "v"], ["y"])]
    path = save(graph(nodes, {"w": normal(40, 40), "v": normal(40, 40)}), tmp_path / "a.onnx")
    _, result = deepcabac.compress_checkpoint(path)
    assert [one.method for one in result.tensors] == ["quantized", "equal"]
    deepcabac.decompress_checkpoint(tmp_path / "a.dcb", tmp_path / "b.onnx")
    back = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "b.onnx").graph.initializer]
    assert (back[0] == back[1]).all()


def test_constants_of_a_graph_come_back_exactly_and_weights_do_not(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "grid"], ["y"])]
    path = save(graph(nodes, {"w": normal(40, 40), "grid": normal(40, 40)}), tmp_path / "a.onnx")
    with open_checkpoint(path) as source:
        result = writer.compress(source, io.BytesIO(), Options())
    assert {one.name: one.reason for one in result.tensors} == {"w": "", "grid": "a constant of the graph"}


def test_the_optimizer_can_be_dropped_on_the_command_line_but_not_from_a_nnc_file(tmp_path):
    torch = pytest.importorskip("torch")
    from command_line import run

    model, optimizer = trained(OPTIMIZERS["Adam"])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    kept = run("compress", str(tmp_path / "a.pt"), "-o", str(tmp_path / "kept.dcb"))
    assert kept.stderr.startswith("note: optimizer state is kept exactly: ") and kept.stderr.count("\n") == 1
    dropped = run("compress", str(tmp_path / "a.pt"), "-o", str(tmp_path / "dropped.dcb"), "--optimizer", "drop")
    assert (dropped.exit_code, dropped.stderr) == (0, "")
    refused = run("compress", str(tmp_path / "a.pt"), "-o", str(tmp_path / "a.nnc"), "--optimizer", "drop")
    assert refused.exit_code == 2 and refused.stderr.startswith("error: --optimizer is for .dcb files")
