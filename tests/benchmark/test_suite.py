"""What a suite may say, and what is measured of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from patchattack import cli, files
from patchattack.benchmark import suite
from patchattack.benchmark.suite import Spot
from patchattack.errors import InputError

CONF = files.package_folder("conf").resolve()
SHIPPED = sorted(path.stem for path in (CONF / "suite").glob("*.yaml"))
TINY: dict[str, Any] = {
    "name": "tiny",
    "scenes": 3,
    "tasks": {
        "flow": {
            "victims": ["a", "b"],
            "defenses": ["jpeg"],
            "sizes": {"small": {}, "large": {}},
            "defended": ["large"],
        },
        "depth": {"victims": {"own": "custom"}},
    },
}


def test_everything_is_measured_in_its_order() -> None:
    found = suite.spots(suite.read(TINY))
    assert [" ".join(spot.words) for spot in found] == [
        "flow a none small",
        "flow a none large",
        "flow a jpeg large",
        "flow b none small",
        "flow b none large",
        "flow b jpeg large",
        "depth own none default",
    ]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 8])
def test_parts_are_the_whole(of: int) -> None:
    read = suite.read(TINY)
    parts = [suite.spots(read, part=f"{number}/{of}") for number in range(1, of + 1)]
    assert sorted(spot for part in parts for spot in part) == sorted(suite.spots(read))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("only", "count"), [(["flow"], 6), (["b"], 3), (["b", "none"], 2), (["a", "b", "large"], 4), (["own", "flow"], 0)]
)
def test_of_each_kind_of_name_one_must_fit(only: list[str], count: int) -> None:
    if count:
        assert len(suite.spots(suite.read(TINY), only)) == count
    else:
        with pytest.raises(InputError, match="only: expected names that occur together, got own, flow"):
            suite.spots(suite.read(TINY), only)


def test_a_folder_is_named_after_all_that_its_numbers_depend_on() -> None:
    spot = Spot("flow", "a", "none", "2.1%")
    assert spot.folder("1") == spot.folder("1") != spot.folder("2")
    assert re.fullmatch(r"flow_a_none_2\.1_[0-9a-f]{8}", spot.folder("1"))


def changed(path: str, value: Any) -> dict[str, Any]:
    node = tiny = copy.deepcopy(TINY)
    *keys, last = path.split(".")
    for key in keys:
        node = node[key]
    node[last] = value
    return tiny


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("victim", ["a"], "suite: expected one of name, tasks, .* got victim"),
        ("tasks.flow.victim", ["a"], r"suite\.tasks\.flow: expected one of victims, .* did you mean victims"),
        ("tasks", {}, "suite: expected at least one task"),
        ("tasks.flow.victims", [], r"suite\.tasks\.flow\.victims: expected at least one"),
        ("tasks.flow.victims", ["a", "a"], "each name once"),
        ("tasks.flow.victims", None, "expected names with their values, got None"),
        ("tasks.flow.sizes", {}, r"suite\.tasks\.flow\.sizes: expected at least one"),
        ("tasks.flow.defended", ["huge"], r"suite\.tasks\.flow\.defended: expected one of small, large, got huge"),
        ("tasks.flow.defenses", ["none"], "expected options of the group defense, got none"),
        ("tasks.flow.overrides", "data=kitti", "expected a list of names"),
        ("scenes", 0, r"suite\.scenes: expected an integer >= 1, got 0"),
        ("seed", True, r"suite\.seed: expected an integer >= 0, got True"),
        ("media", ["printed"], r"suite\.media: expected one of digital, photographed, got printed"),
    ],
)
def test_what_cannot_be_is_said(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        suite.read(changed(path, value))


def test_a_suite_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="suite: expected name, tasks, scenes, got no name"):
        suite.read({key: value for key, value in TINY.items() if key != "name"})


@pytest.mark.parametrize("part", ["9/8", "0/8", "3", "1/0", "-1/2"])
def test_a_part_that_does_not_exist_is_refused(part: str) -> None:
    with pytest.raises(InputError, match="part: expected K/N with K from 1 to N, as 2/8, got"):
        suite.spots(suite.read(TINY), part=part)


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"only: expected one of flow, depth, a, b, own, .*; did you mean flow\?"):
        suite.spots(suite.read(TINY), ["flwo"])


@pytest.fixture
def _conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_conf")
@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_can_be_read_and_composes(name: str) -> None:
    read = suite.read(yaml.safe_load((CONF / "suite" / f"{name}.yaml").read_text(encoding="utf-8")))
    assert read.name == name
    for attack, task in read.tasks.items():
        config = cli.compose("defenses", suite.training(attack, task))
        assert config["victims"].keys() == task.victims.keys()
        assert config["defenses"].keys() == {*task.defenses}
