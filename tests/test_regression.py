"""No file becomes larger, smaller or other than tests/regression/results.csv says, unless that file changes with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "regression"))
import measure
import tables

CASES = {(name, settings): encode for name, settings, encode in measure.cases()}
ADVICE = (
    "If bytes were meant to change: run python tests/regression/measure.py, look at the diff of its results.csv, and "
    "measure the networks again (bench/README.md, Results that documents show)."
)


@pytest.fixture(scope="module")
def recorded():
    return measure.recorded()


def difference(now, then):
    """What is to be said of two rows, or nothing."""
    if now == then:
        return ""
    label, size, old = ", ".join(now[:2]), int(now[3]), int(then[3])
    if now[2] != then[2]:
        return f"{label}: the input itself has {now[2]} bytes instead of {then[2]}. {ADVICE}"
    if size == old:
        return f"{label}: {size:,} bytes as before, but other ones. {ADVICE}"
    change = f"{abs(size - old):,} {'more' if size > old else 'fewer'} than {old:,} ({100 * (size / old - 1):+.2f} %)"
    return f"{label}: {size:,} bytes, {change}. {ADVICE}"


@pytest.mark.parametrize(("name", "settings"), CASES, ids=" ".join)
def test_bytes_are_those_recorded(name, settings, recorded):
    now = measure.measure(name, settings, CASES[name, settings])
    assert not (problem := difference(now, recorded[name, settings])), problem


def test_every_row_is_measured(recorded):
    assert list(recorded) == list(CASES)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (2, "9", "input itself has 9 bytes instead of 1000"),
        (3, "103", "a, default: 103 bytes, 3 more than 100 (+3.00 %)"),
        (3, "98", "a, default: 98 bytes, 2 fewer than 100 (-2.00 %)"),
        (4, "f", "100 bytes as before, but other ones"),
    ],
)
def test_a_difference_is_said_with_its_row_and_bytes(column, value, said):
    then = ("a", "default", "1000", "100", "0")
    assert difference(then, then) == ""
    assert said in difference(tuple(value if i == column else cell for i, cell in enumerate(then)), then)


def test_tables_of_the_documents_are_of_this_build(recorded):
    """The rows of the shipped network, in tables whose other rows need downloads: where one is stale, all are."""

    def size(settings):
        return int(recorded["lenet300", settings][3])

    networks = tables.read(tables.RESULTS / "networks.csv")
    shown = dict(zip(networks.column("network"), networks.column("`.dcb`, bytes"), strict=True))["LeNet-300-100"]
    assert int(shown) == size("file"), "networks.csv is of another build: run python bench/networks.py --results"

    presets = tables.read(tables.RESULTS / "presets.csv")
    row = dict(zip(presets.heads, next(row for row in presets.rows if row[0] == "LeNet-300-100"), strict=True))
    default, *others = (size(f"preset={preset}") for preset in ("default", "fast", "small"))
    now = [str(default), *(f"{100 * (other / default - 1):+.1f}" for other in others)]
    then = [row["default, bytes"], row["fast, %"], row["small, %"]]
    assert then == now, "presets.csv is of another build: run python bench/presets.py --results"
