"""The training loop of a small VQ-GAN: plain torch, one core or one GPU, no Ray.

It begins where closed forms end (beginning.py) and betters the decoder, its codes fixed, by mean
squared error alone: no adversary, so that a short run is steady and says honestly what it cannot
paint. What an id means is settled before the first step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenmill.workers.tokenizers.bpe_image.beginning import as_shortcuts, begin, hold_constants
from tokenmill.workers.tokenizers.bpe_image.graph import Attention, VqGan
from tokenmill.workers.tokenizers.bpe_image.layout import Layout
from tokenmill.workers.tokenizers.bpe_image.quantizer import code_vectors, nearest

Batches = Callable[[int, int], Tensor]  # (count, side) -> float32 [count, 3, side, side]

_WARM = 50  # steps of rising learning rate
_SMALL = 0.6  # share of the batches with crops of the given side; the others are twice as large
_SAY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The run ends at `steps` or after `seconds`, whichever is first; the rate falls by that share.

    Only a run that ends by its steps is reproducible.
    """

    steps: int
    seconds: float
    batch: int  # crops of `crop` pixels; of larger ones as many as have the same pixels
    crop: int
    rate: float
    seed: int
    patches: int  # that the codebook is fitted to


def train(
    layout: Layout, squares: Tensor, batches: Batches, schedule: Schedule, device: torch.device
) -> Trained:
    """A trained network on the CPU, in float32. squares: [n, 3, s, s] in [-1, 1], for the start."""
    torch.manual_seed(schedule.seed)
    network = VqGan(layout)
    as_shortcuts(network)
    with slim(network):
        begin(network, squares, patches=schedule.patches, seed=schedule.seed)
        network.to(device)
        hold_constants(network)
        trained = Trained(network, device)
        run = _Run(trained, layout, batches, schedule)
        for progress in run.progress():
            run.step(progress)
    network.to("cpu").eval()
    return trained


@contextmanager
def slim(network: VqGan) -> Iterator[None]:
    """Attention and the blocks at the picture's own resolution stay shortcuts, and cost nothing.

    Attention, learned over small crops, would mislead on large pictures; those blocks would take
    most of the time that a small run has. They are put back, still adding zero.
    """
    taken: list[tuple[Any, str, Any]] = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Attention):
                taken.append((parent, name, child))
    for level in (network.encoder.down[0], network.decoder.up[0]):
        blocks: Any = level.block
        taken += [(blocks, name, child) for name, child in blocks.named_children()]
    for parent, name, child in taken:
        setattr(parent, name, getattr(child, "nin_shortcut", nn.Identity()))
    try:
        yield
    finally:
        for parent, name, child in taken:
            setattr(parent, name, child)


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
        self._normalised = layout.normalised
        weight = trained.network.quantize.embedding.weight
        self._table = code_vectors(weight, normalised=layout.normalised)
        halves: tuple[nn.Module, ...] = (self._network.post_quant_conv, self._network.decoder)
        parameters = [p for half in halves for p in half.parameters() if p.requires_grad]
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
        small = torch.rand((), generator=self._sides) < _SMALL
        side = self._schedule.crop * (1 if small else 2)
        count = max(1, self._schedule.batch * self._schedule.crop**2 // side**2)
        x = self._batches(count, side).to(self._device)
        codes = self._codes(x)
        # bfloat16 is twice as fast here; the weights stay float32
        with torch.autocast(self._device.type, torch.bfloat16):
            y = self._network.decoder(self._network.post_quant_conv(codes))
        loss = functional.mse_loss(y.float(), x)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], 1.0)
        self._optimizer.step()
        self._losses.append(loss.item())

    def _codes(self, x: Tensor) -> Tensor:
        """The code vectors of crops, [count, d, h, w], in full precision as they will be found."""
        with torch.no_grad():
            latents = self._network.quant_conv(self._network.encoder(x))
            found = nearest(latents, self._table, normalised=self._normalised)
            return functional.embedding(found, self._table).permute(0, 3, 1, 2).contiguous()

    def _rate(self, progress: float) -> float:
        warm = min(1.0, (self._trained.steps + 1) / _WARM)
        return self._schedule.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def _say(self, done: float) -> None:
        if self._trained.seconds - self._said < _SAY_SECONDS:
            return
        self._said = self._trained.seconds
        recent = sum(self._losses[-200:]) / len(self._losses[-200:])
        print(
            f"{done:6.1%}  step {self._trained.steps}  {10 * math.log10(4 / recent):.2f} dB on "
            "its crops",
            file=sys.stderr,
            flush=True,
        )
