"""Does an edit change any output? Run the small pipeline at a revision and as it is here, and compare every output.

\b
python -m tools.same_bytes HEAD             the working tree against the last commit
python -m tools.same_bytes HEAD --commit    and, where nothing differs, take the new code over into dvc.lock

Tensors are compared by value, other files by bytes. The small pipeline makes the choices of params.yaml, its precision
on this machine included, with smaller sizes. So it proves nothing about recipes, or about choices that the pipeline
does not make. The digests that `make test` compares are of the same pipeline in fp32.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from safetensors import deserialize

from ldm import InputError
from stages.report import TEMPLATE as REPORT
from stages.runner import LOGS, PARAMS, ROOT, digests_of_code, run_command
from tools.check import changed_stages
from tools.small import SMALL, change, copy_project, reproduce, run_or_fail


def outputs(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the outputs in a folder hold: tensors as name → type, shape and bytes, and of another file the bytes.

    Logs and the report say when the stages ran, and are none.
    """
    paths = [path for path in folder.rglob("*.*") if path.parent.name != LOGS.name and path.name != REPORT]
    parts = {path: dict(deserialize(path.read_bytes())) for path in paths if path.suffix == ".safetensors"}
    return {path.relative_to(folder): parts.get(path) or {"": path.read_bytes()} for path in paths}


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two folders of outputs, a line each."""
    old, new = outputs(before), outputs(after)
    lines = [f"{path} is there only {'before' if path in old else 'after'}" for path in sorted(old.keys() ^ new.keys())]
    for path in sorted(old.keys() & new.keys()):
        parts = sorted(old[path].keys() | new[path].keys())
        names = ", ".join(name for name in parts if old[path].get(name) != new[path].get(name))
        if old[path] != new[path]:
            lines.append(f"{path} differs in {names}" if names else f"{path} differs")
    return lines


@click.command(help=__doc__)
@click.argument("revision")
@click.option("--commit", is_flag=True, help="Where nothing differs, run dvc commit.")
def command(revision: str, commit: bool) -> None:
    for stage, changes in changed_stages() if commit else ():
        for path, state in changes if ":" not in stage else ():  # a recipe's may be stale
            if path.startswith(("artifacts/", str(PARAMS))):
                raise InputError(f"{stage}: {path} is {state}, not that of dvc.lock; run dvc checkout, or dvc repro")
    with tempfile.TemporaryDirectory() as folder:
        projects = copy_project(Path(folder) / "before", revision), copy_project(Path(folder) / "after")
        for project in projects:
            change(project / PARAMS, {key: "auto" for key in SMALL if key.endswith("precision")})
        lines = differences(*map(reproduce, projects))
        if digests_of_code(projects[1]) != digests_of_code(ROOT):
            raise InputError("files in ldm/ or stages/ have changed while they were compared; run it again")
    if lines:
        click.echo("\n".join(lines))
        raise InputError(f"{len(lines)} outputs differ from those of {revision}; run 'dvc repro'")
    click.echo(f"every output of the small pipeline is that of {revision}")
    if commit:
        run_or_fail("dvc commit failed", ROOT, "dvc", "commit", "--force", "dvc.yaml")


if __name__ == "__main__":
    run_command(command, "same_bytes")
