from . import autoencoder as autoencoder
from . import classifier as classifier
from . import conv_unet as conv_unet
from . import mlp as mlp
from . import unet as unet
