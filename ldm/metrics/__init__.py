"""Measures of samples: the Fréchet distance, and others beside it, each page loaded when it is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
