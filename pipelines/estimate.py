"""From a measured sample of the corpus to the whole, with its uncertainty. Pure arithmetic.

The sample is a simple random one of small units; the estimator is the ratio of sums (tokens per
byte, and so on) times the bytes to read, with the usual variance of a ratio under sampling without
replacement (Cochran, Sampling Techniques, section 2.11) and Student's t.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from tokenmill.schemas.errors import JobError

FORMAT = 1
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
        10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One unit of the sample. seconds: of one worker, overlap of its two slots accounted for."""

    size: int  # bytes of the source
    samples: int
    tokens: int
    stored: int  # bytes of its shards
    quarantined: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """An estimated total. `error` is the half width of its 95 % interval; None with one unit only,
    which says nothing of its uncertainty; 0 where the sample is the whole."""

    value: float
    error: float | None

    def scaled(self, factor: float) -> Quantity:
        return Quantity(
            value=self.value * factor, error=None if self.error is None else self.error * factor
        )

    @property
    def relative(self) -> float | None:
        if self.error is None:
            return None
        return self.error / self.value if self.value else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamEstimate:
    """What is left to do of one stream. Quantities are for the bytes `to_read`."""

    pipeline: str
    stream: str
    recipe: str
    to_read: int
    measured_units: int
    measured_bytes: int
    samples: Quantity
    tokens: Quantity
    stored: Quantity
    quarantined: Quantity
    worker_seconds: Quantity
    gpus_per_worker: float
    cpus_per_worker: float

    @property
    def gpu_hours(self) -> Quantity:
        return self.worker_seconds.scaled(self.gpus_per_worker / 3600)

    @property
    def cpu_hours(self) -> Quantity:
        return self.worker_seconds.scaled(self.cpus_per_worker / 3600)

    def cost(self, gpu_price: float, cpu_price: float) -> Quantity:
        """Prices by hour."""
        hourly = self.gpus_per_worker * gpu_price + self.cpus_per_worker * cpu_price
        return self.worker_seconds.scaled(hourly / 3600)


def student_t(freedom: int) -> float:
    """The 95 % quantile, rounded up between the table's lines."""
    known = [f for f in _T95 if f <= freedom]
    return _T95[max(known)] if known else math.inf


def total(sizes: Sequence[int], values: Sequence[float], to_read: int, units: int) -> Quantity:
    """The total of `values` over `to_read` bytes in about `units` units like the measured ones.

    Raises ValueError without a measured byte.
    """
    n, measured = len(sizes), sum(sizes)
    if n == 0 or measured <= 0:
        raise ValueError("nothing was measured")
    ratio = sum(values) / measured
    value = ratio * to_read
    if n >= units:
        return Quantity(value=value, error=0.0)
    if n == 1:
        return Quantity(value=value, error=None)
    spread = sum((y - ratio * x) ** 2 for x, y in zip(sizes, values, strict=True)) / (n - 1)
    mean = measured / n
    of_ratio = math.sqrt((1 - n / units) * spread / n) / mean
    return Quantity(value=value, error=student_t(n - 1) * of_ratio * to_read)


def estimate(
    measured: Sequence[Measured],
    *,
    pipeline: str,
    stream: str,
    recipe: str,
    to_read: int,
    units: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> StreamEstimate:
    """units: how many units of the measured kind there are in all."""
    sizes = [m.size for m in measured]

    def of(name: str) -> Quantity:
        return total(sizes, [getattr(m, name) for m in measured], to_read, units)

    return StreamEstimate(
        pipeline=pipeline,
        stream=stream,
        recipe=recipe,
        to_read=to_read,
        measured_units=len(measured),
        measured_bytes=sum(sizes),
        samples=of("samples"),
        tokens=of("tokens"),
        stored=of("stored"),
        quarantined=of("quarantined"),
        worker_seconds=of("seconds"),
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """An estimate beside what came out of the bytes that were read. off: (came - said) / said."""

    what: str
    said: Quantity
    came: float

    @property
    def off(self) -> float:
        return (self.came - self.said.value) / self.said.value if self.said.value else 0.0

    @property
    def within(self) -> bool | None:
        if self.said.error is None:
            return None
        return abs(self.came - self.said.value) <= self.said.error


def compare(said: StreamEstimate, *, read: int, came: Mapping[str, float]) -> list[Compared]:
    """read: bytes of source of the committed tasks: part of a run is compared with its part.
    came: samples, tokens, stored."""
    part = read / said.to_read if said.to_read else 0.0
    return [
        Compared(what=name, said=getattr(said, name).scaled(part), came=value)
        for name, value in came.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a whole plan; `host` is where it was measured."""

    streams: tuple[StreamEstimate, ...]
    host: str = ""
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Estimate:
        """Raises JobError for what is not an estimate of this format."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, not {FORMAT}")
            streams = tuple(_stream(each) for each in data["streams"])
            return cls(streams=streams, host=str(data["host"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise JobError(
                "the estimate cannot be read",
                where=where,
                why=str(error),
                remedy="`tokenmill plan JOB --measure` writes it anew; or remove it",
            ) from None

    def of(self, pipeline: str, stream: str, recipe: str) -> StreamEstimate | None:
        for each in self.streams:
            if (each.pipeline, each.stream, each.recipe) == (pipeline, stream, recipe):
                return each
        return None


_QUANTITIES = ("samples", "tokens", "stored", "quarantined", "worker_seconds")


def _stream(data: Mapping[str, object]) -> StreamEstimate:
    values = dict(data)
    for name in _QUANTITIES:
        found = values[name]
        assert isinstance(found, dict)
        values[name] = Quantity(**found)
    return StreamEstimate(**values)  # type: ignore[arg-type]


def spoken(quantity: Quantity, unit: str = "") -> str:
    """`12.3 M ± 4 %`."""
    text = f"{_short(quantity.value)}{unit}"
    relative = quantity.relative
    if relative is None:
        return f"{text} (one unit measured: uncertainty unknown)"
    return f"{text} ± {relative:.0%}" if relative else text


def _short(value: float) -> str:
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == ' k' else size):.3g}{letter}"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
