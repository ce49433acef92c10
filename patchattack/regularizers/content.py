"""Content: a patch stays near a given image, such as a poster or a graffito."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from patchattack.devices import transfer
from patchattack.errors import InputError
from patchattack.patch import read_image, resize


def content(texture: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference under the mask between a texture and an image, over texels and channels.

    The distance ‖x' − x‖₂ of Athalye et al. 2018, squared and divided by its number of terms, so that it does not
    depend on the resolution.

    Args:
        texture: ``[3, h, w]`` in [0, 1].
        image: ``[3, h, w]`` in [0, 1].
        mask: ``[1, h, w]`` in [0, 1], where the patch is.

    Returns:
        Scalar between 0 and 1.

    Raises:
        InputError: the texture is a batch or has no colours, or the image or the mask has another size.
    """
    shape = texture.shape
    if len(shape) != 3 or shape[0] != 3 or image.shape != shape or mask.shape != (1, *shape[1:]):
        raise InputError(
            f"regularizer content: expected one texture [3, h, w], its image [3, h, w] and its mask [1, h, w], "
            f"got {list(shape)}, {list(image.shape)} and {list(mask.shape)}; call it once per texture"
        )
    return ((texture - image).square() * mask).sum() / (3 * mask.sum())


class Content(nn.Module):
    """:func:`content` with its image and its weight in the loss.

    Args:
        weight: factor of this term in the loss.
        image: file of the image that the patch stays near; it is stretched to the texture, antialiased.

    Raises:
        InputError: there is no such image.
    """

    def __init__(self, weight: float, image: str | Path) -> None:
        super().__init__()
        self.weight = weight
        self.image = read_image(image, "regularizers.content.image")[:3]  # on the host
        self._aim: Tensor | None = None  # the image at the texture's resolution, beside it

    def forward(self, texture: Tensor, mask: Tensor) -> Tensor:
        """The scalar of :func:`content`, not weighted."""
        size = (texture.shape[-2], texture.shape[-1])
        if self._aim is None or self._aim.shape[1:] != size or self._aim.device != texture.device:
            # Once, not in every step: a photograph of twelve megapixels takes a tenth of a second.
            self._aim = transfer(resize(self.image, *size), texture.device).to(texture.dtype)
        return content(texture, self._aim, mask)
