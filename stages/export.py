"""Write the trained model as one file, which is all that `ldm.load` and `python -m tools.draw` need."""

import ldm
from ldm import Section
from stages.runner import Run, stage


class Config(Section):
    """There is nothing to choose: the file has the networks and the settings that drew the samples."""


def compute(run: Run[Config]) -> None:
    ldm.Model.from_artifacts(run.load_all(), run.device).save(run.outputs["model.safetensors"])


main = stage("export", Config, compute, __doc__)

if __name__ == "__main__":
    main()
