"""The samplers, side by side: each is a generator over decreasing noise levels σ̄ that yields every state x̄.

`denoise(x, sigma) -> denoised` works in σ-space (x̄ = x_t / alpha_t, σ̄ = sigma_t / alpha_t), where the
probability-flow ODE is dx̄/dσ̄ = (x̄ − D) / σ̄ for every schedule, with D the denoised x0 (Karras et al. 2022,
arXiv:2206.00364, Eq. 1 and section 2). x: (B, …), the state at sigmas[0]; sigmas: (N + 1,), the last one 0; `noise()`
draws standard normal noise of the shape of x. An evaluation is one call of `denoise`.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

from ldm.config import Fraction, Natural, NonNegative, Positive, Registry, Share
from ldm.diffusion.schedule import broadcast
from ldm.lazy import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
States = Iterator[Tensor]
Sampler = Callable[[Denoise, Tensor, Tensor, Noise], States]

samplers: Registry[Sampler] = Registry("samplers")


@samplers.register
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> States:
    """Euler's method on the probability-flow ODE: one evaluation a step, first order."""
    for sigma, sigma_next in pairwise(sigmas):
        x = step_to(x, denoise(x, sigma), sigma, sigma_next)
        yield x


@samplers.register
def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    S_churn: NonNegative = 0.0,
    S_min: NonNegative = 0.0,
    S_max: NonNegative = 1000.0,
    S_noise: Positive = 1.0,
) -> States:
    """Heun's method with churn: two evaluations a step, second order.

    Karras et al. 2022, arXiv:2206.00364, Algs. 1 and 2. The last step, to σ̄ = 0, is Euler's.

    S_churn: how much noise is renewed over the whole run; above 0 it needs a schedule of continuous time
    S_min: smallest σ̄ at which noise is added
    S_max: largest σ̄ at which noise is added
    S_noise: standard deviation of the added noise; 1, or slightly more
    """
    gamma = min(S_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for sigma, sigma_next in pairwise(sigmas):
        hat = sigma
        if gamma > 0 and S_min <= sigma <= S_max:
            hat = (1 + gamma) * sigma
            x = x + (hat**2 - sigma**2).sqrt() * S_noise * noise()
        slope = (x - denoise(x, hat)) / hat
        ahead = x + (sigma_next - hat) * slope
        if sigma_next > 0:
            slope = (slope + (ahead - denoise(ahead, sigma_next)) / sigma_next) / 2
        x = x + (sigma_next - hat) * slope
        yield x


@samplers.register
def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: Share = 0.0) -> States:
    """DDIM: η = 0 is Euler in σ-space, η = 1 ancestral sampling (Song et al. 2021, arXiv:2010.02502, Eq. 12).

    eta: 0 is deterministic; 1 has the variance of the DDPM posterior
    """
    for sigma, sigma_next in pairwise(sigmas):
        fresh = eta**2 * sigma_next**2 * (1 - (sigma_next / sigma) ** 2)  # variance drawn afresh
        x = step_to(x, denoise(x, sigma), sigma, (sigma_next**2 - fresh).sqrt())
        if fresh > 0:
            x = x + fresh.sqrt() * noise()
        yield x


@samplers.register
def ddpm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, variance: Literal["beta_tilde", "beta"] = "beta_tilde"
) -> States:
    """Ancestral sampling, exact in σ-space for any levels (Ho et al. 2020, arXiv:2006.11239, Alg. 2 and section 3.2).

    The last step, to σ̄ = 0, returns the posterior's mean without noise.

    variance: variance of a step; beta_tilde is that of the posterior q(x_s | x_t, x0), and beta is its upper bound, for
      variance-preserving schedules alone
    """
    for sigma, sigma_next in pairwise(sigmas):
        ratio = (sigma_next / sigma) ** 2
        x = ratio * x + (1 - ratio) * denoise(x, sigma)
        if sigma_next > 0:
            gap = sigma**2 - sigma_next**2
            upper = (1 + sigma_next**2) * gap / (1 + sigma**2)
            x = x + (ratio * gap if variance == "beta_tilde" else upper).sqrt() * noise()
        yield x


@samplers.register
def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: Share = 0.0) -> States:
    """DPM-Solver++(2M) and its SDE form: one evaluation a step, second order.

    Lu et al. 2022, arXiv:2211.01095, Alg. 2 and Eq. 19. The first step, and the last one to σ̄ = 0, are of first order.

    eta: 0 is the ODE, deterministic; 1 the SDE
    """
    before, h_before = x, sigmas.new_zeros(())
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        h = sigma.log() - sigma_next.log()  # the step in half-log-SNR; inf in the last one
        extrapolated = denoised
        if h_before > 0 and sigma_next > 0:
            extrapolated = denoised + (h / (2 * h_before)) * (denoised - before)
        decay = (sigma_next / sigma) ** eta
        keep = decay * sigma_next / sigma
        x = keep * x + (1 - keep) * extrapolated
        if eta > 0 and sigma_next > 0:
            x = x + sigma_next * (1 - decay**2).sqrt() * noise()
        before, h_before = denoised, h
        yield x


@samplers.register
def dpmpp_3m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> States:
    """DPM-Solver++ of third order, multistep: one evaluation a step (Lu et al. 2022, arXiv:2211.01095, section 4.2).

    With y = x̄ / σ̄ and λ = −log σ̄ the ODE is dy/dλ = D / σ̄: D is interpolated through the last three evaluations and
    integrated exactly. A first-order first step would spoil the order, so that step looks ahead to its end with an
    extra evaluation, which makes its local error one of third order. The second step is of second order (2M); the last
    one, to σ̄ = 0, of first.
    """
    past: list[tuple[Tensor, Tensor]] = []  # (σ̄, D) of the evaluations before, the latest first
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        keep = sigma_next / sigma
        x_next = keep * x + (1 - keep) * denoised
        if sigma_next > 0:
            h = -keep.log()  # the step in λ; below, u runs over it from 0 to h
            first = h - (1 - keep)  # ∫ e^{u−h} u du
            second = h**2 - 2 * first  # ∫ e^{u−h} u² du
            if past:
                h1, slope = _slope(sigma, denoised, *past[0])
            else:
                h1, slope = _slope(sigma_next, denoise(x_next, sigma_next), sigma, denoised)
            x_next = x_next + first * slope
            if len(past) > 1:
                h2, slope_before = _slope(*past[0], *past[1])
                x_next = x_next + (second + h1 * first) * (slope - slope_before) / (h1 + h2)
        past = [(sigma, denoised), *past[:1]]
        x = x_next
        yield x


def _slope(sigma: Tensor, denoised: Tensor, sigma_before: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The distance in λ of two evaluations, and the divided difference of D over it."""
    h = (sigma_before / sigma).log()
    return h, (denoised - before) / h


@samplers.register
def euler_maruyama(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> States:
    """Euler–Maruyama on the reverse-time SDE, first order (Song et al. 2021, arXiv:2011.13456, Eq. 6).

    It is the predictor of `predictor_corrector` alone. The last step, from the smallest level to σ̄ = 0, adds no noise:
    it returns the mean E[x0 | x̄].
    """
    return predictor_corrector(denoise, x, sigmas, noise, corrections=0)


@samplers.register
def predictor_corrector(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, corrections: Natural = 1, snr: Fraction = 0.16
) -> States:
    """Predictor–corrector sampling with Langevin steps (Song et al. 2021, arXiv:2011.13456, Algs. 2 and 4).

    Each step is one of Euler–Maruyama on the reverse-time SDE, which in σ-space is dx̄ = (D − x̄) / σ̄² du + dW for all
    schedules, with u the variance removed so far. It is then corrected at the new level; the last step, to σ̄ = 0,
    returns the mean. The size 2 (r ‖z‖ / ‖score‖)² of a Langevin step takes the norms of one sample, not their means
    over the batch, so that no sample depends on others.

    corrections: Langevin steps at each level
    snr: size of a Langevin step, the paper's ratio r
    """
    for sigma, sigma_next in pairwise(sigmas):
        removed = sigma**2 - sigma_next**2  # variance
        x = x + removed / sigma**2 * (denoise(x, sigma) - x)
        if sigma_next > 0:
            x = x + removed.sqrt() * noise()
        for _ in range(corrections if sigma_next > 0 else 0):
            score, z = (denoise(x, sigma_next) - x) / sigma_next**2, noise()
            ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)  # (B,)
            step = 2 * (snr * broadcast(ratio, x)) ** 2
            x = x + step * score + (2 * step).sqrt() * z
        yield x


def step_to(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step along the ODE's tangent: Euler in σ-space, which is DDIM with η = 0."""
    return denoised + (sigma_next / sigma) * (x - denoised)
