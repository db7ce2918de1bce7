"""Every `dvc exp run` of the documents is one that DVC's grammar takes, and whose values the stages take."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from test_documents import DOCUMENTS, commands, values_after

from stages.runner import read_yaml
from tools.check import stage_config

FLAGS = ("-S", "--set-param")
EXPERIMENTS = [
    (folder, values_after(words, *FLAGS))
    for document in DOCUMENTS
    for folder, *words in commands(document)
    if words[:3] == ["dvc", "exp", "run"] and words[3:]  # the name of the command alone stands in sentences
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
