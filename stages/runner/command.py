"""What every stage script shares: its command line, and one-line errors."""

import ctypes
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ldm import InputError, Interrupted, Section
from ldm.errors import in_one_line
from ldm.lazy import torch
from ldm.precision import has_bf16, ieee_fp32, settled
from stages.runner import processes
from stages.runner.checkpoints import write_log
from stages.runner.parameters import PARAMS, as_written, parameters_of, read_section, read_yaml, with_settings
from stages.runner.run import C, Run, files_of, warn

Compute = Callable[[Run[C]], None]
DRIVER = Path("/proc/driver/nvidia")  # there where NVIDIA's driver is loaded
# number of an OSError → what the user can do; for all others, free space or choose another folder
REMEDIES = {errno.EISDIR: "name a file in it", errno.ENOTDIR: "a folder is wanted there"}
REMEDIES |= {errno.EACCES: "make it accessible to you", errno.ENOENT: "put it there, or install the program"}


def stage(
    name: str, config: type[C], compute: Compute[C], doc: str | None, parallel: bool = False, recipe: str = "."
) -> Callable[[], None]:
    """The command of a stage: `main()` parses the command line, runs, and turns mistakes into exit code 2.

    parallel: the stage can run in several processes. recipe: the folder whose params.yaml and dvc.yaml it has.
    """

    class Command(click.Command):
        """`--help` ends with the stage's parameters and their values."""

        def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            # an option that comes after --help is not in ctx.params yet
            section = ctx.params.get("section", name)
            path = ctx.params.get("params") or ctx.params.get("recipe", Path(recipe)) / PARAMS
            values = read_yaml(path).get(section, {}) if path.exists() else {}
            formatter.write_paragraph()
            with formatter.section(f"Parameters (section {section} of {path})"):
                parameters = parameters_of(config, values)
                rows = [(f"{x.name} = {as_written(x.value)}", f"{x.form}: {x.meaning}") for x in parameters]
                formatter.write_dl(rows or [("none", "this stage has no parameters")])

    @click.command(help=doc, cls=Command, context_settings={"show_default": True, "auto_envvar_prefix": "LDM"})
    @_cli("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a parameter (repeatable; needs --out).")
    @_cli("--recipe", type=Path, default=recipe, is_eager=True, help="Folder of params.yaml and dvc.yaml.")
    @_cli("--params", type=Path, is_eager=True, help="Another parameter file (needs --out).")
    @_cli("--section", default=name, is_eager=True, help="Another section of that file (needs --out).")
    @_cli("--in", "sources", metavar="NAME=PATH", multiple=True, help="Read an input from elsewhere (needs --out).")
    @_cli("--out", type=Path, help="Write all outputs into this folder instead of the tracked places.")
    @_cli("--until", metavar="TIME", help="End a training after 90s, 10m or 1.5h, not after its steps (needs --out).")
    @_cli("--device", default="auto", help="auto, cpu, cuda or cuda:i.")
    @_env("--save-every", type=click.IntRange(min=0), default=60, help="Seconds between checkpoints.")
    @_env("--no-resume", is_flag=True, help="Start anew, whatever checkpoints an earlier run has left.")
    @_env("--deterministic", is_flag=True, help="Use only operations that always give the same bits.")
    @(_env if parallel else _cli)("--processes", type=click.IntRange(min=1), default=1, help="Processes, by torchrun.")
    def command(settings: tuple[str, ...], sources: tuple[str, ...], out: Path | None, **options: Any) -> None:
        started = time.monotonic()
        params, section, recipe = options["params"], options["section"], options["recipe"]
        if out is None and (settings or sources or params or section != name):
            raise InputError("--set, --in, --section and --params need --out FOLDER, so that no result is overwritten")
        until = seconds_of(options["until"], config, out)
        params = params or recipe / PARAMS
        values = with_settings(read_section(params, section), settings)
        inputs, outputs = files_of(name, recipe, sources, out)
        if missing := [path for path in (text.partition("=")[2] for text in sources) if not Path(path).exists()]:
            raise InputError(f"--in: {missing[0]} is missing; name a file that is there")
        if out and "DVC_STAGE" not in os.environ:
            tracked = {path.resolve() for path in files_of(name, recipe)[1].values()}
            if lies_in_artifacts(out) or tracked & {path.resolve() for path in outputs.values()}:
                raise InputError(f"--out {out} is where tracked results lie; name another folder")
        device = pick_device(options["device"])
        if ":" in device:
            torch.cuda.set_device(device)  # streams, graphs and what is asked of "cuda" are of the current device
        parsed = settle(config.parse(values, section), device)
        run = Run(name, parsed, inputs, outputs, device, options["save_every"], not options["no_resume"])
        run = replace(run, recipe=recipe, params=params, out=out, until=until)
        for folder in sorted({path.parent for path in outputs.values()}):
            check_writable(folder)
        if not parallel and max(processes.COUNT, options["processes"]) > 1:
            raise InputError("this stage runs in one process; start it without torchrun, and without --processes")
        if processes.COUNT > 1:
            run = replace(run, device=processes.join(run.device))
        elif options["processes"] > 1:
            processes.launch(run, options["processes"])
        processes.limit_threads()
        if not processes.RANK:
            announce(run)
        keep_freed_memory()
        if options["deterministic"]:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
            torch.use_deterministic_algorithms(True)
        with ieee_fp32():
            compute(run)
        if out is None or "DVC_STAGE" in os.environ:
            write_log(run, started, precision_of(run.config))

    return lambda: run_command(command, name)


_cli = partial(click.option, allow_from_autoenv=False)  # on the command line alone
_env = partial(click.option, show_envvar=True)  # also as LDM_SAVE_EVERY and so on, for `dvc repro`


def run_command(command: click.Command, name: str) -> None:
    """Run a command; a user's mistake becomes one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that has no ≥ shows a question mark
    signal.signal(signal.SIGTERM, _stop)  # so that nothing temporary is left
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
    except RecursionError:
        _fail(name, "something in the input is nested too deeply; look at the parameters and files that it reads")
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
        if not isinstance(error, MemoryError) and not re.search("(out of|allocate|not enough) memory", str(error)):
            raise
        remedy = "lower the batch size, the network's width or the images' size, or free some"
        _fail(name, f"out of memory; {remedy} ({str(error).partition('.')[0]})")
    except OSError as error:
        if error.errno is None:
            raise
        remedy = REMEDIES.get(error.errno, "free space, or choose another --out")
        _fail(name, f"{error.strerror}: {error.filename or 'writing'}; {remedy}")


def pick_device(text: str) -> str:
    """`auto` takes the GPU where there is one. Raises: InputError for a device that is not there."""
    if text == "cpu":
        return text
    # of a driver that is too old, torch warns in several lines
    with warnings.catch_warnings(record=True, action="always") as caught:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        why = f" ({str(caught[0].message).partition('. ')[0]})" if caught else ""
        oldest = min((int(re.sub(r"\D", "", arch)) for arch in torch.cuda.get_arch_list() if count), default=0)
        for card, (major, minor) in enumerate(map(torch.cuda.get_device_capability, range(count))):
            if 10 * major + minor < oldest:
                why = f" (cuda:{card} has compute capability {major}.{minor}, and torch is built for {oldest / 10} on)"
                count = card
                break
    if text == "auto":
        driver = shutil.which("nvidia-smi") or DRIVER.exists()
        if not count and driver and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            warn("device", f"torch {torch.__version__} cannot use this machine's NVIDIA GPU{why}; the CPU is used")
        return "cuda" if count else "cpu"
    match = re.fullmatch(r"cuda(?::(0|[1-9]\d{0,3}))?", text)
    if not match:
        raise InputError(f"--device {text}: choose auto, cpu, cuda or cuda:i")
    if int(match[1] or 0) >= count:
        usable = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise InputError(f"--device {text}: this machine has {count} usable GPUs{why}; choose {usable} or auto")
    return text


def seconds_of(text: str | None, config: type[Section], out: Path | None) -> float | None:
    """The seconds that --until gives a training. Raises: InputError for another text, or where it cannot be."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?)(s|m|h)", text)
    if not match or not float(match[1]):
        raise InputError(f"--until {text}: write a time such as 90s, 10m or 1.5h")
    if "optimisation" not in config.model_fields:
        raise InputError(f"--until {text} ends a training, and the section of this stage has no optimisation")
    if out is None or "DVC_STAGE" in os.environ:
        raise InputError(f"--until {text} is for runs by hand: a result that time decides needs --out, and no DVC")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def lies_in_artifacts(out: Path) -> bool:
    """Whether a folder is, or lies in, one called artifacts of the project that is run here."""
    here, there = Path.cwd(), out.resolve()
    return there.is_relative_to(here) and "artifacts" in there.relative_to(here).parts


def settle(config: C, device: str) -> C:
    """The configuration with what follows from the device: each precision `auto`, and each `capture` that is null."""
    changes: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Section):
            changes[name] = settle(value, device)
        elif name == "precision":
            changes[name] = settled(value, device.partition(":")[0])
        elif name == "capture" and value is None:
            changes[name] = device != "cpu" and processes.COUNT == 1
    return config.model_copy(update=changes)


def precision_of(config: Section) -> str:
    """The precisions that a configuration names, in words."""
    named = {x.value for x in parameters_of(type(config), config.model_dump()) if x.name.endswith("precision")}
    return " and ".join(sorted(named)) or "fp32"


def announce(run: Run[Any]) -> None:
    """Say in one line what the run computes with, and in another that bf16 is slow where the device lacks it."""
    precision, threads = precision_of(run.config), torch.get_num_threads()
    card = f"{torch.cuda.get_device_name(run.device)}, " if run.device_type == "cuda" else ""
    print(f"{run.name}: on {run.device} ({card}{threads} threads), in {precision}", flush=True)
    if "bf16" in precision and not has_bf16(run.device_type):
        slow = f"this {run.device_type} does not multiply in bf16, which takes several times as long as fp32"
        warn(run.name, f"{slow}; set precision auto")


def keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed, for the next step, which would have to page it in anew.

    See mallopt(3). Other C libraries are left as they are.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    for threshold in (-1, -3) if mallopt else ():  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(threshold, 2**30)


def check_writable(folder: Path) -> None:
    """Raises: InputError unless a file can be made in the folder now, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.", buffering=0) as probe:
            probe.write(bytes(4096))
            os.fsync(probe.fileno())
    except OSError as error:
        remedy = "free space, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose"
        raise InputError(f"cannot write to {folder}: {error.strerror}; {remedy} another folder by --out") from None


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not end the cleaning up
    raise Interrupted("interrupted; run the same command again", 128 + number)


def _fail(name: str, message: str, code: int = 2) -> None:
    number = f" (process {processes.RANK})" if processes.RANK else ""
    print(f"{name}{number}: {in_one_line(message).removeprefix(f'{name}: ')}", file=sys.stderr)
    sys.exit(code)
