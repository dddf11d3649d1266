"""Fixtures that several test files use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deepcabac


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a model, made small, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    model = {"a.weight": rng.standard_normal((64, 48)).astype(np.float32), "a.bias": np.arange(48, dtype=np.float32)}
    model |= {"b.weight": rng.standard_normal((300, 100)).astype(np.float16), "count": np.array(7)}
    np.savez("model.npz", **model)
    good = deepcabac.compress(model)
    Path("good.dcb").write_bytes(good)
    Path("short.dcb").write_bytes(good[:-100])
    Path("bad.dcb").write_bytes(good[:2000] + bytes([good[2000] ^ 1]) + good[2001:])
    Path("empty.dcb").touch()
    Path("words.txt").write_text("not a model")
    Path("words.safetensors").write_text("not a model")
    Path("words.nnc").write_text("not a model")
    Path("magic.dcb").write_bytes(good[:8])
    Path("mode.dcb").write_bytes(good.replace(b"\r\n", b"\n"))
    Path("folder").mkdir()
    return tmp_path
