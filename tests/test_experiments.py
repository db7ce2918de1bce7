"""Every `dvc exp run` of the documents is one that DVC's grammar takes, and whose values the stages take."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides
from test_documents import DOCUMENTS, commands, values_after

from stages.runner import read_yaml
from tools.check import stage_config

FLAGS = ("-S", "--set-param")
EXPERIMENTS = [
    (folder, values_after(words, *FLAGS))
    for document in DOCUMENTS
    for folder, *words in commands(document)
    if words[:3] == ["dvc", "exp", "run"]
]


def test_the_documents_show_experiments():
    assert len(EXPERIMENTS) >= 4
    assert all(settings for _, settings in EXPERIMENTS)


@pytest.mark.parametrize(("folder", "settings"), EXPERIMENTS, ids=lambda value: " ".join(value) or None)
def test_a_documented_experiment_is_a_valid_one(tmp_path, folder, settings):
    recipe = ROOT / folder
    path = Path(shutil.copy(recipe / "params.yaml", tmp_path))
    before = read_yaml(path)
    apply_overrides(str(path), settings)  # DVC's own; an unknown key without ++ is refused
    after = read_yaml(path)
    assert before != after
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {setting.removeprefix("++").partition(".")[0] for setting in settings}
    for name in changed:
        stage = name if (ROOT / f"stages/{name}.py").exists() else "train_diffusion"  # a training of the ablation
        stage_config(stage).parse(after[name], name)


@pytest.mark.parametrize("setting", ["sample.stepz=3", "train_diffusion.networks.unet.dropout=0.1"])
def test_a_key_that_params_yaml_leaves_out_is_refused_without_plusses(tmp_path, setting):
    path = shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(DvcException, match="Invalid `--set-param` value"):
        apply_overrides(str(path), [setting])
    apply_overrides(str(path), [f"++{setting}"])
