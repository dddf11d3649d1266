"""The example of federated learning: its app for Flower, with the messages passed by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("flwr", minversion="1.32")

from flwr.common import Context, RecordDict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "federated"


class Grid:
    """Two clients, each with what it remembers."""

    def __init__(self, app):
        self.app = app
        self.contexts = {
            node: Context(1, node, {"partition-id": node - 1, "num-partitions": 2}, RecordDict(), {})
            for node in (1, 2)
        }

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages):
        return [self.app.client(message, self.contexts[message.metadata.dst_node_id]) for message in messages]


@pytest.fixture
def app():
    spec = importlib.util.spec_from_file_location("federated", FOLDER / "federated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compressed_updates_train_as_raw_ones_do_with_fewer_bytes(app, tmp_path, monkeypatch):
    for name in ("run_id", "node_id", "task_id"):  # as in a run
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity._{name}", 1)
    rng = np.random.default_rng(0)
    for part, count in (("train", 2000), ("test", 500)):
        labels = rng.integers(0, 10, count)
        images = np.zeros((count, 784), np.uint8)
        for digit in range(10):  # a patch of its own for each class, in noise
            images[labels == digit, 78 * digit : 78 * digit + 60] = 200
        np.savez(tmp_path / f"mnist_{part}.npz", x=images + rng.integers(0, 50, images.shape, np.uint8), y=labels)
    raw = app.run(Grid(app), str(tmp_path), 3, False)
    small = app.run(Grid(app), str(tmp_path), 3, True)
    assert raw[-1][2] > 95 and small[-1][2] > 90
    assert sum(up + down for up, down, _ in small) < sum(up + down for up, down, _ in raw) / 20


def test_the_app_names_what_is_there(app):
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    components = project["tool"]["flwr"]["app"]["components"]
    for one in components.values():
        module, name = one.split(":")
        assert (FOLDER / f"{module}.py").exists() and hasattr(app, name)
    assert {"data", "rounds"} == set(project["tool"]["flwr"]["app"]["config"])
