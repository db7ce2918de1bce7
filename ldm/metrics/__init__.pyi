from . import frechet as frechet
from . import quality as quality
