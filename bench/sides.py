"""The sides of the benchmark: each takes training steps on the same latents, and draws images by its own sampler.

A peer runs the loop of its own examples: diffusers' unconditional training script, the step of
denoising-diffusion-pytorch's Trainer, and the plain loop of a tutorial. Ours has, for each peer, a
U-Net of as many parameters and forward operations (within 5 %; `tests/test_bench.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import autoencoder, choices
from ldm.autoencoder import Autoencoder, decode_images
from ldm.denoiser import Denoiser
from ldm.loss import diffusion_loss
from ldm.optimisation import Optimisation
from ldm.sampling import Streams, last_state, states
from ldm.training import Batches, Training, autocast

CHANNELS, SIZE = 4, 8  # of the latents; diffusers' and denoising-diffusion-pytorch's networks cannot take 7 × 7
N = 20_000  # latents
LR, CLIP, DECAY = 1e-3, 1.0, 0.999

# the options of our U-Net that match a peer's network
UNET = {"patch": 1, "multipliers": [1, 2], "block": "resnet", "attention": "none", "resampling": "learned", "heads": 2, "dropout": 0.0}
MATCHED: dict[str, dict[str, Any]] = {
    "diffusers": UNET | {"width": 32, "blocks": 1, "embedding": 64, "groups": 8},
    "denoising_diffusion_pytorch": UNET | {"width": 32, "blocks": 2, "embedding": 32, "groups": 8},
}


def our_unet(peer: str) -> nn.Module:
    return choices.build("networks", "unet", MATCHED[peer], (CHANNELS, SIZE, SIZE))


def diffusers_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
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


def denoising_diffusion_pytorch_unet() -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=32, dim_mults=(1, 2), channels=CHANNELS)


class Side:
    """A network on a device, in a precision, with its training step and its sampler."""

    samplers: tuple[str, ...] = ()

    def __init__(self, peer: str, precision: str, device: str, batch_size: int) -> None:
        torch.manual_seed(0)
        self.precision, self.device, self.batch_size = precision, torch.device(device), batch_size
        self.latents = torch.randn(N, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        self.vae = vae().to(device)
        self.prepare(peer)

    def prepare(self, peer: str) -> None:
        raise NotImplementedError

    def step(self) -> None:
        """One training step."""
        raise NotImplementedError

    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        """Latents."""
        raise NotImplementedError

    def images(self, sampler: str, n: int, evaluations: int) -> Tensor:
        """Drawn and decoded, uint8; the decoder is the same for all."""
        return decode_images(self.vae, self.draw(sampler, n, evaluations).float())

    def cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def loader(self) -> Iterator[Tensor]:
        """What a tutorial reads its batches with, for ever."""
        from torch.utils.data import DataLoader, TensorDataset

        data = DataLoader(TensorDataset(self.latents), self.batch_size, shuffle=True, drop_last=True)
        while True:
            yield from (batch for (batch,) in data)


def vae() -> Autoencoder:
    """The pipeline's autoencoder, for images that give these latents; its weights are random, which takes the same time."""
    options = {"latent_channels": CHANNELS, "width": 64, "blocks": 1, "smoothing": 8}
    return autoencoder.from_config({"autoencoder": "conv", "autoencoders": {"conv": options}}, (1, 4 * SIZE, 4 * SIZE)).eval()


class Ours(Side):
    """The pipeline's own training loop and sampler."""

    samplers = ("dpmpp_2m", "ddim")

    def prepare(self, peer: str) -> None:
        values = {"steps": 10**9, "batch_size": self.batch_size, "lr": LR, "lr_final": 0.0, "warmup": 0, "betas": [0.9, 0.99]}
        values |= {"weight_decay": 0.0, "clip_norm": CLIP, "ema_decay": DECAY, "max_skipped": 50, "record_every": 10**9}
        self.settings = Optimisation.parse(values | {"precision": {"cpu": self.precision, "cuda": self.precision}}, "bench")
        schedule, target = choices.build("schedules", "flow", {}), choices.build("targets", "flow", {})
        self.denoiser = Denoiser(our_unet(peer).to(self.device), schedule, target)
        penalty, weighting = choices.build("losses", "l2", {}), choices.build("weightings", "uniform", {})
        times = choices.build("times", "logit_normal", {"mean": 0.0, "std": 1.0})
        x, generator = self.latents.to(self.device), torch.Generator(self.device).manual_seed(0)
        order = Batches(N, self.batch_size, generator)

        def loss() -> Tensor:
            x0 = x[next(order)]
            eps = torch.randn(x0.shape, generator=generator, device=x0.device)
            return diffusion_loss(self.denoiser, penalty, weighting, x0, eps, times(schedule, len(x0), generator)).mean()

        self.training = Training(self.denoiser.network, loss, self.settings, order)

    def step(self) -> None:
        self.training.advance()

    @torch.inference_mode()
    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        chosen = choices.build("samplers", sampler, {"eta": 0.0})
        sigmas = choices.build("spacings", "trailing", {})(self.denoiser.schedule, evaluations)
        with autocast(self.device, self.settings):
            return last_state(states(self.denoiser, chosen, sigmas, Streams(0, range(n), (CHANNELS, SIZE, SIZE), self.device)))


class Diffusers(Side):
    """The loop of examples/unconditional_image_generation/train_unconditional.py, and the loops of its DDIM and DPM-Solver++ pipelines."""

    samplers = ("ddim", "dpmpp_2m")

    def prepare(self, peer: str) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.network = diffusers_unet().to(self.device)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LR)
        self.ema = EMAModel(self.network.parameters(), decay=DECAY)
        self.batches = self.loader()

    def step(self) -> None:
        x0 = next(self.batches).to(self.device)
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=self.device).long()
        with self.cast():
            loss = F.mse_loss(self.network(self.scheduler.add_noise(x0, noise, t), t).sample.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        loss.detach().item()  # the example logs it every step

    @torch.no_grad()
    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

        scheduler = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}[sampler](num_train_timesteps=1000)
        scheduler.set_timesteps(evaluations)
        x = torch.randn(n, CHANNELS, SIZE, SIZE, device=self.device)
        with self.cast():
            for t in scheduler.timesteps:
                x = scheduler.step(self.network(x, t).sample, t, x).prev_sample
        return x


class DenoisingDiffusionPyTorch(Side):
    """The step of its Trainer, and its DDIM."""

    samplers = ("ddim",)

    def prepare(self, peer: str) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion
        from ema_pytorch import EMA

        self.diffusion = GaussianDiffusion(denoising_diffusion_pytorch_unet(), image_size=SIZE, sampling_timesteps=250, auto_normalize=False).to(self.device)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), LR, betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=DECAY, update_every=10)
        self.batches = self.loader()

    def step(self) -> None:
        with self.cast():
            loss = self.diffusion(next(self.batches).to(self.device))
        loss.item()  # the Trainer shows it every step
        loss.backward()
        nn.utils.clip_grad_norm_(self.diffusion.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def draw(self, sampler: str, n: int, evaluations: int) -> Tensor:
        self.diffusion.sampling_timesteps = evaluations
        with self.cast():
            return self.diffusion.sample(n)


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
            loss = F.mse_loss(self.network(alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, t / 1000).float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


SIDES: dict[str, Callable[[str, str, str, int], Side]] = {
    "ours": Ours,
    "diffusers": Diffusers,
    "denoising_diffusion_pytorch": DenoisingDiffusionPyTorch,
    "plain": Plain,
}
