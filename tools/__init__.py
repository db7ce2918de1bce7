"""Commands for people: check the project, repeat a run over seeds, compare two revisions, start a recipe."""
