"""Federated learning with Flower: updates compressed up and down, errors accumulated.

    pip install "flwr[simulation]" torch deepcabac
    flwr run examples/federated --stream --federation-config "num-supernodes=2" --run-config "data='FOLDER' rounds=10"

FOLDER, a whole path, holds MNIST as mnist_train.npz and mnist_test.npz (x: uint8 [n, 28, 28] or [n, 784], y). Two
clients have half of the training images each, train LeNet-300-100 for an epoch a round and send what changed; the
server sends everyone the mean of that. Both run in Flower's simulation on this machine, once with raw float32 arrays,
once compressed; the server prints a table of both.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.clientapp import ClientApp
from flwr.common import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import nn
from torch.nn import functional

import deepcabac

Arrays = dict[str, npt.NDArray[np.float32]]
CLIENTS = 2
#: At 5 dB an update lacks a third of its energy, which comes with the next ones.
SETTINGS: dict[str, Any] = {"sqnr": 5, "overrides": {"*.bias": {"exact": False}}, "threads": 1}


def network() -> nn.Sequential:
    """LeNet-300-100, the same for all at the start."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def weights(model: nn.Module) -> Arrays:
    """Copies of all parameters."""
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def images(data: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST's images as [n, 784] from 0 to 1, and labels."""
    with np.load(Path(data) / f"mnist_{part}.npz") as archive:
        x, y = archive["x"], archive["y"]
    return torch.from_numpy(x.reshape(len(x), 784)).float() / 255, torch.from_numpy(y.astype(np.int64))


class Channel:
    """One direction of one connection: arrays to bytes, raw or compressed."""

    def __init__(self, compressed: bool, dropped: Arrays | None = None) -> None:
        self.accumulation = deepcabac.ErrorAccumulation() if compressed else None
        if self.accumulation:
            self.accumulation.dropped = dict(dropped or {})

    def send(self, update: Arrays) -> bytes:
        """The bytes to send."""
        return self.accumulation.compress(update, **SETTINGS) if self.accumulation else packed(update)


def packed(arrays: Arrays) -> bytes:
    """Arrays as they are."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def received(data: bytes, compressed: bool) -> Arrays:
    """The arrays that were sent."""
    if compressed:
        return deepcabac.decompress(data, threads=1)
    with np.load(io.BytesIO(data)) as archive:
        return {name: archive[name] for name in archive.files}


def sum_of(one: Arrays, other: Arrays) -> Arrays:
    """Name by name."""
    return {name: one[name] + other[name] for name in one}


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take in the server's update, train an epoch, send back what that changed."""
    torch.set_num_threads(1)
    given = message.content["round"]
    number, compressed = int(given["number"]), bool(given["compressed"])
    # What a client remembers from round to round: the model as the server thinks it has it, and what it still owes.
    memory = context.state.get("memory")
    known = weights(network()) if number == 1 else received(memory["model"], False)
    owed = received(memory["owed"], False) if number > 1 and compressed else {}
    if given["update"]:
        known = sum_of(known, received(given["update"], compressed))
    model = network()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in known.items()})
    x, y = images(str(given["data"]), "train")
    share = int(context.node_config["partition-id"])
    x, y = x[share::CLIENTS], y[share::CLIENTS]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    torch.manual_seed(1000 * number + share)
    for chosen in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    trained = weights(model)
    channel = Channel(compressed, owed)
    data = channel.send({name: trained[name] - known[name] for name in known})
    left = channel.accumulation.dropped if channel.accumulation else {}
    context.state["memory"] = ConfigRecord({"model": packed(known), "owed": packed(left)})
    return Message(RecordDict({"reply": ConfigRecord({"update": data})}), reply_to=message)


def run(grid: Grid, data: str, rounds: int, compressed: bool) -> list[tuple[int, int, float]]:
    """Bytes up, bytes down (to and from all clients) and test accuracy in % of each round."""
    results: list[tuple[int, int, float]] = []
    model, update = weights(network()), b""
    channel = Channel(compressed)
    x, y = images(data, "test")
    nodes = clients(grid)
    for number in range(1, rounds + 1):
        given = {"number": number, "compressed": compressed, "update": update, "data": data}
        messages = [Message(RecordDict({"round": ConfigRecord(given)}), node, "train") for node in nodes]
        replies = [reply.content["reply"]["update"] for reply in grid.send_and_receive(messages)]
        updates = [received(reply, compressed) for reply in replies]
        mean = {name: np.mean([one[name] for one in updates], axis=0) for name in model}
        down = len(update) * len(nodes)
        update = channel.send(mean)
        # The server goes on from what the clients will have.
        model = sum_of(model, received(update, compressed))
        net = network()
        net.load_state_dict({name: torch.from_numpy(value) for name, value in model.items()})
        with torch.no_grad():
            accuracy = 100 * float((net(x).argmax(dim=1) == y).float().mean())
        results.append((sum(map(len, replies)), down, accuracy))
    return results


def clients(grid: Grid) -> list[int]:
    """The clients, once all of them are there."""
    while len(nodes := list(grid.get_node_ids())) < CLIENTS:
        time.sleep(0.1)
    return nodes


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run both, print a table."""
    data, rounds = str(context.run_config["data"]), int(context.run_config["rounds"])
    raw, small = (run(grid, data, rounds, compressed) for compressed in (False, True))
    print(f"{'round':>5} {'up raw':>12} {'down raw':>12} {'accuracy':>9} {'up':>9} {'down':>9} {'accuracy':>9}")
    for number, (one, other) in enumerate(zip(raw, small, strict=True), start=1):
        print(f"{number:5} {one[0]:12,} {one[1]:12,} {one[2]:8.2f} % {other[0]:8,} {other[1]:9,} {other[2]:8.2f} %")
    before, after = (sum(up + down for up, down, _ in rows) for rows in (raw, small))
    print(f"all rounds: {before:,} bytes became {after:,}, {before / after:.1f} times fewer; ", end="")
    print(f"accuracy {raw[-1][2]:.2f} % and {small[-1][2]:.2f} %")
