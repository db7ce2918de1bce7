"""What every stage script shares: its command line, its place in dvc.yaml, and one-line errors."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ldm.config import Section, choice_fields, parse_options
from ldm.errors import InputError, Interrupted
from stages import launch

if TYPE_CHECKING:
    from ldm.artifacts import Artifact

C = TypeVar("C", bound=Section)
PARAMS = Path("params.yaml")
DAG = Path("dvc.yaml")
REMEDIES = {errno.EISDIR: "name a file in it", errno.ENOTDIR: "a folder is wanted there", errno.EACCES: "make it accessible to you"}


@dataclass(frozen=True)
class Job(Generic[C]):
    """One run of a stage: its configuration, the files that it reads and writes, and the device."""

    name: str
    config: C
    inputs: dict[str, Path]  # by file stem, which for an artifact is its kind
    outputs: dict[str, Path]  # by file name
    device: str
    save_every: float = 60.0  # seconds between two states
    fresh: bool = False  # leave out the states that there are
    resources: ExitStack = field(default_factory=ExitStack, compare=False)  # held until the run has ended

    def load(self, kind: str) -> Artifact:
        """Read an input artifact. Raises: InputError."""
        from ldm import artifacts

        return artifacts.load(self.inputs[kind], kind)

    def load_all(self) -> dict[str, Artifact]:
        """Read every input artifact that dvc.yaml gives the stage, by kind. Raises: InputError unless they belong together."""
        from ldm import artifacts

        found = {kind: self.load(kind) for kind in self.inputs}
        artifacts.merge_lineage(list(found.values()))
        return found

    def save(self, kind: str, tensors: dict, parents: Sequence[Artifact] = (), **config: Any) -> Artifact:
        """Write the output artifact of a kind, with the resolved configuration, the device type and anything to add, and read it back."""
        from ldm import artifacts

        path = self.outputs[f"{kind}.safetensors"]
        config = self.config.resolved() | {"device": self.device.partition(":")[0]} | config
        artifacts.save(path, kind, tensors, config, parents)
        return artifacts.load(path, kind)

    def write(self, file: str, data: bytes) -> None:
        """Write another output, by its file name."""
        from ldm import artifacts

        artifacts.write_atomic(self.outputs[file], data)


def stage(name: str, config: type[C], run: Callable[[Job[C]], None], doc: str | None, *, parallel: bool = False) -> Callable[[], None]:
    """The command of a stage: `main()` parses the command line, runs, and turns mistakes into exit code 2.

    parallel: the stage can run in several processes.
    """

    @click.command(name=f"python -m stages.{name}", help=doc, cls=_command_with_parameters(name, config))
    @click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a parameter for this run (repeatable; needs --out).")
    @click.option("--params", type=click.Path(path_type=Path), default=PARAMS, show_default=True, help="Parameter file (another one needs --out).")
    @click.option("--section", default=name, show_default=True, help="Section of the parameter file (another one needs --out).")
    @click.option("--in", "sources", metavar="NAME=PATH", multiple=True, help="Read an input from elsewhere (repeatable; needs --out).")
    @click.option("--out", type=click.Path(path_type=Path), help="Write all outputs into this folder instead of the tracked places.")
    @click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
    @_option("--save-every", type=click.FloatRange(min=0), default=60.0, help="Seconds after which a long run keeps its state.")
    @_option("--fresh", is_flag=True, help="Start anew, whatever states an earlier run has left.")
    @_option("--deterministic", is_flag=True, help="Only operations that give the same bits every time; on a CPU all do.")
    @_option("--processes", type=click.IntRange(min=1), default=1, help="Processes on this machine, started by torchrun; most stages run in one.")
    def command(settings: tuple[str, ...], params: Path, section: str, sources: tuple[str, ...], out: Path | None, device: str, **how: Any) -> None:
        if out is None and (settings or sources or params != PARAMS or section != name):
            raise InputError("--set, --in, --section and another --params need --out FOLDER, so that a run by hand never overwrites a tracked artifact")
        values = with_settings(read_section(params, section), settings, optional_parameters(config))
        inputs, outputs = files_of(name, sources, out)
        job = Job(name, config.parse(values, section), inputs, outputs, pick_device(device), how["save_every"], how["fresh"])
        for folder in sorted({path.parent for path in outputs.values()}):
            check_writable(folder)
        if launch.STARTED and not parallel:
            raise InputError("this stage runs in one process; start it without torchrun")
        if launch.STARTED:
            job = replace(job, device=launch.join(job.device))
        elif parallel and how["processes"] > 1:
            launch.launch(job, how["processes"])
        if how["deterministic"]:
            only_deterministic()
        with job.resources:
            run(job)

    return lambda: run_command(command, name)


def _option(flag: str, **settings: Any) -> Callable[..., Any]:
    """An option that `dvc repro` takes from the environment."""
    return click.option(flag, envvar=f"LDM_{flag.strip('-').replace('-', '_').upper()}", show_default=True, show_envvar=True, **settings)


def only_deterministic() -> None:
    """Refuse operations whose result is not the same every time (they raise RuntimeError)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    import torch

    torch.use_deterministic_algorithms(True)


def run_command(command: click.Command, name: str) -> None:
    """Run a command; a user's mistake becomes one line on standard error and exit code 2."""
    try:
        command.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail(name, "interrupted; run the same command again", 130)
    except click.ClickException as error:
        _fail(name, error.format_message())
    except InputError as error:
        _fail(name, str(error))
    except Interrupted as error:
        _fail(name, str(error), error.code)
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory|not enough memory", str(error)):
            raise
        _fail(name, f"out of memory; lower the batch size or the network's width, or free some ({str(error).partition('.')[0]})")
    except OSError as error:
        if error.errno is None:
            raise
        _fail(name, f"{error.strerror}: {error.filename or 'writing'}; {REMEDIES.get(error.errno, 'free space, or choose another --out')}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping (version 1.2, as DVC reads it). Raises: InputError."""
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing here; run from the folder that holds it") from None
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of sections")
    return values


def read_section(path: Path, name: str) -> dict[str, Any]:
    """One section of a parameter file. Raises: InputError."""
    section = read_yaml(path).get(name)
    if not isinstance(section, dict):
        raise InputError(f"{path}: the section {name!r} is missing")
    return section


def with_settings(section: dict[str, Any], settings: Sequence[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """The section with `key=value` settings applied; keys may be dotted. Raises: InputError for a key that is neither there nor optional."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting!r} is not of the form KEY=VALUE")
        place, *parts = section, *key.split(".")
        for i, part in enumerate(parts):
            if not isinstance(place, dict) or (part not in place and key not in optional):
                known = ", ".join(place) if isinstance(place, dict) else "none"
                raise InputError(f"--set {key}: unknown parameter {'.'.join(parts[: i + 1])!r}; known here are {known}")
            if i < len(parts) - 1:
                place = place[part]
        try:
            place[parts[-1]] = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError):  # a date that does not exist is a ValueError
            raise InputError(f"--set {key}: {text!r} is not a YAML value") from None
    return section


def optional_parameters(config: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of the parameters that have a default."""
    found: set[str] = set()
    for key, meaning in config.model_fields.items():
        kind = meaning.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= optional_parameters(kind, f"{prefix}{key}.")
        elif not meaning.is_required():
            found.add(prefix + key)
    return found


def files_of(name: str, sources: Sequence[str], out: Path | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """The data files of a stage as dvc.yaml states them: inputs by stem, outputs by file name.

    Raises: InputError where dvc.yaml lacks the stage, or a source has an unknown name.
    """
    entry = read_yaml(DAG).get("stages", {}).get(name)
    if entry is None:
        raise InputError(f"{DAG} has no stage {name!r}")
    inputs = {Path(d).stem: Path(d) for d in entry.get("deps", []) if not d.endswith(".py")}
    for source in sources:
        key, _, path = source.partition("=")
        if key not in inputs or not path:
            raise InputError(f"--in {source!r}: write NAME=PATH, where NAME is one of {', '.join(inputs) or 'none'}")
        inputs[key] = Path(path)
    listed = (next(iter(o)) if isinstance(o, dict) else o for o in entry.get("outs", []))
    return inputs, {Path(o).name: out / Path(o).name if out else Path(o) for o in listed}


def pick_device(text: str) -> str:
    """`auto` takes the GPU where there is one. Raises: InputError for a device that is not there."""
    if text == "cpu":
        return text
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if count else "cpu"
    index = text.removeprefix("cuda").removeprefix(":") or "0"
    if not text.startswith("cuda") or not index.isdecimal():
        raise InputError(f"--device {text}: choose auto, cpu, cuda or cuda:i")
    if int(index) >= count:
        raise InputError(f"--device {text}: this machine has {count} usable GPUs; choose {'cpu' if not count else f'cuda:0 to cuda:{count - 1}'} or auto")
    return text


def check_writable(folder: Path) -> None:
    """Raises: InputError unless a file can be made in the folder now, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; make it writable, free space, or choose another --out") from None


def warn(name: str, message: str | None) -> None:
    """A warning on standard error, one line; None says nothing."""
    if message:
        print(f"{name}: warning: {message}", file=sys.stderr)


def _command_with_parameters(name: str, config: type[Section]) -> type[click.Command]:
    class Command(click.Command):
        """`--help` ends with the stage's parameters and their values."""

        def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            path = ctx.params.get("params") or PARAMS
            section = ctx.params.get("section") or name
            values = read_section(path, section)
            formatter.write_paragraph()
            with formatter.section(f"Parameters (section {section} of {path})"):
                formatter.write_dl(parameter_rows(config, values))

    return Command


def parameter_rows(config: type[Section], values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name = value, 'type, range: meaning') of every parameter, those of chosen options included."""
    rows = []
    kinds = {kind: values.get(word) for word, kind in choice_fields(config).items()}
    for key, meaning in config.model_fields.items():
        value, kind = values.get(key, None if meaning.is_required() else meaning.default), meaning.annotation
        if key in kinds:
            for name, options in (value or {}).items():
                cls = type(parse_options(key, name, options))
                rows += parameter_rows(cls, options, f"{prefix}{key}.{name}.")
        elif isinstance(kind, type) and issubclass(kind, Section):
            rows += parameter_rows(kind, value or {}, f"{prefix}{key}.")
        else:
            about = ", ".join([_type_name(kind), *(text for m in meaning.metadata if (text := _limit(m)))])
            rows.append((f"{prefix}{key} = {value}", f"{about}: {meaning.description}{_names(config, key)}"))
    return rows


def _names(config: type[Section], key: str) -> str:
    from ldm.choices import known

    kind = choice_fields(config).get(key)
    return f" ({', '.join(known(kind))})" if kind else ""


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _limit(meta: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of", "min_length": "length ≥"}
    return " ".join(f"{sign} {getattr(meta, key)}" for key, sign in signs.items() if getattr(meta, key, None) is not None)


def _fail(name: str, message: str, code: int = 2) -> None:
    number = f" (process {launch.NUMBER})" if launch.NUMBER else ""
    print(f"{name}{number}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
