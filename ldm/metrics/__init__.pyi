from . import frechet as frechet
from . import memorisation as memorisation
from . import quality as quality
