"""Commands for people: check the project, repeat a run over seeds, compare two revisions, start a recipe."""

import stages  # noqa: F401 - which looks whose ldm it is
