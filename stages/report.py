"""Write the results as one page of HTML that needs no other file: table, pictures, curves, settings, times.

The page shows what dvc.yaml lists as plots, as far as it is there, and the tables of evaluate and memorisation. It also
says when and on what the stages ran last, so it is no tracked output, and `dvc repro` writes it anew each time.
"""

import base64
import csv
import io
import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ldm import InputError, Section, artifacts, data
from stages.runner import DAG, LOGS, ROOT, Run, digest_of, files_of, new_figure, path_of, stage
from stages.runner.parameters import as_written, parameters_of, read_yaml

TEMPLATE = "report.html"
TYPES = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml"}
WORDS = read_yaml(ROOT / "stages/runner/report.yaml")
PICTURES, MEMORISATION = WORDS["pictures"], WORDS["memorisation"]
Picture = tuple[str, str, str]  # heading, what it shows, and the picture as a data: address


class Config(Section):
    """There is nothing to choose: the page shows all that is there."""


def compute(run: Run[Config]) -> None:
    recipe, dag, params = run.recipe, read_yaml(run.recipe / DAG), read_yaml(run.params)
    plots = sorted(dag.get("plots", []), key=lambda entry: not isinstance(entry, str))  # pictures first, then curves
    table, copies = (read_table(run, name) for name in ("measures", "memorisation"))
    if "measures" not in run.inputs:
        rows = {name_of(path): read_json(recipe / path) for path in map(path_of, dag.get("metrics", []))}
        table = {name: row for name, row in rows.items() if row and isinstance(row, dict)}
    table = dict(sorted(table.items(), key=lambda row: row[0] != "diffusion"))  # the model's row first
    known = [name for name in dag["stages"] if name in params and (ROOT / f"stages/{name}.py").exists()]
    template = Environment(loader=FileSystemLoader(ROOT / "stages/runner"), autoescape=True, undefined=StrictUndefined)
    page = template.get_template(TEMPLATE).render(
        kind="Latent diffusion" if "train_vae" in dag["stages"] else "Diffusion",
        data=next((row["data"] for row in table.values() if "data" in row), recipe.resolve().name),
        rows=[name.replace("_", " ") + (f" ({row['n']:,})" if "n" in row else "") for name, row in table.items()],
        measures=measures(table, dag),
        pictures=[picture for entry in plots for picture in pictures_of(recipe, entry)],
        memorisation=[(name, meaning, cell(copies[name])) for name, meaning in MEMORISATION.items() if name in copies],
        settings={name: settings(name, params[name]) for name in known},
        runs=[run_of(recipe, name) for name in dag["stages"] if name != run.name],
        commit=commit(),
    )
    path = (run.out or recipe / "artifacts/report") / TEMPLATE
    artifacts.write_atomic(path, page.encode())
    print(f"{run.name}: the page is {path}")


def measures(table: dict[str, Any], dag: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(name, meaning, a cell for each row) of the measures; the meaning is what the help of a stage says of one."""
    modules = re.findall(r"stages/run ([\w.]+)", json.dumps(dag["stages"]))
    told = "\n".join(import_module(module).__doc__ or "" for module in modules)
    lines = re.findall(r"^([\w…]+(?:, [\w…]+)*)  +(\S.*)$", told, re.MULTILINE)
    meanings = {name: meaning for names, meaning in lines for name in names.split(", ")} | WORDS["measures"]
    keys = dict.fromkeys(key for row in table.values() for key in row if not re.search("^(data|n)$|_(std|class)$", key))
    return [(key, meanings.get(key, ""), [cell_of(row, key) for row in table.values()]) for key in keys]


def name_of(path: str) -> str:
    """What a picture, or a file of metrics, is called by its place: that below artifacts, without the ending."""
    return path.removeprefix("artifacts/").removeprefix("metrics/").rpartition(".")[0].removesuffix("/metrics")


def cell_of(row: dict[str, Any], key: str) -> str:
    """A measure to the second digit of its deviation, and the class that is meant, where the row has them."""
    value, std, named = (row.get(key + end) for end in ("", "_std", "_class"))
    text = cell(value)
    if isinstance(value, float) and isinstance(std, float) and 0 < std < math.inf:
        decimals = max(1 - math.floor(math.log10(std)), 0)
        text = f"{value:,.{decimals}f} ± {std:,.{decimals}f}"
    return text if named is None else f"{text} ({named})"


def cell(value: Any) -> str:
    """The text of a value: a float with three significant digits, from 100 on without decimals; – for None."""
    if isinstance(value, float):
        return f"{value:#.3g}" if abs(value) < 99.95 else f"{value:,.0f}"
    return "–" if value is None else str(value)


def pictures_of(recipe: Path, entry: Any) -> Iterator[Picture]:
    """What an entry of `plots` in dvc.yaml shows; nothing where a file is not there, or of another kind."""
    if isinstance(entry, str):
        path = recipe / entry
        heading, about = PICTURES.get(path.name, (name_of(entry).replace("_", " "), f"The picture {entry}."))
        if path.exists() and path.suffix in TYPES:
            heading += which(entry) if path.name in PICTURES else ""
            yield heading, about, as_source(path.read_bytes(), path.suffix)
        return
    for title, chart in entry.items():
        chart = chart or {}
        x, y, path = chart.get("x", "step"), chart.get("y"), recipe / title
        for file, names in y.items() if isinstance(y, dict) else ():
            columns = [names] if isinstance(names, str) else names
            if file.endswith(".json"):
                yield from curves(title + which(file), read_json(recipe / file), x, columns)
        if isinstance(y, str) and chart.get("template") == "confusion" and path.exists():
            yield confusion(chart.get("title", title), path, x, y)


def which(file: str) -> str:
    """The run that a file is of, to end a heading with, where a recipe has several: artifacts/stage/run/file."""
    return f": {Path(file).parts[2].replace('_', ' ')}" if len(Path(file).parts) > 3 else ""


def curves(title: str, history: list[dict[str, Any]], x: str, names: list[str]) -> Iterator[Picture]:
    """Training curves; the words say where each of them ends, and where it was lowest. Without points, no picture."""
    figure = new_figure(7, 3)
    axes, said = figure.add_subplot(xlabel=x), []
    for name in names:
        points = [(row[x], row[name]) for row in history if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
            best, (last, end) = min(points, key=lambda point: point[1]), points[-1]
            lowest = "" if best[1] == end else f", after {best[1]:.4g} at {x} {best[0]:,}"
            said.append(f"{name.replace('_', ' ')} {end:.4g} at {x} {last:,}{lowest}")
    if said:
        axes.legend()
        yield title, f"Training curve: {'; '.join(said)}.", as_svg(figure)


def confusion(title: str, path: Path, x: str, y: str) -> Picture:
    """How often each class is taken for each; the words name the most frequent mistake."""
    with path.open(encoding="utf-8", newline="") as file:
        pairs = Counter((row[x], row[y]) for row in csv.DictReader(file))
    totals = Counter(actual for actual, _ in pairs.elements())
    names = sorted({name for pair in pairs for name in pair}, key=data.image_folder.as_people_sort)
    wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]})
    about = f"{wrong.total():,} of {pairs.total():,} images are taken for another class"
    for (actual, predicted), count in wrong.most_common(1):
        about += f"; most often {actual} for {predicted}, {count:,} times"
    figure = new_figure(5, 4.5)
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    shares = [[pairs[actual, predicted] / max(totals[actual], 1) for actual in names] for predicted in names]
    figure.colorbar(axes.imshow(shares, cmap="cividis"), label=f"share of the {x} class")
    if len(names) <= 30:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    return title, f"{about}.", as_svg(figure)


def as_svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return as_source(buffer.getvalue(), ".svg")


def as_source(content: bytes, suffix: str) -> str:
    return f"data:{TYPES[suffix]};base64,{base64.b64encode(content).decode()}"


def settings(name: str, section: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, value, default, meaning) of the parameters of a stage that are not at their defaults."""
    rows = parameters_of(import_module(f"stages.{name}").Config, section)
    own = [(x.name, as_written(x.value), as_written(x.default), x.meaning) for x in rows]
    return [row for row in own if row[1] != row[2]]


def run_of(recipe: Path, name: str) -> dict[str, Any]:
    """A stage, its tensors with their digests, and the log of its run where that wrote the files that are here."""
    digests = {file: digest_of(path) for file, path in files_of(name, recipe)[1].items() if path.is_file()}
    tensors = [(file, digest[:12]) for file, digest in digests.items() if file.endswith(".safetensors")]
    log = read_json(recipe / LOGS / f"{name}.json")
    return {"stage": name, "files": tensors, "log": log if log and log["outputs"] == digests else None}


def commit() -> str:
    """The commit of the code, with a mark where files have changed since; empty where there is no git."""
    command = ["git", "describe", "--always", "--dirty= with changes"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read_table(run: Run[Config], name: str) -> dict[str, Any]:
    """An input file; an empty mapping without it. Raises: InputError where it holds anything but a mapping."""
    table = read_json(run.inputs[name]) if name in run.inputs else {}
    if not isinstance(table, dict):
        raise InputError(f"{run.inputs[name]} is no table; name the {name}.json that a stage has written")
    return table


def read_json(path: Path) -> Any:
    """The contents of a file; an empty mapping where it is not there. Raises: InputError where it is no JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON; remove it, and run the stage again that writes it") from None


main = stage("report", Config, compute, __doc__)

if __name__ == "__main__":
    main()
