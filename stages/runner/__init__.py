"""What runs a stage: command line, files, progress, checkpoints. It changes no output, but for `figures.py`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
