"""Fewer grey levels (Xu et al. 2018, feature squeezing)."""

from __future__ import annotations

from torch import Tensor

from patchattack.defenses.defense import Preprocessing, straight_through
from patchattack.errors import InputError


class BitDepth(Preprocessing):
    """Every colour channel keeps ``bits`` bits: the nearest of 2^bits levels from 0 to 1.

    The gradient of a step is zero; the identity's stands in for it.

    Args:
        bits: of each channel.

    Raises:
        InputError: no such number of bits.
    """

    name = "bit_depth"

    def __init__(self, bits: int = 4) -> None:
        if not 1 <= bits <= 8:
            raise InputError(f"defense.bit_depth.bits: expected bits from 1 to 8, got {bits}")
        self.steps = 2**bits - 1

    def clean(self, images: Tensor) -> Tensor:
        """See :meth:`Preprocessing.clean`."""
        return straight_through((images * self.steps).round() / self.steps, images)
