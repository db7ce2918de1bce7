import safetensors.torch
import scipy as scipy
import sklearn as sklearn
import torch as torch
import torchvision as torchvision
from torch import Generator as Generator
from torch import Tensor as Tensor
from torch.nn import Module as Module

safetensors_torch = safetensors.torch
