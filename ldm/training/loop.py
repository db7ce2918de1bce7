"""The training loop that all networks share, whose whole state can be kept and taken up again."""

import copy
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Generator, Tensor, nn

from ldm.errors import InputError
from ldm.precision import autocast
from ldm.training import distributed
from ldm.training.muon import Muon
from ldm.training.settings import Optimisation

State = dict[str, Tensor]
Loss = Callable[[Tensor], Tensor]  # the indices of a batch, (size,) → its mean loss, a scalar
WARM_UP = 3  # steps before a CUDA graph is recorded


@dataclass(frozen=True)
class Record:
    """A point of the training curve, and the averaged network there."""

    step: int  # steps taken, the skipped ones included
    loss: float  # mean training loss since the last record, over the steps that were not skipped
    skipped: int  # steps skipped so far for a non-finite loss or gradient
    averaged: nn.Module  # the averaged network, in evaluation mode


class Diverged(InputError):
    """Too many steps in a row had a non-finite loss or gradient; `averaged` is the averaged network, left finite."""

    def __init__(self, message: str, averaged: nn.Module) -> None:
        super().__init__(message)
        self.averaged = averaged


class Batches:
    """Batches of indices below n, without end: each epoch is a fresh permutation, and batches run on across epochs."""

    def __init__(self, n: int, size: int, generator: Generator) -> None:
        self.n, self.size, self.generator = n, size, generator
        self.rest = torch.empty(0, dtype=torch.long, device=generator.device)

    def __next__(self) -> Tensor:
        """The next indices, (size,)."""
        while len(self.rest) < self.size:
            epoch = torch.randperm(self.n, generator=self.generator, device=self.generator.device)
            self.rest = torch.cat([self.rest, epoch])
        batch, self.rest = self.rest[: self.size], self.rest[self.size :]
        return batch


class Training:
    """Minimise `loss(index)`, the mean loss of a batch of `order`, by AdamW and Muon; average the weights.

    All that a step depends on is in `state()`: given back by `load_state`, the run goes on to the same bits. `loss` may
    draw random numbers from the order's generator and from torch's global one, and from no other. Under torchrun it is
    the mean loss of this process's slice of the batch (`ldm.training.distributed`).

    A step never waits for the device. One whose loss or gradient is not finite is skipped: it changes neither weights
    nor buffers, and is counted on the device. What differs from step to step (the batch, the learning rates, the weight
    of the average) is put into tensors on the device beforehand. So a step can be replayed as a CUDA graph.
    """

    def __init__(self, network: nn.Module, loss: Loss, settings: Optimisation, order: Batches) -> None:
        self.network, self.loss, self.settings, self.order = network, loss, settings, order
        self.device = next(network.parameters()).device
        self.optimizers = optimizers(network, settings)
        self.averaged = copy.deepcopy(network).requires_grad_(False).eval()
        self.modules = {"network": network, "averaged": self.averaged}  # by their names in the state
        own, average = network.state_dict(keep_vars=True), self.averaged.state_dict()
        self.averages = [(average[name], tensor) for name, tensor in own.items()]
        # a forward pass changes the buffers of batch norm
        self.buffers = [tensor for tensor in own.values() if not isinstance(tensor, nn.Parameter)]
        if settings.compile:
            check_compiler(self.device)
            network.compile()
        if settings.capture and (self.device.type != "cuda" or distributed.world_size() > 1):
            raise InputError("capture records a step of one process on a GPU; set it to false")
        distributed.check_draws_nothing(network)
        self.step = 0
        self.index = torch.empty(order.size, dtype=torch.long, device=self.device)
        self.average_weight = torch.ones((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warmed_up = 0  # steps taken before the graph is recorded
        # on the device: the sum of the losses since the last record, and the numbers of steps skipped in all, since the
        # last record, in a row up to now, and in a row at most
        self.sums = torch.zeros(5, device=self.device, dtype=torch.float64)
        self.seen = 0  # steps since the last record

    def advance(self, share: float | None = None) -> Record | None:
        """Take a step; every `record_every` steps and at the end, return a record. Raises: Diverged.

        share: for a run that ends at a time and not at a number of steps, the share of its time that has passed; where
        that is 1, this step is the last.
        """
        settings = self.settings
        self.step += 1
        for name, optimizer in self.optimizers.items():
            rate = learning_rate(settings, self.step, settings.muon_lr if name == "muon" else settings.lr, share)
            for group in optimizer.param_groups:
                group["lr"].fill_(rate)
        # after n steps the decay is at most (1 + n) / (10 + n), the ramp of TensorFlow's ExponentialMovingAverage: it
        # forgets the first weights, and those from before the first step are not averaged in
        decay = min(settings.ema_decay, self.step / (9 + self.step)) if self.step > 1 else 0
        self.average_weight.fill_(1 - decay)
        self.index.copy_(next(self.order))
        self._replay() if settings.capture else self._take()
        self.seen += 1
        last = self.step == settings.steps if share is None else share >= 1
        return self._record() if last or self.step % settings.record_every == 0 else None

    def _take(self) -> None:
        """What the device does in a step."""
        before = [buffer.clone() for buffer in self.buffers]
        with autocast(self.settings.precision, self.device.type):
            loss = self.loss(self.index)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm, foreach=True)
        loss = distributed.all_reduce_mean(loss.detach())
        good = loss.isfinite() & norm.isfinite()
        for optimizer in self.optimizers.values():
            # the fused kernel skips the step where this is not 0; torch's GradScaler sets it likewise
            optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
            optimizer.step()
        for buffer, old in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(good, buffer, old))
        self._average()
        total, skipped, skipped_lately, row, most = self.sums.unbind()
        row = torch.where(good, 0, row + 1)
        counts = [skipped + ~good, skipped_lately + ~good, row, torch.maximum(most, row)]
        self.sums.copy_(torch.stack([total + torch.where(good, loss, 0), *counts]))

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages towards the weights; whole numbers are copied."""
        floats = [pair for pair in self.averages if pair[0].is_floating_point()]
        averages, now = [average for average, _ in floats], [tensor for _, tensor in floats]
        distance = torch._foreach_sub(now, averages)
        torch._foreach_mul_(distance, self.average_weight)
        torch._foreach_add_(averages, distance)
        for average, tensor in self.averages:
            if not average.is_floating_point():
                average.copy_(tensor)

    def _replay(self) -> None:
        """Take a step as a CUDA graph of `_take`.

        Before it is recorded, some steps are taken on a CUDA stream of their own, as torch demands; these allocate what
        the graph needs.
        """
        if self.warmed_up < WARM_UP:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._take()
            torch.cuda.current_stream().wait_stream(stream)
            self.warmed_up += 1
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(self.order.generator)
            try:
                with torch.cuda.graph(self.graph):
                    self._take()
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                problem = f"a step cannot be recorded as a CUDA graph ({reason})"
                raise InputError(f"{problem}; set optimisation.capture to false") from error
        self.graph.replay()

    def _record(self) -> Record:
        total, skipped, skipped_lately, _, most = self.sums.tolist()
        settings = self.settings
        if most >= settings.max_skipped:
            problem = f"{most:.0f} steps in a row, up to step {self.step}, had a non-finite loss or gradient"
            muon = f" or muon_lr (now {settings.muon_lr:g})" if settings.muon_lr else ""
            remedy = f"try a lower lr (now {settings.lr:g}){muon} or a smaller clip_norm (now {settings.clip_norm:g})"
            raise Diverged(f"{problem}; {remedy}", self.averaged)
        finite = self.seen - skipped_lately
        record = Record(self.step, total / finite if finite else math.nan, int(skipped), self.averaged)
        self.sums[0] = self.sums[2] = 0
        self.seen = 0
        return record

    def state(self) -> State:
        """Everything that a step depends on, as tensors on the CPU."""
        tensors = {"counts": torch.tensor([self.step, self.seen]), "sums": self.sums, "order.rest": self.order.rest}
        for prefix, module in self.modules.items():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
        for prefix, optimizer in self.optimizers.items():
            for i, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{i}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {"stream.order": self.order.generator.get_state(), "stream.torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["stream.cuda"] = torch.cuda.get_rng_state(self.device)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken, in a run of the same settings."""

        def under(prefix: str) -> State:
            return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}

        for prefix, module in self.modules.items():
            module.load_state_dict(under(f"{prefix}."))
        for prefix, optimizer in self.optimizers.items():
            weights = optimizer.param_groups[0]["params"]
            moments: dict[int, State] = {}
            for key, tensor in under(f"{prefix}.").items():
                index, _, moment = key.partition(".")
                like = weights[int(index)]  # the fused kernel walks both in memory order, so the layouts must agree
                own = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                moments.setdefault(int(index), {})[moment] = own
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        self.step, self.seen = state["counts"].tolist()
        self.sums.copy_(state["sums"])
        self.order.rest = state["order.rest"].to(self.order.rest.device)
        self.order.generator.set_state(state["stream.order"])
        torch.set_rng_state(state["stream.torch"])
        if "stream.cuda" in state:
            torch.cuda.set_rng_state(state["stream.cuda"], self.device)
        self.graph, self.warmed_up = None, 0  # what was recorded goes on with the moments that were replaced


def optimizers(network: nn.Module, settings: Optimisation) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and with a `muon_lr` Muon for the kernels of convolutions.

    Raises: InputError for a `muon_lr` where there are no kernels.
    """
    kernels = [w for w in network.parameters() if settings.muon_lr and w.ndim == 4]
    if settings.muon_lr and not kernels:
        raise InputError(f"muon_lr {settings.muon_lr:g}: the network has no kernels of convolutions; set it to 0")
    rest = [w for w in network.parameters() if w.ndim != 4 or not kernels]
    device, decay = rest[0].device, settings.weight_decay
    lr, muon_lr = (torch.tensor(peak, device=device) for peak in (settings.lr, settings.muon_lr))
    capturable = device.type == "cuda"
    adamw = torch.optim.AdamW(rest, lr, settings.betas, weight_decay=decay, fused=True, capturable=capturable)
    return {"adamw": adamw} | ({"muon": Muon(kernels, muon_lr, weight_decay=decay)} if kernels else {})


def check_compiler(device: torch.device) -> None:
    """Check what torch.compile needs. Raises: InputError where a tool is missing for this device."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InputError(f"compile needs a C++ compiler, not {compiler!r}; install g++, set CXX, or unset compile")
    if device.type == "cuda" and find_spec("triton") is None:
        raise InputError("compile needs the package triton on a GPU; install it, or set compile to false")


def learning_rate(settings: Optimisation, step: int, peak: float, share: float | None = None) -> float:
    """Linear warm-up to the peak, then half a cosine down to `lr_final` of it; step counts from 1.

    share: of the time that the run has, for one that ends at a time; the cosine follows it from its beginning.
    """
    if step <= settings.warmup:
        return peak * step / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1) if share is None else min(share, 1)
    return peak * (settings.lr_final + (1 - settings.lr_final) * (1 + math.cos(math.pi * progress)) / 2)
