"""The training objective: how t is drawn, how an error is penalised, and how the noise levels are weighted."""

from collections.abc import Callable
from typing import NamedTuple

from ldm.config import Positive, Registry, Sigma
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import training_target, x0_error_scale
from ldm.diffusion.schedule import Schedule, broadcast
from ldm.lazy import Generator, Tensor, torch
from ldm.networks import Posterior, Standardiser

ALL = slice(None)
# (SNR, c²) → the weight on ‖Δx0‖², where ‖ΔF‖² = c² ‖Δx0‖²
Weighting = Callable[[Tensor, Tensor], Tensor]
# an error → its penalty, elementwise
Penalty = Callable[[Tensor], Tensor]
# (schedule, n, generator) → n training times in (0, 1], on the generator's device
TimestepSampling = Callable[[Schedule, int, Generator], Tensor]

weightings: Registry[Weighting] = Registry("weightings")
penalties: Registry[Penalty] = Registry("penalties")
timestep_samplings: Registry[TimestepSampling] = Registry("timestep_samplings")


@weightings.register
def none(snr: Tensor, error_scale: Tensor) -> Tensor:
    """The error of the network's own prediction, unweighted: ‖ΔF‖² = c² ‖Δx0‖²."""
    return error_scale


@weightings.register
def snr(snr: Tensor, error_scale: Tensor) -> Tensor:
    """The error of the noise, whatever is predicted: ‖Δeps‖² = SNR ‖Δx0‖²."""
    return snr


@weightings.register
def min_snr(snr: Tensor, error_scale: Tensor, *, gamma: Positive = 5.0) -> Tensor:
    """min(SNR, γ) ‖Δx0‖² (Hang et al. 2023, arXiv:2303.09556).

    gamma: largest weight on the error of x0
    """
    return snr.clamp(max=gamma)


@weightings.register
def edm(snr: Tensor, error_scale: Tensor, *, sigma_data: Sigma = 1.0) -> Tensor:
    """(σ̄² + σ_data²) / (σ̄ σ_data)² ‖Δx0‖², with SNR = 1 / σ̄² (Karras et al. 2022, arXiv:2206.00364, Table 1).

    sigma_data: standard deviation of the data; 1 for standardised ones
    """
    return snr + sigma_data**-2


@penalties.register
def l2(error: Tensor) -> Tensor:
    """The squared error."""
    return error.square()


@penalties.register
def l1(error: Tensor) -> Tensor:
    """The absolute error."""
    return error.abs()


@penalties.register
def huber(error: Tensor, *, delta: Positive = 1.0) -> Tensor:
    """Half the squared error up to delta, linear beyond (Huber 1964, Eq. 1.6).

    delta: error from which on the penalty is linear
    """
    zero = error.new_zeros(()).expand_as(error)
    return torch.nn.functional.huber_loss(error, zero, reduction="none", delta=delta)


@timestep_samplings.register
def uniform(schedule: Schedule, n: int, generator: Generator) -> Tensor:
    """Uniform in (0, 1]."""
    return 1 - torch.rand(n, generator=generator, device=generator.device)


@timestep_samplings.register
def logit_normal(schedule: Schedule, n: int, generator: Generator, *, mean: float = 0.0, std: Positive = 1.0) -> Tensor:
    """The logit of t is normal (Esser et al. 2024, arXiv:2403.03206, section 3.1).

    mean: mean of log(t / (1 − t)); below 0 favours little noise
    std: deviation of log(t / (1 − t))
    """
    return (mean + std * torch.randn(n, generator=generator, device=generator.device)).sigmoid()


@timestep_samplings.register
def log_normal(
    schedule: Schedule, n: int, generator: Generator, *, P_mean: float = -1.2, P_std: Positive = 1.2
) -> Tensor:
    """log σ̄ is normal; levels beyond the schedule's ends are moved to them.

    Karras et al. 2022, arXiv:2206.00364, Table 1.

    P_mean: mean of log σ̄
    P_std: deviation of log σ̄
    """
    log_sigma = P_mean + P_std * torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
    return schedule.time_of(-log_sigma).clamp(torch.finfo(torch.float32).tiny, 1)


class DiffusionLoss(NamedTuple):
    """The weighted penalty of the network's error; weights are stated on the squared error of x0, then converted."""

    penalty: Penalty
    weighting: Weighting

    def __call__(self, denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each sample, (B,), as the mean over its elements. x0, eps: (B, C, h, w); t: (B,) in (0, 1]."""
        level = denoiser.schedule.at(t)
        error_scale = x0_error_scale(denoiser.prediction, level.alpha_t, level.sigma_t)
        weight = self.weighting((level.alpha_t / level.sigma_t) ** 2, error_scale) / error_scale
        alpha_t, sigma_t = broadcast(level.alpha_t, x0), broadcast(level.sigma_t, x0)
        target = training_target(denoiser.prediction, x0, eps, alpha_t, sigma_t)
        error = denoiser.predict(alpha_t * x0 + sigma_t * eps, level, labels) - target
        return weight.float() * self.penalty(error).flatten(1).mean(1)


class Objective(NamedTuple):
    """What a training minimises: the loss at fresh draws of the latents' posterior, the noise and the time."""

    standardiser: Standardiser
    loss: DiffusionLoss
    timestep_sampling: TimestepSampling

    def __call__(
        self, denoiser: Denoiser, batch: Posterior, labels: Tensor | None, generator: Generator, local: slice = ALL
    ) -> Tensor:
        """The loss of each sample of a local slice of the batch; what is drawn is the same for any slice.

        batch: (B, C, h, w) latents; labels: (B,) or None. Returns (b,) for the b samples of the slice.
        """
        n = len(batch.mean)
        draws = torch.randn(2 * n, *batch.mean.shape[1:], generator=generator, device=batch.mean.device)
        t = self.timestep_sampling(denoiser.schedule, n, generator)[local]
        x0 = self.standardiser.standardise(batch.draw(draws[:n]))[local]
        return self.loss(denoiser, x0, draws[n:][local], t, None if labels is None else labels[local])
