"""Where images and points come from: torchvision's sets, a folder of pictures, and toy distributions.

Each page is loaded when it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
