"""The tables of README and docs, from the results that the benchmarks wrote: bench/results/NAME.csv.

    python bench/tables.py            # rewrite them where results are newer
    python bench/tables.py --check    # change nothing; exit 1 and say where text and results differ

Benchmarks write these files with `--results`. In a document, `<!-- table: NAME -->` and `<!-- /table -->` enclose the
table of bench/results/NAME.csv and a line that says where it comes from. In a sentence, `<!-- range: NAME / COLUMN -->`
and `<!-- /range -->` enclose the smallest and the largest number of a column, and `<!-- cell: NAME / ROW / COLUMN -->`
and `<!-- /cell -->` one cell (ROW is what the row's first cell says). A table of bytes outside such marks is an error.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FOLDERS = ("bench", "examples", "fuzz", "js")
DOCUMENTS = ("README.md", "ARCHITECTURE.md", *(f"{folder}/README.md" for folder in FOLDERS), "docs/**/*.md")

#: A pair of marks; in `backticks` they are only spoken of.
MARK = re.compile(r"((?<!`)<!-- (table|range|cell): ([^>]+?) -->)(.*?)((?<!`)<!-- /\2 -->)", re.DOTALL)
STRAY = re.compile(r"(?<!`)<!-- /?(?:table|range|cell)\b.*?-->")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e\d+)?")
#: A cell that goes to the right: a number, perhaps bold, perhaps with a unit or a remark in brackets.
NUMERIC = re.compile(rf"\**{NUMBER.pattern}(?: ?[x%])?(?: \([^)]*\))?\**")
#: The heading of a Markdown table that has bytes in it.
BYTES = re.compile(r"^\|.*\bbytes\b.*\|\n\|[ :|-]+\|$", re.MULTILINE)


#: The last columns of every file of results, which documents do not show as such.
ORIGIN = ("date", "commit")


@dataclass(frozen=True)
class Table:
    """What a benchmark wrote."""

    about: dict[str, str]  #: command, machine; timed, if the machine matters
    heads: list[str]
    rows: list[list[str]]
    origin: list[tuple[str, ...]]  #: date and commit of each row

    def column(self, head: str) -> list[str]:
        """The cells under a heading. Raises LookupError if there is none."""
        if head not in self.heads:
            raise LookupError(f"no column {head!r} among {', '.join(self.heads)}")
        return [row[self.heads.index(head)] for row in self.rows]

    def markdown(self) -> str:
        """The table and where it comes from."""
        shown = [[_shown(cell) for cell in row] for row in self.rows]
        right = [all(NUMERIC.fullmatch(cell) for cell in column if cell) for column in zip(*shown, strict=True)]
        lines = [self.heads, ["---:" if each else "---" for each in right], *shown]
        dates = list(dict.fromkeys(date for date, _ in self.origin))
        commits = list(dict.fromkeys(commit.split(" ")[0] for _, commit in self.origin))
        days = dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
        source = f"`{self.about['command']}`, {days}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
        source += f", {self.about['machine']}" * ("timed" in self.about)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n*{source}.*\n"


def _shown(cell: str) -> str:
    """Integers with separators between thousands."""
    return f"{int(cell):,}" if re.fullmatch(r"-?\d{4,}", cell) else cell


def read(path: Path) -> Table:
    """A file of results: lines `# key: value`, then CSV with headings, each row with its date and commit."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    heads, *rows = csv.reader(line for line in lines if not line.startswith("# "))
    if tuple(heads[-len(ORIGIN) :]) != ORIGIN or any(len(row) != len(heads) for row in rows):
        raise ValueError(f"{path.name}: every row needs {len(heads)} cells, the last of them {' and '.join(ORIGIN)}")
    cut = len(heads) - len(ORIGIN)
    return Table(about, heads[:cut], [row[:cut] for row in rows], [tuple(row[cut:]) for row in rows])


def write(path: Path, results: Table) -> None:
    """Write results for :func:`read`. Separators between thousands are left to the documents."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in results.about.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*results.heads, *ORIGIN])
        for row, origin in zip(results.rows, results.origin, strict=True):
            plain = [cell.replace(",", "") if NUMBER.fullmatch(cell) else cell for cell in row]
            writer.writerow([*plain, *origin])


def merged(old: Table, new: Table, keys: int) -> Table:
    """The old rows, those replaced whose first ``keys`` cells are among the new rows'; then all other new rows.

    A benchmark that ran for one network keeps what is known of the others, if the columns are the same, and the machine
    where it matters.
    """
    if old.heads != new.heads or ("timed" in new.about and old.about["machine"] != new.about["machine"]):
        return new
    pending: dict[tuple[str, ...], list[tuple[list[str], tuple[str, ...]]]] = {}
    for row, origin in zip(new.rows, new.origin, strict=True):
        pending.setdefault(tuple(row[:keys]), []).append((row, origin))
    replaced = set(pending)
    rows = []
    for row, origin in zip(old.rows, old.origin, strict=True):
        key = tuple(row[:keys])
        rows += pending.pop(key, []) if key in replaced else [(row, origin)]
    rows += [each for group in pending.values() for each in group]
    return Table(new.about, new.heads, [row for row, _ in rows], [origin for _, origin in rows])


def table(name: str) -> str:
    """What stands between the marks of a table."""
    return "\n\n" + read(RESULTS / f"{name}.csv").markdown() + "\n"


def span(where: str) -> str:
    """What stands between the marks of a range: "1.3 to 45.7"."""
    name, head = where.split(" / ")
    numbers = [match[0] for cell in read(RESULTS / f"{name}.csv").column(head) if (match := NUMBER.search(cell))]
    low, high = (function(numbers, key=lambda text: float(text.replace(",", ""))) for function in (min, max))
    return f"{_shown(low.lstrip('+'))} to {_shown(high.lstrip('+'))}"


def cell(where: str) -> str:
    """What stands between the marks of a cell."""
    name, row, head = where.split(" / ")
    results = read(RESULTS / f"{name}.csv")
    cells = zip(results.column(results.heads[0]), results.column(head), strict=True)
    found = [one for first, one in cells if first == row]
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows begin with {row!r}")
    return _shown(found[0].lstrip("+"))


KINDS: dict[str, Callable[[str], str]] = {"table": table, "range": span, "cell": cell}


def renewed(text: str) -> str:
    """A document with what the results say between its marks. Raises LookupError for marks that lead nowhere."""

    def one(match: re.Match[str]) -> str:
        try:
            return match[1] + KINDS[match[2]](match[3]) + match[5]
        except (LookupError, ValueError, OSError) as error:
            raise LookupError(f"{match[1]}: {error}") from error

    return MARK.sub(one, text)


def problems(text: str) -> Iterator[str]:
    """What is wrong with a document, each with its line."""

    def line(position: int) -> int:
        return text.count("\n", 0, position) + 1

    for match in MARK.finditer(text):
        if match[0] != renewed(match[0]):
            yield f"line {line(match.start())}: {match[1]} is not what bench/results says: run python bench/tables.py"
    outside = MARK.sub(lambda match: re.sub(r"[^\n]", "-", match[0]), text)
    for stray in STRAY.finditer(outside):
        yield f"line {line(stray.start())}: {stray[0]} has no partner"
    for stray in BYTES.finditer(outside):
        yield f"line {line(stray.start())}: a table of bytes that comes from no file in bench/results"


def documents() -> list[Path]:
    """All that may hold tables."""
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def main() -> int:
    """Rewrite or check all documents."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--check", action="store_true", help="change nothing; exit 1 where text and results differ")
    check = options.parse_args().check
    result = 0
    for path in documents():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        try:
            if not check and (new := renewed(text)) != text:
                path.write_text(new, encoding="utf-8")
                print(f"written: {name}")
                text = new
            found = list(problems(text))
        except LookupError as error:
            found = [str(error)]
        for problem in found:
            print(f"{name}: {problem}", file=sys.stderr)
            result = 1
    return result


if __name__ == "__main__":
    sys.exit(main())
