"""Where the noise levels lie, the samplers, the reverse process, guidance and likelihood; loaded when used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
