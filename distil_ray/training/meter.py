"""Adds up what training measures, in sums that stay on the device until they are due."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from distil_ray.distillation.distiller import Term
from distil_ray.models.flops import peak_flops


class Meter:
    """Adds up loss terms and waiting time between two records. One instance per worker."""

    def __init__(
        self,
        shares: Mapping[Term, float],
        counts: Mapping[Term, int],
        *,
        tokens_per_step: int,
        world_size: int,
        device: torch.device,
        flops_per_token: float,
    ) -> None:
        """`shares` and `counts` by loss term: its weight, and by what its sum over a global batch is divided."""
        self._shares = shares
        self._counts = counts
        self._tokens_per_step = tokens_per_step
        self._world_size = world_size
        self._device = device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._flops_per_token = flops_per_token
        self._peak_flops = None if peak is None else peak * world_size
        self._start()

    def _start(self) -> None:
        self._sums: dict[Term, torch.Tensor] = {}
        self.num_steps = 0
        self._wait_seconds = 0.0
        self._began = time.perf_counter()

    def add_terms(self, terms: Mapping[Term, torch.Tensor]) -> None:
        """Add a micro-batch's loss sums. Does not wait for the device."""
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_step(self, wait_seconds: float) -> None:
        """Count a step that waited so long for its data."""
        self.num_steps += 1
        self._wait_seconds += wait_seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside, such as an evaluation, out of the speed."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def record(self) -> dict[str, Any]:
        """Return the means since the last record over all workers, and start over. A collective call."""
        seconds = time.perf_counter() - self._began
        zero = torch.zeros((), device=self._device)
        values = [self._sums.get(name, zero) for name in self._counts]
        values.append(torch.tensor(self._wait_seconds, device=self._device))
        sums = torch.stack([value.double() for value in values])
        if self._world_size > 1:
            dist.all_reduce(sums)
        *totals, wait_seconds = sums.tolist()
        terms = {
            name: total / (count * self.num_steps)
            for total, (name, count) in zip(totals, self._counts.items(), strict=True)
        }
        tokens_per_second = self.num_steps * self._tokens_per_step / seconds
        record = {
            "train/loss": sum(self._shares[name] * value for name, value in terms.items()),
            **{f"train/loss_{name}": value for name, value in terms.items()},
            "perf/tokens_per_second": tokens_per_second,
            "perf/data_wait_fraction": wait_seconds / (self._world_size * seconds),
        }
        if self._peak_flops is not None:
            record["perf/mfu"] = tokens_per_second * self._flops_per_token / self._peak_flops
        self._start()
        return record
