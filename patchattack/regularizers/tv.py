"""Total variation: a patch of smooth regions survives printing and a camera's blur."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack.devices import constant
from patchattack.errors import InputError


def total_variation(texture: Tensor, mask: Tensor) -> Tensor:
    """Mean steepness of a texture under its mask.

    Σ sqrt(‖p_ij − p_{i+1,j}‖² + ‖p_ij − p_{i,j+1}‖²) (Yamanaka et al. 2020, with p_ij a colour), over the number of
    texels and times the texture's side ``sqrt(h·w)``. So it approximates the integral of the colour's gradient with
    the side as unit of length, and the same picture has the same value at every resolution. A difference that leaves
    the texture or the mask is zero; so is the gradient where both differences are.

    Args:
        texture: ``[3, h, w]`` in [0, 1].
        mask: ``[1, h, w]`` in [0, 1], where the patch is.

    Returns:
        Scalar, full-scale colour per side.

    Raises:
        InputError: the texture is a batch or has no colours, or the mask has another size.
    """
    if texture.ndim != 3 or len(texture) != 3 or mask.shape != (1, *texture.shape[1:]):
        raise InputError(
            f"regularizer tv: expected one texture [3, h, w] and its mask [1, h, w], "
            f"got {list(texture.shape)} and {list(mask.shape)}; call it once per texture"
        )
    # To the texel below and to the one on the right; the last ones are their own neighbours.
    to_neighbours = constant(((((-1, 0), (1, 0)),), (((-1, 1), (0, 0)),)) * 3, texture.dtype, texture.device)
    differences = F.conv2d(F.pad(texture.unsqueeze(0), (0, 1, 0, 1), mode="replicate"), to_neighbours, groups=3)
    neighbours = constant(((((0, 0), (1, 0)),), (((0, 1), (0, 0)),)), mask.dtype, mask.device)
    within = F.conv2d(F.pad(mask, (0, 1, 0, 1)).expand(1, 2, -1, -1), neighbours, groups=2) * mask
    height, width = texture.shape[1:]
    # vector_norm, unlike sqrt, has gradient zero at zero.
    steepness = torch.linalg.vector_norm(differences.view(3, 2, height, width) * within, dim=(0, 1), keepdim=True)
    return steepness.sum() * ((height * width) ** 0.5 / mask.sum())


class TotalVariation(nn.Module):
    """:func:`total_variation` with its weight in the loss.

    Args:
        weight: factor of this term in the loss.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, texture: Tensor, mask: Tensor) -> Tensor:
        """The scalar of :func:`total_variation`, not weighted."""
        return total_variation(texture, mask)
