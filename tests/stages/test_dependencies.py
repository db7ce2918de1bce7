"""dvc.yaml lists what each stage uses: every stage of the small pipeline runs, and says which files it has loaded."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, run_in

from stages.runner import path_of, read_yaml

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
RECIPES = sorted(ROOT.glob("recipes/*/dvc.yaml"))
ORDER = ["prepare_data", "train_classifier", "train_second_classifier", "extract_features", "train_vae"]
ORDER += ["encode_latents", "train_diffusion", "sample", "decode", "evaluate", "memorisation", "export", "report"]
# runs the stage, then lists the files of all modules that are loaded
SCRIPT = """
import sys, importlib
from pathlib import Path
name, listed = sys.argv[1:3]
sys.argv[:] = [name, *sys.argv[3:]]
importlib.import_module(f"stages.{name}").main()
named = [Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
files = {path.resolve() for path in named if path.is_absolute() or path.exists()}  # torch has modules without a file
Path(listed).write_text("\\n".join(map(str, files)))
"""


def is_exempt(file: Path) -> bool:
    """What runs a stage, and changes none of its outputs."""
    runs = file.parts[:2] == ("stages", "runner") and file.name != "figures.py"
    return file.name == "__init__.py" or file == Path("ldm/errors.py") or runs


def is_below(file: Path, dep: str) -> bool:
    return file == Path(dep) or Path(dep) in file.parents


def code_of(entry: dict, sections: dict) -> list[str]:
    """The deps of a stage that are code, with the names of choices in place."""
    network = sections.get("train_diffusion", {}).get("network", "")
    deps = [dep.replace("${train_diffusion.network}", network) for dep in entry["deps"]]
    return [dep for dep in deps if is_code(dep)]


def is_code(dep: str) -> bool:
    """Neither an artifact nor a folder of pictures."""
    return "artifacts" not in Path(dep).parts and Path(dep).parts[0] != "data"


def test_stage_is_module_is_section():
    assert list(STAGES) == ORDER == list(read_yaml(ROOT / "params.yaml"))
    assert all((ROOT / "stages" / f"{name}.py").is_file() for name in ORDER)
    assert all(entry["cmd"] == f"stages/run stages.{name}" for name, entry in STAGES.items())
    assert all(entry["params"] == [name] for name, entry in STAGES.items())
    assert all(f"stages/{name}.py" in entry["deps"] for name, entry in STAGES.items() if entry["outs"])
    assert all(entry["desc"] for entry in STAGES.values())
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert scripts == set(ORDER)


def test_the_models_are_artifacts_of_dvc():
    listed = read_yaml(ROOT / "dvc.yaml")["artifacts"]
    outs = {path_of(out) for entry in STAGES.values() for out in entry["outs"]}
    assert set(listed) == {"denoiser", "vae", "classifier"}
    assert all(entry["type"] == "model" and entry["desc"] and entry["path"] in outs for entry in listed.values())


class Ran(NamedTuple):
    """A stage that has run by hand: the project's files that were loaded, and the folder of the outputs."""

    loaded: set[Path]
    out: Path


@pytest.fixture(scope="module")
def ran(project, tmp_path_factory):
    """Run a stage by hand, once."""
    folder = tmp_path_factory.mktemp("by_hand")

    @cache
    def run(name: str) -> Ran:
        listed, out = folder / f"{name}.txt", folder / name
        command = [sys.executable, "-c", SCRIPT, name, str(listed), "--out", str(out), "--no-resume"]
        tracked = {path: path.read_bytes() for path in (project / "artifacts").rglob("*.*")}
        done = run_in(project, *command, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        assert {path: path.read_bytes() for path in (project / "artifacts").rglob("*.*")} == tracked
        files = {Path(line) for line in listed.read_text().splitlines()}
        return Ran({path.relative_to(project) for path in files if project in path.parents}, out)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ORDER if STAGES[name]["outs"]])
def test_what_a_stage_loads_is_below_its_deps(ran, name):
    """Of each stage with outputs; the report, which DVC always makes anew, is none."""
    deps = code_of(STAGES[name], read_yaml(ROOT / "params.yaml"))
    loaded = ran(name).loaded
    assert Path(f"stages/{name}.py") in loaded
    missing = [str(f) for f in sorted(loaded) if not is_exempt(f) and not any(is_below(f, dep) for dep in deps)]
    assert missing == [], "these were loaded; list them in the deps of dvc.yaml"
    superfluous = [dep for dep in deps if not any(is_below(file, dep) for file in loaded)]
    assert superfluous == [], "nothing of these was loaded; take them out of the deps of dvc.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ORDER if STAGES[name]["outs"]])
def test_a_run_by_hand_gives_the_same_bytes(ran, project, name):
    """`python -m stages.<name>` with the same parameters makes every tracked file of the stage anew, and no other."""
    outs = [Path(path_of(out)) for out in STAGES[name]["outs"]]
    out = ran(name).out
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in outs)
    assert [str(o) for o in outs if (out / o.name).read_bytes() != (project / o).read_bytes()] == []


def names_used(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, and those that it looks up in what it imports."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            aliases |= {alias.asname or alias.name: f"{base}{alias.name}" for alias in node.names}
    yield from aliases.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root in aliases:
                yield ".".join([aliases[root], *rest])


def file_of(name: str) -> Path | None:
    """The file that a dotted name, or a beginning of it, lies in; a package's stub says where its names lie."""
    place = Path()
    parts = name.split(".")
    for i, part in enumerate(parts):
        if (ROOT / place / f"{part}.py").is_file():
            return place / f"{part}.py"
        stub = ROOT / place / "__init__.pyi"
        if not (ROOT / place / part).is_dir() and stub.is_file():
            for node in ast.walk(ast.parse(stub.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and part in {a.name for a in node.names}:
                    return file_of(".".join([*place.parts, node.module, *parts[i:]]))
        place /= part
    return None


def files_used(file: Path) -> set[Path]:
    return {found for name in names_used(file) if (found := file_of(name))}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_the_deps_of_a_recipe_cover_what_its_scripts_import(file):
    """Their stages are not run here: what the script imports, and what that imports, is found in the text."""
    sections = read_yaml(ROOT / "params.yaml")
    own = read_yaml(file.parent / "params.yaml")
    for name, entry in read_yaml(file)["stages"].items():
        assert entry["cmd"].split()[0] == "stages/run"
        assert entry["wdir"] == "../.."
        if not entry["outs"]:  # it is run anew each time, whatever has changed
            assert entry["always_changed"]
            continue
        deps = code_of(entry, sections | {"train_diffusion": own.get("train_diffusion", sections["train_diffusion"])})
        assert [dep for dep in deps if "$" not in dep and not (ROOT / dep).exists()] == []
        script = Path(*entry["cmd"].split()[1].split(".")).with_suffix(".py")
        seen: set[Path] = set()
        waiting = {script}
        while waiting:
            here = waiting.pop()
            seen.add(here)
            # what runs a stage imports more, for itself; and the options name all networks, of which one is built
            if here == script or (not is_exempt(here) and here != Path("ldm/networks/options.py")):
                waiting |= files_used(here) - seen
        missing = [str(f) for f in sorted(seen) if not is_exempt(f) and not any(is_below(f, dep) for dep in deps)]
        assert missing == [], f"{file}: {name}"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_a_recipe_lists_the_code_that_the_pipeline_lists(file):
    """A stage of the same script has the same code among its deps, but for the networks, which may be others."""
    for name, entry in read_yaml(file)["stages"].items():
        module = entry["cmd"].split()[1].removeprefix("stages.")
        listed, wanted = (
            {dep for dep in deps if is_code(dep) and not dep.startswith("ldm/networks/")}
            for deps in (entry["deps"], STAGES.get(module, entry)["deps"])
        )
        assert {dep for dep in listed if "$" not in dep} == wanted, f"{file}: {name}"
