"""What the network predicts: F = a x0 + b eps. A prediction is the pair (a, b), and everything else follows from it."""

from collections.abc import Callable

from ldm.config import Registry, Sigma
from ldm.lazy import Tensor

Factor = Tensor | float
Prediction = Callable[[Factor, Factor], tuple[Factor, Factor]]  # (alpha_t, sigma_t) → (a, b)

predictions: Registry[Prediction] = Registry("predictions")


@predictions.register
def eps(alpha_t: Factor, sigma_t: Factor) -> tuple[Factor, Factor]:
    """The noise (Ho et al. 2020, arXiv:2006.11239)."""
    return 0.0, 1.0


@predictions.register
def x0(alpha_t: Factor, sigma_t: Factor) -> tuple[Factor, Factor]:
    """The clean data."""
    return 1.0, 0.0


@predictions.register
def v(alpha_t: Factor, sigma_t: Factor) -> tuple[Factor, Factor]:
    """The velocity alpha_t eps − sigma_t x0 (Salimans & Ho 2022, arXiv:2202.00512)."""
    return -sigma_t, alpha_t


@predictions.register
def flow(alpha_t: Factor, sigma_t: Factor) -> tuple[Factor, Factor]:
    """The direction of the straight path, eps − x0 (Liu et al. 2022, arXiv:2209.03003)."""
    return -1.0, 1.0


@predictions.register
def score(alpha_t: Factor, sigma_t: Factor) -> tuple[Factor, Factor]:
    """The score of the conditional marginal, −eps / sigma_t (Song et al. 2021, arXiv:2011.13456, Eq. 7)."""
    return 0.0, -1 / sigma_t


@predictions.register
def edm(alpha_t: Factor, sigma_t: Factor, *, sigma_data: Sigma = 1.0) -> tuple[Factor, Factor]:
    """What EDM's preconditioning leaves to the network (Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1).

    With q² = sigma_t² + alpha_t² σ_data² the skip is c_skip = alpha_t σ_data² / q², the output's scale is
    c_out = sigma_t σ_data / q, and F = (x0 − c_skip x_t) / c_out has unit variance at every level. The paper states
    alpha_t = 1; for a variance-preserving schedule and σ_data = 1 this is −v.

    sigma_data: standard deviation of the data; 1 for standardised ones
    """
    q = (sigma_t**2 + alpha_t**2 * sigma_data**2) ** 0.5
    return sigma_t / (sigma_data * q), -alpha_t * sigma_data / q


def training_target(prediction: Prediction, x0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """What the network should predict: F = a x0 + b eps. alpha_t and sigma_t broadcast against x0."""
    a, b = prediction(alpha_t, sigma_t)
    return a * x0 + b * eps


def x0_from(prediction: Prediction, output: Tensor, x_t: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """x0 = (b x_t − sigma_t F) / (b alpha_t − a sigma_t), where F is the network's output."""
    a, b = prediction(alpha_t, sigma_t)
    return (b * x_t - sigma_t * output) / (b * alpha_t - a * sigma_t)


def x0_error_scale(prediction: Prediction, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """c² in ‖ΔF‖² = c² ‖Δx0‖², with c = (b alpha_t − a sigma_t) / sigma_t."""
    a, b = prediction(alpha_t, sigma_t)
    return ((b * alpha_t - a * sigma_t) / sigma_t) ** 2


def invertible_without_signal(prediction: Prediction) -> bool:
    """Whether x0 follows from F at alpha_t = 0, where x_t is the noise alone and tells nothing of x0."""
    return bool(prediction(0.0, 1.0)[0] != 0)
