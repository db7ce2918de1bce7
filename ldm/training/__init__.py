"""Training: the loop that all networks share, its settings, Muon and several processes, each loaded when it is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
