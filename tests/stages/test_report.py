"""The report: one file that needs no other, with all that is there, for those who see, print, hear or type."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, run_stage
from PIL import Image

from stages.report import PICTURES, cell_of
from stages.runner import read_yaml
from stages.runner.figures import COLOURS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, and its text; every element that is opened is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(project) -> Page:
    return Page(project / "artifacts/report/report.html")


def luminance(colour: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines 2.2 define it."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_colours_are_readable():
    style = (ROOT / "stages/runner/report.html").read_text("utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+)", style))
    for text in ("text", "soft", "link"):
        for back in ("back", "stripe"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    assert all(contrast(colour, "#fff") >= 4.5 for colour in COLOURS)


@pytest.mark.slow
def test_it_needs_no_other_file(page):
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", page.source)
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    assert "<script" not in page.source
    assert not re.search(r"url\(|@import", page.source)


@pytest.mark.slow
def test_every_picture_is_whole_and_said_in_words(page, project):
    images = page.all("img")
    assert len(images) == len(PICTURES) + 4 + 1  # the curves and the confusion of the classifier
    kinds = []
    for image in images:
        kind, _, data = (image["src"] or "").partition(";base64,")
        content = base64.b64decode(data, validate=True)
        kinds.append(kind)
        if kind == "data:image/svg+xml":
            ElementTree.fromstring(content)
        else:
            Image.open(io.BytesIO(content)).verify()
        assert len(image["alt"] or "") > 20
    assert kinds.count("data:image/svg+xml") == 5
    assert kinds.count("data:image/gif") == 1
    grid = base64.b64encode((project / "artifacts/decode/grid.png").read_bytes()).decode()
    assert grid in (images[0]["src"] or "")


@pytest.mark.parametrize(
    ("value", "about", "text"),
    [
        (0.8551, {"std": 0.1402}, "0.86 ± 0.14"),
        (1.4, {"std": 0.3492}, "1.40 ± 0.35"),
        (2.2, {"std": 0.0996, "class": "7"}, "2.200 ± 0.100 (7)"),
        (12030.4, {"std": 2820.2}, "12,030 ± 2,820"),
        (0.99, {}, "0.990"),
        (0.0016, {}, "0.00160"),
        (1731.2, {"std": None}, "1,731"),
        (1.0, {"std": 0.0}, "1.00"),
        (1.0, {"std": math.nan}, "1.00"),
        (math.nan, {"std": 0.1}, "nan ± 0.10"),
        (None, {"std": 0.1}, "–"),
        (3, {"class": "oak"}, "3 (oak)"),
    ],
)
def test_a_figure_has_the_digits_of_its_deviation(value, about, text):
    assert cell_of({"x": value} | {f"x_{end}": x for end, x in about.items()}, "x") == text


@pytest.mark.slow
def test_it_has_the_whole_table_with_a_sentence_for_each_measure(page, project):
    table = json.loads((project / "artifacts/report/measures.json").read_text())
    shown = {key for row in table.values() for key in row if not re.search("^(data|n)$|_std$|_class$", key)}
    assert len(shown) > 15
    sentences = set()
    for key in shown:
        row = re.search(rf"<code>{key}</code><br><span>(.*?)</span>(.*?)</tr>", page.source)
        assert row, key
        assert len(row[1]) > 15
        assert row[1] not in sentences, key
        sentences.add(row[1])
        for values in table.values():
            assert f">{cell_of(values, key)}</td>" in row[2], key


@pytest.mark.slow
def test_it_says_what_was_chosen_and_what_ran(page, project):
    assert re.search(r"<code>kl_weight</code></th><td>0.02</td><td>\(required\)</td>", page.source)
    assert re.search(r"<code>optimisation.lr_final</code></th><td>0.01</td><td>0.0</td>", page.source)
    assert "<code>optimisation.betas</code>" not in page.source  # at its default
    for stage in read_yaml(project / "dvc.yaml")["stages"]:
        if stage == "report":
            continue
        log = json.loads((project / f"artifacts/logs/{stage}.json").read_text())
        assert log["seconds"] > 0
        assert 50 < log["peak_mib"] < 20_000
        assert log["threads"] == 1
        assert f"<td>{log['ended']}</td>" in page.source, stage
        for digest in (d for file, d in log["outputs"].items() if file.endswith(".safetensors")):
            assert digest[:12] in page.text


@pytest.mark.slow
def test_a_stage_that_runs_for_many_folders_has_a_log_for_each(project, tmp_path, monkeypatch):
    """As those of a matrix do under DVC; a run by hand with --out leaves none."""
    logs = project / "artifacts/logs"
    before = set(logs.iterdir())
    for variables in ({}, {"DVC_STAGE": "decode"}):
        for name in ("one", "two"):
            with monkeypatch.context() as patched:
                for variable, value in variables.items():
                    patched.setenv(variable, value)
                done = run_stage(project, "decode", "--out", str(tmp_path / name))
            assert done.returncode == 0, done.stderr
        own = {path.name for path in set(logs.iterdir()) - before}
        assert own == ({"decode-one.json", "decode-two.json"} if variables else set())


@pytest.mark.slow
def test_the_structure_serves_keyboards_and_screen_readers(page):
    assert page.all("html") == [{"lang": "en"}]
    assert page.text.count("Latent diffusion: mnist") == 2  # title and heading
    assert [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in targets
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", next(iter(targets))) in targets
    assert all("scope" in cell for cell in page.all("th"))
    wide = [attributes for attributes in page.all("div") if attributes.get("class") == "wide"]
    assert wide
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in wide)


@pytest.mark.slow
def test_of_files_from_elsewhere_no_run_is_claimed(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy")
    (copy / "artifacts/report/memorisation.json").write_text('{"copies": 0.25}')  # not what the stage wrote
    shutil.rmtree(copy / "artifacts/decode")  # nor has it run here
    done = run_stage(copy, "report", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "out/report.html")
    for stage, ran in {"memorisation": False, "decode": False, "sample": True}.items():
        row = page.source.split(f'<th scope="row">{stage}</th>')[1].split("</tr>")[0]
        assert ("<td>–</td>" not in row) is ran, stage
    assert re.search(r"<code>copies</code></th><td class=\"number\">0.250</td>", page.source)
    assert len(page.all("img")) == len(PICTURES) - 3 + 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["measures", "memorisation"])
def test_what_is_no_table_is_refused(project, tmp_path, kind):
    words = ("--in", f"{kind}=artifacts/train_vae/history.json", "--out", str(tmp_path / "out"))
    done = run_stage(project, "report", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("report: artifacts/train_vae/history.json is no table; name")
    assert not (tmp_path / "out/report.html").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # a font without it
def test_names_of_classes_are_text(project, tmp_path):
    copy = shutil.copytree(project, tmp_path / "copy")
    confusion = copy / "artifacts/train_classifier/confusion.csv"
    confusion.write_text("actual,predicted\n<b>$x^2$&,<b>$x^2$&\n<b>$x^2$&,木\n木,木\n", "utf-8")
    done = run_stage(copy, "report", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "out/report.html")
    assert "<b>" not in page.source
    image = next(i for i in page.all("img") if (i["alt"] or "").startswith("1 of 3 images are taken for another class"))
    assert image["alt"] == "1 of 3 images are taken for another class; most often <b>$x^2$& for 木, 1 times."
    drawn = base64.b64decode((image["src"] or "").partition(",")[2]).decode()
    assert "$x^2$" in drawn  # as text, and as no formula
    assert ">木</text>" in drawn


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it(project, tmp_path, width):
    """No error, no broken picture, nothing wider than the window; the whole table at once where there is room."""
    page = (project / "artifacts/report/report.html").read_text("utf-8")
    check = """<script>addEventListener("load", () => {
        const broken = [...document.images].filter(image => !image.naturalWidth).length;
        const wide = document.documentElement.scrollWidth > innerWidth;
        const table = document.querySelector("#table .wide"), cut = table.scrollWidth > table.clientWidth;
        document.title = `images ${document.images.length}, broken ${broken}, wide ${wide}, cut ${cut}`;
        });</script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", check), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [
        f"--window-size={width},2000",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{tmp_path}/page.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    cut = "true" if width < 1000 else "false"
    assert f"<title>images {len(PICTURES) + 5}, broken 0, wide false, cut {cut}</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
def test_stages_and_plots_of_ones_own_do_no_harm(project, tmp_path):
    """A script elsewhere, a loop, a folder as output, and a curve in a file that is no JSON."""
    copy = shutil.copytree(project, tmp_path / "copy")
    dag = read_yaml(copy / "dvc.yaml")
    dag["stages"]["mine"] = {"cmd": "python scripts/mine.py", "outs": ["mine"]}
    dag["stages"]["each"] = {"foreach": [1], "do": {"cmd": "true"}}
    dag["plots"].append({"loss": {"y": {"loss.csv": "loss"}}})
    dag["metrics"] = ["own.json", {"list.json": {"cache": False}}]
    for entry in dag["stages"]["report"], dag["stages"]["evaluate"]:  # so that the table is of the metrics
        entry["deps"] = [dep for dep in entry["deps"] if "measures" not in dep]
    (copy / "own.json").write_text('{"loss": 0.5}')
    (copy / "list.json").write_text("[1]")
    (copy / "mine").mkdir()
    (copy / "loss.csv").write_text("step,loss\n")
    (copy / "dvc.yaml").write_text(json.dumps(dag))
    done = run_stage(copy, "report", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "report.html")
    assert len(page.all("img")) == len(PICTURES) + 5
    assert page.source.count('<th scope="col">own</th>') == 1
    assert page.source.count('<td class="number">0.500</td>') == 1


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "pictures"), [("toys", 22), ("sweep", 1), ("blog_ldm", 9)])
def test_every_recipe_has_one(recipe, pictures, tmp_path):
    """Of the files that are committed: each metric with its figure, each picture."""
    done = run_stage(ROOT, "report", "--recipe", f"recipes/{recipe}", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "report.html")
    assert len(page.all("img")) == pictures
    assert len({image["src"] for image in page.all("img")}) == pictures
    headings = re.findall("<h3>(.*?)</h3>", page.source)
    assert len(set(headings)) == pictures
    for file in read_yaml(ROOT / f"recipes/{recipe}/dvc.yaml").get("metrics", []):
        path = ROOT / f"recipes/{recipe}" / file
        row = json.loads(path.read_text()) if path.exists() else {}
        for key, value in row.items():
            if isinstance(value, float) and not key.endswith("_std"):
                assert cell_of(row, key) in page.text, (file, key)
    if recipe == "toys":
        assert page.source.count("<br><span></span>") == 0  # each measure has its sentence
        assert "moons (2,000)" in page.text
