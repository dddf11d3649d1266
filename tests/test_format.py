"""FORMAT.md, executed: its Python blocks alone decode every golden file, and its examples and references hold."""

from __future__ import annotations

import hashlib
import importlib
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from test_reference import EDGES, mutated

import deepcabac

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "reference"))
decode, encode = importlib.import_module("decode"), importlib.import_module("encode")
PATH = ROOT / "FORMAT.md"
TEXT = PATH.read_text(encoding="utf-8")
#: Where sections begin: "5.3" or "A.1" and its place in the text.
SECTIONS = {match[1]: match.start() for match in re.finditer(r"^##+ ([A-C]|[\dA-C][\d.]*) ", TEXT, re.MULTILINE)}
FILES = sorted(GOLDEN.glob("*.dcb")) + sorted(GOLDEN.glob("older/*.dcb"))
LEVELS = sorted(GOLDEN.glob("*.levels"))


def chapter(place: int) -> str:
    """The chapter, "5" or "A", that a place of the text is in."""
    return max((start, name) for name, start in SECTIONS.items() if start <= place)[1].split(".")[0]


def blocks(without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The namespace after all Python blocks have run in order, but those of the chapters in ``without``.

    Each is compiled by itself, in its place, so that line numbers are those of the text.
    """
    names: dict[str, Any] = {}
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        if chapter(match.start()) not in without:
            lines = TEXT[: match.start(1)].count("\n")
            exec(compile("\n" * lines + match[1], str(PATH), "exec"), names)
    return names


@pytest.fixture(scope="module")
def text() -> dict[str, Any]:
    return blocks()


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    """Same names, data types, shapes and bits."""
    bits = [{name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()} for arrays in (one, two)]
    return list(one) == list(two) and bits[0] == bits[1]


def base_of(path: Path) -> dict[str, np.ndarray] | None:
    return deepcabac.load_file(GOLDEN / "exact.dcb") if path.name.startswith("update") else None


@contextmanager
def lines_run() -> Iterator[set[int]]:
    """The lines of FORMAT.md that run meanwhile."""
    run: set[int] = set()
    left: dict[CodeType, set[int]] = {}

    def in_line(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        run.add(frame.f_lineno)
        left[frame.f_code].discard(frame.f_lineno)
        return in_line

    def in_call(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if code.co_filename != str(PATH):
            return None
        if code not in left:
            left[code] = {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno}
            run.add(code.co_firstlineno)
        return in_line if left[code] else None

    before = sys.gettrace()
    sys.settrace(in_call)
    try:
        yield run
    finally:
        sys.settrace(before)


def lines_with_code() -> set[int]:
    """The lines of all Python blocks that can run."""
    found: set[int] = set()
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        lines = TEXT[: match.start(1)].count("\n")
        codes = [compile("\n" * lines + match[1], str(PATH), "exec")]
        while codes:
            code = codes.pop()
            found |= {line for _, _, line in code.co_lines() if line}
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def recorder(text: dict[str, Any], chunks: list[tuple[bytes, list[tuple[Any, ...]]]]) -> type:
    """The text's decoder of decisions, which notes what it decoded."""

    class Recorder(text["Decoder"]):  # type: ignore[misc]
        def __init__(self, chunk: bytes) -> None:
            super().__init__(chunk)
            self.calls: list[tuple[Any, ...]] = []
            chunks.append((chunk, self.calls))

        def decision(self, p: int) -> int:
            one: int = super().decision(p)
            self.calls.append(("decision", p, one))
            return one

        def part(self, below: int, above: int) -> None:
            super().part(below, above)
            self.calls.append(("part", below, above))

        def end_step(self) -> None:
            super().end_step()
            self.calls.append(("end_step",))

        def raw(self, count: int) -> int:
            value: int = super().raw(count)
            self.calls.append(("raw", value, count))
            return value

    return Recorder


def fast_recorder(text: dict[str, Any], chunks: list[tuple[bytes, int, list[tuple[int, ...]]]]) -> type:
    """The text's decoder of symbols, which notes what it decoded: lane, first, frequency, raw bits and their number."""

    class Recorder(text["FastDecoder"]):  # type: ignore[misc]
        def __init__(self, lanes: int, chunk: bytes) -> None:
            super().__init__(lanes, chunk)
            self.puts: list[tuple[int, ...]] = []
            chunks.append((chunk, lanes, self.puts))

        def raw(self, lane: int, bits: int) -> int:
            value: int = super().raw(lane, bits)
            self.puts.append((lane, 0, 4096, value, bits))
            return value

        def symbol(self, lane: int, site: Any, zigzag: bool) -> tuple[int, int]:
            frequencies = list(self.sets[site.set].frequencies)
            symbol, value = super().symbol(lane, site, zigzag)
            bits = 0 if zigzag else min(site.low, 3) + 1 if site.low > 0 else int(symbol > 0)
            self.puts.append((lane, sum(frequencies[:symbol]), frequencies[symbol], value, bits))
            return symbol, value

    return Recorder


def update_in_units() -> tuple[bytes, dict[str, np.ndarray]]:
    """What no golden file has: an update of method 8, with a chunk and a row that are its base's; and the base."""
    base = {"t": np.array([[1, -3, 5e-3], [8, 0, 1e9], [2, 1e-7, -6], [1, -1, 0.1], [3, 2, 1]], np.float32)}
    record = bytes([0, 96, 3, 2])
    (chunk,) = encode.encode_chunks(decode.Params(record), [1, -70, -(2**24), 2**23, 5, -9])
    # With k = 0: the first bit of each row, and the difference that the escape stands for.
    refinement = (1 | 123456789 << 1 | 1 << 33).to_bytes(5, "little")
    (row,) = encode.encode_chunks(decode.Params(record), [0, 0, 0])
    head = encode.blob(b"t") + bytes([2, 2, 5, 3])
    entry = head + bytes([8, 0]) + encode.blob(record) + bytes([0, 0, len(chunk), len(refinement)])
    entry += zlib.crc32(chunk + refinement).to_bytes(4, "little")
    entry += bytes([len(row), 1]) + zlib.crc32(row + b"\0").to_bytes(4, "little")
    digest = hashlib.sha256(head + base["t"].tobytes()).digest()
    index = encode.blob(b"") + encode.blob(b"") + bytes([1]) + entry + digest + encode.blob(b"")
    return encode.write_file(index, chunk + refinement + row + b"\0"), base


def test_the_text_decodes_every_golden_file_and_every_line_of_it_runs() -> None:
    with lines_run() as run:
        text = blocks()
        chunks: list[tuple[bytes, list[tuple[Any, ...]]]] = []
        fast_chunks: list[tuple[bytes, int, list[tuple[int, ...]]]] = []
        text["Decoder"], text["FastDecoder"] = recorder(text, chunks), fast_recorder(text, fast_chunks)
        for path in FILES:
            base, data = base_of(path), path.read_bytes()
            assert same(text["read_file"](data, base), deepcabac.decompress(data, base=base)), path.name
        data, base = update_in_units()
        assert same(text["read_file"](data, base), deepcabac.decompress(data, base=base))
        for path in LEVELS:
            data = path.read_bytes()
            assert same({"": text["read_array"](data)}, {"": deepcabac.decode(data)}), path.name
        # Appendix A writes them again, from what was decoded.
        for chunk, calls in chunks:
            encoder = text["Encoder"]()
            for name, *arguments in calls[:-1]:  # the last one reads what fills the raw bytes
                getattr(encoder, name)(*arguments)
            assert encoder.finish() == chunk
        for chunk, lanes, puts in fast_chunks:
            states, words = [2**16] * lanes, []
            for put in reversed(puts):
                text["put"](states, words, *put)
            written = b"".join(state.to_bytes(4, "little") for state in states)
            assert written + b"".join(word.to_bytes(2, "little") for word in reversed(words)) == chunk
    refusals = {TEXT[: match.start()].count("\n") + 1 for match in re.finditer(r"^ +raise ", TEXT, re.MULTILINE)}
    missed = sorted(lines_with_code() - run - refusals)
    assert missed == [], [TEXT.split("\n")[line - 1] for line in missed]


#: Chapters that a decoder may leave out (1.5), and what a file shows that needs them.
OPTIONAL: dict[tuple[str, ...], Callable[[Any], bool]] = {
    ("7",): lambda tensor: coder_of(tensor) == 1,
    ("8",): lambda tensor: coder_of(tensor) == 2,
    ("9",): lambda tensor: coder_of(tensor) == 3,
    ("11",): lambda tensor: tensor.method in (7, 8, 9, 10, 13),
    ("10", "11"): lambda tensor: 3 <= tensor.method <= 11 or tensor.method >= 13,
}
OPTIONAL[("7", "8", "9", "10", "11")] = lambda tensor: any(uses(tensor) for uses in list(OPTIONAL.values())[:-1])


def coder_of(tensor: Any) -> int:
    return tensor.params.coder if hasattr(tensor, "params") else 0


@pytest.mark.parametrize("without", OPTIONAL, ids=" ".join)
def test_a_minimal_decoder_reads_what_it_can_and_refuses_the_rest(
    without: tuple[str, ...], text: dict[str, Any]
) -> None:
    smaller, seen = blocks(without), set()
    for path in FILES:
        base, data = base_of(path), path.read_bytes()
        tensors, _ = text["read_index"](data)
        needed = any(OPTIONAL[without](tensor) for tensor in tensors)
        seen.add(needed)
        if needed:
            with pytest.raises(smaller["Unsupported"]):
                smaller["read_file"](data, base)
        else:
            if len(data) < 2000:
                assert same(smaller["read_file"](data, base), deepcabac.decompress(data, base=base))
    assert seen == {True, False}


def test_the_text_refuses_damaged_files(text: dict[str, Any]) -> None:
    for path in GOLDEN / "types.dcb", GOLDEN / "safetensors.dcb":
        data = path.read_bytes()
        for place in range(0, len(data), 97):
            for altered in data[:place], data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]:
                with pytest.raises(text["Damaged"]):
                    text["read_file"](altered)


def test_the_tables_of_limits_are_those_of_the_code(text: dict[str, Any]) -> None:
    """Of the numbers in 13.2 that parameters have: the largest is accepted, the next one is not."""
    record = {"flags": 0, "mean_log": 96, "width": 1, "chunk_rows": 1, "rest": b""}

    def accepted(**changes: Any) -> bool:
        fields = {**record, **changes}
        number = text["varint"]
        head = bytes([fields["flags"], fields["mean_log"]]) + number(fields["width"]) + number(fields["chunk_rows"])
        try:
            text["Params"](head + fields["rest"])
        except text["Damaged"]:
            return False
        return True

    def most(name: str) -> list[int]:
        row = re.search(rf"^\| {re.escape(name)} \| (.*?) \|", TEXT[SECTIONS["13.2"] :], re.MULTILINE)
        assert row is not None, name
        return [
            int(match[1]) ** int(match[2] or 1) for match in re.finditer(r"(?<![\d^])(\d+)(?:\^(\d+))?", row[1])
        ]

    (log,) = most("`mean_log`")
    assert accepted(mean_log=log) and not accepted(mean_log=log + 1)
    _, width, regressed = most("`width`")
    assert accepted(width=width) and not accepted(width=width + 1)
    assert accepted(flags=48, width=regressed) and not accepted(flags=48, width=regressed + 1)
    levels, regressed = most("`width * chunk_rows`")
    assert accepted(chunk_rows=levels) and not accepted(chunk_rows=levels + 1)
    assert accepted(flags=48, width=4096, chunk_rows=regressed // 4096)
    assert not accepted(flags=48, width=4096, chunk_rows=regressed // 4096 + 1)
    for name, flag, before, after in [
        ("`kernel_width`", 2, b"", b"\1" + bytes(5)),
        ("`kernel_size`", 2, b"\1", bytes(5)),
        ("`density_log`", 32, b"", b""),
        ("`states`", 8, b"", b""),
    ]:
        numbers = most(name)
        least, largest = numbers[:2] if len(numbers) > 1 else (0, numbers[0])
        for value in {0, least - 1, least, largest, largest + 1} - {-1}:
            assert accepted(flags=flag, rest=before + bytes([value]) + after) == (least <= value <= largest), name
    flags, *_ = most("`flags`")
    part = TEXT[TEXT.index("| flag | name | section |") : TEXT.index("| coder | name | section |")]
    table = re.findall(r"^\| (\d+) \| [a-z ]+ \| .* \| (?:coder (\d))? ?\|$", part, re.MULTILINE)
    excluded = {(int(flag), int(coder)) for flag, coder in table if coder}
    assert len(table) == 4 and len(excluded) == 2
    for value in range(256):
        possible = value <= flags and not any(value & flag and value >> 4 == coder for flag, coder in excluded)
        assert any(accepted(flags=value, rest=bytes([3] * count)) for count in range(12)) == possible, value


def examples(section: str, following: str) -> list[tuple[bytes, list[int], bytes]]:
    """Parameters, levels and chunk of each example of a section."""
    part = TEXT[SECTIONS[section] : SECTIONS[following]]
    found = re.findall(r"parameters  ([0-9a-f ]+)\nlevels(.*?)chunk((?:\s+[0-9a-f ]+\n)+)", part, re.DOTALL)
    return [(bytes.fromhex(a), [int(x) for x in b.split()], bytes.fromhex(c)) for a, b, c in found]


def test_examples_of_chunks_have_the_numbers_that_are_shown(text: dict[str, Any]) -> None:
    """Every row of the tables of C.2: what the model says before a level, and the decoder's state after it."""
    cases = examples("C.2", "C.3")
    assert len(cases) == 5
    part = TEXT[SECTIONS["C.2"] : SECTIONS["C.3"]]
    shown = iter(re.findall(r"^ +(\d+ +\d+ \| .*)$", part, re.MULTILINE))
    for number, (record, levels, chunk) in enumerate(cases):
        params = text["Params"](record)
        decoder, model = text["Decoder"](chunk), text["Model"](params)
        for place, level in enumerate(levels):
            row, column = divmod(place, 5)
            averages, value, state = (model.row_average, model.column_averages[column]), model.prediction(), model.state
            site = model.site()
            context = model.sets[site.set][0]
            assert text["decode_level"](decoder, model) == level
            if column == 4:
                model.end_row()
            if number == 4:  # of the last one, levels alone are shown
                continue
            place_and, before, after, end = next(shown).split("|")
            assert [int(x) for x in place_and.split()] == [row, column]
            dependent = [state, site.index] if params.flags & 8 else []
            numbers = [*averages, value, *dependent, site.set, site.low]
            assert before.split() == [*map(str, numbers), f"{context:08x}"]
            assert int(after.split()[-1]) == level
            assert end.split() == [f"{decoder.range:016x}", str(decoder.shifted), str(decoder.raw_bits)]
        text["end_chunk"](decoder)
        assert encode.encode_chunk(decode.Params(record), levels) == chunk
        assert deepcabac.decode(encode.write_levels([15], record, [chunk])).tolist() == levels
    assert next(shown, None) is None
    params, levels, chunk = text["Params"](cases[0][0]), cases[0][1], cases[0][2]
    assert text["decode_chunk"](params, 15, chunk) == levels
    for damaged in chunk[:-1], chunk + b"\0", chunk.replace(b"\x13", b"\x93"):
        with pytest.raises(text["Damaged"]):
            text["decode_chunk"](params, 15, damaged)


def test_the_example_of_regression_has_the_numbers_that_are_shown(text: dict[str, Any]) -> None:
    ((record, levels, chunk),) = examples("C.3", "C.4")
    part = TEXT[SECTIONS["C.3"] : SECTIONS["C.4"]]
    predicted = [int(x) for x in re.findall(r"^ +\d +\d \| +\d+ +\d+ +(-?\d+) ", part, re.MULTILINE)]
    learned = iter(re.findall(r"^ +\d \| ((?:\w{8}[ |]*){6})$", part, re.MULTILINE))
    decoder, model = text["Decoder"](chunk), text["RegressionModel"](text["Params"](record))
    for level, value in zip(levels, predicted, strict=True):
        assert text["decode_level"](decoder, model) == level
        assert model.predicted == value
        if len(model.levels) == 3:
            model.end_row()
            (block,) = model.blocks
            state = [block.factors[0][1], block.factors[0][2], block.factors[1][2], *block.energies]
            bits = np.array(state, np.float32).view(np.uint32)
            assert [f"{word:08x}" for word in bits] == re.findall(r"\w{8}", next(learned))
    assert next(learned, None) is None
    assert encode.encode_chunk(decode.Params(record), levels) == chunk
    assert deepcabac.decode(encode.write_levels([11], record, [chunk])).tolist() == levels


def test_the_example_of_a_file_is_one(text: dict[str, Any]) -> None:
    part = TEXT[SECTIONS["C.4"] :]
    file, plain = re.findall(r"^```text\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    data = bytes.fromhex("".join(line[12:] for line in file.split("\n")))
    index = bytes.fromhex("".join(line[12:28] for line in plain.split("\n")))
    start = int.from_bytes(data[16:24], "little")
    assert data[start] == len(index) and text["decode_bytes"](data[start + 1 :], len(index)) == index
    assert f"The file, {len(data)} bytes" in part.replace("\n", " ")
    assert f"plain index has {len(index)} bytes" in part.replace("\n", " ")
    arrays = text["read_file"](data)
    assert same(arrays, deepcabac.decompress(data))
    levels = examples("C.2", "C.3")[0][1]
    assert np.array_equal(arrays["w"], 0.5 * np.array(levels).reshape(3, 5)) and arrays["v"] is arrays["w"]


def test_initial_contexts_are_those_of_the_table(text: dict[str, Any]) -> None:
    sets = text["initial_sets"]()
    part = TEXT[SECTIONS["C.1"] : SECTIONS["C.2"]]
    assert [f"{sets[160 + 2 * c][0]:08x}" for c in (0, 24, 79)] == re.findall(r"`(\w{8})`", part)
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", part, re.MULTILINE)
    assert len(rows) == 9
    for c, low, words in rows:
        assert text["low_bits"](int(c)) == int(low)
        assert words.split(" | ") == [f"{sets[2 * int(c)][k]:08x}" for k in (0, 1, 2, 3, 4, 8, 15)]
        assert sets[2 * int(c)] == sets[2 * int(c) + 1]


def test_values_in_the_text_are_those_of_its_functions(text: dict[str, Any]) -> None:
    for name, argument, value in re.findall(r"`(log|from_log)\(([\d^ -]+)\) = (\d+)`", TEXT):
        assert text[name](eval(argument.replace("^", "**"))) == int(value)
    context, words = 0x80000100, re.findall(r"0x([0-9a-f]{8})\b", TEXT[SECTIONS["3.2"] : SECTIONS["3.3"]])
    words = words[words.index("8ffc0120") :]
    for one, expected in (1, words[:3]), (0, words[3:6]):
        word = context
        for shown in expected:
            word = text["adapted"](word, one)
            assert f"{word:08x}" == shown


def test_bounds_in_appendix_b_are_what_they_are_computed_from() -> None:
    bits = -np.log2(1 - 2.0**-11)
    assert f"{bits:.8f}" in TEXT and f"at most {int(8 / bits) + 1} levels" in TEXT and 8 / bits < 11400
    fast = -np.log2(1 - 15 / 4096 * 16 / 17)
    assert f"more than {int(fast * 1e5) / 1e5} bits" in TEXT and f"at most {int(8 / fast) + 1} levels" in TEXT


def test_references_lead_to_sections() -> None:
    """In the text itself, and wherever else a section of it is named."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    named = re.findall(r"(?:[Ss]ections?|see|of|in|as|\() ?((?:[1-9]\d?|[A-C])\.\d+)\b", prose)
    assert len(named) > 50 and [name for name in named if name not in SECTIONS] == []
    for folder in "python", "src", "reference", "tests", "bench", "docs":
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".rs", ".md") and "golden" not in path.parts:
                found = re.findall(
                    r"FORMAT\.md(?:'s)?,? \(?(?:sections? )?(\d+(?:\.\d+)?|[A-C]\.\d)", path.read_text(encoding="utf-8")
                )
                assert [name for name in found if name not in SECTIONS] == [], path


def test_the_text_refuses_what_the_reference_decoder_refuses(text: dict[str, Any]) -> None:
    """An index at the edge of what is allowed, or past it, under right checksums; and levels with bytes changed."""

    def outcome(decoder: Callable[[bytes], Any], data: bytes, refusals: tuple[type[Exception], ...]) -> str:
        try:
            decoder(data)
        except refusals:
            return "refused"
        return "decoded"

    refusals = (text["Damaged"], text["Unsupported"])
    for name, (index, expected) in EDGES.items():
        assert outcome(text["read_file"], encode.write_file(index, b""), refusals) == expected, name
    source, seen = random.Random(13), set()
    for path in (GOLDEN / name for name in ("sparse.levels", "extremes.levels", "regression.levels", "fast9.levels")):
        fields = decode.Fields(path.read_bytes())
        fields.take(2)
        _, record = decode.parse_shape(fields), fields.blob()
        params = decode.Params(record)
        count = min(40, params.width * params.chunk_rows)
        levels = decode.read_levels(path.read_bytes()).ravel()[:count].tolist()
        (chunk,) = encode.encode_chunks(params, levels)
        for _ in range(25):
            data = encode.write_levels([len(levels)], record, [mutated(chunk, source)])
            found = outcome(text["read_array"], data, refusals)
            assert found == outcome(decode.read_levels, data, (decode.Damaged,)), path.name
            seen.add(found)
    assert seen == {"decoded", "refused"}


def test_an_index_that_is_too_large_to_be_coded_is_stored_as_it_is():
    long = "layer." * 40_000
    tensors = {f"{long}{number}": np.zeros(0, np.float32) for number in range(5)}
    data = deepcabac.compress(tensors, lossless=True)
    assert len(data) > 1_200_000  # 2 kB if it were coded, which takes a second to decode
    assert [*deepcabac.decompress(data)] == [*tensors]
    assert [*decode.read_file(data)] == [*tensors]
    few = deepcabac.compress({name: tensors[name] for name in [*tensors][:4]}, lossless=True)
    assert len(few) < 10_000
    # As large as the file allows: a byte of payload more or less decides.
    payload = np.random.default_rng(0).integers(0, 256, 1_200_100 - (1 << 20), np.uint8)
    assert len(deepcabac.compress({**tensors, "w": payload}, lossless=True)) < 200_000
