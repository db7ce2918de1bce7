"""The documents: figures that come from a committed file are that file's, and what the documents name is there.

A table whose figures come from committed files has a comment above it that says where each of them stands:

    <!-- figures from artifacts/metrics/{row}.json: fid_val - precision -->

The keys are those of the columns after the first, in order; a single key serves all of them, and `-` marks a column of
text. {row} and {column} stand for the first cell of the row and of the column. A key goes into mappings by dots, and
into a list of records by the words of the record meant, `rows.train,ours,fp32.images_per_second`; `a/b` is a ratio.
Decimals and unit (%, M) are those of the document, the digits are the file's, rounded once; – is for what no file
holds.

A paragraph that quotes figures of committed files has a comment above it with their keys, in the order of the text:

    <!-- in words, from artifacts/seeds/summary.json: fid_test.real_std - agree.mean; from params.yaml: sample.n -->

There every figure with a fraction or a unit has its key, or `-` where no file holds it. A number as part of a key takes
one record of a list; -1 is the last.

A table of figures that no committed file holds has the comment <!-- measured on MACHINE -->; where a file holds one of
its rows, after `; row TEXT, from …`, which is read as above, with a text that stands in this row alone.

`python -m tests.test_documents --write` writes the figures of all tables anew.
"""

import json
import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dvc.cli import parse_args
from safetensors import safe_open

from stages.runner import PARAMS, ROOT, files_of, read_yaml, with_settings

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NONE = "–"
TABLE = re.compile(r"(?:<!--((?:(?!-->)[\s\S])*)-->\n)?((?:^\|.*\n)+)", re.MULTILINE)
SENTENCES = re.compile(r"<!-- in words, (from [^>]*?)\s*-->\n((?:(?!<!--).+\n)+)")
ROW = re.compile(r"; row (.+?), (from [^>]*)")
KEYS = re.compile(r"from\s+(\S+):\s+([^;]+)")
NO_FIGURE = re.compile(r"\]\([^)]*\)|`[^`]*`|\(2M\)")  # links, code, and the name of a sampler
SOURCE = re.compile(r"\s*figures from (\S+):\s+(.*?)\s*", re.DOTALL)
FIGURE = re.compile(r"−?\d[\d,]*(?:\.(\d+))?( %|M)?")
FIGURE_CELL = re.compile(r"\**−?\d[\d,]*(\.\d+)?( ?(±.*|%|M|s|min.*|h))?\**")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
FOLDERS = ("ldm", "stages", "tools", "recipes", "bench", "docs", "tests", "artifacts")
A_NAME = {"schedule": "cosine", "sampler": "ddim", "network": "unet", "prepare_data.dataset": "kmnist"}
# by commands that the documents show
MADE_BY_THE_READER = {"recipes/leaves", "artifacts/report/report.html"}


class Table(NamedTuple):
    """A table of a document: the comment above it, and its cells, a header and rows."""

    comment: str
    rows: list[list[str]]

    @property
    def source(self) -> tuple[str, list[str]] | None:
        """The path and the keys of the columns after the first; None without a source."""
        match = SOURCE.fullmatch(self.comment)
        if not match:
            return None
        path, keys = match[1], match[2].split()
        columns = len(self.rows[0]) - 1
        keys = keys * columns if len(keys) == 1 else keys
        assert len(keys) == columns, f"{path}: {len(keys)} keys for {columns} columns"
        return path, keys


def table_of(match: re.Match[str]) -> Table:
    lines = match[2].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return Table(match[1] or "", [rows[0], *rows[2:]])


def tables(document: Path) -> list[Table]:
    return [table_of(match) for match in TABLE.finditer(document.read_text("utf-8"))]


def name_in(cell: str) -> str:
    """What a cell names, without bold and code marks, and without spaces."""
    match = re.fullmatch(r"(?:\*\*)?`?(.*?)`?(?:\*\*)?", cell)
    assert match
    return match[1].replace(" ", "")


def find(value: Any, key: str) -> Any:
    """What stands under a key in nested mappings and lists of records, or alone in a list; None where nothing does."""
    for part in key.split("."):
        if isinstance(value, list) and part.lstrip("-").isdigit():
            value = value[int(part)]
        elif isinstance(value, list):
            words = Counter(part.split(","))
            value = next((r for r in value if Counter(x for x in r.values() if isinstance(x, str)) == words), None)
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def content_of(file: Path) -> Any:
    """What a file holds, YAML or JSON; of a model, the number of weights in each of its parts."""
    if file.suffix == ".safetensors":
        sizes: Counter[str] = Counter()
        with safe_open(file, "np") as model:
            for name in model.keys():  # noqa: SIM118 (it is no mapping)
                sizes[name.partition(".")[0]] += math.prod(model.get_slice(name).get_shape())
        return dict(sizes)
    return read_yaml(file) if file.suffix == ".yaml" else json.loads(file.read_text("utf-8"))


def numbers_of(path: str, key: str) -> list[Any]:
    """The figure of a cell, or none."""
    values = []
    for file in sorted(ROOT.glob(path)):
        terms = [find(content_of(file), term) for term in key.split("/")]
        if None not in terms:
            values.append(terms[0] / terms[1] if len(terms) > 1 else terms[0])
    return values


def as_written(figure: re.Match[str], number: float) -> str:
    """A number with the decimals and the unit of a figure in the document, rounded once."""
    unit = figure[2] or ""
    scaled = Decimal(repr(number)) * {"": Decimal(1), " %": Decimal(100), "M": Decimal("1e-6")}[unit]
    return f"{scaled:,.{len(figure[1] or '')}f}{unit}".replace("-", "−")


def rewritten(cell: str, numbers: list[Any]) -> str:
    """A cell with the numbers in the places of its figures."""
    if not numbers:
        return NONE
    if isinstance(numbers[0], str):
        return numbers[0]
    figures = FIGURE.findall(cell)
    assert len(figures) == len(numbers), f"{cell!r} should show {numbers}; write as many decimals as it should have"
    rest = iter(numbers)
    return FIGURE.sub(lambda figure: as_written(figure, next(rest)), cell)


def expected(table: Table) -> list[list[str]]:
    """The rows of a table with a source, with the figures of its files."""
    assert table.source
    path, keys = table.source
    header, *rows = table.rows
    result = [header]
    for row in rows:
        cells = [row[0]]
        for cell, key, column in zip(row[1:], keys, header[1:], strict=True):
            names = {"row": name_in(row[0]), "column": name_in(column)}
            numbers = [] if key == "-" else numbers_of(path.format(**names), key.format(**names))
            cells.append(cell if key == "-" else rewritten(cell, numbers))
        result.append(cells)
    return result


def documented(kind: type) -> list[Any]:
    """Every document, or every table with a source, as parameters of a test."""
    if kind is Path:
        return [pytest.param(document, id=document.name) for document in DOCUMENTS]
    sourced = [(d, t) for d in DOCUMENTS for t in tables(d) if t.source]
    return [pytest.param(table, id=f"{d.name}-{table.rows[0][0]}-{i}") for i, (d, table) in enumerate(sourced)]


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command of a document, after its folder; what `&&` joins are commands of their own.

    They stand in its shell blocks, or between backquotes in its sentences, where `<name>` is any choice.
    """
    text = document.read_text("utf-8")
    for language, block in BLOCK.findall(text):
        folder = "."
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            for command in line.strip("() ").split("&&"):
                words = shlex.split(command, comments=True)
                if words[:1] == ["cd"]:
                    folder = words[1]
                elif words:
                    yield [folder, *words]
            if line.startswith("("):
                folder = "."  # a subshell ends
    for span in re.findall(r"`((?:\w+=\S* )?(?:python -m|dvc|make|-S \+\+) [^`]+)`", BLOCK.sub("", text)):
        words = shlex.split(re.sub(r"([\w.]+)=<name>", lambda key: f"{key[1]}={A_NAME[key[1]]}", span))
        yield [".", *(["dvc", "exp", "run"] if words[0] == "-S" else []), *words]


def values_after(words: list[str], *flags: str) -> list[str]:
    return [value for flag, value in pairwise(words) if flag in flags]


def parse(name: str, section: Any) -> None:
    """Validate a section as the stage does. Raises: InputError."""
    import_module(f"stages.{name}").Config.parse(section, name)


@pytest.mark.parametrize("table", documented(Table))
def test_figures_are_those_of_the_committed_files(table):
    assert table.rows == expected(table)


@pytest.mark.parametrize("document", documented(Path))
def test_figures_in_sentences_are_those_of_the_committed_files(document):
    quoted = SENTENCES.findall(document.read_text("utf-8"))
    assert len(quoted) == document.read_text("utf-8").count("<!-- in words")
    for table in tables(document):
        for label, sources in ROW.findall(table.comment):
            (row,) = [cells for cells in table.rows[1:] if label in ", ".join(cells)]
            quoted.append((sources, ", ".join(row).replace(label, "")))
    for sources, text in quoted:
        check_quotes(sources, text)


def check_quotes(sources: str, text: str) -> None:
    """Hold the figures of a text to the keys that a comment gives for them, in their order."""
    figures = FIGURE.finditer(NO_FIGURE.sub("", text))
    for path, keys in KEYS.findall(sources):
        for key in keys.split():
            number = None if key == "-" else numbers_of(path, key)[0]
            for figure in figures:
                exact = bool(figure[1] or figure[2])  # a whole number without a unit may be of anything
                if exact and number is None:
                    break
                shown = exact or isinstance(number, int) or (number or 0) >= 10  # 0.9952 is not the 1 of "below 1"
                if shown and number is not None and as_written(figure, number) == figure[0]:
                    break
                assert not exact, f"{figure[0]} where {key} is {number}, in {text}"
            else:
                raise AssertionError(f"{key} is {number}, which is not in {text}")
    assert [figure[0] for figure in figures if figure[1] or figure[2]] == [], f"figures without a key, in {text}"


def test_a_figure_in_a_sentence_needs_a_key():
    source = "from params.yaml: train_diffusion.optimisation.steps sample.samplers.dpmpp_2m.eta"
    check_quotes(source, "After 3,000 steps of 256, with η = 0.5 ([page](0.7), `0.8`).")
    check_quotes(source.replace(" sample", " - sample"), "After 3,000 steps, of which 1.5 % failed, with η = 0.5.")
    for text in ("After 3,001 steps, with η = 0.5.", "After 3,000 steps, with η = 0.6.", "3,000 steps and 0.5 or 0.7."):
        with pytest.raises(AssertionError):
            check_quotes(source, text)


@pytest.mark.parametrize("document", documented(Path))
def test_every_table_of_figures_says_where_they_come_from(document):
    for table in tables(document):
        cells = [cell for row in table.rows[1:] for cell in row[1:] if len(name_in(cell)) > 1]
        if any(FIGURE_CELL.fullmatch(cell) for cell in cells):
            assert table.source or table.comment.strip().startswith("measured on "), table.rows[0]


def test_a_figure_is_rounded_once():
    """296.476 becomes 296, not 297 by way of 296.5; and 11268.9 is not 11270."""
    figure = FIGURE.fullmatch("297")
    assert figure
    assert as_written(figure, 296.47550478664675) == "296"
    assert rewritten("**11270**", [11268.885]) == "**11,269**"
    assert rewritten("2.1 ± 0.1", [2.182, 0.0951]) == "2.2 ± 0.1"
    assert rewritten("99.4 %", [0.9946]) == "99.5 %"
    assert rewritten("1.00M", [652772]) == "0.65M"
    assert rewritten("0.03", [-0.0338]) == "−0.03"


@pytest.mark.parametrize("document", documented(Path))
def test_links_lead_somewhere(document):
    for target in LINK.findall(document.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not heading or heading in slugs, target


@pytest.mark.parametrize("document", documented(Path))
def test_paths_and_tests_that_are_named_exist(document):
    text = document.read_text("utf-8")
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for span in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
        path = re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./<>*-]*", span)
        if path and span not in MADE_BY_THE_READER and not span.endswith(".safetensors"):
            assert list(ROOT.glob(re.sub(r"<\w+>", "*", span).rstrip("/"))), span
        if re.fullmatch(r"test_\w+", span):
            assert re.search(rf"def {span}\b", tests), span
    for module in re.findall(r"python -m ((?:stages|tools|recipes|bench)[\w.]*\w)", text):
        assert find_spec(module) or (ROOT / module.replace(".", "/")).exists(), module


@pytest.mark.parametrize("document", documented(Path))
def test_names_beside_a_link_to_a_page_are_on_that_page(document):
    for table in tables(document):
        for cell in (cell for row in table.rows[1:] for cell in row):
            pages = [(document.parent / target).resolve() for target in LINK.findall(cell) if target.endswith(".py")]
            text = "\n".join(page.read_text("utf-8") for page in pages)
            for name in re.findall(r"`([A-Za-z_]\w*)`", LINK.sub("", cell)) if pages else ():
                assert re.search(rf"\b{name}\b", text), f"{name} in {cell}"


@pytest.mark.parametrize("document", documented(Path))
def test_parameters_of_commands_exist(document):
    """`dvc exp run -S` changes what params.yaml holds, `-S ++` adds what it leaves out, and each value is valid."""
    for folder, *words in commands(document):
        if words[:3] == ["dvc", "exp", "run"]:
            sections = read_yaml(ROOT / folder / PARAMS)
            for setting in values_after(words, "-S", "--set-param"):
                key, _, value = setting.removeprefix("++").partition("=")
                place: Any = sections
                for part in key.split("."):
                    place = place.get(part) if isinstance(place, dict) else None
                assert (place is None) == setting.startswith("++"), setting
                with_settings(sections, [f"{key}={value}"])
            for name in sections:
                if (ROOT / "stages" / f"{name}.py").exists():
                    parse(name, sections[name])
        elif words[:2] == ["python", "-m"] and (ROOT / f"{words[2].replace('.', '/')}.py").match("stages/*.py"):
            name = words[2].removeprefix("stages.")
            recipe = ROOT / (values_after(words, "--recipe") or [folder])[0]
            section = read_yaml(recipe / PARAMS)[(values_after(words, "--section") or [name])[0]]
            parse(name, with_settings(section, values_after(words, "--set")))
            files_of(name, recipe, values_after(words, "--in"), None)


def parse_tool(words: list[str]) -> None:
    """Let click parse a command of tools/ or bench/, and refuse what it does not know."""
    if words[0].endswith("python") and words[1] == "-m" and words[2].split(".")[0] in ("tools", "bench"):
        module = import_module("bench.__main__" if words[2] == "bench" else words[2])
        module.command.make_context(words[2], words[3:])


@pytest.mark.parametrize("document", documented(Path))
def test_dvc_and_make_know_these_commands(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for _, *words in commands(document):
        while words and re.match(r"\w+=", words[0]):  # a variable of the environment
            del words[0]
        if words[:1] == ["dvc"]:
            parse_args(words[1:])  # raises an error for an option or a command that DVC does not have
        elif words[:1] == ["make"]:
            assert words[1] in targets, words
        elif words[:1] == ["torchrun"]:
            assert find_spec(words[words.index("-m") + 1]), words


@pytest.mark.parametrize("document", documented(Path))
def test_commands_of_tools_have_these_options(document):
    for _, *words in commands(document):
        parse_tool(words)


@pytest.mark.parametrize("tool", [path.stem for path in sorted((ROOT / "tools").glob("[a-z]*.py"))])
def test_commands_in_the_help_of_tools_have_these_options(tool):
    shown = re.findall(r"^python -m tools.*?(?=\s{3,}|$)", import_module(f"tools.{tool}").__doc__, re.MULTILINE)
    assert shown or tool == "small"  # which takes a folder alone
    for command in shown:
        parse_tool(shlex.split(command))


def test_the_readme_is_short_where_it_must_be():
    text = (ROOT / "README.md").read_text("utf-8")
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("make repro"))
    assert first <= 30
    assert not any(line.startswith("|") for line in lines[:first])
    tree = BLOCK.search(text, text.index("## The tree"))
    assert tree
    entries = tree[2].splitlines()
    assert len(entries) <= 15
    for entry in entries:
        for path in re.split(r"\s{2,}", entry)[0].split(", "):
            assert (ROOT / path).exists(), path
    assert all(len(table.rows[0]) <= 5 for table in tables(ROOT / "README.md"))


@pytest.mark.parametrize("document", documented(Path))
def test_lines_of_text_have_at_most_120_columns(document):
    lines = re.sub(r"<!--[\s\S]*?-->", "", document.read_text("utf-8")).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def write() -> None:
    """Write the figures of all tables anew."""

    def renewed(match: re.Match[str]) -> str:
        table = table_of(match)
        if not table.source:
            return match[0]
        lines = match[2].splitlines()
        rows = [f"| {' | '.join(cells)} |" for cells in expected(table)]
        return match[0].replace(match[2], "\n".join([rows[0], lines[1], *rows[1:]]) + "\n")

    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        new = TABLE.sub(renewed, text)
        if new != text:
            document.write_text(new, "utf-8")
            print(f"{document.relative_to(ROOT)} is written anew")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_documents --write")
    write()
