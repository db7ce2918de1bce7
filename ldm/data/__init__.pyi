from . import image_folder as image_folder
from . import known as known
from . import toys as toys
from .splits import split_by_shares as split_by_shares
