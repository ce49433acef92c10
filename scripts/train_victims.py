"""Train a compact victim on the procedural world and write its weights and model card to assets/.

python scripts/train_victims.py flow_matching
python scripts/train_victims.py flow_encoder_decoder --steps 5000
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

import patchattack
from patchattack import seeding
from patchattack.data.world import World
from patchattack.scene import Scene
from patchattack.victims.compact.encoder_decoder import EncoderDecoder
from patchattack.victims.compact.matching import Matching

NETWORKS: dict[str, type[nn.Module]] = {"flow_matching": Matching, "flow_encoder_decoder": EncoderDecoder}
STEPS = {"flow_matching": 5000, "flow_encoder_decoder": 1000}
SCENES = {"flow_matching": 3000, "flow_encoder_decoder": 1500}
RATES = {"flow_matching": 6e-4, "flow_encoder_decoder": 1e-3}
WORLDS_OF_TRAINING, WORLD_OF_VALIDATION = 1000, 999  # seeds; the default data use small ones
SCENES_PER_WORLD = 50  # then the textures change


def pool(scenes: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames ``[N, 2, 3, H, W]`` uint8 and flows ``[N, 2, H, W]`` float16 of ``scenes`` scenes from many worlds."""
    frames, flows = [], []
    for first in tqdm(range(0, scenes, SCENES_PER_WORLD), desc="rendering scenes", unit_scale=SCENES_PER_WORLD):
        world = World(scenes=SCENES_PER_WORLD, seed=WORLDS_OF_TRAINING * (seed + 1) + first, device=str(device))
        scene = world.__getitems__(list(range(SCENES_PER_WORLD)))
        assert scene.flow is not None
        frames.append(scene.frames)
        flows.append(scene.flow.half())
    return torch.cat(frames), torch.cat(flows)


def augment(frames: Tensor, flow: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, permute and stretch the colours and add noise, once per pair."""
    batch = len(frames)
    frames, flow = frames.float() / 255, flow.float()
    mirrored = (torch.rand(batch, generator=generator) < 0.5).to(frames.device)
    frames = torch.where(mirrored.view(-1, 1, 1, 1, 1), frames.flip(-1), frames)
    turned = flow.flip(-1) * torch.tensor([-1.0, 1.0], device=flow.device).view(1, 2, 1, 1)
    flow = torch.where(mirrored.view(-1, 1, 1, 1), turned, flow)
    order = torch.rand(batch, 3, generator=generator).argsort(dim=1).to(frames.device)
    frames = frames[torch.arange(batch, device=frames.device)[:, None], :, order].transpose(1, 2)
    gain = seeding.uniform(generator, (batch, 1, 3, 1, 1), 0.7, 1.3).to(frames.device)
    gamma = seeding.uniform(generator, (batch, 1, 1, 1, 1), 0.7, 1.4).to(frames.device)
    sigma = seeding.uniform(generator, (batch, 1, 1, 1, 1), 0.0, 0.03).to(frames.device)
    frames = frames.clamp(min=1e-4) ** gamma * gain + sigma * torch.randn_like(frames)
    return frames.clamp(0, 1), flow


def train(name: str, steps: int, batch: int, scenes: int, seed: int, device: torch.device) -> nn.Module:
    """Train a network with AdamW and a one-cycle schedule on the mean end-point error of all its outputs."""
    torch.manual_seed(seed)
    network = NETWORKS[name]().to(device)
    frames, flows = pool(scenes, seed, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATES[name], weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[name], steps, pct_start=0.05)
    generator = seeding.generator(seed, 1)
    progress = tqdm(range(steps), desc=f"training {name}", mininterval=5)
    smooth = None
    for step in progress:
        rows = torch.randint(scenes, (batch,), generator=generator).to(device)
        images, truth = augment(frames[rows], flows[rows], generator)
        outputs = network(images)
        errors = [(output - truth).norm(dim=1).mean() for output in outputs]
        loss = sum(error * 0.6**k for k, error in enumerate(reversed(errors)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            error = errors[-1].item()
            smooth = error if smooth is None else 0.95 * smooth + 0.05 * error
            progress.set_postfix(epe=f"{smooth:.2f}")
    return network.eval()


@torch.no_grad()
def validate(network: nn.Module, device: torch.device, scenes: int = 200) -> dict[str, float]:
    """End-point error in pixels on held-out scenes with textures that training never saw, beside that of zero flow."""
    world = World(scenes=scenes, seed=WORLD_OF_VALIDATION, device=str(device))
    totals = dict.fromkeys(("network", "zero", "visible", "zero_visible"), 0.0)
    for first in range(0, scenes, 10):
        scene: Scene = world.__getitems__(list(range(first, first + 10))).to(device)
        assert scene.flow is not None
        assert scene.occluded is not None
        error = (network(scene.frames)[-1] - scene.flow).norm(dim=1)
        zero = scene.flow.norm(dim=1)
        visible = ~scene.occluded[:, 0]
        totals["network"] += error.mean().item() * 10 / scenes
        totals["zero"] += zero.mean().item() * 10 / scenes
        totals["visible"] += error[visible].mean().item() * 10 / scenes
        totals["zero_visible"] += zero[visible].mean().item() * 10 / scenes
    return totals


CARD = """# {name}

{summary}

| | |
| --- | --- |
| network | `{module}.{network}`, {parameters:,} parameters, stored as float16 |
| input | pairs of frames, RGB in [0, 1], any size (padded to a multiple of {multiple}) |
| output | optical flow in pixels from the first frame to the second |
| data | `patchattack.data.world.World`, {scenes:,} scenes of 128×256 px, {worlds} sets of textures |
| command | `{command}` |
| seed | {seed} |
| versions | patchattack {version}, torch {torch}, Python {python}, {device}, {minutes:.0f} min |
| licence | that of the project; no other data or weights went into it |

End-point error on 200 held-out scenes with textures that training never saw:

| | network | zero flow | ratio |
| --- | --- | --- | --- |
| all pixels | {network_error:.2f} px | {zero:.2f} px | {ratio:.1%} |
| pixels visible in both frames | {visible:.2f} px | {zero_visible:.2f} px | {ratio_visible:.1%} |

It knows the procedural world and nothing else: do not expect it to work on real video.
"""


def main() -> None:
    """Parse the command line, train, save in half precision, validate what was saved, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scenes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "assets" / "victims")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps, scenes = arguments.steps or STEPS[arguments.name], arguments.scenes or SCENES[arguments.name]
    device = torch.device(arguments.device)
    begin = time.monotonic()
    trained = train(arguments.name, steps, arguments.batch, scenes, arguments.seed, device)
    minutes = (time.monotonic() - begin) / 60

    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{arguments.name}.safetensors"
    state = {key: value.detach().cpu().contiguous() for key, value in trained.state_dict().items()}
    weights = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    safetensors.torch.save_file(weights, file)
    network = NETWORKS[arguments.name]().to(device).eval()
    network.load_state_dict(safetensors.torch.load_file(file))
    errors = validate(network, device)
    command = f"python scripts/train_victims.py {arguments.name} --steps {steps} --batch {arguments.batch}"
    card = CARD.format(
        name=arguments.name,
        summary=(NETWORKS[arguments.name].__doc__ or "").split("\n")[0],
        module=NETWORKS[arguments.name].__module__,
        network=NETWORKS[arguments.name].__name__,
        parameters=sum(p.numel() for p in network.parameters()),
        multiple=network.multiple,
        scenes=scenes,
        worlds=scenes // SCENES_PER_WORLD,
        command=f"{command} --scenes {scenes} --seed {arguments.seed}",
        seed=arguments.seed,
        version=patchattack.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        minutes=minutes,
        network_error=errors["network"],
        ratio=errors["network"] / errors["zero"],
        ratio_visible=errors["visible"] / errors["zero_visible"],
        **{key: errors[key] for key in ("zero", "visible", "zero_visible")},
    )
    file.with_suffix(".md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
