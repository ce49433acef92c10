"""How much a run asks its victim, and whether it may ask on: a query is one view that the victim answers about."""

from __future__ import annotations

from patchattack.batches import order
from patchattack.errors import InputError
from patchattack.job import Job
from patchattack.optimizers.gradient_free import GradientFree

REPETITIONS = 2  # EoT draws of each validation scene
START_VIEWS = 8  # training scenes, each drawn once, on which starts are compared


def queries(job: Job, steps: int) -> int:
    """How much the victim was asked by the end of ``steps`` steps, over all processes.

    A query is one view of a frame, or of a pair, that it answered about: patched ones in validation and in training,
    and the clean frames of each scene that the steps showed and of the validation scenes, once. What it took to choose
    the scenes and to try one before the work is part of it; the final measurement is not.
    """
    settings = job.settings
    training, validation, _ = settings.split_indices(len(job.source))
    shown = settings.accumulate * sum(map(settings.scenes_at, range(steps)))
    clean, starts = len(training), start_scenes(job, len(training))
    if settings.zoom > 1:  # no scene is seen twice
        clean = shown * settings.draws + len({0, *starts})
    elif shown < clean:
        clean = len({0, *starts, *order(job, 0, clean)[:shown].tolist()})  # the first was tried before the work
    return job.queries + clean + len(validation)


def check_budget(job: Job) -> None:
    """Before the work, of which the trial of one view is still to come.

    Raises:
        InputError: ``trainer.max_queries`` is too few for a single step and the validation around it.
    """
    settings = job.settings
    if settings.max_queries is None:
        return
    training, validation, _ = settings.split_indices(len(job.source))
    plan, view = job.plan, len(validation) * REPETITIONS
    before = queries(job, 1) + 1 + (plan.candidates + 1) * view  # the patches and a random one
    before += (plan.starts + 1) * len(start_scenes(job, len(training))) if plan.starts else 0
    step, after = plan.candidates * _most_of_a_step(job, 0), plan.candidates * view
    if before + step + after > settings.max_queries:
        raise InputError(
            f"trainer.max_queries: expected at least {before + step + after} ({before} for clean scenes, starts and "
            f"the first validation, {step} for one step, {after} for the last validation), got {settings.max_queries}; "
            "raise it, or lower trainer.batch, trainer.draws, trainer.starts, trainer.validation_scenes or what the "
            "optimizer tries in a step"
        )


def affords(job: Job, step: int) -> bool:
    """Whether the budget has room for this step and a validation after it."""
    if job.settings.max_queries is None:
        return True
    _, validation, _ = job.settings.split_indices(len(job.source))
    after = len(validation) * REPETITIONS
    needed = job.candidates * (_most_of_a_step(job, step) + after)
    return queries(job, step + 1) + needed <= job.settings.max_queries


def start_scenes(job: Job, count: int) -> list[int]:
    """Places, among ``count`` training scenes, of those on which starts are compared: evenly spread."""
    views = min(count, START_VIEWS if job.plan.starts or job.plan.candidates > 1 else 0)
    return [place * count // views for place in range(views)]


def _most_of_a_step(job: Job, step: int) -> int:
    """Views that ``step`` asks about at most, for each candidate."""
    optimizer, settings = job.optimizer, job.settings
    if isinstance(optimizer, GradientFree):
        calls = optimizer.evaluations
    else:  # torch's L-BFGS is the only other that asks more than once; its line search may end 25 calls later
        group = optimizer.param_groups[0]
        calls = group.get("max_eval", 1) + (25 if group.get("line_search_fn") else 0)
    return calls * settings.accumulate * settings.scenes_at(step) * settings.draws
