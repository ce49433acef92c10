"""The renderer puts a texture into scenes: appearance, placement, compositing, camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from patchattack import geometry
from patchattack.devices import transfer
from patchattack.eot.bend import Bend
from patchattack.eot.placement import DRAWS, Placement
from patchattack.eot.transform import Transform, saturate
from patchattack.patch import Patch
from patchattack.scene import Scene, View
from patchattack.seeding import Numbers


@dataclass(frozen=True)
class Draw:
    """One sample of EoT per scene; the same draw can be rendered again with another texture.

    Attributes:
        corners: ``[B, T, 4, 2]`` float64 pixels, on the host.
        on_surface: the patch lies on the scenes' surface, so what stands in front of that hides it.
        appearance: parameters ``[B, ...]`` of each transform of the texture.
        camera: parameters ``[B, T, ...]`` of each transform of the frames.
        bend: parameters ``[B, P]``, on the host, of what the patch lies on; None where that is flat.
    """

    corners: Tensor
    on_surface: bool
    appearance: tuple[Tensor, ...]
    camera: tuple[Tensor, ...]
    bend: Tensor | None = None

    def repeat(self, times: int) -> Draw:
        """The samples of all scenes, ``times`` times one after another."""

        def repeated(values: Tensor) -> Tensor:
            return values.repeat(times, *[1] * (values.ndim - 1))

        return Draw(
            repeated(self.corners),
            self.on_surface,
            tuple(map(repeated, self.appearance)),
            tuple(map(repeated, self.camera)),
            None if self.bend is None else repeated(self.bend),
        )


class Renderer:
    """Renders patches into scenes and samples how (Athalye et al. 2018, equation 3).

    Only the part of a frame that the patch can reach is touched: everything outside is copied, and carries no
    gradient. Appearance and camera are drawn once per scene and shared by its frames, noise excepted.

    Args:
        placement: draws the corners.
        appearance: transforms of the texture, applied in their order.
        camera: transforms of the frames, applied in their order.
        whole_frame: the camera's transforms change whole frames. Otherwise they change the patch and what they
            spread it into, and the rest of the frame, which a camera has taken already, stays as it is.
        bend: what the patch lies on in the plane of its corners; None for that plane itself.
    """

    def __init__(
        self,
        placement: Placement,
        appearance: Mapping[str, Transform] | None = None,
        camera: Mapping[str, Transform] | None = None,
        whole_frame: bool = False,
        bend: Bend | None = None,
    ) -> None:
        self.placement, self.bend = placement, bend
        appearance, camera = appearance or {}, camera or {}
        self.appearance, self.camera = list(appearance.values()), list(camera.values())
        self._streams = [f"appearance/{name}" for name in appearance] + [f"camera/{name}" for name in camera]
        self.whole_frame = whole_frame
        self.margin = sum(transform.margin for transform in self.camera)
        self.block = max((transform.block for transform in self.camera), default=1)

    def draw(self, scene: Scene, patch: Patch, numbers: Numbers) -> Draw:
        """Sample EoT for each scene from that scene's own row of ``numbers``, on the patch's device.

        A scene's sample does not depend on what else is in the batch, and placement and every transform have streams
        of their own: what one takes changes no other.

        Raises:
            InputError: the patch does not fit into the scene.
        """
        frames = scene.frames.shape[1]
        of_placement, *of_bend = numbers.streams({"placement": 1} if self.bend is None else {"placement": 1, "bend": 1})
        counts = [1] * len(self.appearance) + [frames if each.per_frame else 1 for each in self.camera]
        streams = iter(numbers.streams(dict(zip(self._streams, counts, strict=True)), patch.mask.device))

        def shared(values: Tensor) -> Tensor:
            """``[B, T, ...]`` of ``[B·T, ...]``, or of ``[B, ...]`` for all frames alike."""
            values = values.unflatten(0, (len(scene), -1))
            return values.expand(-1, frames, *values.shape[2:])

        return Draw(
            corners=self.placement.draw(scene, patch, of_placement.unit(DRAWS)),
            on_surface=self.placement.on_surface(scene),
            appearance=tuple(each.draw(next(streams)) for each in self.appearance),
            camera=tuple(shared(each.draw(next(streams))) for each in self.camera),
            bend=None if self.bend is None else self.bend.draw(*of_bend),
        )

    def __call__(self, texture: Tensor, mask: Tensor, scene: Scene, draw: Draw) -> View:
        """Render ``texture [3, h, w]``, or one for each scene, under ``mask [1, h, w]`` into ``scene`` (on its device).

        Returns:
            The view, differentiable with respect to the texture.
        """
        device, (batch, count) = texture.device, draw.corners.shape[:2]
        textures = texture.expand(batch, -1, -1, -1)
        nowhere = torch.zeros(batch, 2, dtype=torch.long, device=device)
        for transform, parameters in zip(self.appearance, draw.appearance, strict=True):
            textures = saturate(transform.apply(textures, transfer(parameters, device).to(textures.dtype), nowhere))
        masks = mask.expand(batch, -1, -1, -1)
        homography = geometry.homography_from_corners(draw.corners.flatten(0, 1))
        # One margin for how far the camera spreads the patch, one for the surroundings that it needs to do so.
        seen = geometry.border(homography, (texture.shape[-2], texture.shape[-1]))
        window = geometry.Window.around(seen, scene.size, 2 * self.margin, self.block)
        unbend = None
        if self.bend is not None and draw.bend is not None:
            unbend = partial(self.bend.unbend, draw.bend.repeat_interleave(count, dim=0))
        patch = geometry.warp_texture(torch.cat([textures * masks, masks], dim=1), homography, window, unbend=unbend)
        window = window.on(device)
        frames = scene.frames.flatten(0, 1)
        if draw.on_surface and scene.occluder is not None:
            patch = patch * ~window.take(scene.occluder.flatten(0, 1))
        colours, coverage = patch.split((3, 1), dim=1)
        coverage = coverage.detach()
        behind = window.take(frames)
        part = torch.addcmul(colours, behind, 1 - coverage)
        if self.camera:
            if self.whole_frame:
                frames = self._photograph(frames, draw.camera, None)
                behind = window.take(frames)
            photographed = self._photograph(part, draw.camera, window)
            part = torch.lerp(behind, photographed, self._reach(coverage, window))
        return View(
            frames=window.put(frames, part).unflatten(0, (batch, count)),
            coverage=window.put(torch.zeros_like(frames[:, :1]), coverage).unflatten(0, (batch, count)),
            corners=draw.corners,
        )

    def _photograph(self, images: Tensor, draws: tuple[Tensor, ...], window: geometry.Window | None) -> Tensor:
        """``images [N, 3, h, w]`` (the window's parts, or whole frames) through the camera."""
        origin = images.new_zeros((len(images), 2), dtype=torch.long) if window is None else window.origin
        for transform, parameters in zip(self.camera, draws, strict=True):
            parameters = transfer(parameters.flatten(0, 1), images.device).to(images.dtype)
            images = saturate(transform.apply(images, parameters, origin))
        return images

    def _reach(self, coverage: Tensor, window: geometry.Window) -> Tensor:
        """``[N, 1, h, w]`` how much of each pixel comes from the photographed part."""
        if self.whole_frame:  # all of it where its surroundings lie within the window
            return (window.distance_to_edge() >= self.margin).to(coverage.dtype)
        if self.margin:
            return (geometry.highest(coverage, 2 * self.margin + 1) > 0).to(coverage.dtype)
        return (coverage > 0).to(coverage.dtype)
