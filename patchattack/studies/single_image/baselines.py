"""The attacks of the lectures on single images, most of them through the Adversarial Robustness Toolbox."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchattack import seeding
from patchattack.eot.transform import saturate
from patchattack.errors import InputError
from patchattack.victims.victim import Victim

Crafted = Callable[["Subject", Tensor, Tensor, bool], Tensor]


class _Images(nn.Module):
    """A victim of images ``[B, 3, H, W]``: what the toolbox asks, whose images have no frames."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, images: Tensor) -> Tensor:
        return self.victim(images.unsqueeze(1))


@dataclass(frozen=True)
class Limits:
    """How far the attacks may go.

    Attributes:
        eps: L∞ bound of FGSM, BIM, the least-likely attack, PGD and the universal perturbation, in levels of 255.
        step: of BIM, the least-likely attack and PGD, in levels of 255.
        iterations: of these, and at most of DeepFool and L-BFGS.
        searches: of the constant that weighs size against success, in C&W and in L-BFGS.
        share: of the values that JSMA may change at most.
        passes: over the images that the universal perturbation learns from, at most.

    Raises:
        InputError: a number that cannot be.
    """

    eps: float = 8.0
    step: float = 1.0
    iterations: int = 20
    searches: int = 5
    share: float = 0.02
    passes: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.eps <= 255:
            raise InputError(f"limits: expected 0 < step <= eps <= 255 levels, got {self.step:g} and {self.eps:g}")
        if not 0 < self.share <= 1:
            raise InputError(f"limits.share: expected a fraction above 0 and up to 1, got {self.share:g}")
        for name in ("iterations", "searches", "passes"):
            if getattr(self, name) < 1:
                raise InputError(f"limits.{name}: expected at least 1, got {getattr(self, name)}")


class Subject:
    """A victim and what the attacks need besides the images.

    Args:
        victim: on its device, differentiable.
        lessons: ``[n, 3, H, W]`` in [0, 1] on the host: other images, which the universal perturbation learns from.
        limits: how far the attacks may go.
        batch: images at once.
        seed: of every random draw.

    Raises:
        InputError: the victim has no gradient, or the toolbox is not installed.
    """

    def __init__(self, victim: Victim, lessons: Tensor, limits: Limits, batch: int = 32, seed: int = 0) -> None:
        if not victim.differentiable:
            raise InputError(
                f"victim: expected one with a gradient, got {victim.name}, a black-box victim; "
                "these attacks follow gradients, attack=one_pixel does not"
            )
        try:
            from art.estimators.classification import PyTorchClassifier
        except ImportError as error:
            raise InputError(
                f"baselines: expected the Adversarial Robustness Toolbox, got '{error}'; "
                "pip install 'patchattack[baselines]'"
            ) from error
        logging.getLogger("art").setLevel(logging.WARNING)  # it tells the success of every attack, as it counts it
        self.victim, self.lessons, self.limits, self.batch, self.seed = victim, lessons, limits, batch, seed
        self.device = next((tensor.device for tensor in victim.parameters()), torch.device("cpu"))
        self.classifier: Any = PyTorchClassifier(
            _Images(victim),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(lessons.shape[1:]),
            nb_classes=len(victim.classes),
            clip_values=(0.0, 1.0),
            device_type="gpu" if self.device.type == "cuda" else "cpu",
        )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """``[n, K]`` on the host, for ``images [n, 3, H, W]`` on the host."""
        parts = [self.victim(part.unsqueeze(1).to(self.device)) for part in images.split(self.batch)]
        return torch.cat(parts).float().cpu()


@dataclass(frozen=True)
class Baseline:
    """One attack of the lectures.

    Attributes:
        name: in words.
        paper: that it is from.
        craft: ``(subject, images [n, 3, H, W], classes [n], targeted) -> [n, 3, H, W]`` in [0, 1], all on the host:
            away from ``classes``, or towards them if targeted.
        goals: which of ``untargeted``, ``targeted`` and ``least_likely`` it has.
    """

    name: str
    paper: str
    craft: Crafted
    goals: tuple[str, ...] = ("untargeted", "targeted")


def _toolbox(attack: str, options: Callable[[Limits], Mapping[str, Any]]) -> Crafted:
    """The toolbox's attack of that name; ``options`` besides whether it is targeted and the batch."""

    def craft(subject: Subject, images: Tensor, classes: Tensor, targeted: bool) -> Tensor:
        from art.attacks import evasion

        made = getattr(evasion, attack)(
            subject.classifier, batch_size=subject.batch, targeted=targeted, **options(subject.limits)
        )
        return _generate(made, images, classes)

    return craft


def _generate(attack: Any, images: Tensor, classes: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(attack.generate(x=images.numpy(), y=classes.numpy()), dtype=np.float32))


def _steps(limits: Limits) -> dict[str, Any]:
    return {
        "eps": limits.eps / 255,
        "eps_step": limits.step / 255,
        "max_iter": limits.iterations,
        "verbose": False,
    }


def _deepfool(subject: Subject, images: Tensor, classes: Tensor, _targeted: bool) -> Tensor:
    from art.attacks.evasion import DeepFool

    # The overshoot is the paper's.
    attack = DeepFool(
        subject.classifier, max_iter=subject.limits.iterations, epsilon=0.02, batch_size=subject.batch, verbose=False
    )
    return _generate(attack, images, classes)


def _saliency_map(subject: Subject, images: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """JSMA is targeted: away from a class is towards the one that comes second."""
    from art.attacks.evasion import SaliencyMapMethod

    attack = SaliencyMapMethod(
        subject.classifier, theta=1.0, gamma=subject.limits.share, batch_size=subject.batch, verbose=False
    )
    return _generate(attack, images, classes if targeted else second(subject.logits(images), classes))


def _universal(subject: Subject, images: Tensor, _classes: Tensor, _targeted: bool) -> Tensor:
    """One perturbation for all images, learned on others."""
    from art.attacks.evasion import UniversalPerturbation

    attack = UniversalPerturbation(
        subject.classifier,
        attacker="deepfool",
        attacker_params={"max_iter": subject.limits.iterations, "verbose": False},
        delta=0.01,
        max_iter=subject.limits.passes,
        eps=subject.limits.eps / 255,
        norm=np.inf,
        batch_size=subject.batch,
        verbose=False,
    )
    _generate(attack, subject.lessons, subject.logits(subject.lessons).argmax(dim=1))
    return (images + torch.from_numpy(np.asarray(attack.noise, dtype=np.float32))).clamp(0, 1)


def _lbfgs(subject: Subject, images: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Szegedy et al. 2014: min c‖r‖² + loss(x + r, l) with the largest c that still reaches l, by bisection of log c.

    Away from a class is towards the one that comes second.
    """
    aims = classes if targeted else second(subject.logits(images), classes)
    return torch.cat([_lbfgs_on_one(subject, *one) for one in zip(images.split(1), aims.split(1), strict=True)])


def _lbfgs_on_one(subject: Subject, image: Tensor, aim: Tensor) -> Tensor:
    """``[1, 3, H, W]`` of class ``aim [1]``; of the middle c where none is."""
    image, aim = image.to(subject.device), aim.to(subject.device)
    best = image
    low, high = -4.0, 2.0  # of log10 c
    for search in range(subject.limits.searches):
        middle = (low + high) / 2
        change = torch.zeros_like(image, requires_grad=True)
        optimizer = torch.optim.LBFGS([change], max_iter=subject.limits.iterations, line_search_fn="strong_wolfe")

        def cost(change: Tensor = change, weight: float = 10**middle) -> Tensor:
            loss = F.cross_entropy(subject.victim(saturate(image + change).unsqueeze(1)), aim)
            total = loss + weight * change.square().sum()
            (change.grad,) = torch.autograd.grad(total, change)
            return total

        optimizer.step(cost)
        found = (image + change.detach()).clamp(0, 1)
        won = int(subject.victim(found.unsqueeze(1)).argmax()) == int(aim)
        if won or search == 0:
            best = found
        low, high = (middle, high) if won else (low, middle)
    return best.cpu()


def _signs(subject: Subject, images: Tensor, _classes: Tensor, _targeted: bool) -> Tensor:
    """The control: as large as FGSM's step, in a direction that nobody has chosen."""
    signs = torch.rand(images.shape, generator=seeding.generator(subject.seed)).sub(0.5).sign()
    return (images + subject.limits.eps / 255 * signs).clamp(0, 1)


def second(logits: Tensor, classes: Tensor) -> Tensor:
    """``[n]`` the likeliest class of ``logits [n, K]`` but for ``classes [n]``."""
    return logits.scatter(1, classes.unsqueeze(1), -torch.inf).argmax(dim=1)


BASELINES: Mapping[str, Baseline] = {
    "signs": Baseline("random signs (control)", "", _signs, ("untargeted",)),
    "fgsm": Baseline(
        "FGSM", "Goodfellow et al. 2015", _toolbox("FastGradientMethod", lambda limits: {"eps": limits.eps / 255})
    ),
    "bim": Baseline("BIM", "Kurakin et al. 2016", _toolbox("BasicIterativeMethod", _steps)),
    "least_likely": Baseline(
        "iterative least likely", "Kurakin et al. 2016", _toolbox("BasicIterativeMethod", _steps), ("least_likely",)
    ),
    "pgd": Baseline(
        "PGD",
        "Madry et al. 2018",
        _toolbox("ProjectedGradientDescent", lambda limits: {**_steps(limits), "num_random_init": 1}),
    ),
    "cw": Baseline(
        "C&W, L2",
        "Carlini & Wagner 2017",
        _toolbox(
            "CarliniL2Method",
            lambda limits: {
                "max_iter": limits.iterations,
                "binary_search_steps": limits.searches,
                "initial_const": 0.1,
                "verbose": False,
            },
        ),
    ),
    "lbfgs": Baseline("L-BFGS", "Szegedy et al. 2014", _lbfgs),
    "deepfool": Baseline("DeepFool", "Moosavi-Dezfooli et al. 2016", _deepfool, ("untargeted",)),
    "jsma": Baseline("JSMA", "Papernot et al. 2016", _saliency_map),
    "universal": Baseline("universal perturbation", "Moosavi-Dezfooli et al. 2017", _universal, ("untargeted",)),
}


def craft(name: str, subject: Subject, images: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Adversarial images ``[n, 3, H, W]`` in [0, 1] by one of :data:`BASELINES`, on the host.

    Args:
        name: of the attack.
        subject: the victim.
        images: ``[n, 3, H, W]`` in [0, 1], on the host.
        classes: ``[n]``, away from which, or if ``targeted`` to which, the attack goes.
        targeted: whether it has a target.
    """
    with _global_seed(subject.seed):
        return BASELINES[name].craft(subject, images, classes, targeted)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """The toolbox draws from the process's own generators: they are set here, and afterwards as they were."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
