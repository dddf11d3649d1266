"""Weights sent from a trainer to a sampler after every step: two processes, and a socket between them.

    python examples/publish.py [--steps 20] [--every 10] [--peers]

The trainer trains a small GPT on this project's own documents, its optimiser with weights in float32. The sampler has
the same network in bfloat16, gets the weights after each step, and measures with them: the loss that it prints is that
of text which is not trained on. What is sent is printed beside the whole weights as safetensors and, with ``--peers``,
beside zstd -3 of the bitwise XOR of the weights (the command ``zstd``).
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import socket
import struct
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcabac.torch import Publisher, apply

ROOT = Path(__file__).resolve().parents[1]
WIDTH, LAYERS, HEADS, CONTEXT = 256, 4, 4, 128
BATCH = 8


class Block(nn.Module):
    """Attention and a pair of dense layers, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        heads = self.mix(self.first(states)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        states = states + self.project(mixed.transpose(1, 2).flatten(2))
        narrowed: Tensor = self.narrow(functional.gelu(self.widen(self.second(states))))
        return states + narrowed


class Gpt(nn.Module):
    """A GPT of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.last = nn.LayerNorm(WIDTH)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of each byte after those before it. ``ids`` is [texts, CONTEXT + 1], int64."""
        states = self.bytes(ids[:, :-1]) + self.places.weight
        logits = self.last(self.blocks(states)) @ self.bytes.weight.T
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def texts() -> tuple[Tensor, Tensor]:
    """Bytes of this project's documents: what is trained on, and what is kept for measuring."""
    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    every = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    return every[:-20_000], every[-20_000:]


def batch(text: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Pieces of the text, [size, CONTEXT + 1]."""
    starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=generator)
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])


def digest(tensors: dict[str, Tensor]) -> bytes:
    """SHA-256 of all weights."""
    total = hashlib.sha256()
    for tensor in tensors.values():
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.digest()


def send(connection: socket.socket, data: bytes) -> None:
    """A message: its length, then its bytes."""
    connection.sendall(struct.pack("<Q", len(data)) + data)


def receive(connection: socket.socket) -> bytes:
    """The next message; empty after the last."""
    head = connection.recv(8, socket.MSG_WAITALL)
    return connection.recv(struct.unpack("<Q", head)[0], socket.MSG_WAITALL) if head else b""


def sampler(port: int) -> None:
    """The other process: takes each version, and answers with its digest, the seconds it took, and a loss."""
    torch.set_num_threads(1)
    model = Gpt().to(torch.bfloat16)
    _, text = texts()
    measured = batch(text, BATCH, torch.Generator().manual_seed(1))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while update := receive(connection):
            start = time.perf_counter()
            apply(update, model)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                loss = model.loss(measured).item()
            send(connection, digest(model.state_dict()) + struct.pack("<dd", seconds, loss))


def xor_bytes(old: dict[str, Tensor], new: dict[str, Tensor]) -> int:
    """Bytes of zstd -3 of the XOR."""
    words = [old[name].view(torch.int16) ^ new[name].view(torch.int16) for name in new]
    data = b"".join(word.numpy().tobytes() for word in words)
    return len(subprocess.run(["zstd", "-3", "-qc"], input=data, capture_output=True, check=True).stdout)


def main() -> None:
    """Train, publish, and print a line for each step."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--every", type=int, default=10, help="the whole model each so many versions")
    options.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    options.add_argument("--peers", action="store_true", help="compare with zstd -3 of the XOR")
    arguments = options.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, generator = Gpt(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate)
    publisher = Publisher(model, every=arguments.every, dtype=torch.bfloat16)
    text, _ = texts()
    server = socket.create_server(("127.0.0.1", 0))
    other = multiprocessing.get_context("spawn").Process(target=sampler, args=(server.getsockname()[1],))
    other.start()
    connection, _ = server.accept()

    raw = sum(2 * tensor.numel() for tensor in model.state_dict().values())
    print(f"{raw // 2:,} weights; safetensors in bfloat16 would take {raw:,} bytes a step")
    print(f"{'step':>4} {'trained':>8} {'sampler':>8} {'bytes':>10} {'%':>7} {'publish s':>10} {'apply s':>8}", end="")
    print(f" {'XOR + zstd':>11}" if arguments.peers else "")
    old: dict[str, Tensor] = {}
    for number in range(arguments.steps + 1):
        loss = model.loss(batch(text, BATCH, generator))
        start = time.perf_counter()
        update = publisher.publish()
        seconds = time.perf_counter() - start
        send(connection, update)
        answer = receive(connection)
        new = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
        if answer[:32] != digest(new):
            raise SystemExit("the sampler has other weights than the trainer")
        applied, measured = struct.unpack("<dd", answer[32:])
        line = f"{number:4} {loss.item():8.3f} {measured:8.3f} {len(update):10,} {100 * len(update) / raw:7.3f}"
        line += f" {seconds:10.3f} {applied:8.3f}"
        print(line + (f" {xor_bytes(old, new):11,}" if arguments.peers and old else ""), flush=True)
        old = new if arguments.peers else {}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    connection.close()
    other.join()


if __name__ == "__main__":
    main()
