"""The training loop of a small VQ-GAN: plain torch, one core or one GPU, no Ray.

Reconstruction only (mean squared error), no adversary: small, steady and honest about detail.
Three phases by progress: the codes free on the unit sphere with a little noise; the codebook,
set by k-means on the latents, then moved by running means (van den Oord et al. 2017, appendix A.1),
codes that nothing uses set anew; at the end the decoder alone, its codes fixed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenmill.workers.tokenizers.bpe_image.bar import kmeans
from tokenmill.workers.tokenizers.bpe_image.graph import Attention, ResBlock, VqGan
from tokenmill.workers.tokenizers.bpe_image.layout import Layout

Batches = Callable[[int, int], Tensor]  # (count, side) -> float32 [count, 3, side, side]

_FREE, _FIXED = 0.25, 0.85  # where the phases change
_NOISE = 0.05
_COMMIT = 0.25
_KEEP = 0.99  # of the codebook's running means, per step
_DEAD = 0.05  # running uses per step below which a code is set anew
_WARM = 100  # steps of rising learning rate
_SAY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The run ends at `steps` or after `seconds`, whichever is first; phases go by that share.

    Only a run that ends by its steps is reproducible.
    """

    steps: int
    seconds: float
    batch: int  # crops of `crop` pixels; of larger ones as many as have the same pixels
    crop: int
    rate: float
    seed: int


def train(layout: Layout, batches: Batches, schedule: Schedule, device: torch.device) -> Trained:
    """A trained network on the CPU, in float32."""
    torch.manual_seed(schedule.seed)
    network = VqGan(layout)
    _without_attention(network)
    _quiet_blocks(network)
    network.to(device)
    trained = Trained(network, device)
    run = _Run(trained, layout, batches, schedule)
    for progress in run.progress():
        run.step(progress)
    run.finish()
    return trained


def _without_attention(network: nn.Module) -> None:
    """Attention stays as nothing: learned over small crops, it would mislead on large pictures."""
    for module in network.modules():
        if isinstance(module, Attention):
            _zero(module.proj_out)
            module.requires_grad_(False)


def _quiet_blocks(network: nn.Module) -> None:
    """Every block begins as its shortcut: a short run learns faster (Zhang et al. 2019, Fixup)."""
    for module in network.modules():
        if isinstance(module, ResBlock):
            _zero(module.conv2)


def _zero(convolution: nn.Conv2d) -> None:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)


class Trained:
    def __init__(self, network: VqGan, device: torch.device) -> None:
        self.network = network
        self.device = device
        self.steps = 0
        self.seconds = 0.0


class _Run:
    def __init__(
        self, trained: Trained, layout: Layout, batches: Batches, schedule: Schedule
    ) -> None:
        self._trained, self._network = trained, trained.network
        self._batches, self._schedule = batches, schedule
        self._device = trained.device
        self._codebook = _Codebook(layout.codes, layout.dim, trained.device, schedule.seed)
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(parameters, lr=schedule.rate, betas=(0.9, 0.99))
        self._sides = torch.Generator().manual_seed(schedule.seed)
        self._losses: list[float] = []
        self._said = 0.0

    def progress(self) -> Iterator[float]:
        """The share done, from 0 to below 1, once per step."""
        began = time.monotonic()
        schedule, trained = self._schedule, self._trained
        while True:
            trained.seconds = time.monotonic() - began
            done = max(trained.steps / schedule.steps, trained.seconds / schedule.seconds)
            if done >= 1:
                return
            yield done
            trained.steps += 1
            self._say(done)

    def step(self, progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(progress)
        side = self._schedule.crop * (1 if torch.rand((), generator=self._sides) < 0.6 else 2)
        count = max(1, self._schedule.batch * self._schedule.crop**2 // side**2)
        x = self._batches(count, side).to(self._device)
        if progress >= _FREE and not self._codebook.ready:
            self._set_codebook()
        # bfloat16 is twice as fast here; the weights stay float32
        with torch.autocast(self._device.type, torch.bfloat16):
            z, extra = self._codes(x, progress)
            y = self._network.decoder(self._network.post_quant_conv(z))
        loss = functional.mse_loss(y.float(), x)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss + extra)
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        self._losses.append(loss.item())

    def finish(self) -> None:
        if not self._codebook.ready:
            self._set_codebook()
        with torch.no_grad():
            self._network.quantize.embedding.weight.copy_(self._codebook.codes)
        self._network.to("cpu").eval()

    def _rate(self, progress: float) -> float:
        warm = min(1.0, (self._trained.steps + 1) / _WARM)
        return self._schedule.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def _codes(self, x: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """What the decoder sees, and the loss beside the reconstruction's."""
        fixed = progress >= _FIXED
        with torch.no_grad() if fixed else torch.enable_grad():
            z = self._network.quant_conv(self._network.encoder(x)).float()
            unit = functional.normalize(z, dim=1, eps=1e-12)
        none = torch.zeros((), device=self._device)
        if not self._codebook.ready:
            noisy = unit + _NOISE * torch.randn_like(unit)
            return functional.normalize(noisy, dim=1, eps=1e-12), none
        flat = unit.detach().permute(0, 2, 3, 1).reshape(-1, unit.shape[1])
        labels = self._codebook.nearest(flat)
        codes = self._codebook.codes[labels].reshape(len(x), *unit.shape[2:], -1)
        codes = codes.permute(0, 3, 1, 2)
        if fixed:
            return codes, none
        self._codebook.follow(flat, labels)
        return unit + (codes - unit).detach(), _COMMIT * functional.mse_loss(unit, codes)

    def _set_codebook(self) -> None:
        """By k-means over the latents of fresh crops, some 24 for each code."""
        wanted, found, have = 24 * len(self._codebook.codes), [], 0
        while have < wanted:
            x = self._batches(self._schedule.batch, self._schedule.crop).to(self._device)
            with torch.no_grad():
                z = self._network.quant_conv(self._network.encoder(x)).float()
            unit = functional.normalize(z, dim=1, eps=1e-12)
            found.append(unit.permute(0, 2, 3, 1).reshape(-1, unit.shape[1]))
            have += len(found[-1])
        self._codebook.start(torch.cat(found))

    def _say(self, done: float) -> None:
        if self._trained.seconds - self._said < _SAY_SECONDS:
            return
        self._said = self._trained.seconds
        recent = sum(self._losses[-100:]) / len(self._losses[-100:])
        decibels = 10 * math.log10(4 / recent)
        print(
            f"{done:6.1%}  step {self._trained.steps}  {decibels:.2f} dB on its crops  "
            f"{self._codebook.used} codes in use",
            file=sys.stderr, flush=True,
        )  # fmt: skip


class _Codebook:
    """Codes of unit length that follow the mean of the latents they are given."""

    def __init__(self, count: int, dim: int, device: torch.device, seed: int) -> None:
        self.codes = torch.zeros(count, dim, device=device)
        self.ready = False
        self._uses = torch.zeros(count, device=device)
        self._sums = torch.zeros(count, dim, device=device)
        self._seed = seed

    @property
    def used(self) -> int:
        return int((self._uses > _DEAD * self._uses.mean()).sum())

    def start(self, latents: Tensor) -> None:
        centres = kmeans(latents.cpu(), len(self.codes), rounds=10, seed=self._seed)
        self.codes = functional.normalize(centres, dim=1).to(latents.device)
        self._uses.fill_(1.0)
        self._sums = self.codes.clone()
        self.ready = True

    def nearest(self, flat: Tensor) -> Tensor:
        return (flat @ self.codes.T).argmax(dim=1)

    def follow(self, flat: Tensor, labels: Tensor) -> None:
        counts = torch.bincount(labels, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self._sums).index_add_(0, labels, flat)
        self._uses.mul_(_KEEP).add_(counts, alpha=1 - _KEEP)
        self._sums.mul_(_KEEP).add_(sums, alpha=1 - _KEEP)
        dead = (self._uses < _DEAD * len(flat) / len(self.codes)).nonzero()[:, 0]
        if len(dead):
            again = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
            self._sums[dead] = again
            self._uses[dead] = 1.0
        self.codes = functional.normalize(self._sums, dim=1)
