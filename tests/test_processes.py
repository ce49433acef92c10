from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from patchattack import processes
from patchattack.errors import InputError
from patchattack.job import Settings


def settings(**given: object) -> Settings:
    return Settings(steps=1, **{"batch": 2, "accelerator": "cpu", **given})  # type: ignore[arg-type]


def test_one_process_needs_no_fabric() -> None:
    program = (
        "import sys; from patchattack import processes; from patchattack.job import Settings\n"
        "print(processes.start(Settings(steps=1, batch=1)).device.type, 'lightning_fabric' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[-1] == "False"


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_precision_is_that_of_its_name(precision: str, dtype: torch.dtype) -> None:
    fabric = processes.start(settings(precision=precision))
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (fabric.global_rank, fabric.world_size, fabric.broadcast(3)) == (0, 1, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accelerator": "tpu"}, "trainer.accelerator: expected auto, cpu, cuda or mps, got tpu"),
        (
            {"devices": 10**6, "batch": 10**6},
            r"cpu: expected 1000000 core\(s\), got \d+; use .* fewer",
        ),
        ({"accelerator": "cuda", "devices": 99, "batch": 99}, r"expected 99 CUDA device\(s\), got \d"),
        (
            {"nodes": 2},
            "trainer.nodes: expected 2 nodes, started by torchrun or srun, got one; on each",
        ),
        ({"precision": "8-true"}, "expected a device and a precision that Fabric knows, got: "),
    ],
)
def test_what_is_not_there_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        processes.start(settings(**given))
