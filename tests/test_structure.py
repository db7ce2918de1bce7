"""The house: imports point one way and in no circle, the rooms are the stated ones, the committed run is the code's.

recipes, tools and bench import stages, stages import stages/runner, and all of them import ldm; never the other way.
"""

import ast
import contextlib
import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_in
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent
from test_documents import values_after

import ldm
from ldm import tile
from ldm.data.toys import toys
from ldm.diffusion import penalties, predictions, schedules, timestep_samplings, weightings
from ldm.networks import autoencoders, classifiers, networks
from ldm.sampling import samplers, spacings
from stages.runner import files_of, read_yaml
from tools.check import check_parameters, stage_config, stale_results

FOLDERS = ("ldm", "stages", "tools", "recipes", "bench")
FILES = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
REGISTRIES = (schedules, predictions, weightings, penalties, timestep_samplings, spacings, samplers)
REGISTRIES += (networks, autoencoders, classifiers, toys)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def imported(module: str) -> set[str]:
    """The project's modules that a module imports; a package's stub says which modules its names lie in."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {home for alias in node.names for home in homes(base, alias.name)}
    return {name for name in found if name in MODULES} - {module}


def homes(base: str, name: str) -> set[str]:
    """The modules in which `from base import name` finds the name: base itself, its sub-module, or that of its stub."""
    stub = ROOT / Path(*base.split(".")) / "__init__.pyi"
    if f"{base}.{name}" in MODULES:
        return {f"{base}.{name}"}
    for node in ast.walk(ast.parse(stub.read_text("utf-8"))) if stub.is_file() else ():
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names} and node.module:
            return {f"{base}.{node.module}"}
    return {base}


EDGES = {module: imported(module) for module in MODULES}


def test_the_imports_are_found():
    """What the tests below rest on."""
    assert EDGES["stages.sample"] >= {"ldm.sampling.samplers", "ldm.config", "stages.runner.checkpoints"}
    assert EDGES["recipes.sweep.sweep"] >= {"stages.sample", "stages.runner.command"}
    assert EDGES["tools.repeat"] >= {"ldm.artifacts", "stages.runner.run"}


def room(module: str) -> str:
    return "stages.runner" if module.startswith("stages.runner") else module.partition(".")[0]


def test_imports_point_one_way():
    below = {"ldm": {"ldm"}, "stages.runner": {"stages.runner", "ldm"}}
    below["stages"] = {"stages", *below["stages.runner"]}
    below |= {room: {room, *below["stages"]} for room in ("tools", "recipes", "bench")}
    wrong = [f"{a} imports {b}" for a, found in EDGES.items() for b in found if room(b) not in below[room(a)]]
    assert wrong == []
    # one recipe knows nothing of another
    across = [(a, b) for a in EDGES for b in EDGES[a] if a.startswith("recipes.") and b.startswith("recipes.")]
    assert [(a, b) for a, b in across if a.split(".")[1] != b.split(".")[1]] == []


def test_imports_make_no_circle():
    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in EDGES[waiting.pop()] - seen:
                seen.add(module)
                waiting.append(module)
        return seen

    assert [module for module in MODULES if module in reach(module)] == []


def unusual_imports(path: Path) -> Iterator[int]:
    """The lines of imports inside functions, and of blocks for type checkers alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=str)
def test_an_import_inside_a_function_says_why(path):
    lines = (ROOT / path).read_text("utf-8").splitlines()
    for number in set(unusual_imports(path)):
        line, above = lines[number - 1], lines[number - 2]
        reasons = [line.partition("# ")[2], above.lstrip().partition("# ")[2] if above.lstrip()[:2] == "# " else ""]
        reasons = [re.sub(r"(noqa|type): ?[\w, -]*(\[[\w-]*\])?", "", reason) for reason in reasons]
        assert any(len(reason.split()) > 2 for reason in reasons), f"{path}:{number}: {line.strip()}"


def test_few_imports_are_inside_functions():
    assert sum(len(set(unusual_imports(path))) for path in FILES) < 15


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks, or would."""
    done = run_in(ROOT, "git", "ls-files", "-co", "--exclude-standard", "--", *patterns)
    assert done.returncode == 0, done.stderr
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_lines_have_at_most_120_columns():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("*.py", "*.pyi", "stages/run")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert found == []


def test_there_is_one_gitignore():
    assert tracked(".gitignore", "**/.gitignore") == [ROOT / ".gitignore"]


def test_dvc_yaml_is_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 220


def test_names_of_test_files_are_unique():
    """Their folders are no packages, so two of one name would be one module."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) == len(set(names))


RECIPES = [file.parent for file in sorted(ROOT.glob("recipes/*/dvc.yaml"))]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "recipes/fashion_ddpm"], ids=lambda folder: folder.name)
def test_all_of_params_is_valid(folder):
    check_parameters(folder)


@pytest.mark.parametrize("folder", [folder for folder in RECIPES if folder.name != "toys"], ids=lambda f: f.name)
def test_sections_share_nothing(folder):
    """`dvc exp run -S unet.optimisation.steps=4` would change every section that has the same mapping by an alias."""
    for file in (ROOT / "params.yaml", folder / "params.yaml"):
        assert not [event for event in YAML().parse(file.read_text()) if isinstance(event, AliasEvent)]


def test_recipes_with_results_have_all_of_them():
    """A recipe whose lock is committed has run to its end."""
    locked = [folder for folder in RECIPES if (folder / "dvc.lock").exists()]
    assert {folder.name for folder in locked} >= {"sweep", "toys"}
    done = run_in(ROOT, "dvc", "stage", "list", "--recursive", "--all", "--name-only")
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    for folder in locked:
        prefix = f"{folder.relative_to(ROOT)}/dvc.yaml:"
        listed = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        # the report has no results of its own
        assert listed - {"report"} == set(read_yaml(folder / "dvc.lock")["stages"]) - {"report"}


def test_every_command_reads_and_writes_what_its_stage_states(monkeypatch):
    """With the variables of dvc.yaml filled in, in the pipeline and in each recipe."""
    monkeypatch.setattr("stages.runner.run.read_yaml", cache(read_yaml))
    with contextlib.chdir(ROOT), Repo() as repo:
        found = [stage for stage in repo.index.stages if stage.cmd.startswith("stages/run stages.")]
    assert len(found) > 80
    for stage in found:
        module, *words = shlex.split(stage.cmd)[1:]
        recipe, out = (values_after(words, flag) for flag in ("--recipe", "--out"))
        name, folder = module.removeprefix("stages."), Path(recipe[0] if recipe else ".")
        inputs, outputs = files_of(name, folder, values_after(words, "--in"), Path(out[0]) if out else None)
        read, written = ({Path(entry.fs_path) for entry in entries} for entries in (stage.deps, stage.outs))
        assert {ROOT / path for path in inputs.values()} <= read, stage.addressing
        assert {ROOT / path for path in outputs.values()} == written, stage.addressing


def test_the_ablation_changes_one_thing_at_a_time():
    """From each training to the next; a choice is a word and its options."""
    changes: dict[str, set[str]] = {
        "tutorial": set(),
        "unet": {"network"},  # and the latents, which are drawn afresh in each step
        "averaged": {"ema_decay"},
        "muon": {"lr", "lr_final", "warmup", "muon_lr", "betas", "clip_norm"},
        "straight": {"schedule", "prediction"},
        "logit_normal": {"timestep_sampling"},
        "labels": {"class_labels"},
        "default": {"batch_size", "steps", "warmup"},  # the pipeline's own training
    }
    recipe = ROOT / "recipes/blog_ldm"
    listed = next(part["trainings"] for part in read_yaml(recipe / "dvc.yaml")["vars"] if "trainings" in part)
    assert [run["name"] for run in listed] == list(changes)[:-1]
    sections = read_yaml(recipe / "params.yaml") | {"default": read_yaml(ROOT / "params.yaml")["train_diffusion"]}
    config = stage_config("train_diffusion")
    resolved = [config.parse(sections[name], name).resolved() for name in changes]
    tables = {registry.name for registry in REGISTRIES}
    flat = [{k: v for k, v in section.items() if k != "optimisation"} | section["optimisation"] for section in resolved]
    for name, before, after in zip(changes, flat[:1] + flat, flat, strict=False):
        differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert differing - tables == changes[name], name
        # the options of a choice change with the choice alone
        words = {"networks": "network", "schedules": "schedule", "predictions": "prediction"}
        words |= {"timestep_samplings": "timestep_sampling", "weightings": "weighting", "penalties": "penalty"}
        assert {words[table] for table in differing & tables} <= changes[name], name


def test_the_sweep_and_the_ablation_end_at_the_defaults():
    default, blog = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "recipes/blog_ldm/params.yaml")
    assert read_yaml(ROOT / "recipes/sweep/params.yaml")["sweep"]["guidance"] == default["sample"]["guidance"]

    def resolved(stage: str, section: dict) -> dict:
        return stage_config(stage).parse(section, stage).resolved()

    guided, sample = resolved("sample", blog["guided"]), resolved("sample", default["sample"])
    assert guided | {"n": 0, "batch_size": 0} == sample | {"n": 0, "batch_size": 0}


class TestCommittedRun:
    """dvc.lock and the metrics in git belong to the code and the parameters in git; recipes may lag behind."""

    def test_every_stage_is_locked(self):
        assert set(read_yaml(ROOT / "dvc.lock")["stages"]) == set(read_yaml(ROOT / "dvc.yaml")["stages"])

    def test_nothing_is_stale(self):
        assert [line for line in stale_results() if not line.startswith(("recipes/", "bench/"))] == []

    @pytest.mark.parametrize("folder", ["fp32", "epyc"])
    def test_the_tables_of_other_runs_are_those_of_their_locks(self, folder):
        stages = read_yaml(ROOT / f"artifacts/{folder}/lock.yaml")["stages"].values()
        outs = {out["path"]: out["md5"] for entry in stages for out in entry.get("outs", ())}
        for path in ("report/table.md", "report/measures.json", "report/memorisation.json", "decode/grid.png"):
            content = (ROOT / f"artifacts/{folder}" / path.partition("/")[2]).read_bytes()
            assert hashlib.md5(content).hexdigest() == outs[f"artifacts/{path}"], path

    def test_the_search_for_copies_has_power(self):
        found = json.loads((ROOT / "artifacts/report/memorisation.json").read_text())
        assert found["found_decoded"] >= 0.95
        assert min(found["found_shifted"], found["found_turned"]) >= 0.8
        assert found["false_alarms"] <= 0.01

    def test_the_committed_model_draws_the_grid_beside_it(self):
        """On other kinds of CPU to rounding."""
        path = ROOT / "artifacts/export/model.safetensors"
        (out,) = read_yaml(ROOT / "dvc.lock")["stages"]["export"]["outs"]
        assert hashlib.md5(path.read_bytes()).hexdigest() == out["md5"]
        assert path.stat().st_size <= 8_000_000
        drawn = tile(ldm.load(path, "cpu").sample(20), 20)
        with Image.open(ROOT / "artifacts/decode/grid.png") as grid:
            first_row = np.asarray(grid)[: 2 * len(drawn) : 2, ::2].astype(float)
        assert np.abs(drawn - first_row).mean() < 3  # of 255 grey levels
        assert first_row.std() > 50

    def test_figures_and_metrics_are_committed(self):
        """What DVC does not cache, git holds; of the tensors, the exported model alone."""
        listed = subprocess.run(
            ["git", "ls-files", "artifacts"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        stages = read_yaml(ROOT / "dvc.lock")["stages"].values()
        outs = [out["path"] for entry in stages for out in entry.get("outs", ())]
        missing = {path for path in outs if path not in listed}
        cached = {path for path in outs if path.endswith(".safetensors")} - {"artifacts/export/model.safetensors"}
        assert missing == cached

    def test_the_table_is_there(self):
        for row in ("random", "vae_prior", "reconstruction", "diffusion", "test_images"):
            values = json.loads((ROOT / f"artifacts/metrics/{row}.json").read_text())
            assert list(values)[:5] == ["data", "n", "fid", "fid_test", "fid_val"]
            assert (values["data"], values["n"]) == ("mnist", 10_000)
