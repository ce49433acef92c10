"""What every victim promises, checked from outside: :func:`check` for any victim of any task.

A run looks at what costs it nothing, in the answers that it gets anyway before its work: :func:`check_output`.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchattack import seeding
from patchattack.errors import InputError, one_line
from patchattack.victims.ensemble import Ensemble
from patchattack.victims.victim import Victim

SAME = 1e-2  # of the output's spread: float32's rounding stays below, a batch that leaks into its scenes is above

REMEDIES = {  # of an output in other units than its task's; with a victim of one's own, these are its options
    "classification": "give victim.answer=probabilities, or take the softmax off the network's end",
    "depth": "set victim.depth_range, or victim.scale, victim.shift and victim.inverse",
    "detection": "put a sigmoid at the network's end",
}
BOXES = "boxes are left, top, right and bottom in pixels; give victim.centres=true for centre, width and height"


@dataclass(frozen=True)
class Finding:
    """One promise of a victim, and whether it is kept.

    Attributes:
        name: of the promise.
        passed: None where a person has to judge.
        detail: what was seen.
    """

    name: str
    passed: bool | None
    detail: str


def check(victim: Victim, size: tuple[int, int], seed: int = 0) -> list[Finding]:
    """Whether ``victim`` keeps the contract of :class:`patchattack.victims.victim.Victim` on frames of ``size``.

    A promise whose check ends in an error is broken. The victim is left as it was.

    Args:
        victim: of any task.
        size: ``(h, w)`` of the frames to try.
        seed: of the frames and directions that are tried.
    """
    device = next((value.device for value in victim.state_dict().values()), torch.device("cpu"))
    frames = _frames(victim, 1, size, seed).to(device)
    promises: dict[str, Callable[[Victim, Tensor], tuple[bool | None, str]]] = {
        "finite on black, white and noise": _finite,
        "shape of the output": _shape,
        "units of the output": _units,
        "any size of frames": partial(_any_size, seed=seed),
        "the same again": _deterministic,
        "alone as in a batch": partial(_batch, seed=seed),
        "order of channels": _channels,
    }
    if victim.differentiable:
        promises |= {
            "gradient to every frame": partial(_input_reach, seed=seed),
            "gradient is the slope": partial(_slope, seed=seed),
            "frozen, in eval mode": _frozen,
        }
    else:
        promises["it is a black box"] = _answers
    findings = []
    for name, promise in promises.items():
        try:
            passed, detail = promise(victim, frames.clone())
        except Exception as error:  # of anybody's network
            passed, detail = False, f"{type(error).__name__}: {one_line(error)}"
        findings.append(Finding(name, passed, detail))
    return findings


def members(victim: Victim, output: Any) -> Iterator[tuple[Victim, Tensor]]:
    """Each member of an ensemble that was asked with its own output; of another victim itself with all of it."""
    victims, outputs = (victim.members.values(), output) if isinstance(victim, Ensemble) else ((victim,), (output,))
    return (pair for pair in zip(victims, outputs, strict=True) if pair[1] is not None)


def check_output(victim: Victim, frames: Tensor, output: Any) -> None:
    """Refuse what cannot be the output of the victim's task for ``frames [B, T, 3, H, W]``.

    Raises:
        InputError: another shape, numbers that are not finite, probabilities in the place of logits, metres or scores
            out of their range, or boxes that end before they begin.
    """
    for member, found in members(victim, output):
        where = f"victim {member.name}"
        if found.shape[:1] != frames.shape[:1] or not _fits(member, frames, found)[0]:
            raise InputError(
                f"{where}: expected an output {_expected_shape(member, frames, found)}, got {list(found.shape)}"
            )
        if not found.isfinite().all():
            raise InputError(f"{where}: expected finite numbers, got NaN or infinite ones")
        passed, detail = _sound(member, found)
        if not passed:
            remedy = BOXES if passed is None else REMEDIES[member.task]
            raise InputError(f"{where}: got {detail}; {remedy}")


def check_gradient(victim: Victim, frames: Tensor, output: Any) -> None:
    """Refuse what no patch can be optimised against.

    Args:
        victim: of any task.
        frames: ``[B, T, 3, H, W]``, which require a gradient.
        output: of the victim for these frames.

    Raises:
        InputError: no gradient reaches the frames, or one that is not finite, or weights that are not frozen.
    """
    for member, found in members(victim, output):
        gradient = None
        if found.requires_grad:
            value = (found * _weights(found, seed=0)).mean()
            (gradient,) = torch.autograd.grad(value, frames, retain_graph=True, allow_unused=True)
        length = 0.0 if gradient is None else gradient.norm().item()
        if not 0 < length < float("inf"):
            got = "none" if length == 0 else f"one of length {length:g}"
            raise InputError(
                f"victim {member.name}: expected a finite gradient of its output to the frames, got {got}; take "
                "no_grad, detach and rounding out of its forward, or choose an optimizer that needs no gradient"
            )
        alive = [name for name, value in member.named_parameters() if value.requires_grad]
        alive += [n for n, module in member.named_modules() if module.training and not isinstance(module, Victim)]
        if alive:
            raise InputError(
                f"victim {member.name}: expected frozen weights in eval mode, got {', '.join(alive[:3])} in training; "
                "leave requires_grad_ and train out of its forward"
            )


def _frames(victim: Victim, batch: int, size: tuple[int, int], seed: int) -> Tensor:
    """``[batch, T, 3, h, w]`` blotches of colour, which move two pixels to the right in each frame."""
    noise = torch.rand(batch, 3, *size, generator=seeding.generator(seed))
    blotches = F.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
    low, high = blotches.aminmax()
    first = (blotches - low) / (high - low)
    return torch.stack([first.roll(2 * time, dims=-1) for time in range(victim.frames)], dim=1)


def _finite(victim: Victim, frames: Tensor) -> tuple[bool, str]:
    noise = torch.rand(frames.shape, generator=seeding.generator(1)).to(frames.device)
    trials = {"black": torch.zeros_like(frames), "white": torch.ones_like(frames), "noise": noise}
    with torch.no_grad():
        broken = [name for name, trial in trials.items() if not victim(trial).isfinite().all()]
    return not broken, f"not finite on {', '.join(broken)}" if broken else "finite"


def _shape(victim: Victim, frames: Tensor) -> tuple[bool, str]:
    return _fits(victim, frames, _output(victim, frames))


def _fits(victim: Victim, frames: Tensor, found: Tensor) -> tuple[bool, str]:
    shape, expected = list(found.shape), _expected_shape(victim, frames, found)
    return shape == expected, f"{shape}, expected {expected}"


def _expected_shape(victim: Victim, frames: Tensor, found: Tensor) -> list[Any]:
    """The shape of an output; of a task that is not known here, what was found."""
    shape = list(found.shape)
    batch, height, width, classes = len(frames), frames.shape[-2], frames.shape[-1], len(victim.classes)
    expected: dict[str, list[Any]] = {
        "classification": [batch, classes],
        "depth": [batch, 1, height, width],
        "flow": [batch, 2, height, width],
        "detection": [batch, shape[1] if len(shape) == 3 else "A", 4 + classes],
    }
    return expected.get(victim.task, shape)


def _units(victim: Victim, frames: Tensor) -> tuple[bool | None, str]:
    found = _output(victim, frames)
    if victim.task == "flow":
        return True, f"median {found.norm(dim=1).median():.3g} px where everything moves by 2 px"
    return _sound(victim, found)


def _sound(victim: Any, found: Tensor) -> tuple[bool | None, str]:
    """Whether an output can be in the units of its task; None where a person has to judge."""
    if not found.numel():  # of a detector that suppresses
        return True, "nothing"
    low, high = (end.item() for end in found.aminmax())
    if victim.task == "classification":
        normalised = low >= 0 and bool(((found.sum(dim=1) - 1).abs() < 1e-3).all())
        return not normalised, "probabilities, expected logits" if normalised else f"logits {low:.3g} to {high:.3g}"
    if victim.task == "depth" and victim.is_metric:
        nearest, farthest = victim.depth_range
        inside = low > 0 and nearest * (1 - SAME) <= low and high <= farthest * (1 + SAME)
        return inside, f"{low:.3g} to {high:.3g} m, expected above 0 and within {nearest:.3g} to {farthest:.3g} m"
    if victim.task == "depth":
        return high > low, f"inverse depth {low:.3g} to {high:.3g}, up to scale and shift; nearer has to be larger"
    if victim.task != "detection":
        return True, f"{low:.3g} to {high:.3g}"
    boxes, scores = found[..., :4], found[..., 4:]
    if not 0 <= scores.min() <= scores.max() <= 1:
        return False, f"scores {scores.min():.3g} to {scores.max():.3g}, expected 0 to 1"
    sides = boxes[..., 2:] - boxes[..., :2]
    inverted, drawn = (sides < 0).any(dim=-1), (sides != 0).any(dim=-1)  # empty ones fill up answers
    weights = scores.amax(dim=-1)  # boxes of nothing are small, and small ones pass for corners in a small frame
    share = ((weights * inverted).sum() / (weights * drawn).sum().clamp(min=1e-12)).item()
    scored = f"scores {scores.min():.3g} to {scores.max():.3g}"
    if share > 0.5:
        return None, f"{scored}; by score {share:.0%} of the boxes end before they begin: are they centres and sizes?"
    return True, scored


def _any_size(victim: Victim, frames: Tensor, seed: int) -> tuple[bool, str]:
    height, width = (side + 1 - side % 2 for side in frames.shape[-2:])  # the next odd ones
    odd = _frames(victim, 1, (height, width + 2), seed).to(frames.device)
    passed, detail = _shape(victim, odd)
    return passed, f"at {height} × {width + 2}: {detail}"


def _deterministic(victim: Victim, frames: Tensor) -> tuple[bool, str]:
    before = frames.clone()
    difference = _difference(_output(victim, frames), _output(victim, frames))
    if not torch.equal(frames, before):
        return False, "the victim writes into its input"
    return difference < 1e-4, f"two calls differ by {difference:.2g} of the output's spread"


def _batch(victim: Victim, frames: Tensor, seed: int) -> tuple[bool, str]:
    others = _frames(victim, 2, (frames.shape[-2], frames.shape[-1]), seed + 1).to(frames.device)
    batch = torch.cat([others[:1], frames, others[1:]])
    if victim.differentiable:
        victim, batch = _in_double(victim, batch)
    together = _output(victim, batch)[1:2]
    difference = _difference(_output(victim, batch[1:2]), together)
    return difference < SAME, f"alone and in a batch of three differ by {difference:.2g} of the output's spread"


def _channels(victim: Victim, frames: Tensor) -> tuple[bool | None, str]:
    difference = _difference(_output(victim, frames), _output(victim, frames.flip(2)))
    detail = f"RGB and BGR differ by {difference:.2g} of the output's spread"
    if difference < 1e-4:
        return None, f"{detail}: does it see colour at all?"
    return True, f"{detail}; frames are RGB, make sure that this is what the network gets"


def _input_reach(victim: Victim, frames: Tensor, seed: int) -> tuple[bool, str]:
    gradient, _ = _gradient(victim, frames, seed)
    lengths = gradient.transpose(0, 1).flatten(1).norm(dim=1).tolist()
    reached = all(0 < length < float("inf") for length in lengths)
    return reached, f"norm {', '.join(f'{length:.2g}' for length in lengths)}"


def _slope(victim: Victim, frames: Tensor, seed: int) -> tuple[bool | None, str]:
    """The gradient against central differences, along a smooth direction in float64 or along itself in float32.

    In float32 differences drown in rounding along most directions; along its own the gradient promises most. A
    network that cuts its graph on purpose, as recurrent ones do, has another gradient than its output: then it counts
    whether the output still rises along it.
    """
    victim, frames = _in_double(victim, frames)
    gradient, value = _gradient(victim, frames, seed)
    double = frames.dtype == torch.float64
    if double:
        smooth = torch.rand(frames.shape, generator=seeding.generator(seed + 2), dtype=torch.float64) - 0.5
        direction = F.avg_pool2d(smooth.flatten(0, 1), 9, 1, 4).view(frames.shape).to(frames.device)
        promised = (gradient * direction).sum().item()
        found = _rise(value, frames, direction, 1e-6)
        if abs(found - promised) <= 1e-3 * max(abs(found), abs(promised)) and gradient.any():
            return True, f"{promised:.4g}, differences {found:.4g}, in float64"
    length = gradient.norm()
    if not 0 < length < float("inf"):
        return False, f"no gradient to compare: its norm is {length:.2g}"
    # Long steps bend and short ones drown in rounding, where is not known: the median of several counts.
    shares = [_rise(value, frames, gradient / length, step) / length.item() for step in (1.0, 0.3, 0.1, 0.03, 0.01)]
    share = statistics.median(shares)
    detail = f"along the gradient the output rises by {share:.0%} of what it promises"
    if not double and abs(share - 1) < 0.1:
        return True, f"{detail}, in float32"
    if share > 0.1:
        return None, f"{detail}: it is not the output's own, as where recurrent networks cut their graph"
    return False, f"{detail}: a patch cannot follow it"


def _answers(victim: Victim, frames: Tensor) -> tuple[bool, str]:
    """Of a victim without gradient: neither gradient nor weights are there to be checked."""
    if victim(frames.requires_grad_()).requires_grad:
        return False, "the output has a gradient, which differentiable = False denies"
    return True, "no gradient, as it says: nothing else of gradients and weights is checked"


def _frozen(victim: Victim, frames: Tensor) -> tuple[bool, str]:
    victim = copy.deepcopy(victim).train()
    before = {name: value.clone() for name, value in _values(victim).items()}
    training = [name or "the victim" for name, module in victim.named_modules() if module.training]
    victim(frames.requires_grad_()).sum().backward()
    changed = [name for name, value in _values(victim).items() if not torch.equal(value, before[name])]
    alive = [name for name, value in victim.named_parameters() if value.requires_grad or value.grad is not None]
    broken = {"in train mode": training, "changed by a step": changed, "not frozen": alive}
    said = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in broken.items() if names)
    return not said, said or f"{sum(value.numel() for value in before.values()):,} values stay"


def _values(victim: Victim) -> dict[str, Tensor]:
    return {**dict(victim.named_parameters()), **dict(victim.named_buffers())}


def _output(victim: Victim, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return victim(frames)


def _in_double(victim: Victim, frames: Tensor) -> tuple[Victim, Tensor]:
    """Both in float64, where rounding hides nothing; as they are where the network fixes its own precision."""
    try:
        double = copy.deepcopy(victim).double()
        found = _output(double, frames.double())
    except (RuntimeError, TypeError, ValueError):
        return victim, frames
    return (victim, frames) if torch.equal(found, found.float().double()) else (double, frames.double())


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference as a fraction of the spread of ``one``."""
    low, high = one.aminmax()
    return ((one - other).abs().max() / (high - low).clamp(min=1e-12)).item()


def _gradient(victim: Victim, frames: Tensor, seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Of a random mean of the output to ``frames``, and that mean as a function of frames."""
    weights = _weights(_output(victim, frames), seed)

    def value(given: Tensor) -> Tensor:
        return (victim(given) * weights).mean()

    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    return gradient, value


def _weights(output: Tensor, seed: int) -> Tensor:
    """Random ones of a mean of the output: a plain mean of what is normalised has no slope."""
    return (torch.rand(output.shape, generator=seeding.generator(seed + 3)) - 0.5).to(output)


def _rise(value: Callable[[Tensor], Tensor], frames: Tensor, direction: Tensor, step: float) -> float:
    """Central difference of ``value`` along ``direction``."""
    with torch.no_grad():
        return ((value(frames + step * direction) - value(frames - step * direction)) / (2 * step)).item()
