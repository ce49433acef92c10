"""Every YAML of every group composes, and says all that its target can be told."""

from __future__ import annotations

import functools
import inspect
import itertools
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from patchattack import cli, files
from patchattack.cli.checks import check_types

CONF = files.package_folder("conf").resolve()
# Suites compose no training: tests/benchmark has their tests.
OPTIONS = sorted(
    str(path.relative_to(CONF).with_suffix("")) for path in CONF.glob("*/*.yaml") if path.parent.name != "suite"
)
STACKED = ("appearance", "axes", "camera", "defense", "regularizers")
REQUIRED = {
    **{f"data/{name}": ("data.root=x",) for name in ("depth", "frames", "images", "kitti", "pack", "yolo")},
    "data/coco": ("data.root=x", "data.annotations=y"),
    "regularizers/content": ("regularizers.content.image=x",),
    **{f"victim/{name}": ("victim.name=x",) for name in ("ptlflow", "timm", "torchvision", "transformers")},
    **{f"victim/{name}": ("victim.name=x",) for name in ("ultralytics", "ultralytics_cls")},
    "victim/custom": ("victim.factory=x", "victim.task=flow"),
    "victim/callable": ("victim.function=x", "victim.task=flow"),
    "victim/http": ("victim.url=x", "victim.task=flow"),
    "victim/onnx": ("victim.file=x", "victim.task=flow"),
    "victim/substitute": ("victim.weights=x",),
}

# Values by which an option differs from its target's default: they make it this option, or suit a whole run better.
ON_PURPOSE = {
    ("attack/classification", "target"): "stop",
    ("attack/detection", "target"): "vehicle",
    ("data/road", "camera_height"): [1.5, 1.5],
    ("data/road", "frames"): 1,
    ("data/road", "subject"): "none",
    ("data/signs", "field_of_view"): 40.0,
    ("data/signs", "frames"): 1,
    ("data/signs", "scenes"): 400,
    ("data/signs", "size"): [64, 64],
    ("data/signs", "subject"): "sign",
    ("data/traffic", "frames"): 1,
    ("data/traffic", "scenes"): 500,
    ("data/traffic", "subject"): "vehicle",
    ("placement/brown", "rotation"): [-22.5, 22.5],
    ("placement/brown", "scale"): [0.1, 1.0],
    ("placement/brown", "side"): 1.0,
    ("placement/uniform", "area"): 0.09,
    ("trainer/default", "draws"): 2,
    ("victim/classifier_transformer", "network"): "transformer",
    ("victim/depth_transformer", "network"): "transformer",
    ("victim/detector_centre", "network"): "centre",
    ("victim/flow_correlation", "network"): "correlation",
    ("victim/flow_encoder_decoder", "network"): "encoder_decoder",
    ("victim/raft_large", "variant"): "large",
    ("print/a3", "page"): "a3",
    ("print/custom", "page"): [330, 483],
    ("print/letter", "page"): "letter",
}
NOT_FOR_USERS = {"params", "folder", "config", "run_id"}  # a run gives them to its optimiser and its tracker


@pytest.fixture(autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str, root: str = "train") -> dict[str, Any]:
    plain = OmegaConf.to_container(compose(root, list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def rounds() -> list[tuple[str, ...]]:
    """All options, few enough at a time that each round composes: what sets other groups alone, of a stack all at once.

    Of the other groups each round has one option.
    """
    alone = [(option,) for option in OPTIONS if option.startswith(("attack/", "experiment/"))]
    stacks = [tuple(option for option in OPTIONS if option.startswith(f"{group}/")) for group in STACKED]
    taken = {option for one in (*alone, *stacks) for option in one}
    others = itertools.groupby((option for option in OPTIONS if option not in taken), lambda one: one.split("/")[0])
    together = itertools.zip_longest(*(list(options) for _, options in others))
    return [*alone, *stacks, *(tuple(filter(None, one)) for one in together)]


@functools.cache
def chosen(options: tuple[str, ...]) -> dict[str, Any]:
    """The whole config with the options of a round."""
    names: dict[str, list[str]] = {}
    for option in options:
        group, name = option.split("/")
        names.setdefault(group, []).append(name)
    choices = [
        f"{group}=[{','.join(found)}]" if group in STACKED else f"{group}={found[0]}" for group, found in names.items()
    ]
    attack = () if {"attack", "experiment"} & names.keys() else ("attack=flow",)
    required = [override for option in options for override in REQUIRED.get(option, ())]
    return composed(*attack, *choices, *required, root="evaluate" if "axes" in names else "train")


ROUNDS = rounds()


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a ``_target_``, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}".lstrip("."))


def arguments(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not name.startswith("_")}


def signature(node: dict[str, Any]) -> inspect.Signature:
    return inspect.signature(pkgutil.resolve_name(node["_target_"]))


def test_the_groups_are_those_that_a_user_is_told_of() -> None:
    expected = {"attack", "victim", "data", "placement", "appearance", "camera", "regularizers", "optimizer"}
    assert {option.split("/")[0] for option in OPTIONS} == expected | {
        "bend",
        "schedule",
        "tracker",
        "trainer",
        "print",
        "experiment",
        "defense",
        "axes",
    }


@pytest.mark.parametrize("options", ROUNDS, ids=[one[0] for one in ROUNDS])
def test_every_option_composes_and_its_arguments_bind(options: tuple[str, ...]) -> None:
    plain = chosen(options)
    found = dict(targets(plain))
    assert {"attack", "victim", "data", "placement", "renderer", "patch", "trainer", "print"} <= found.keys()
    for node in found.values():
        bind = signature(node).bind_partial if node.get("_partial_") else signature(node).bind
        bind(**arguments(node))
    check_types(plain)  # what is shipped has the types that its targets are annotated with


@pytest.mark.parametrize("option", OPTIONS)
def test_every_argument_is_in_the_yaml_with_its_default(option: str) -> None:
    group, name = option.split("/")
    if group == "experiment":
        return  # it sets values of other groups
    node = chosen(next(one for one in ROUNDS if option in one))[group]
    node = node[name] if group in STACKED else node
    if not node["_target_"].startswith("patchattack."):
        return  # of torch's optimisers the YAML names what a patch needs
    given = arguments(node)
    for parameter in signature(node).parameters.values():
        if parameter.name in NOT_FOR_USERS:
            continue
        assert parameter.name in given, f"{option} does not name {parameter.name}"
        if parameter.default is not parameter.empty:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert given[parameter.name] == ON_PURPOSE.get((option, parameter.name), default), parameter.name


def test_every_option_has_its_round() -> None:
    assert sorted(option for one in ROUNDS for option in one) == OPTIONS


def test_what_differs_on_purpose_exists() -> None:
    assert {option for option, _ in ON_PURPOSE} <= set(OPTIONS)


def test_the_root_config_names_every_argument_of_patch_and_renderer() -> None:
    plain = composed("attack=flow")
    for key in ("patch", "renderer"):
        parameters = signature(plain[key]).parameters.values()
        assert {parameter.name for parameter in parameters} == arguments(plain[key]).keys()
        for parameter in parameters:
            if isinstance(parameter.default, str | int | float | bool):
                assert plain[key][parameter.name] == parameter.default


def test_an_attack_and_a_root_have_to_be_named() -> None:
    with pytest.raises(ConfigCompositionException, match="You must specify 'attack'"):
        compose("train")
    with pytest.raises(MissingMandatoryValue, match=r"data\.root"):
        composed("attack=flow", "data=frames")


@pytest.mark.parametrize("group", ["appearance", "camera", "defense", "regularizers"])
def test_stacked_groups_can_be_empty(group: str) -> None:
    plain = composed("attack=flow", f"{group}=[]")
    assert plain[group] == {}
    if group in ("appearance", "camera"):
        assert plain["renderer"][group] == {}


@pytest.mark.parametrize("order", [["jpeg", "defocus", "gamma"], ["gamma", "defocus", "jpeg"]])
def test_transforms_are_applied_in_the_order_in_which_they_are_listed(order: list[str]) -> None:
    appearance = [one.replace("jpeg", "shadow").replace("defocus", "hue").replace("gamma", "contrast") for one in order]
    plain = composed(
        "attack=flow",
        f"camera=[{','.join(order)}]",
        f"appearance=[{','.join(appearance)}]",
        *("victim.weights=random", "data.scenes=1", "data.size=[32,64]"),
    )
    assert list(plain["camera"]) == order
    renderer = cli.build_parts(plain).renderer
    assert [type(transform).__name__.lower() for transform in renderer.camera] == order
    assert [type(transform).__name__.lower() for transform in renderer.appearance] == appearance


def test_an_option_of_a_stacked_group_takes_values() -> None:
    plain = composed("attack=flow", "camera=[jpeg,defocus]", "camera.jpeg.range=[10,20]")
    assert plain["renderer"]["camera"]["jpeg"]["range"] == [10, 20]


@pytest.mark.parametrize("order", [("attack=flow", "victim=flow_matching"), ("victim=flow_matching", "attack=flow")])
def test_the_command_line_wins_over_the_preset(order: tuple[str, ...]) -> None:
    assert composed("attack=flow")["victim"]["network"] == "correlation"
    assert composed(*order)["victim"]["network"] == "matching"
    assert composed(*order, "attack.region=all")["attack"]["region"] == "all"
    assert composed("attack=flow", "data=frames", "data.root=x")["data"]["_target_"].endswith("Frames")


def test_what_refers_to_another_value_follows_it() -> None:
    plain = composed("attack=flow", "seed=7", "trainer.steps=20", "placement.area=0.2", "schedule=onecycle")
    assert plain["patch"]["seed"] == 7
    assert plain["schedule"]["total_steps"] == 20
    assert plain["schedule"]["max_lr"] == plain["optimizer"]["lr"]
    assert plain["renderer"]["placement"] == plain["placement"]
    assert composed("attack=flow", "trainer.steps=20")["schedule"]["T_max"] == 20


def test_the_default_needs_no_network_and_no_account() -> None:
    plain = composed("attack=flow")
    assert plain["victim"]["weights"] == "shipped"
    assert plain["data"]["_target_"] == "patchattack.data.world.World"
    assert plain["tracker"]["mode"] == "auto"
