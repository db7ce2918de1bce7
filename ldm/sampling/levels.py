"""Where the sampling steps lie: a spacing turns a schedule and a number of steps into decreasing noise levels σ̄."""

import math
from collections.abc import Callable

from ldm.config import Fraction, Registry, Rho, Sigma
from ldm.diffusion import Schedule, check_range, why_noise_is_no_start
from ldm.errors import InputError
from ldm.lazy import Tensor, torch

Spacing = Callable[[Schedule, int], Tensor]  # (schedule, steps) → (steps + 1,) in float64, the last one 0

spacings: Registry[Spacing] = Registry("spacings")


@spacings.register
def trailing(schedule: Schedule, steps: int) -> Tensor:
    """Uniform in the schedule's own time from t = 1 down: with N steps, t = 1, 1 − 1/N, …, 1/N, then σ̄ = 0.

    On a discrete chain these are the "trailing" steps of Lin et al. 2024, arXiv:2305.08891, Table 2.
    Raises: InputError for more steps than a discrete chain has.
    """
    return _at_times(schedule, 1 - _ramp(schedule, steps) * (1 - 1 / steps))


@spacings.register
def uniform(schedule: Schedule, steps: int, *, t_min: Fraction = 0.001) -> Tensor:
    """Uniform in the schedule's own time, both ends included: from t = 1 to t_min, then σ̄ = 0.

    Raises: InputError for more steps than a discrete chain has.

    t_min: last positive time; a discrete chain ends at its first level if that is later
    """
    end = max(t_min, 1 / schedule.length) if schedule.length else t_min
    return _at_times(schedule, 1 - _ramp(schedule, steps) * (1 - end))


@spacings.register
def karras(
    schedule: Schedule, steps: int, *, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0, rho: Rho = 7.0
) -> Tensor:
    """Uniform in σ̄^(1/ρ) (Karras et al. 2022, arXiv:2206.00364, Eq. 5); on a chain moved to its nearest levels.

    sigma_min: smallest positive σ̄
    sigma_max: largest σ̄
    rho: curvature ρ; larger values crowd the small levels
    """
    check_range(sigma_min, sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _at_sigmas(schedule, (high + _ramp(schedule, steps) * (low - high)) ** rho)


@spacings.register
def log_snr(schedule: Schedule, steps: int, *, sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0) -> Tensor:
    """Uniform in log σ̄ (Lu et al. 2022, arXiv:2206.00927); on a discrete chain moved to its nearest levels.

    sigma_min: smallest positive σ̄
    sigma_max: largest σ̄
    """
    check_range(sigma_min, sigma_max)
    high, low = math.log(sigma_max), math.log(sigma_min)
    return _at_sigmas(schedule, (high + _ramp(schedule, steps) * (low - high)).exp())


def check_sigmas(sigmas: Tensor) -> Tensor:
    """Return the levels (N + 1,) unchanged. Raises: InputError unless they decrease strictly to 0."""
    if len(sigmas) < 2 or sigmas[-1] != 0 or not (sigmas[:-1] > sigmas[1:]).all():
        first = next(iter((sigmas[1:] >= sigmas[:-1]).nonzero()[:, 0].tolist()), -1)  # or else the end, which is not 0
        listed = " → ".join(f"{s:.4g}" for s in sigmas[first:][:2].tolist())
        raise InputError(f"noise levels must decrease to 0, but these do not: {listed}; on a chain, use fewer steps")
    return sigmas


def wrong_start(sigmas: Tensor) -> str | None:
    """Why sampling at these levels must not start from noise alone, in one line; None where it may."""
    where = f"sampling starts at σ̄ = {sigmas[0]:.3g}, where the SNR is"
    return why_noise_is_no_start(1 / sigmas[0].item() ** 2, where, "start from more noise")


def _ramp(schedule: Schedule, steps: int) -> Tensor:
    """0, 1/(N−1), …, 1 in float64, (N,). Raises: InputError for a number of steps that the schedule does not have."""
    if steps < 1:
        raise InputError(f"{steps} sampling steps are too few; use at least 1")
    if schedule.length is not None and steps > schedule.length:
        raise InputError(f"{steps} sampling steps are more than the chain's {schedule.length}; use at most that many")
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def _at_times(schedule: Schedule, t: Tensor) -> Tensor:
    """σ̄ at decreasing times t (N,), followed by 0: (N + 1,)."""
    return _ending_in_zero(schedule.half_log_snr(schedule.snap(t)))


def _at_sigmas(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """Decreasing levels σ̄ (N,), or those of a discrete chain nearest to them, followed by 0: (N + 1,).

    Raises: InputError for levels beyond the schedule's, and where a chain has too few in their range.
    """
    half_log_snr = -sigmas.log()
    ends = schedule.time_of(half_log_snr[[0, -1]])
    if not (ends.max() < 1 + 1e-6 and ends.min() > -1e-6):
        levels = f"noise levels {sigmas[0]:.4g} to {sigmas[-1]:.4g}"
        raise InputError(f"{levels} are not all on the schedule; change sigma_min, sigma_max")
    if schedule.length is not None:
        half_log_snr = schedule.half_log_snr(schedule.time_of(half_log_snr))
    return _ending_in_zero(half_log_snr)


def _ending_in_zero(half_log_snr: Tensor) -> Tensor:
    """The levels σ̄ of increasing half-log-SNRs (N,), followed by 0: (N + 1,). Raises: InputError for other ones."""
    return check_sigmas(torch.cat([(-half_log_snr).exp(), torch.zeros(1, dtype=torch.float64)]))
