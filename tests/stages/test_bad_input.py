"""A user's mistake: exit code 2, one line on standard error that names the thing and the remedy, no traceback."""

import errno
import gzip
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import ROOT, change
from PIL import Image

from ldm.data import known
from stages.runner import read_yaml, run_command, with_settings
from tools import check, repeat, show_schedule

NAMES = list(read_yaml(ROOT / "dvc.yaml")["stages"])
Command = Callable[..., None]
TOOLS: dict[str, Command] = {
    name: lambda tool=tool, name=name: run_command(tool.command, name)
    for name, tool in {"check": check, "repeat": repeat, "show_schedule": show_schedule}.items()
}


def main_of(name: str) -> Command:
    return TOOLS[name] if name in TOOLS else import_module(f"stages.{name}").main


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the parameters and the DAG, and no artifacts."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def refused(folder, monkeypatch, capsys) -> Callable[..., str]:
    """Run a command and return its one line; nothing may be left in the folder."""

    def run(name: str, *arguments: str, extra: bool = False) -> str:
        before = snapshot(folder)
        monkeypatch.setattr("sys.argv", [name, *arguments])
        with pytest.raises(SystemExit) as caught:
            main_of(name)()
        assert caught.value.code == 2
        error = capsys.readouterr().err
        if extra:  # a warning comes before the line
            error = error[error.rindex(f"{name}: ") :]
        assert error.endswith("\n")
        assert error.count("\n") == 1, error
        assert error.startswith(f"{name}: ")
        assert not error.startswith(f"{name}: {name}: ")  # a section has its stage's name
        assert snapshot(folder) == before
        return error

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_no_stages(refused, folder):
    (folder / "dvc.yaml").write_text("stages:\n")
    assert "dvc.yaml has no stage 'train_vae'" in refused("train_vae")


@pytest.mark.parametrize("stages", ["[a]", "{train_vae: 3}"])
def test_stages_that_are_no_mappings(refused, folder, stages):
    (folder / "dvc.yaml").write_text(f"stages: {stages}\n")
    words = "dvc.yaml: stages must be a mapping of names to mappings, each with cmd, deps and outs"
    assert words in refused("train_vae")
    assert words in refused("check", "--recipe", ".")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sed=1", "train_vae.sed: unknown parameter; known here are seed"),
        ("optimisation.stepz=1", "train_vae.optimisation.stepz: unknown parameter; known here are steps"),
        ("seed.x=1", "seed has no parameters of its own"),
        ("seed", "not of the form KEY=VALUE"),
        (f"seed{3000 * '.a'}=1", "not of the form KEY=VALUE, with at most 9 dots in KEY"),
        (f"seed=0x{5000 * 'f'}", "train_vae.seed: this int will not do"),
        (f"kl_weight={10_000 * 'x'}", "will not do; it should be a valid number"),
        ("seed=2024-13-01", "'2024-13-01' is not a YAML value"),
        ("seed=9223372036854775808", "seed: 9223372036854775808 will not do"),
        ("seed=-1", "train_vae.seed: -1 will not do; it should be greater than or equal to 0"),
        ("seed=1.5", "1.5 will not do; it should be a valid integer"),
        ("seed=true", "True will not do"),
        ("seed='1'", "'1' will not do"),
        ("kl_weight=.nan", "finite"),
        ("autoencoder=nosuch", "unknown name 'nosuch' among the autoencoders: known are conv_vae"),
        ("autoencoder=../../evil", "unknown name"),
        ("autoencoders.nosuch.width=8", "unknown name 'nosuch' among the autoencoders"),
        ("autoencoders.conv_vae.width=12", "multiple of 8"),
        ("autoencoders.conv_vae.widht=8", "conv_vae.widht: unknown parameter; known here are patch"),
        ("optimisation.precision=fp16", "'auto', 'fp32' or 'bf16'"),
        ("seed=[", "not a YAML value"),
        ("seed=!!python/object/apply:os.system [ls]", "not a YAML value"),
        ("optimisation.betas=[1.5,0.9]", "train_vae.optimisation.betas.0: 1.5 will not do; it should be less than 1"),
        ("optimisation.steps=1000000001", "steps: 1000000001 will not do; it should be less than or equal to 1000000"),
        ("autoencoders.conv_vae.patch=100000000000000000000", "patch: 100000000000000000000 will not do"),
    ],
)
def test_settings(refused, setting, words):
    assert words in refused("train_vae", "--set", setting, "--out", "out")


@pytest.mark.parametrize(
    ("stage", "setting", "words"),
    [
        ("prepare_data", "size=[32]", "prepare_data.size: [32] will not do; [height, width] or one side is wanted"),
        ("prepare_data", "size=a", "prepare_data.size: 'a' will not do; [height, width] or one side is wanted"),
        ("prepare_data", "size=513", "prepare_data.size.0: 513 will not do; it should be less than or equal to 512"),
        ("prepare_data", "size=[32, 0]", "prepare_data.size.1: 0 will not do; it should be greater than or equal to 1"),
        ("train_diffusion", "networks.unet.multipliers=[1, -1]", "unet.multipliers.1: -1 will not do; it should be gr"),
        ("train_diffusion", "networks.conv_unet.channels=[0]", "networks.conv_unet.channels.0: 0 will not do"),
        ("sample", "n=100000000000000000000", "sample.n: 100000000000000000000 will not do"),
        ("decode", "frame_ms=10010", "decode.frame_ms: 10010 will not do; it should be less than or equal to 10000"),
    ],
)
def test_settings_of_other_stages(refused, stage, setting, words):
    assert words in refused(stage, "--set", setting, "--out", "out")


def test_a_setting_changes_one_place_also_where_an_anchor_is_shared(folder):
    (folder / "params.yaml").write_text("a: {x: &one {k: 1}, y: *one}")
    assert with_settings(read_yaml(folder / "params.yaml")["a"], ["x.k=2"]) == {"x": {"k": 2}, "y": {"k": 1}}


def test_prediction_that_the_schedule_excludes(refused):
    error = refused("train_diffusion", "--set", "prediction=eps", "--set", "schedule=rectified_flow", "--out", "out")
    assert "prediction 'eps' cannot be inverted at alpha = 0" in error


@pytest.mark.parametrize("option", [("--set", "seed=1"), ("--in", "images=x"), ("--params", "other.yaml")])
def test_a_hand_run_never_overwrites_tracked_artifacts(refused, option):
    assert "need --out FOLDER" in refused("train_vae", *option)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda"), "this machine has 0 usable GPUs; choose cpu or auto"),
        (("--device", "cuda:3"), "this machine has 0 usable GPUs"),
        (("--device", "tpu"), "choose auto, cpu, cuda or cuda:i"),
        (("--device", "cuda1"), "--device cuda1: choose auto, cpu, cuda or cuda:i"),
        (("--device", "cuda:00"), "--device cuda:00: choose auto, cpu, cuda or cuda:i"),
        (("--save-every", "nan"), "'nan' is not a valid integer range"),
        (("--until", f"{'9' * 400}h", "--out", "out"), "write a time such as 90s"),
        (("--set", "seed=1", "--out", "artifacts/train_vae"), "--out artifacts/train_vae is where tracked results"),
        (("--set", "seed=1", "--out", "artifacts/decode"), "--out artifacts/decode is where tracked results lie"),
        (
            ("--set", "seed=1", "--out", "recipes/toys/artifacts/moons"),
            "where tracked results lie; name another folder",
        ),
        (("--nosuch",), "--nosuch"),
        (("--params", "nosuch.yaml", "--out", "out"), "nosuch.yaml is missing"),
        (("--recipe", "nosuch"), "nosuch/params.yaml is missing"),
        (("--in", "nosuch=x", "--out", "out"), "NAME is one of images"),
        (("--in", "images", "--out", "out"), "write NAME=PATH"),
        (("--in", "images=nosuch", "--out", "out"), "nosuch is missing; name a file that is there"),
    ],
)
def test_command_lines(refused, monkeypatch, arguments, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert words in refused("train_vae", *arguments)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("prepare_data", "report")])
def test_a_missing_artifact_names_the_command(refused, name):
    error = refused(name, "--out", "out")
    assert f"is missing in {Path.cwd()}; rebuild it with 'dvc repro" in error


def test_several_processes_of_a_stage_for_one(refused, monkeypatch):
    """LDM_PROCESSES is for `dvc repro`, and concerns the stages that can."""
    assert "this stage runs in one process; start it without" in refused("encode_latents", "--processes", "2")
    monkeypatch.setenv("LDM_PROCESSES", "2")
    assert "images.safetensors is missing" in refused("encode_latents", extra=True)


def test_what_is_temporary_goes_when_a_signal_ends_a_command(folder, monkeypatch, capsys):
    @click.command()
    def command() -> None:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download."):
            os.kill(os.getpid(), signal.SIGTERM)

    before = sorted(folder.iterdir())
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as caught:
        run_command(command, "x")
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "x: interrupted; run the same command again\n"
    assert sorted(folder.iterdir()) == before


def test_a_truncated_artifact_names_the_command(refused, folder):
    path = folder / "artifacts/prepare_data/images.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    remedy = "truncated, corrupt or not an artifact of this project; rebuild it with 'dvc repro prepare_data'"
    assert remedy in refused("train_vae")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("train_vae: {{seed: 3}}", "not valid YAML"),
        ("? [a]\n: 1", "the section 'train_vae' is missing"),
        ("", "must hold a mapping"),
        ("- 1", "must hold a mapping"),
        ("a: {}", "the section 'train_vae' is missing"),
        ("train_vae: 3", "the section 'train_vae' is no mapping; to set nothing, write train_vae: {}"),
        ("train_vae:", "the section 'train_vae' is no mapping; to set nothing, write train_vae: {}"),
        ("train_vae: !!python/name:os.system", "not valid YAML"),
        ("train_vae: {seed: 1}", "train_vae.autoencoder: the parameter is missing"),
    ],
)
def test_parameter_files(refused, folder, text, words):
    (folder / "params.yaml").write_text(text)
    assert words in refused("train_vae")


def test_an_unknown_key_of_an_inner_section_names_its_neighbours(refused, folder):
    change(folder / "params.yaml", {"train_vae.optimisation.stepz": 1})
    line = refused("train_vae")
    assert "train_vae.optimisation.stepz: unknown parameter; known here are steps, batch_size, lr," in line
    assert "kl_weight" not in line


def test_a_folder_that_cannot_be_written(refused, folder):
    (folder / "file").write_text("")
    assert "cannot write to file/out: Not a directory; choose another" in refused("train_vae", "--out", "file/out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_folder(refused, monkeypatch, code):
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)
    remedy = "free space, or choose" if code == errno.ENOSPC else "choose"
    assert f"out: {os.strerror(code)}; {remedy} another folder" in refused("prepare_data", "--out", "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused, folder):
    (folder / "locked").mkdir(mode=0o555)
    assert "Permission denied" in refused("prepare_data", "--out", "locked")


def test_a_disk_that_fills_up_while_writing(refused, monkeypatch):
    """The probe before the work succeeds, and the artifact's own write fails."""
    probed = []

    def fill(descriptor: int) -> None:
        if probed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        probed.append(descriptor)

    monkeypatch.setattr("os.fsync", fill)
    error = refused("prepare_data", "--set", "source=embedded", "--out", "out", extra=True)
    assert "No space left on device" in error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail at alloc] out of memory. Tried to")])
def test_a_lack_of_memory(refused, monkeypatch, error):
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("ldm.data.known.embedded", fail)
    line = refused("prepare_data", "--set", "source=embedded", "--out", "out", extra=True)
    assert "out of memory; lower the batch size" in line


def raw_folder(folder: Path) -> Path:
    raw = folder / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    return raw


def test_a_missing_data_file(refused, folder):
    raw = raw_folder(folder)
    error = refused("prepare_data", "--set", "root=root", "--out", "out")
    assert f"{raw.relative_to(folder)}/train-images-idx3-ubyte is missing" in error
    assert "download the set again" in error


def test_a_corrupt_data_file(refused, folder):
    raw = raw_folder(folder)
    (raw / "train-images-idx3-ubyte").write_bytes(gzip.compress(b""))
    error = refused("prepare_data", "--set", "root=root", "--out", "out")
    assert "train-images-idx3-ubyte is corrupt (MD5" in error


def picture(path: Path, size: tuple[int, int] = (8, 12), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def two_classes(folder: Path) -> Path:
    for i in range(6):
        picture(folder / "images/a" / f"{i}.png")
        picture(folder / "images/b" / f"{i}.png")
    return folder / "images"


def thin_out(root: Path) -> None:
    for path in root.glob("*/[2-5].png"):
        path.unlink()


def link_to_itself(root: Path) -> None:
    (root / "loop").symlink_to("loop")


def one_picture(root: Path) -> None:
    picture(root / "c/only  one.png")
    for name in "ab":
        for i in range(6):
            Image.new("L", (8, 12), 20 * i + ord(name) - 90).save(root / name / f"{i}.png")


def empty_and_broken(root: Path) -> None:
    (root / "c").mkdir()
    break_many(root)


def bomb(root: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(root / "a/bomb.png")


def break_many(root: Path) -> None:
    for i in range(5):
        (root / "a" / f"x{i}.png").write_bytes(b"")


def five_classes(root: Path) -> None:
    shutil.rmtree(root)
    for i in range(40):
        path = root / "abcde"[i % 5] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 12), 5 * i).save(path)


def many_classes(root: Path) -> None:
    for i in range(300):
        for j in range(3):
            picture(root / f"more{i}" / f"{j}.png")


@pytest.mark.parametrize(
    ("spoil", "settings", "words"),
    [
        (
            lambda root: picture(root / "b/9.png", (8, 8)),
            [],
            "images/b/9.png is 8 × 8, but images/a/0.png is 12 × 8 (height × width); set prepare_data.size",
        ),
        (break_many, [], "5 pictures cannot be read: images/a/x0.png (UnidentifiedImageError"),
        (break_many, [], ", …; mend or remove them, or leave them out by skip_broken"),
        (lambda root: (root / "c").mkdir(), [], "classes without a picture: c; each sub-folder is a class"),
        (lambda root: shutil.rmtree(root / "b"), [], "images has one sub-folder, and at least 2 are wanted"),
        (many_classes, [], "images has 302 classes, and at most 256 can be numbered; join sub-folders, or leave"),
        (lambda root: picture(root / "b/9.png", (4000, 3000)), [], "3000 × 4000 pixels are more than 512 a side; set"),
        (
            lambda root: picture(root / "b/9.png", (900, 9)),
            ["skip_broken=true"],
            "b/9.png: 9 × 900 pixels are more than",
        ),
        (
            lambda root: picture(root / "b/9.png", (900, 9)),
            ["fit=pad", "size=9"],
            "9 × 900 pixels would shrink to a line",
        ),
        (five_classes, ["limit=1"], "limit 1 leaves no training image of "),
        (lambda root: shutil.rmtree(root), [], "images is not a folder"),
        (thin_out, [], "classes with fewer than 3 different images that no class before has: a (1), b (0); add some"),
        (lambda root: None, ["min_per_class=7"], "0 classes have 7 pictures; two are needed: lower min_per_class"),
        (lambda root: None, ["background=rde"], "background 'rde' is no opaque colour; write a name, or #rrggbb"),
        (lambda root: None, ["background=#12345600"], "background '#12345600' is no opaque colour; write a name"),
        (five_classes, ["limit=1", "background=#ffffffff"], "limit 1 leaves no training image of "),
        (lambda root: None, ["shares=[0.7, 0.2, 0.2]"], "shares [0.7, 0.2, 0.2] add up to 1.1; they must to 1"),
        (lambda root: None, ["size=0"], "it should be greater than or equal to 1"),
        (lambda root: (root / "a/round").symlink_to(root.resolve()), [], "in which it lies itself; remove it"),
        (lambda root: (root / "c").symlink_to("gone"), [], "images/c is a link to nothing, which may be a class; mend"),
        (link_to_itself, [], "images/loop is a link to nothing, which may be a class; mend or remove it"),
        (
            lambda root: (root / "a/gone.png").symlink_to("nowhere"),
            [],
            "1 pictures cannot be read: images/a/gone.png (FileNotFoundError",
        ),
        (
            lambda root: (root / "a/two  words.png").write_text("no picture"),
            [],
            "1 pictures cannot be read: images/a/two  words.png (UnidentifiedImageError",
        ),
        (one_picture, [], "that no class before has: c (1); add some, or leave such classes out by min_per_class 2"),
        (empty_and_broken, [], "classes without a picture: c;"),  # before a picture is read
        (bomb, ["size=9"], "1 pictures cannot be read: images/a/bomb.png (DecompressionBomb"),
    ],
)
def test_a_bad_folder_of_images(refused, folder, spoil, settings, words):
    spoil(two_classes(folder))
    more = [word for setting in ["dataset=folder", "root=images", *settings] for word in ("--set", setting)]
    assert words in refused("prepare_data", *more, "--out", "out", extra=True)


def test_a_set_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(known, "download", lambda name, root, split: "no route")
    arguments = ("prepare_data", "--set", "dataset=fashion_mnist", "--set")
    error = refused(*arguments, "root=root", "--out", "out")
    assert "root does not hold FashionMNIST, which is FashionMNIST/raw in it; name the folder that holds it" in error
    assert "data does not hold fashion_mnist, and no route; put it into data/FashionMNIST/raw" in refused(
        *arguments[:3], "--out", "out", extra=True
    )
    assert "'embedded' has no fashion_mnist" in refused(*arguments, "source=embedded", "--out", "out")


def test_a_stated_root_is_never_downloaded_to(refused, monkeypatch):
    """Nor are the embedded digits taken instead."""
    monkeypatch.setattr(known, "download", lambda name, root, split: pytest.fail("a download"))
    monkeypatch.setenv("LDM_DATA_ROOT", "nowhere")
    assert "nowhere does not hold MNIST, which is MNIST/raw in it" in refused("prepare_data", "--out", "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_diffusion.prediction": "eps"}, "cannot be inverted"),
        ({"train_diffusion.prediction": "score"}, "cannot be inverted"),
        (
            {
                "train_diffusion.prediction": "eps",
                "train_diffusion.schedule": "linear",
                "train_diffusion.schedules.linear.zero_terminal_snr": True,
            },
            "prediction 'eps' cannot be inverted at alpha = 0",
        ),
        (
            {"train_diffusion.penalty": "l1", "train_diffusion.weighting": "snr"},
            "weighting 'snr' needs penalty l2, not 'l1'",
        ),
        ({"train_diffusion.flip": -1}, "train_diffusion.flip: -1 will not do"),
        ({"train_diffusion.guide_step": 525}, "guide_step 525 is no multiple of record_every 50"),
        ({"train_diffusion.guide_step": 9000}, "guide_step 9000 is beyond the last of "),
        ({"sample.guidance.weight": 0.5}, "sample.guidance.weight: 0.5 will not do"),
        (
            {
                "train_diffusion.schedule": "karras",
                "train_diffusion.prediction": "edm",
                "train_diffusion.schedules.karras.sigma_max": 0.001,
            },
            "sigma_min 0.002 must be below sigma_max 0.001",
        ),
        ({"sample.steps": 0}, "sample.steps: 0 will not do"),
        ({"train_diffusion.schedules.cosine.s": 2.0}, "schedules.cosine.s: 2.0 will not do"),
        (
            {"train_diffusion.schedule": "linear", "sample.spacing": "uniform", "sample.steps": 1001},
            "more than the chain's 1000",
        ),
        (
            {"train_diffusion.schedule": "linear", "sample.sampler": "heun", "sample.samplers.heun.S_churn": 9.0},
            "params.yaml: sample.sampler: the chain has no noise level 216.435; heun with S_churn needs",
        ),
        (
            {"train_diffusion.schedule": "cosine", "train_diffusion.prediction": "v", "sample.sampler": "heun"},
            "sample.sampler: heun makes errors ",
        ),
        (
            {"train_diffusion.networks.unet.norm": "group", "train_diffusion.networks.unet.groups": 7},
            "train_diffusion: networks.unet: width ",
        ),
        ({"sample.guidance.sigma_min": 5.0}, "sigma_min 5 must be below sigma_max 4"),
        ({"sample.label": 7}, "sample.label: 7 is one class"),
        (
            {"sample.sampler": "ddpm", "sample.samplers.ddpm.variance": "beta"},
            "samplers.ddpm.variance beta needs a variance-preserving schedule; choose beta_tilde",
        ),
        ({"sample.n": 100}, "fewer than evaluate.n"),
        ({"evaluate.final": False}, "evaluate.final: dvc.yaml lists all rows"),
        ({"evaluate.row": "diffusion"}, "evaluate.row: dvc.yaml lists all rows"),
        ({"train_diffusion.flip": 0.5}, "train_diffusion.flip: latents of an autoencoder cannot be mirrored"),
        ({"evaluate.n": 0}, "evaluate.n: 0 will not do"),
        ({"train_second_classifier.classifier": "conv"}, "'conv' is the first one's"),
    ],
)
def test_make_repro_checks_all_of_params_first(refused, folder, settings, words):
    change(folder / "params.yaml", settings)
    assert words in refused("check", "--recipe", ".")


def test_an_unknown_section(refused, folder):
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "\ntrain_gan: {}\n")
    assert "the section 'train_gan' is unknown" in refused("check", "--recipe", ".")


def test_a_missing_section(refused, folder):
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("extract_features:", "decode:").replace("decode:", "x:", 1))
    assert "the section 'extract_features' is missing" in refused("check", "--recipe", ".")


UNSCALED = {"zero_terminal_snr": False, "beta_start": 0.0001, "beta_end": 0.02, "scaled": False}


def test_a_schedule_that_ends_with_signal_is_warned_of(folder, monkeypatch, capsys):
    linear = {"length": 200, **UNSCALED}
    change(
        folder / "params.yaml", {"train_diffusion.schedule": "linear", "train_diffusion.schedules": {"linear": linear}}
    )
    monkeypatch.setattr("sys.argv", ["show_schedule"])
    show_schedule.command.main(standalone_mode=False)
    shown = capsys.readouterr()
    assert "terminal SNR 0.15" in shown.out
    assert shown.err.startswith("show_schedule: warning: the schedule's terminal SNR is 0.15")
    change(folder / "params.yaml", {"train_diffusion.schedules.linear.scaled": True})
    show_schedule.command.main(standalone_mode=False)
    shown = capsys.readouterr()
    assert "terminal SNR 3." in shown.out
    assert shown.err == ""


def test_schedules_that_cannot_be_shown(refused):
    assert "unknown name 'nosuch' among the schedules: known are cosine" in refused("show_schedule", "nosuch")
    assert "the section 'sample' has no schedule" in refused("show_schedule", "--section", "sample")


def test_a_folder_in_place_of_a_file(refused, folder):
    (folder / "given").mkdir()
    assert "Is a directory: given; name a file in it" in refused("sample", "--in", "denoiser=given", "--out", "out")


def test_another_section_needs_a_folder(refused):
    assert "need --out FOLDER" in refused("sample", "--section", "train_vae")
    assert "the section 'nosuch' is missing" in refused("sample", "--section", "nosuch", "--out", "out")
