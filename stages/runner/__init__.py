"""What runs a stage: command line, files, progress, checkpoints. Nothing here may change an output, but `figures.py`."""
