"""What every stage script shares: its command line, and one-line errors."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ldm.config import Section
from ldm.errors import InputError, Interrupted
from ldm.lazy import torch
from stages.runner import processes
from stages.runner.checkpoints import SIGNALS
from stages.runner.parameters import PARAMS, parameter_rows, read_section, with_settings
from stages.runner.run import C, Run, files_of

REMEDIES = {
    errno.EISDIR: "name a file in it",
    errno.ENOTDIR: "a folder is wanted there",
    errno.EACCES: "make it accessible to you",
}


def stage(
    name: str,
    config: type[C],
    run: Callable[[Run[C]], None],
    doc: str | None,
    *,
    parallel: bool = False,
    recipe: str = ".",
) -> Callable[[], None]:
    """The command of a stage: `main()` parses the command line, runs, and turns mistakes into exit code 2.

    parallel: the stage can run in several processes. recipe: the folder whose params.yaml and dvc.yaml it has.
    """

    @click.command(help=doc, cls=_command_with_parameters(name, config))
    @click.option(
        "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a parameter (repeatable; needs --out)."
    )
    @click.option(
        "--recipe",
        type=Path,
        default=recipe,
        show_default=True,
        is_eager=True,
        help="Folder of params.yaml and dvc.yaml.",
    )
    @click.option("--params", type=Path, is_eager=True, help="Another parameter file (needs --out).")
    @click.option(
        "--section", default=name, show_default=True, is_eager=True, help="Another section of it (needs --out)."
    )
    @click.option(
        "--in",
        "sources",
        metavar="NAME=PATH",
        multiple=True,
        help="Read an input from elsewhere (repeatable; needs --out).",
    )
    @click.option("--out", type=Path, help="Write all outputs into this folder instead of the tracked places.")
    @click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
    @_option(
        "--save-every",
        type=click.FloatRange(min=0),
        default=60.0,
        help="Seconds between two checkpoints of a long run.",
    )
    @_option("--no-resume", is_flag=True, help="Start anew, whatever checkpoints an earlier run has left.")
    @_option(
        "--deterministic", is_flag=True, help="Only operations that give the same bits every time; on a CPU all do."
    )
    @_option(
        "--processes",
        "count",
        type=click.IntRange(min=1),
        default=1,
        help="Processes on this machine, started by torchrun.",
    )
    def command(
        settings: tuple[str, ...],
        recipe: Path,
        params: Path | None,
        section: str,
        sources: tuple[str, ...],
        out: Path | None,
        device: str,
        save_every: float,
        no_resume: bool,
        deterministic: bool,
        count: int,
    ) -> None:
        if out is None and (settings or sources or params or section != name):
            raise InputError(
                "--set, --in, --section and --params need --out FOLDER, so that a run by hand never overwrites "
                "a tracked artifact"
            )
        values = with_settings(read_section(params or recipe / PARAMS, section), settings)
        inputs, outputs = files_of(name, recipe, sources, out)
        this = Run(name, config.parse(values, section), inputs, outputs, pick_device(device), save_every, not no_resume)
        for folder in sorted({path.parent for path in outputs.values()}):
            check_writable(folder)
        if processes.UNDER_TORCHRUN and not parallel:
            raise InputError("this stage runs in one process; start it without torchrun")
        if processes.UNDER_TORCHRUN:
            this = replace(this, device=processes.join(this.device))
        elif parallel and count > 1:
            processes.launch(this, count)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
            torch.use_deterministic_algorithms(True)
        run(this)

    return lambda: run_command(command, name)


def _option(flag: str, *names: str, **settings: Any) -> Callable[..., Any]:
    """An option that `dvc repro` takes from the environment."""
    variable = f"LDM_{flag.strip('-').replace('-', '_').upper()}"
    return click.option(flag, *names, envvar=variable, show_default=True, show_envvar=True, **settings)


def _command_with_parameters(name: str, config: type[Section]) -> type[click.Command]:
    class Command(click.Command):
        """`--help` ends with the stage's parameters and their values."""

        def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            path = ctx.params.get("params") or Path(ctx.params.get("recipe") or self.params[1].default) / PARAMS
            section = ctx.params.get("section") or name
            values = read_section(path, section) if path.exists() else {}
            formatter.write_paragraph()
            with formatter.section(f"Parameters (section {section} of {path})"):
                formatter.write_dl(parameter_rows(config, values))

    return Command


def run_command(command: click.Command, name: str) -> None:
    """Run a command; a user's mistake becomes one line on standard error and exit code 2."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
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
        lack = re.search("out of memory|allocate memory|not enough memory", str(error))
        if not isinstance(error, MemoryError) and not lack:
            raise
        detail = str(error).partition(".")[0]
        _fail(name, f"out of memory; lower the batch size or the network's width, or free some ({detail})")
    except OSError as error:
        if error.errno is None:
            raise
        remedy = REMEDIES.get(error.errno, "free space, or choose another --out")
        _fail(name, f"{error.strerror}: {error.filename or 'writing'}; {remedy}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def pick_device(text: str) -> str:
    """`auto` takes the GPU where there is one. Raises: InputError for a device that is not there."""
    if text == "cpu":
        return text
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if count else "cpu"
    index = text.removeprefix("cuda").removeprefix(":") or "0"
    if not text.startswith("cuda") or not index.isdecimal():
        raise InputError(f"--device {text}: choose auto, cpu, cuda or cuda:i")
    if int(index) >= count:
        usable = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise InputError(f"--device {text}: this machine has {count} usable GPUs; choose {usable} or auto")
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
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; make it writable, free space, or choose another --out"
        ) from None


def _fail(name: str, message: str, code: int = 2) -> None:
    number = f" (process {processes.RANK})" if processes.RANK else ""
    print(f"{name}{number}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
