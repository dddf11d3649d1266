"""Pages and what notebooks show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

import deepcabac
from deepcabac import showing
from deepcabac.cli import program

HOSTILE = "<script>alert(1)</script>&\"'"


class Checked(HTMLParser):
    """Every element is closed, nothing is loaded or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], set(), ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        for name, value in attributes:
            assert name not in ("src", "href", "onload", "onclick") and "url(" not in (value or "")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(text):
    page = Checked(text)
    assert page.seen.isdisjoint({"script", "img", "link", "iframe", "object"})
    return page


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    tensors = {f"layer{number}.weight": rng.normal(size=(60, 50)).astype(np.float32) for number in range(40)}
    tensors |= {HOSTILE: rng.normal(size=(90, 50)).astype(np.float32), "count": np.array(3)}
    tensors["tied"] = tensors["layer0.weight"]
    return deepcabac.save_file(tensors, "m.dcb", sqnr=30)


def test_a_page_shows_every_tensor_and_loads_nothing(here):
    result = CliRunner().invoke(program, ["inspect", "m.dcb", "--html", "page.html"])
    assert (result.exit_code, result.stdout) == (0, "page     page.html\n")
    with open("page.html", encoding="utf-8") as file:
        text = file.read()
    page = checked(text)
    assert HOSTILE in page.text and "layer39.weight" in page.text and "is layer0.weight" in page.text
    assert "http" not in text and text.count("<svg") > 3 * 41
    estimates = [float(one) for one in re.findall(r">(\d\d\.\d)<", text)]
    assert len(estimates) == 41 and all(29 < one < 31 for one in estimates)


def test_a_page_is_replaced_only_if_asked_and_shows_one_file(here):
    run = CliRunner().invoke
    assert run(program, ["inspect", "m.dcb", "--html", "p.html"]).exit_code == 0
    result = run(program, ["inspect", "m.dcb", "--html", "p.html"])
    assert result.exit_code == 2 and "exists" in result.stderr
    assert run(program, ["inspect", "m.dcb", "--html", "p.html", "--force"]).exit_code == 0
    for arguments in (["m.dcb", "m.dcb", "--html", "q.html"], [".", "--html", "q.html"], ["m.dcb", "--html", "m.dcb"]):
        assert run(program, ["inspect", *arguments]).exit_code == 2
    result = run(program, ["inspect", "m.dcb", "--html", "q.html", "--json"])
    assert result.exit_code == 2 and "choose one of" in result.stderr


def test_files_and_reports_show_themselves(here):
    with deepcabac.open_file("m.dcb") as opened:
        for shown in (here._repr_html_(), opened._repr_html_()):
            page = checked(shown)
            assert HOSTILE in page.text and "and 13 more" in page.text and "svg" in page.seen


def test_folders_and_searches_show_themselves(here, tmp_path):
    (tmp_path / "model").mkdir()
    weights = np.random.default_rng(1).normal(size=(50, 40)).astype(np.float32)
    np.savez(tmp_path / "model" / "w.npz", w=weights)
    assert "w.npz" in checked(deepcabac.compress_folder("model")._repr_html_()).text
    result = deepcabac.search(
        {"w": weights},
        lambda tensors: -float(abs(tensors["w"] - weights).mean()),
        max_drop=0.05,
        output="s.dcb",
        evaluations=6,
    )
    page = checked(result._repr_html_())
    assert "s.dcb" in page.text and {"circle", "path"} <= page.seen


def test_json_is_a_table(here):
    seen = json.loads(CliRunner().invoke(program, ["inspect", "m.dcb", "--json"]).stdout)
    assert {len(row) for row in seen["tensors"]} == {len(seen["tensors"][0])}  # pandas.DataFrame(seen["tensors"])


@pytest.mark.parametrize("values", [[], [5], [1, 1, 1], [1, 2, 3, 1000]])
def test_drawings_of_few_values(values):
    checked(showing.histogram(np.array(values, np.float64)))
    checked(showing.scatter([(value, -value, True) for value in values], "x", "y", 0.5))


def test_drawings_leave_out_what_is_not_finite():
    assert "nan" not in showing.scatter([(1.0, float("nan"), True), (2.0, 3.0, False)], "x", "y")
    assert 'width="120"' in showing.bar(5.0) and 'width="0.0"' in showing.bar(-1.0)
