"""Schedules, printed and drawn."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT
from PIL import Image

from ldm import InputError
from ldm.diffusion import schedules
from tools.show_schedule import command, figure

BETAS = ["cosine", "linear", "quadratic", "sigmoid"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_schedule_of_the_parameters_is_printed(folder):
    shown = CliRunner().invoke(command, [])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "rectified_flow"
    t, alpha_t, sigma_t, snr = map(float, lines[3].split())
    assert (t, alpha_t, sigma_t) == (0.25, 0.75, 0.25)
    assert snr == pytest.approx(9)
    assert lines[-1] == "terminal SNR 0"


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("{schedule: [cosine]}", [], "the section 'train_diffusion' has no schedule"),
        ("{schedule: cosine, schedules: [cosine]}", [], "train_diffusion.schedules: ['cosine'] will not do"),
        ("{schedule: cosine}", ["--out", "x.pdf"], "--out x.pdf: name a .png file"),
    ],
)
def test_what_cannot_be_shown(folder, text, arguments, words):
    (folder / "params.yaml").write_text(f"train_diffusion: {text}")
    with pytest.raises(InputError) as refused:
        command.main(arguments, standalone_mode=False)
    assert words in str(refused.value)
    assert not list(folder.glob("x*"))


def test_schedules_are_drawn_side_by_side(folder):
    arguments = [*BETAS, "--params", str(ROOT / "recipes/fashion_ddpm/params.yaml"), "--out", "schedules.png"]
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 0, shown.output
    assert [line for line in shown.stdout.splitlines() if line in schedules.functions] == BETAS
    drawn = (folder / "schedules.png").read_bytes()
    chosen = {name: schedules.build(name) for name in BETAS}
    assert drawn == figure(chosen)
    assert drawn != figure(chosen | {"sigmoid": schedules.build("sigmoid", {"beta_end": 0.1})})
    with Image.open(io.BytesIO(drawn)) as file:
        picture = np.asarray(file.convert("RGB"))
    assert (picture == 255).all(-1).mean() > 0.7  # the ground
    for colour in ((0x00, 0x72, 0xB2), (0xB3, 0x47, 0x00), (0x00, 0x73, 0x4F), (0x8F, 0x3A, 0x74)):
        assert (picture == colour).all(-1).sum() > 50  # a line
