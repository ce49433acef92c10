"""What a step does with its batches: the losses, and their gradient in the patch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchattack import seeding
from patchattack.batches import Batch
from patchattack.errors import DivergedError
from patchattack.job import VICTIM, Job
from patchattack.optimizers.gradient_free import GradientFree


class Update:
    """The closure that a step hands its optimiser: the loss of what the patch is now, on the step's own batches.

    It may be called several times; batches and draws are the same each time, so that the losses can be compared.

    Args:
        job: what trains.
        step: number of the step.
        batches: of this process, all that make the update.
    """

    def __init__(self, job: Job, step: int, batches: list[Batch]) -> None:
        self.job, self.step, self.batches = job, step, batches
        self.failed = torch.zeros((), dtype=torch.bool, device=job.fabric.device)
        self._sums: dict[str, Tensor] = {}
        self._calls = 0

    def losses(self) -> dict[str, Tensor]:
        """Each loss with its weight, the mean over all calls."""
        return {name: value / self._calls for name, value in self._sums.items()}

    def __call__(self) -> Tensor:
        """The loss over all processes; and, for an optimiser that needs it, its gradient in the patch.

        Raises:
            DivergedError: it is not finite, and the optimiser has nothing else to go by.
        """
        job, fabric = self.job, self.job.fabric
        needs_gradient = not isinstance(job.optimizer, GradientFree)
        job.patch.project_()  # what the optimiser tries may lie outside of what can be printed
        job.optimizer.zero_grad()
        found: dict[str, Tensor] = {}
        with torch.set_grad_enabled(needs_gradient):
            for batch in self.batches:
                losses = losses_of(job, batch, seeding.generator(job.seed, VICTIM, self.step))
                # The sum over the candidates: each has the gradient that it would have alone.
                total = torch.stack(list(losses.values())).sum() * job.candidates / len(self.batches)
                if needs_gradient:
                    total.backward()
                for name, value in losses.items():
                    found[name] = found.get(name, 0) + value.detach() / len(self.batches)
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._calls += 1
        loss = torch.stack(list(found.values())).sum()
        if fabric.world_size > 1:
            loss = fabric.all_reduce(loss, reduce_op="mean")
        if not needs_gradient:
            if not loss.isfinite():
                raise DivergedError(f"in step {self.step + 1}")
            return loss
        gradient = job.patch.parameter.grad
        assert gradient is not None
        if fabric.world_size > 1:
            gradient.copy_(fabric.all_reduce(gradient, reduce_op="mean"))
        self.failed |= ~(gradient.isfinite().all() & loss.isfinite())
        return loss


def losses_of(job: Job, batch: Batch, of_victim: torch.Generator) -> dict[str, Tensor]:
    """One batch: the mean attack loss over all views, and every regulariser with its weight; means over candidates."""
    textures = job.patch().unflatten(-3, (1, 3)).flatten(0, -4)  # [P, 3, h, w]
    each = textures.repeat_interleave(len(batch.scene) // len(textures), dim=0) if len(textures) > 1 else textures[0]
    if batch.shown is not None:
        each = torch.lerp(torch.full_like(batch.shown, 0.5), each, batch.shown)
    view = job.renderer(each, job.patch.mask, batch.scene, batch.draw)
    with job.victim.randomised(of_victim):  # the references and the validation are of all that it can do
        output = job.predict(view.frames)
    job.queries += (job.fabric.world_size - 1) * len(batch.scene)  # of the other processes
    losses = {"attack": job.attack.loss(output, batch.clean, batch.scene, view).mean()}
    for name, regularizer in job.regularizers.items():
        values: Any = torch.stack([regularizer(texture, job.patch.mask) for texture in textures])
        losses[name] = regularizer.weight * values.mean()
    return losses
