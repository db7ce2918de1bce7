"""The sides of the benchmark: each takes training steps on the same latents, and draws images by its own sampler.

A peer runs the loop of its own examples: diffusers' unconditional training script, the step of
denoising-diffusion-pytorch's Trainer, and the plain loop of a tutorial. Ours has, for each peer, a U-Net of as many
parameters and forward operations (within 5 %; `tests/bench/test_bench.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion import (
    Denoiser,
    DiffusionLoss,
    Objective,
    penalties,
    predictions,
    schedules,
    timestep_samplings,
    weightings,
)
from ldm.networks import Posterior, Standardiser, autoencoders, networks
from ldm.networks.autoencoder import Autoencoder, decode_images
from ldm.sampling import Streams, last_state, samplers, spacings, states
from ldm.training.loop import Batches, Training
from ldm.training.settings import Optimisation
from stages.runner.command import keep_freed_memory

CHANNELS, SIZE = 4, 8  # of the latents; diffusers' and denoising-diffusion-pytorch's networks cannot take 7 × 7
SHAPE = (CHANNELS, SIZE, SIZE)
N = 20_000  # latents
LR, CLIP, DECAY = 1e-3, 1.0, 0.999

# the options of our U-Net that match a peer's network
UNET = {"width": 32, "multipliers": [1, 2], "norm": "layer", "heads": 2}
MATCHED: dict[str, dict[str, Any]] = {
    "diffusers": UNET | {"blocks": 1, "embedding": 64},
    "denoising_diffusion_pytorch": UNET | {"blocks": 2, "embedding": 32},
}


def cost(network: nn.Module) -> dict[str, int]:
    """Parameters, and floating-point operations of a forward pass of one sample."""
    x, t = torch.randn(1, *SHAPE), torch.full((1,), 0.5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t)
    return {"parameters": sum(p.numel() for p in network.parameters()), "flops": counter.get_total_flops()}


def our_unet(peer: str) -> nn.Module:
    return networks.build("unet", MATCHED[peer])(SHAPE)


def diffusers_unet() -> nn.Module:
    from diffusers import UNet2DModel  # a peer: only where it is timed

    unet: Any = UNet2DModel(
        sample_size=SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
    )
    return unet


def denoising_diffusion_pytorch_unet() -> nn.Module:
    from denoising_diffusion_pytorch import Unet  # a peer: only where it is timed

    return Unet(dim=32, dim_mults=(1, 2), channels=CHANNELS)


class Side:
    """A network on a device, in a precision, with its training step and its samplers."""

    samplers: tuple[str, ...] = ()
    network: nn.Module  # what a training step changes

    def __init__(self, peer: str, precision: str, device: str, batch_size: int) -> None:
        torch.manual_seed(0)
        self.precision, self.device, self.batch_size = precision, torch.device(device), batch_size
        self.latents = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.vae = vae().to(device)
        self.prepare(peer)

    def prepare(self, peer: str) -> None:
        raise NotImplementedError

    def step(self) -> None:
        """Take one training step."""
        raise NotImplementedError

    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        """n latents (n, C, h, w) by a sampler of this side, with so many passes of the network for each."""
        raise NotImplementedError

    def images(self, sampler: str, n: int, evaluations: int) -> Tensor:
        """Drawn and decoded, uint8; the decoder is the same for all."""
        return decode_images(self.vae, self.draw(sampler, n, evaluations).float())

    def cast(self) -> torch.autocast:
        """The context that gives a peer's arithmetic its precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def loader(self) -> Iterator[Tensor]:
        """Endless batches (batch_size, C, h, w) from a DataLoader, as a tutorial reads them."""
        from torch.utils.data import DataLoader, TensorDataset  # the peers read by it

        data = DataLoader(TensorDataset(self.latents), self.batch_size, shuffle=True, drop_last=True)
        while True:
            yield from (batch for (batch,) in data)


def vae() -> Autoencoder:
    """The pipeline's autoencoder, for images that give these latents; random weights take as long as trained ones."""
    autoencoder = autoencoders.build("conv_vae", {"latent_channels": CHANNELS})((1, 4 * SIZE, 4 * SIZE))
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder.eval()


class Ours(Side):
    """The pipeline's own objective, training loop and sampler."""

    samplers = ("dpmpp_2m", "ddim")

    def prepare(self, peer: str) -> None:
        keep_freed_memory()  # as every stage does
        values: dict[str, Any] = {"steps": 10**9, "record_every": 10**9, "batch_size": self.batch_size}
        values |= {"lr": LR, "clip_norm": CLIP, "ema_decay": DECAY}
        values |= {"precision": self.precision, "capture": self.device.type == "cuda"}
        self.settings = Optimisation.parse(values, "bench")
        self.network = our_unet(peer).to(self.device)
        self.denoiser = Denoiser(self.network, schedules.build("rectified_flow"), predictions.build("flow"))
        zeros = torch.zeros(CHANNELS, dtype=torch.float64, device=self.device)
        loss = DiffusionLoss(penalties.build("l2"), weightings.build("none"))
        objective = Objective(Standardiser(zeros, zeros + 1), loss, timestep_samplings.build("logit_normal"))
        exact = Posterior.exact(self.latents.to(self.device))
        # the pipeline draws its latents with a log-variance for each element
        posterior = Posterior(exact.mean, exact.log_variance.expand_as(exact.mean).contiguous())
        generator = torch.Generator(self.device).manual_seed(0)
        order = Batches(N, self.batch_size, generator)

        def batch_loss(index: Tensor) -> Tensor:
            return objective(self.denoiser, posterior.at(index), None, generator).mean()

        self.training = Training(self.network, batch_loss, self.settings, order)

    def step(self) -> None:
        self.training.advance()

    @torch.inference_mode()
    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        sigmas = spacings.build("trailing")(self.denoiser.schedule, evaluations)
        noise = Streams(0, range(n), SHAPE, str(self.device))
        with self.cast():
            return last_state(states(self.denoiser, samplers.build(sampler), sigmas, noise))


class Diffusers(Side):
    """The loop of diffusers' train_unconditional.py, and the loops of its DDIM and DPM-Solver++ pipelines.

    The script lies in examples/unconditional_image_generation.
    """

    samplers = ("ddim", "dpmpp_2m")

    def prepare(self, peer: str) -> None:
        from diffusers import DDPMScheduler  # a peer: only where it is timed
        from diffusers.training_utils import EMAModel  # a peer: only where it is timed

        self.network = diffusers_unet().to(self.device)
        self.scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LR)
        self.ema = EMAModel(self.network.parameters(), decay=DECAY)
        self.batches = self.loader()

    def step(self) -> None:
        x0 = next(self.batches).to(self.device)
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=self.device).long()
        with self.cast():
            loss = nnf.mse_loss(self.network(self.scheduler.add_noise(x0, noise, t), t).sample.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        loss.detach().item()  # the example logs it every step

    @torch.no_grad()
    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler  # a peer: only where it is timed

        kind: Any = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}[sampler]
        scheduler = kind(num_train_timesteps=1000)
        scheduler.set_timesteps(evaluations)
        x = torch.randn(n, *SHAPE, device=self.device)
        with self.cast():
            for t in scheduler.timesteps:
                x = scheduler.step(self.network(x, t).sample, t, x).prev_sample
        return x


class DenoisingDiffusionPyTorch(Side):
    """The step of the library's Trainer, and its DDIM sampler."""

    samplers = ("ddim",)

    def prepare(self, peer: str) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion  # a peer: only where it is timed
        from ema_pytorch import EMA  # a peer: only where it is timed

        unet = denoising_diffusion_pytorch_unet()
        diffusion = GaussianDiffusion(unet, image_size=SIZE, sampling_timesteps=250, auto_normalize=False)
        self.network = diffusion.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), LR, betas=(0.9, 0.99))
        self.ema = EMA(self.network, beta=DECAY, update_every=10)
        self.batches = self.loader()

    def step(self) -> None:
        with self.cast():
            loss = self.network(next(self.batches).to(self.device))
        loss.item()  # the Trainer shows it every step
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        diffusion: Any = self.network
        diffusion.sampling_timesteps = evaluations
        with self.cast():
            return diffusion.sample(n)


class Plain(Side):
    """What a tutorial would write, with our network: a loader, Adam, noise, mean squared error."""

    def prepare(self, peer: str) -> None:
        self.network = our_unet(peer).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), LR)
        self.alphas = (1 - torch.linspace(1e-4, 0.02, 1000, device=self.device)).cumprod(0)
        self.batches = self.loader()

    def step(self) -> None:
        x0 = next(self.batches).to(self.device)
        t, noise = torch.randint(0, 1000, (len(x0),), device=self.device), torch.randn_like(x0)
        alpha = self.alphas[t][:, None, None, None]
        with self.cast():
            predicted = self.network(alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t / 1000)
            loss = nnf.mse_loss(predicted.float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


SIDES: dict[str, type[Side]] = {
    "ours": Ours,
    "diffusers": Diffusers,
    "denoising_diffusion_pytorch": DenoisingDiffusionPyTorch,
    "plain": Plain,
}
PEERS: dict[str, Callable[[], nn.Module]] = {
    "diffusers": diffusers_unet,
    "denoising_diffusion_pytorch": denoising_diffusion_pytorch_unet,
}
