"""Discrete chains of T levels: the β schedules of DDPM, and the chain itself.

A chain is q(x_i | x_{i−1}) = N(√(1 − β_i) x_{i−1}, β_i) for i = 1 … T. The papers state their βs for T = 1000.
"""

import math
from collections.abc import Callable
from inspect import getdoc
from typing import Annotated, Any

from pydantic import Field

from ldm.config import Fraction, Rate
from ldm.diffusion.schedule import Schedule, schedules
from ldm.errors import InputError
from ldm.lazy import Tensor, torch

REFERENCE_LENGTH = 1000
Length = Annotated[int, Field(ge=1, le=100_000)]


class Chain(Schedule):
    """T levels, the i-th of them, i = 1 … T, at t = i / T; a time between two levels is taken for the later one's."""

    def __init__(self, alphas: Tensor, sigmas: Tensor) -> None:
        """alphas, sigmas: alpha_t and sigma_t, (T,), from the least noise to the most.

        Raises: InputError unless sigma_t / alpha_t grows from each level to the next.
        """
        if not ((sigmas[1:] / alphas[1:]) > (sigmas[:-1] / alphas[:-1])).all():
            raise InputError("the noise must grow from step to step of a chain, but it does not")
        self.length: int = len(alphas)
        self.alphas, self.sigmas = alphas.double(), sigmas.double()
        self._tables = {self.alphas.device: (self.alphas, self.sigmas)}

    def alpha_t(self, t: Tensor) -> Tensor:
        return self._on(t.device)[0][self._index(t)]

    def sigma_t(self, t: Tensor) -> Tensor:
        return self._on(t.device)[1][self._index(t)]

    def time_of(self, half_log_snr: Tensor) -> Tensor:
        """The times of the levels whose half-log-SNRs are nearest; same shape."""
        alphas, sigmas = self._on(half_log_snr.device)
        levels = (alphas.log() - sigmas.log()).flip(0)  # increasing
        bounds = (levels[1:] + levels[:-1]) / 2
        return (self.length - torch.bucketize(half_log_snr.double(), bounds)).double() / self.length

    def snap(self, t: Tensor) -> Tensor:
        return (self._index(t) + 1).double() / self.length

    def _index(self, t: Tensor) -> Tensor:
        rounded = (t.double() * self.length - 0.01).ceil().long() - 1  # rounded to float32, i / T may be larger
        return rounded.clamp(0, self.length - 1)

    def _on(self, device: Any) -> tuple[Tensor, Tensor]:
        """alphas and sigmas on a device, copied there once: a training step that copies waits for the device."""
        if device not in self._tables:
            self._tables[device] = self.alphas.to(device), self.sigmas.to(device)
        return self._tables[device]


def variance_preserving(betas: Tensor, *, zero_terminal_snr: bool) -> Chain:
    """The chain of these βs: alpha_t² = ᾱ_i = ∏ (1 − β_s) and sigma_t² = 1 − ᾱ_i.

    Ho et al. 2020, arXiv:2006.11239, Eq. 4. betas: (T,). With zero_terminal_snr, √ᾱ is shifted to end at 0 and scaled
    to keep its first value (Lin et al. 2024, arXiv:2305.08891, Alg. 1). Raises: InputError for a β outside (0, 1),
    though with zero_terminal_snr the last one may be 1; and for zero_terminal_snr with T = 1.
    """
    length = len(betas)
    if zero_terminal_snr and length < 2:
        raise InputError("zero_terminal_snr needs a chain of at least 2 steps, and this one has 1; use a longer chain")
    inner = betas[:-1] if zero_terminal_snr and betas[-1] == 1 else betas
    worst = inner[(inner - 0.5).abs().argmax()].item()
    if not 0 < worst < 1:
        raise InputError(f"{length} steps give a beta of {worst:.3g}, not in (0, 1); use more, or smaller betas")
    alphas = (1 - betas.double()).cumprod(0).sqrt()  # (T,)
    if zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return Chain(alphas, (1 - alphas**2).sqrt())


def beta_schedule(shape: Callable[[Tensor, float, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
    """Register the chain whose βs, before any scaling to T, are `shape(u, beta_start, beta_end)` for u from 0 to 1."""

    def build(
        *,
        length: Length = REFERENCE_LENGTH,
        beta_start: Fraction = 0.0001,
        beta_end: Fraction = 0.02,
        scaled: bool = True,
        zero_terminal_snr: bool = False,
    ) -> Schedule:
        """length: length T of the chain
        beta_start: first β, at T = 1000
        beta_end: last β, at T = 1000
        scaled: multiply β by 1000 / T, so that the end is noise for every T; false takes β as it is
        zero_terminal_snr: rescale the chain so that no signal is left at its end; not with predictions eps and score
        """
        u = torch.linspace(0, 1, length, dtype=torch.float64)
        factor = REFERENCE_LENGTH / length if scaled else 1.0
        return variance_preserving(factor * shape(u, beta_start, beta_end), zero_terminal_snr=zero_terminal_snr)

    build.__name__, build.__doc__ = shape.__name__, f"{shape.__doc__}\n\n{getdoc(build)}"
    schedules.register(build)
    return shape


@beta_schedule
def linear(u: Tensor, start: float, end: float) -> Tensor:
    """β linear in the step (Ho et al. 2020, arXiv:2006.11239, section 4)."""
    return start + u * (end - start)


@beta_schedule
def quadratic(u: Tensor, start: float, end: float) -> Tensor:
    """√β linear in the step (Song et al. 2021, arXiv:2010.02502, appendix D.3)."""
    return (start**0.5 + u * (end**0.5 - start**0.5)) ** 2


@beta_schedule
def sigmoid(u: Tensor, start: float, end: float) -> Tensor:
    """β on a logistic curve from −6 to 6 (Xu et al. 2022, arXiv:2203.02923, whose code states it)."""
    return start + (12 * u - 6).sigmoid() * (end - start)


@schedules.register
def cosine(
    *, length: Length = 1000, s: Rate = 0.008, beta_max: Fraction = 0.999, zero_terminal_snr: bool = False
) -> Schedule:
    """ᾱ on a squared cosine, with β clipped so that the end keeps some signal.

    Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.

    length: length T of the chain
    s: offset that keeps the first β from vanishing
    beta_max: bound on β
    zero_terminal_snr: rescale the chain so that no signal is left at its end; not with the predictions eps and score
    """
    t = torch.arange(length + 1, dtype=torch.float64) / length
    alphas_cumprod = ((t + s) / (1 + s) * math.pi / 2).cos() ** 2
    betas = 1 - alphas_cumprod[1:] / alphas_cumprod[:-1]
    return variance_preserving(betas.clamp(max=beta_max), zero_terminal_snr=zero_terminal_snr)
