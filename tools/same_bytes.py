"""Does an edit change any output? Run the small pipeline at a revision and as it is here, and compare every output.

\b
python -m tools.same_bytes HEAD             the working tree against the last commit
python -m tools.same_bytes HEAD --commit    and, where nothing differs, take the new code over into both locks

Tensors are compared by value, other files by bytes. The small pipeline makes the choices of params.yaml, its precision
on this machine included, with smaller sizes. So it proves nothing about recipes, or about choices that the pipeline
does not make. The digests that `make test` compares are of the same pipeline in fp32.
"""

import io
import sys
import tempfile
from pathlib import Path

import click
from ruamel.yaml import YAML
from safetensors import deserialize

from ldm import InputError, write_atomic
from stages.report import TEMPLATE as REPORT
from stages.runner import LOGS, PARAMS, ROOT, digest_of, run_command
from tools.check import changed_stages
from tools.small import run_in, run_or_fail

FP32 = ROOT / "artifacts/fp32/lock.yaml"  # the lock of the run in fp32


def renew(lock: Path, other: Path) -> None:
    """Take the digests of all code from one lock over into another one of the same stages."""
    form = YAML()
    form.width = 1000
    own, theirs = form.load(lock), form.load(other)
    for name, entry in theirs["stages"].items():
        data = {dep["path"]: dep for dep in entry["deps"] if dep["path"].startswith("artifacts/")}
        entry["deps"] = [data.get(dep["path"], dep) for dep in own["stages"][name]["deps"]]
    buffer = io.BytesIO()
    form.dump(theirs, buffer)
    write_atomic(other, buffer.getvalue())


def code() -> dict[Path, str]:
    """The digest of each file of code here."""
    return {path: digest_of(path) for folder in ("ldm", "stages") for path in (ROOT / folder).rglob("*.py")}


def run_small(code: Path, folder: Path) -> Path:
    """The small pipeline by the code of a checkout. Raises: InputError where it fails."""
    problem = f"the small pipeline failed with the code of {code}"
    run_or_fail(problem, code, sys.executable, "-m", "tools.small", "--precision", "auto", str(folder))
    return folder / "artifacts"


def tracked(path: Path) -> bool:
    """Whether it is an output; logs and the report say when the stages ran."""
    return path.parent.name != LOGS.name and path.name != REPORT


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two folders of outputs, a line each."""
    old, new = ({path.relative_to(root) for path in root.rglob("*.*") if tracked(path)} for root in (before, after))
    lines = [f"{path} is there only {'before' if path in old else 'after'}" for path in sorted(old ^ new)]
    for path in sorted(old & new):
        a, b = before / path, after / path
        if path.suffix == ".safetensors":
            x, y = (dict(deserialize(file.read_bytes())) for file in (a, b))  # name → type, shape and bytes
            names = [name for name in sorted(x.keys() | y.keys()) if x.get(name) != y.get(name)]
            lines += [f"{path} differs in {', '.join(names)}"] if names else []
        elif a.read_bytes() != b.read_bytes():
            lines.append(f"{path} differs")
    return lines


@click.command(help=__doc__)
@click.argument("revision")
@click.option(
    "--commit", is_flag=True, help="Where nothing differs, run dvc commit, and renew the lock of the run in fp32."
)
def command(revision: str, commit: bool) -> None:
    for stage, changes in changed_stages() if commit else ():
        for path, state in changes if ":" not in stage else ():  # a recipe's may be stale
            if path == str(PARAMS):
                raise InputError(f"{stage}: its parameters are not those of dvc.lock: {state}; run 'dvc repro'")
            if path.startswith("artifacts/"):
                raise InputError(f"{stage}: {path} is {state}, not that of dvc.lock; run 'dvc checkout' first")
    compared = code()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        run_or_fail(revision, ROOT, "git", "worktree", "add", "--detach", str(checkout), revision)
        try:
            before, after = run_small(checkout, checkout.parent / "before"), run_small(ROOT, checkout.parent / "after")
            lines = differences(before, after)
        finally:
            run_in(ROOT, "git", "worktree", "remove", "--force", str(checkout))
    if code() != compared:
        raise InputError("files in ldm/ or stages/ have changed while they were compared; run it again")
    if lines:
        click.echo("\n".join(lines))
        raise InputError(f"{len(lines)} outputs differ from those of {revision}; run 'dvc repro'")
    click.echo(f"every output of the small pipeline is that of {revision}")
    if commit:
        run_or_fail("dvc commit failed", ROOT, "dvc", "commit", "--force", "dvc.yaml")
        if FP32.exists():  # a project that began as a copy may have no such run
            renew(ROOT / "dvc.lock", FP32)


if __name__ == "__main__":
    run_command(command, "same_bytes")
