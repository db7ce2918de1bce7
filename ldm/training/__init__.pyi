from . import distributed as distributed
from . import loop as loop
from . import muon as muon
from .settings import Optimisation as Optimisation
