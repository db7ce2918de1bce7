"""Networks: their sizes (`options.py`, which needs no torch), and their layers, each page loaded when it is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
