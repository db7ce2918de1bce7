"""The stages of the pipeline: verbs that read, compute with `ldm`, and write."""
