"""The reverse process: the states from noise to data, and batches of samples."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ldm.diffusion import Denoiser, Schedule
from ldm.errors import InputError
from ldm.lazy import Tensor, torch
from ldm.precision import Precision, autocast
from ldm.sampling.classes import classes_of, mistaken
from ldm.sampling.guidance import Guided
from ldm.sampling.levels import check_sigmas
from ldm.sampling.noise import Streams
from ldm.sampling.samplers import Noise, Sampler, heun

# by how many times one of Heun's levels may exceed the next: half of that is by how much the slope at the next level
# enlarges the error of its denoising
FARTHEST = 100


def states(
    denoiser: Denoiser | Guided, sampler: Sampler, sigmas: Tensor, noise: Noise, labels: Tensor | None = None
) -> Iterator[Tensor]:
    """The states x_t = alpha_t x̄ of a reverse process at the levels, (B, C, h, w): noise first, the sample last.

    sigmas: (N + 1,), decreasing, ends in 0. Data of unit variance are assumed, so a finite first level starts from
    x̄ ~ N(0, 1 + σ̄²). An infinite one (alpha_t = 0) starts from noise alone, with one step in x_t rather than in x̄,
    x_s = alpha_s D + sigma_s eps, to the first finite level. D is the denoised x0.
    """
    check_sigmas(sigmas)
    alphas = [denoiser.schedule.at_sigma(sigma).alpha_t for sigma in sigmas[:-1]] + [torch.ones_like(sigmas[-1])]
    denoise = partial(denoiser, labels=labels)
    eps = noise()
    if sigmas[0].isfinite():
        x = (1 + sigmas[0] ** 2).sqrt() * eps
        yield alphas[0] * x
    else:
        yield eps
        x = denoise(eps, sigmas[0]) + sigmas[1] * eps
        sigmas, alphas = sigmas[1:], alphas[1:]
        yield alphas[0] * x
    for alpha_t, state in zip(alphas[1:], sampler(denoise, x, sigmas, noise), strict=True):
        yield alpha_t * state


def last_state(states: Iterator[Tensor]) -> Tensor:
    """The sample: the last of the states, of which no other is kept."""
    return deque(states, maxlen=1).pop()


class Samples(NamedTuple):
    """A batch of samples: x (B, C, h, w) in float32, their classes (B,) or None, and the states of the first few.

    trajectory: these states, (shown, N + 1, C, h, w) in float32 on the CPU; None where none are asked for.
    """

    x: Tensor
    labels: Tensor | None
    trajectory: Tensor | None


def sample_batches(
    denoiser: Guided,
    sampler: Sampler,
    sigmas: Tensor,
    batches: Iterable[Sequence[int]],
    *,
    seed: int,
    label: str | int | Mapping[int, int] | None = None,
    redraw: bool = False,
    shown: int = 0,
    precision: Precision = "fp32",
) -> Iterator[Samples]:
    """Draw samples, batch by batch. batches: the numbers (indices) of the samples, each of which has its own noise.

    label: the class of all of them, as for `Guided.class_of`, or the index of each one's by its number; None is each by
    its quota. redraw: whether a sample that the denoiser takes for another class is drawn once more, by the noise that
    follows in its stream; of networks with fewer than two classes none is. shown: how many samples of the first batch
    have their states kept. precision: of the networks; the states are float64. Raises: InputError for a class that the
    networks were not trained on, for a sampler that `check_sampler` refuses, and for samples that are not finite.
    """
    own = label if isinstance(label, Mapping) else denoiser.class_of(label)
    check_sampler(sampler, denoiser.schedule, sigmas)
    draw = partial(_draw, denoiser, sampler, sigmas)
    redraw = redraw and sum(map(bool, denoiser.class_sizes)) > 1
    for indices in batches:
        streams = Streams(seed, indices, denoiser.shape, denoiser.main.device)
        labels = classes_of(indices, denoiser.class_sizes, own, denoiser.main.device)
        with autocast(precision, denoiser.main.device.type):
            x, frames = draw(streams, labels, shown)
            if redraw and labels is not None:
                wrong, streams = mistaken(denoiser.main, x, labels, streams)
                if len(wrong):
                    x[wrong], again = draw(streams, labels[wrong], int((wrong < shown).sum()))
                    frames[wrong[: len(again)].cpu()] = again
        yield Samples(x, labels, frames if shown else None)
        shown = 0


def _draw(
    denoiser: Guided, sampler: Sampler, sigmas: Tensor, streams: Streams, labels: Tensor | None, shown: int
) -> tuple[Tensor, Tensor]:
    """Samples by the next draws of their streams, and the states of the first ones, as `Samples` has both."""
    frames = []
    for x_t in states(denoiser, sampler, sigmas, streams, labels):
        frames.append(x_t[:shown].float())
    x = x_t.float()
    if not x.isfinite().all():
        raise InputError("samples became NaN or infinite; lower guidance.weight, or set the sampler's own options")
    return x, torch.stack(frames, 1).cpu()


def check_sampler(sampler: Sampler, schedule: Schedule, sigmas: Tensor) -> None:
    """Refuse a sampler that is wrong for a schedule, or for these levels (N + 1,).

    Raises: InputError for DDPM's upper bound of the variance, β, where a schedule does not preserve variance; and for
    Heun's method where a level is more than FARTHEST times the next one.
    """
    level = schedule.at(torch.tensor([0.5]))
    preserving = (level.alpha_t**2 + level.sigma_t**2 - 1).abs().item() < 1e-4
    if getattr(sampler, "keywords", {}).get("variance") == "beta" and not preserving:
        raise InputError("samplers.ddpm.variance beta needs a variance-preserving schedule; choose beta_tilde")
    finite = sigmas[:-1][sigmas[:-1].isfinite()]
    ratios = finite[:-1] / finite[1:]
    if getattr(sampler, "func", sampler) is heun and (ratios > FARTHEST).any():
        start, end = finite[(i := int(ratios.argmax())) : i + 2].tolist()
        problem = f"heun makes errors {start / end / 2:.0f} times as large in its step from σ̄ {start:.3g} to {end:.3g}"
        raise InputError(f"{problem}; take dpmpp_2m, or a spacing or schedule whose levels lie closer")


def split_range(first: int, n: int, batch_size: int) -> list[range]:
    """The n indices from `first` on, in batches of at most `batch_size`. Raises: InputError for an index above 2⁶³."""
    if first + n > 2**63:
        raise InputError(f"first {first}: {n} samples from there on have numbers above 2**63 - 1; lower it")
    return [range(i, min(i + batch_size, first + n)) for i in range(first, first + n, batch_size)]
