"""dvc.yaml lists exactly what each stage uses, and the committed run is that of the code."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_in
from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent

from ldm import choices
from stages import dag, params
from stages.cli import read_yaml

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
ORDER = ["prepare_data", "train_classifier", "train_second_classifier", "extract_features", "train_vae", "encode_latents", "train_diffusion"]
ORDER += ["sample", "decode", "evaluate", "memorisation"]


def test_stage_is_module_is_section():
    assert list(STAGES) == ORDER == list(read_yaml(ROOT / "params.yaml"))
    assert all((ROOT / "stages" / f"{name}.py").is_file() for name in ORDER)
    assert all(entry["cmd"] == f"python -m stages.{name}" for name, entry in STAGES.items())


FILE = ROOT / "dvc.yaml"


@pytest.mark.parametrize("file", [FILE, *sorted(ROOT.glob("recipes/*/dvc.yaml"))], ids=lambda file: file.parent.name)
def test_lists_are_up_to_date(file):
    assert dag.rewritten(file, file.read_text()) == file.read_text()


@pytest.mark.parametrize("change", ["      - ldm/training.py\n", "      - train_diffusion.target\n"])
def test_a_missing_entry_is_noticed(change):
    text = FILE.read_text()
    assert change in text
    assert dag.rewritten(FILE, text.replace(change, "", 1)) == text


def test_a_superfluous_entry_is_noticed():
    text = FILE.read_text()
    assert dag.rewritten(FILE, text.replace("      - ldm/sampling.py\n", "      - ldm/sampling.py\n      - ldm/frechet.py\n", 1)) == text


def code(name: str) -> set[str]:
    return {d for d in STAGES[name]["deps"] if d.endswith(".py")}


def test_an_edit_reruns_what_it_can_affect_and_nothing_else():
    uses = {file: {name for name in ORDER if file in code(name)} for name in ORDER for file in code(name)}
    assert uses["ldm/sampling.py"] == uses["ldm/samplers/${sample.sampler}.py"] == {"sample"}
    assert uses["ldm/loss.py"] == {"train_diffusion"}
    assert uses["ldm/frechet.py"] == {"evaluate"}
    assert uses["ldm/classifier.py"] == {"train_classifier", "train_second_classifier", "extract_features", "evaluate", "memorisation"}
    assert uses["ldm/classifiers/${train_second_classifier.classifier}_model.py"] == {"train_second_classifier", "extract_features", "evaluate"}
    assert uses["ldm/pictures.py"] == {"decode", "memorisation"}
    assert uses["ldm/training.py"] == {"train_classifier", "train_second_classifier", "train_vae", "train_diffusion"}
    assert uses["ldm/networks/${train_diffusion.network}_model.py"] == {"train_diffusion", "sample"}
    assert uses["ldm/artifacts.py"] == set(ORDER)


def test_every_module_of_ldm_is_used_or_public():
    listed = {d for name in ORDER for d in code(name)}
    plain = {str(f.relative_to(ROOT)) for f in (ROOT / "ldm").glob("*.py")}
    toys = {d.removeprefix("../../") for d in read_yaml(ROOT / "recipes/toys/dvc.yaml")["stages"]["toy"]["deps"]}
    assert plain - listed - toys == {"ldm/pipeline.py", "ldm/likelihood.py"}


@pytest.mark.parametrize("name", ORDER)
def test_loaded_modules_are_the_listed_ones(name):
    """What Python really loads for `--help` is a part of what the lists say."""
    script = f"import sys, stages.{name}; print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('ldm', 'stages') and m.__file__))"
    done = run_in(ROOT, sys.executable, "-c", script)
    loaded = {str(Path(f).relative_to(ROOT)) for f in done.stdout.split()}
    assert f"stages/{name}.py" in loaded, done.stderr
    assert loaded <= code(name)


KINDS = [p.name for p in sorted((ROOT / "ldm").iterdir()) if p.is_dir() and choices.known(p.name)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_imports_without_torch(kind):
    names = choices.known(kind)
    assert names
    script = f"import sys, importlib; [importlib.import_module('ldm.{kind}.' + n) for n in {names!r}]; print('torch' in sys.modules)"
    assert run_in(ROOT, sys.executable, "-c", script).stdout.strip() == "False"


@pytest.mark.parametrize("folder", [ROOT, ROOT / "recipes/fashion_ddpm"], ids=lambda folder: folder.name)
def test_all_of_params_is_valid(monkeypatch, folder):
    monkeypatch.chdir(folder)
    params.check(Path("params.yaml"), Path("dvc.yaml"))


def test_params_name_every_choice():
    """One word in params.yaml switches: the options of all choices are there."""
    sections = read_yaml(ROOT / "params.yaml")
    for kind, makers in dag.owners(ORDER).items():
        for section in (maker.strip("${}").split(".")[0] for maker in makers):
            assert sorted(sections[section][kind]) == choices.known(kind)


def test_a_matrix_depends_on_every_choice_that_a_section_makes():
    names = dag.mentioned([dag.stage_config("toy")], read_yaml(ROOT / "recipes/toys/params.yaml"))
    assert names["schedules"] == ["edm", "linear", "vp"]
    assert names["targets"] == ["edm", "eps", "score"]
    assert names["toys"] == choices.known("toys")


RECIPES = [file.parent for file in sorted(ROOT.glob("recipes/*/dvc.lock"))]
LOCKED = [(folder, name) for folder in RECIPES for name in read_yaml(folder / "dvc.lock")["stages"]]


def test_recipes_with_results_have_all_of_them():
    """A recipe whose lock is committed has run to its end."""
    assert {folder.name for folder in RECIPES} >= {"sweep", "toys"}
    for folder in RECIPES:
        done = run_in(folder, "dvc", "stage", "list", "--name-only")
        assert done.returncode == 0, done.stderr
        assert {name.rpartition(":")[2] for name in done.stdout.split()} == set(read_yaml(folder / "dvc.lock")["stages"])


@pytest.mark.parametrize(("folder", "name"), LOCKED, ids=lambda value: getattr(value, "name", value))
def test_a_recipes_results_are_those_of_its_code_and_parameters(folder, name):
    """The lock, and the metrics and figures in git, belong to the code and the parameters in git."""
    entry, locked = read_yaml(folder / "dvc.yaml")["stages"][name.partition("@")[0]], read_yaml(folder / "dvc.lock")["stages"][name]
    assert len(locked.get("deps", [])) == len(entry["deps"])
    for dep in locked.get("deps", []):
        if dep["path"].endswith(".py"):
            assert hashlib.md5((folder / dep["path"]).read_bytes()).hexdigest() == dep["md5"], f"{dep['path']} has changed since the committed run"
    sections = read_yaml(folder / "params.yaml")
    for key, value in locked.get("params", {}).get("params.yaml", {}).items():
        place = sections
        for part in key.split("."):
            place = place[part]
        assert place == value, key
    tracked = subprocess.run(["git", "ls-files", "artifacts"], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    for out in locked["outs"]:
        if out["path"] in tracked:
            assert hashlib.md5((folder / out["path"]).read_bytes()).hexdigest() == out["md5"], out["path"]
        else:
            assert out["path"].endswith(".safetensors")


@pytest.mark.parametrize(
    ("recipe", "stage", "artifacts"), [("sweep", "sweep@dpmpp_2m-18", 7), ("blog_ldm", "sample@row13", 2), ("blog_ldm", "evaluate@row8", 5)]
)
def test_a_recipe_that_reads_the_pipelines_artifacts_has_the_committed_ones(recipe, stage, artifacts):
    made = {out["path"]: out["md5"] for entry in read_yaml(ROOT / "dvc.lock")["stages"].values() for out in entry["outs"]}
    deps = read_yaml(ROOT / "recipes" / recipe / "dvc.lock")["stages"][stage]["deps"]
    read = {dep["path"].removeprefix("../../"): dep["md5"] for dep in deps if dep["path"].startswith("../../artifacts/")}
    assert len(read) == artifacts
    assert read.items() <= made.items()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py") if "__main__" in path.read_text("utf-8")))
def test_a_command_starts_without_torch(name):
    """`--help` must not wait for it."""
    done = run_in(ROOT, sys.executable, "-c", f"import sys, stages.{name}; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_the_ablation_changes_one_thing_at_a_time():
    """From each training to the next; a choice is a word and its options."""
    changes = {
        "tutorial": set(),
        "fresh": set(),  # reads other latents
        "unet": {"network", "networks"},
        "averaged": {"ema_decay"},
        "decay": {"lr_final", "warmup"},
        "muon": {"lr", "muon_lr", "betas", "clip_norm"},
        "straight": {"schedule", "schedules", "target", "targets", "precision"},
        "logit_normal": {"time", "times"},
        "labels": {"class_labels"},
        "default_1": {"seed", "steps"},
        "default_2": {"seed"},
    }
    recipe = ROOT / "recipes/blog_ldm"
    assert [run["name"] for part in read_yaml(recipe / "dvc.yaml")["vars"] if isinstance(part, dict) for run in part.get("trainings", [])] == list(changes)
    sections = [read_yaml(recipe / "params.yaml")[name] for name in changes]
    flat = [{key: value for key, value in section.items() if key != "optimisation"} | section["optimisation"] for section in sections]
    for name, before, after in zip(changes, flat[:1] + flat, flat, strict=False):
        assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == changes[name], name


def test_the_sweep_and_the_ablation_end_at_the_defaults():
    default, blog = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "recipes/blog_ldm/params.yaml")
    assert read_yaml(ROOT / "recipes/sweep/params.yaml")["sweep"]["guidance"] == default["sample"]["guidance"]
    guided, sample = (dag.stage_config("sample").model_validate(section).resolved() for section in (blog["guided"], default["sample"]))
    assert guided | {"n": 0, "batch_size": 0} == sample | {"n": 0, "batch_size": 0}
    for seed in (1, 2):
        trained, training = (dag.stage_config("train_diffusion").model_validate(s).resolved() for s in (blog[f"default_{seed}"], default["train_diffusion"]))
        assert trained == training | {"seed": seed}


@pytest.mark.parametrize("params", ["params.yaml", *(f"recipes/{name}/params.yaml" for name in ("blog_ldm", "fashion_ddpm", "sweep"))])
def test_sections_share_nothing(params):
    """`dvc exp run -S unet.optimisation.steps=4` would change every section that has the same mapping by an alias."""
    assert not [event for event in YAML().parse((ROOT / params).read_text()) if isinstance(event, AliasEvent)]


class TestCommittedRun:
    """dvc.lock and the metrics in git belong to the code and the parameters in git."""

    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text()) if (ROOT / "dvc.lock").exists() else {"stages": {}}

    def test_every_stage_is_locked(self):
        assert set(self.lock["stages"]) == set(ORDER)

    @pytest.mark.parametrize("name", ORDER)
    def test_code_is_that_of_the_run(self, name):
        locked = {d["path"]: d["md5"] for d in self.lock["stages"][name]["deps"] if d["path"].endswith(".py")}
        assert len(locked) == len(code(name))
        for path, md5 in locked.items():
            assert hashlib.md5((ROOT / path).read_bytes()).hexdigest() == md5, f"{path} has changed since the committed run"

    @pytest.mark.parametrize("name", ORDER)
    def test_params_are_those_of_the_run(self, name):
        sections = read_yaml(ROOT / "params.yaml")
        for key, value in self.lock["stages"][name]["params"]["params.yaml"].items():
            place = sections
            for part in key.split("."):
                place = place[part]
            assert place == value, key

    @pytest.mark.parametrize("name", ORDER)
    def test_committed_outputs_are_those_of_the_run(self, name):
        for out in self.lock["stages"][name]["outs"]:
            path = ROOT / out["path"]
            if subprocess.run(["git", "ls-files", "--error-unmatch", out["path"]], cwd=ROOT, capture_output=True).returncode == 0:
                assert hashlib.md5(path.read_bytes()).hexdigest() == out["md5"], path

    def test_the_table_is_there(self):
        for row in ("random", "vae_prior", "vae_reconstruction", "diffusion", "held_out"):
            values = json.loads((ROOT / f"artifacts/metrics/{row}.json").read_text())
            assert list(values)[:5] == ["data", "n", "fid", "fid_over_floor", "fid_test_over_floor"]
            assert (values["data"], values["n"]) == ("mnist", 10_000)
