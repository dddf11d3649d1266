"""The tables of README and docs are those of bench/results (bench/tables.py), and a wrong number in one is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import tables

DATA = """\
# command: python bench/one.py
# machine: a machine
network,"size, bytes",change,date,commit
A,1234567,+1.50 %,2026-01-02,abc
B,999,-3.0 %,2026-03-04,def
"""
SHOWN = """\
<!-- table: one -->

| network | size, bytes | change |
| --- | ---: | ---: |
| A | 1,234,567 | +1.50 % |
| B | 999 | -3.0 % |

*`python bench/one.py`, 2026-01-02 to 2026-03-04, commits abc, def.*

<!-- /table -->
"""
RANGE = "It is <!-- range: one / change -->-3.0 to 1.50<!-- /range --> %"
CELL = "It has <!-- cell: one / A / size, bytes -->1,234,567<!-- /cell --> bytes"


@pytest.fixture(autouse=True)
def results(request, tmp_path, monkeypatch):
    if "real" not in request.node.name:
        (tmp_path / "one.csv").write_text(DATA)
        monkeypatch.setattr(tables, "RESULTS", tmp_path)


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.relative_to(tables.ROOT).as_posix())
def test_real_documents_say_what_the_results_say(path):
    assert list(tables.problems(path.read_text(encoding="utf-8"))) == []


def test_real_results_are_all_shown_somewhere():
    text = "".join(path.read_text(encoding="utf-8") for path in tables.documents())
    shown = {match[3].split(" / ")[0] for match in tables.MARK.finditer(text)}
    assert {path.stem for path in tables.RESULTS.glob("*.csv")} == shown


@pytest.mark.parametrize("text", [SHOWN, RANGE, CELL])
def test_a_document_is_filled_from_the_results_and_is_then_right(text):
    empty = tables.MARK.sub(lambda match: match[1] + match[5], text)
    assert tables.renewed(empty) == tables.renewed(text) == text
    assert list(tables.problems(text)) == [] and len(list(tables.problems(empty))) == 1


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [(SHOWN, "999", "998"), (SHOWN, "2026-01-02", "2026-01-03"), (RANGE, "-3.0", "-2.0"), (CELL, "1,234", "1,235")],
)
def test_a_changed_number_is_found_with_its_line(text, old, new):
    (problem,) = tables.problems("\n\n" + text.replace(old, new))
    assert problem.startswith("line 3: <!-- ") and "python bench/tables.py" in problem


@pytest.mark.parametrize(
    "text",
    ["| a | bytes |\n| --- | ---: |\n| b | 1 |\n", "| size in bytes |\n|---|\n", "<!-- table: one -->\n", RANGE[:-20]],
)
def test_bytes_outside_marks_and_half_marks_are_found(text):
    assert len(list(tables.problems(text))) == 1


@pytest.mark.parametrize("where", ["table: two", "range: one / nothing", "cell: one / C / change", "range: one"])
def test_marks_that_lead_nowhere_are_named(where):
    kind = where.split(":")[0]
    with pytest.raises(LookupError, match=f"<!-- {where} -->"):
        tables.renewed(f"<!-- {where} --><!-- /{kind} -->")


def test_other_tables_and_marks_in_backticks_are_left_alone():
    assert list(tables.problems("`<!-- table: NAME -->` ... `<!-- /table -->`")) == []
    assert list(tables.problems("| command | what it does |\n| --- | --- |\n| inspect | shows 12,345 |\n")) == []


def test_a_run_of_one_network_keeps_the_others(tmp_path):
    old = tables.read(tmp_path / "one.csv")
    rows = [["B", "1,000", "0 %"], ["C", "5", ""]]
    new = tables.Table({"command": "c", "machine": "m"}, old.heads, rows, [("d", "x")] * 2)
    both = tables.merged(old, new, keys=1)
    tables.write(tmp_path / "one.csv", both)
    assert tables.read(tmp_path / "one.csv") == tables.Table(
        new.about,
        old.heads,
        [["A", "1234567", "+1.50 %"], ["B", "1000", "0 %"], ["C", "5", ""]],
        [("2026-01-02", "abc"), ("d", "x"), ("d", "x")],
    )
    other = tables.Table(new.about, ["network"], [["B"]], [("d", "x")])
    assert tables.merged(old, other, keys=1) == other
    timed = tables.Table(new.about | {"timed": "yes"}, old.heads, rows, new.origin)
    assert tables.merged(old, timed, keys=1) == timed
    assert len(tables.merged(timed, tables.Table(timed.about, old.heads, rows[:1], new.origin[:1]), keys=1).rows) == 2


def test_a_ragged_file_is_refused(tmp_path):
    (tmp_path / "one.csv").write_text(DATA + "C,1,2026-01-02,abc\n")
    with pytest.raises(ValueError, match="every row needs 5 cells"):
        tables.read(tmp_path / "one.csv")
