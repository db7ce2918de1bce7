"""Large libraries under their own names, each imported when it is first used.

Importing torch takes 1.5 s, which `--help` need not wait for: so the modules that it reads say
`from ldm.lazy import torch`. Editors and mypy read the real names from `lazy.pyi`.
"""

from importlib import import_module
from typing import Any


class LazyModule:
    """A module that is imported at the first look-up of an attribute.

    Python's own lazy modules (`importlib.util.LazyLoader`) would not do: they stand in sys.modules, all of which torch
    looks at while it is imported, and a look is enough to load them.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


torch = LazyModule("torch")
torchvision = LazyModule("torchvision")
safetensors_torch = LazyModule("safetensors.torch")
scipy = LazyModule("scipy")
sklearn = LazyModule("sklearn")
Tensor = Generator = Module = Any  # annotations need no more when the program runs
