"""Shape-level augmentation: draw() is random, apply() is deterministic.

Scale and shift only.  A record would have to store point-level jitter point by point, which it
exists to avoid (arXiv 2409.02020, abstract).  We chose the usual ranges for ModelNet40.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minipc.backend import module_of
from minipc.errors import UsageError, check_shape
from minipc.streams import view_words

ORDER = "points * scale, then + shift, each rounded to float32"  # part of a record's identity


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the per-axis uniform distributions."""

    scale_low: float = 2 / 3  # smallest scale per axis, dimensionless
    scale_high: float = 3 / 2  # largest scale per axis
    shift_max: float = 0.2  # largest |shift| per axis, in units of the data

    def __post_init__(self) -> None:
        if not 0 < self.scale_low <= self.scale_high < float("inf"):
            raise UsageError(
                f"scale: expected 0 < low <= high, got {self.scale_low!r}, {self.scale_high!r}"
            )
        if not 0 <= self.shift_max < float("inf"):
            raise UsageError(f"shift: expected a finite maximum >= 0, got {self.shift_max!r}")


class Params(NamedTuple):
    """What was applied to each cloud: the stored truth of a record."""

    scale: Any  # (B, 3) float32
    shift: Any  # (B, 3) float32


def draw(seed: int, view: int, first: int, clouds: int, config: AugmentConfig) -> Params:
    """Return the Params of clouds first .. first + clouds - 1 in one view, on the host.  (A1)

    u = (w >> 11) 2^-53 from the raw Philox words w (streams.view_words), low + (high - low) u in
    float64, rounded to float32.  Any language with Philox4x64-10 draws the same.  A cloud's draw
    does not depend on how many clouds are drawn with it.
    """
    u = (view_words(seed, view, first, clouds) >> np.uint64(11)) * 2.0**-53  # (clouds, 6) in [0, 1)
    low, high, most = config.scale_low, config.scale_high, config.shift_max
    scale = low + (high - low) * u[:, :3]
    shift = -most + (most + most) * u[:, 3:]
    return Params(scale.astype(np.float32), shift.astype(np.float32))


def apply(points: Any, params: Params) -> Any:
    """Return points * scale + shift.  (A2)    points (B, N, 3) -> the same shape, a new array

    Two separate array operations, each rounded, so that all backends agree bit for bit.  One
    kernel would contract them to a fused multiply-add and differ in the last place.  Subnormal
    numbers, below 2^-126, are the exception: CuPy's kernels take and return 0 for them.
    """
    module_of(points, *params)
    check_shape("points", points, (None, None, 3))
    for name, value in zip(params._fields, params, strict=True):
        check_shape(name, value, (points.shape[0], 3))
    scaled = points * params.scale[:, None, :]
    return scaled + params.shift[:, None, :]
