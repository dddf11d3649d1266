"""Five trained networks as PyTorch modules, with the samples that calibrate them and the test that measures them.

The modules' parameters have the checkpoints' names. Those of the image networks come from the shared evaluation
scripts; MiniLM and stories260K, which those scripts write as functions, are modules here. What measures a network is
always its script's own function, called in this process on the decoded tensors: a module only serves to calibrate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import _common
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

import deepcabac.torch
from deepcabac.checkpoint import open_checkpoint

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
SEED = 0
#: Of CIFAR-10's images, as the evaluation script normalises them.
CIFAR_MEAN, CIFAR_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Measured:
    """What a test says."""

    value: float
    logits: Tensor | None = None  #: [samples, classes], of classifiers


@dataclass(frozen=True)
class Trained:
    """A network, ready to be calibrated, compressed and measured."""

    model: nn.Module  #: in eval mode, with the checkpoint's weights
    checkpoint: Path
    tensors: dict[str, Array]  #: all of the checkpoint's
    batches: Callable[[int], list[Any]]  #: so many samples in batches that the model takes; never of the test's data
    measure: Callable[[Arrays], Measured]  #: the test, with these tensors


def folded(trained: Trained) -> Trained:
    """The same network with its batch norms folded into the convolutions before them."""
    model = deepcabac.torch.fold_batch_norm(trained.model, trained.batches(2)[0])
    values = {name: value.numpy() for name, value in model.state_dict().items() if name in trained.tensors}
    return replace(trained, model=model, tensors={name: values.get(name, one) for name, one in trained.tensors.items()})


def divergence(original: Tensor, other: Tensor) -> float:
    """Mean over samples of the Kullback-Leibler divergence of ``other``'s classes from ``original``'s, in nats.

    Both are logits, [samples, classes].
    """
    one, two = (functional.log_softmax(logits.double(), dim=1) for logits in (original, other))
    return float((one.exp() * (one - two)).sum(dim=1).mean())


# The image networks


def resnet(models: Path, depth: int) -> Trained:
    """ResNet-20 or ResNet-56 on CIFAR-10; calibrated with training images."""
    folder, data = models / "cifar10_resnet", models.parent / "data"
    script = _script(folder)
    checkpoint = folder / f"resnet{depth}.safetensors"
    tensors = _read(checkpoint)

    def batches(samples: int) -> list[Tensor]:
        with np.load(data / "cifar10_calibration.npz") as archive:
            images = archive["x"]  # uint8 [n, 32, 32, 3], sorted by class
        chosen = torch.from_numpy(images[_shuffled(len(images), samples)]).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(three)[:, None, None] for three in (CIFAR_MEAN, CIFAR_DEVIATION))
        return list(torch.split((chosen - mean) / deviation, 100))

    def measure(arrays: Arrays) -> Measured:
        test = data / "cifar10_test.npz"
        return _classify(_filled(script.Net(depth), arrays), lambda net: script.evaluate(net, test))

    return Trained(_filled(script.Net(depth), tensors), checkpoint, tensors, batches, measure)


def lite0(models: Path) -> Trained:
    """EfficientNet-Lite0 on ImageNet; calibrated with the 200 images that its test leaves out."""
    folder = models / "efficientnet_lite0"
    script = _script(folder)
    checkpoint = folder / "efficientnet_lite0.safetensors"
    tensors = _read(checkpoint)

    def batches(samples: int) -> list[Tensor]:
        images, _ = script.images("calibration")
        return list(torch.split(script.prepare(images[_shuffled(len(images), samples)]), 20))

    def measure(arrays: Arrays) -> Measured:
        return _classify(_filled(script.Net(0), arrays), lambda net: script.evaluate(net, "evaluation")[0])

    return Trained(_filled(script.Net(0), tensors), checkpoint, tensors, batches, measure)


# all-MiniLM-L6-v2


class MiniLM(nn.Module):
    """BERT of 6 layers of 384; the mean of the last states is the sentence's embedding, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings(words=30522, positions=512, kinds=2, width=384)
        self.encoder = Encoder(layers=6, width=384, heads=12, hidden=1536)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``ids`` and ``mask`` (1 for words, 0 for padding): [sentences, length]. Returns [sentences, width]."""
        states = self.encoder(self.embeddings(ids), mask)  # [sentences, length, width]
        present = mask[:, :, None].to(states.dtype)
        return functional.normalize((states * present).sum(dim=1) / present.sum(dim=1), dim=1)


class Embeddings(nn.Module):
    """The sum of a word's, its position's and its kind's (here always 0) embedding."""

    def __init__(self, words: int, positions: int, kinds: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(kinds, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        # Looked up for each sentence, though all have the same: calibration counts samples one by one.
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        states = self.word_embeddings(ids) + self.position_embeddings(positions)
        normed: Tensor = self.LayerNorm(states + self.token_type_embeddings(torch.zeros_like(ids)))
        return normed


class Encoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([EncoderLayer(width, heads, hidden) for _ in range(layers)])

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            states = layer(states, mask)
        return states


class EncoderLayer(nn.Module):
    """Attention, then two dense layers."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = AddAndNorm(hidden, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = self.attention(states, mask)
        added: Tensor = self.output(functional.gelu(self.intermediate["dense"](states)), states)
        return added


class Attention(nn.Module):
    """Attention, its projection, and the sum with what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self = SelfAttention(width, heads)  # the checkpoint's name
        self.output = AddAndNorm(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        added: Tensor = self.output(self.self(states, mask), states)
        return added


class SelfAttention(nn.Module):
    """Attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part(states).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # [sentences, heads, length, width / heads]
        away = (1 - mask[:, None, None, :].to(states.dtype)) * -1e9
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=away)
        return mixed.transpose(1, 2).flatten(2)


class AddAndNorm(nn.Module):
    """A dense layer, added to what came in, normed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.LayerNorm = nn.LayerNorm(outputs, eps=1e-12)

    def forward(self, states: Tensor, added: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(added + self.dense(states))
        return normed


def minilm(models: Path) -> Trained:
    """all-MiniLM-L6-v2 on STS-B's test sentences; calibrated with those of its dev set."""
    checkpoint = _common.minilm_path()
    script = _script(models / "minilm")
    tensors = _read(checkpoint)
    # The test needs no pooler and no list of positions; they are in the file and count.
    unused = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

    def batches(samples: int) -> list[tuple[Tensor, Tensor]]:
        first, second, _ = script.load_data("dev")
        sentences = first + second
        # Of about the same length in a batch: little padding.
        chosen = sorted((sentences[index] for index in _shuffled(len(sentences), samples)), key=len)
        tokenizer = script.Tokenizer.from_file(str(checkpoint.with_name("tokenizer.json")))
        tokenizer.enable_truncation(128)
        tokenizer.enable_padding()
        found = []
        for start in range(0, len(chosen), 50):
            coded = tokenizer.encode_batch(chosen[start : start + 50])
            ids, mask = ([getattr(one, field) for one in coded] for field in ("ids", "attention_mask"))
            found.append((torch.tensor(ids), torch.tensor(mask)))
        return found

    def measure(arrays: Arrays) -> Measured:
        return Measured(float(script.evaluate(_tensors(arrays), "test")[0]))

    return Trained(_filled(MiniLM(), tensors, unused), checkpoint, tensors, batches, measure)


# stories260K


class Stories(nn.Module):
    """A Llama of 5 layers of 64 that writes stories."""

    def __init__(self, words: int = 512, width: int = 64, layers: int = 5, heads: int = 8) -> None:
        super().__init__()
        self.turning = width // heads // 2  # pairs of each head
        self.tok_embeddings = nn.Embedding(words, width)
        self.layers = nn.ModuleList([StoriesLayer(width, heads, heads // 2, hidden=172) for _ in range(layers)])
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, words, bias=False)
        self.output.weight = self.tok_embeddings.weight

    def forward(self, ids: Tensor) -> Tensor:
        """``ids`` [sequences, length]. Returns the next tokens' logits, [sequences, length, vocabulary]."""
        states = self.tok_embeddings(ids)
        angles = torch.outer(torch.arange(ids.shape[1]), 10000 ** (-torch.arange(self.turning) / self.turning))
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # [length, 1, pairs], complex
        for layer in self.layers:
            states = layer(states, turns)
        logits: Tensor = self.output(self.norm(states))
        return logits


class StoriesLayer(nn.Module):
    """Attention and a gated pair of dense layers, each added to what came in."""

    def __init__(self, width: int, heads: int, key_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = GroupedAttention(width, heads, key_heads)
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.feed_forward = GatedLayers(width, hidden)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, states: Tensor, turns: Tensor) -> Tensor:
        states = states + self.attention(self.attention_norm(states), turns)
        added: Tensor = states + self.feed_forward(self.ffn_norm(states))
        return added


class GroupedAttention(nn.Module):
    """Causal attention with rotated queries and keys, two heads of queries to one of keys and values."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        narrow = width // heads * key_heads
        self.wq, self.wo = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(width, narrow, bias=False) for _ in range(2))

    def forward(self, states: Tensor, turns: Tensor) -> Tensor:
        query = _rotated(self.wq(states).unflatten(2, (self.heads, -1)), turns)
        key = _rotated(self.wk(states).unflatten(2, (self.key_heads, -1)), turns)
        value = self.wv(states).unflatten(2, (self.key_heads, -1))  # [sequences, length, heads, width / heads]
        key, value = (part.repeat_interleave(self.heads // self.key_heads, dim=2) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )
        projected: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return projected


class GatedLayers(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.w2(functional.silu(self.w1(states)) * self.w3(states))
        return out


def _rotated(states: Tensor, turns: Tensor) -> Tensor:
    """Neighbouring pairs of ``states`` [sequences, length, heads, 2 * pairs] as complex numbers times ``turns``."""
    pairs = torch.view_as_complex(states.reshape(*states.shape[:3], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3)


def stories(models: Path, cache: Path | None = None) -> Trained:
    """stories260K on all the text there is of it; calibrated with stories that it tells itself, kept in ``cache``."""
    folder = models / "stories260k"
    script = _script(folder)
    checkpoint = folder / "stories260K.safetensors"
    tensors = _read(checkpoint)
    model = _filled(Stories(), tensors)

    def batches(samples: int) -> list[Tensor]:
        length = 256
        kept = cache and cache / f"stories260k-{samples}x{length}-seed{SEED}.npy"
        if kept and kept.exists():
            ids = torch.from_numpy(np.load(kept))
        else:
            ids = told(model, samples, length)
            if kept:
                np.save(kept, ids.numpy())
        return list(torch.split(ids, 16))

    def measure(arrays: Arrays) -> Measured:
        return Measured(float(script.evaluate(_tensors(arrays))[1]))

    return Trained(model, checkpoint, tensors, batches, measure)


@torch.no_grad()
def told(model: nn.Module, samples: int, length: int) -> Tensor:
    """Token ids [samples, length] drawn from the model's own predictions (temperature 1), token 1 first."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.ones(samples, 1, dtype=torch.long)
    while ids.shape[1] < length:
        likely = model(ids)[:, -1].softmax(dim=1)
        ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return ids


# What they share


def _script(folder: Path) -> ModuleType:
    """A network's evaluation script as a module."""
    path = folder / "eval.py"
    spec = importlib.util.spec_from_file_location(f"eval_{folder.name}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is missing: --models says where the networks are")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(path: Path) -> dict[str, Array]:
    with open_checkpoint(path) as checkpoint:
        return {spec.name: checkpoint.read(spec.name) for spec in checkpoint.specs}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _filled(model: nn.Module, arrays: Arrays, unused: tuple[str, ...] = ()) -> nn.Module:
    """The model with these values, in eval mode. Raises SystemExit if the names are not those it needs."""
    missing, unexpected = model.load_state_dict(_tensors(arrays), strict=False)
    # Batch norms count batches for training only; a tied weight is loaded under its other name.
    shared = {id(value) for name, value in model.state_dict(keep_vars=True).items() if name in arrays}
    needed = [
        name
        for name in missing
        if not name.endswith(".num_batches_tracked") and id(model.state_dict(keep_vars=True)[name]) not in shared
    ]
    if needed or set(unexpected) - set(unused):
        raise SystemExit(f"the checkpoint lacks {needed} or has more than the model: {unexpected}")
    return model.eval()


def _shuffled(count: int, samples: int) -> npt.NDArray[np.int64]:
    """``samples`` different indices below ``count``, always the same ones."""
    if samples > count:
        raise SystemExit(f"{samples} samples are asked for, and there are {count}")
    return np.random.default_rng(SEED).permutation(count)[:samples]


def _classify(model: nn.Module, evaluate: Callable[[nn.Module], float]) -> Measured:
    """What ``evaluate`` says of the model, and the logits that went by meanwhile."""
    logits: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, inputs, output: logits.append(output))
    with hook:
        value = float(evaluate(model))
    return Measured(value, torch.cat(logits))
