"""An ONNX file as a victim."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchattack.errors import InputError
from patchattack.victims import contract
from patchattack.victims.onnx_model import build_onnx

onnx = pytest.importorskip("onnx", reason="needs onnx, which makes the files")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install patchattack[onnx]")
FLOAT, UINT8, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16

Shape = list[int | str]


def saved(
    path: Path, inputs: dict[str, Shape], nodes: list[Any], outputs: list[str], kind: int = FLOAT, **constants: Any
) -> str:
    """A file of a graph with these inputs, nodes, outputs and constants."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return str(path)


def node(kind: str, *inputs: str, to: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, list(inputs), [to], **attributes)


def means(path: Path, shape: Shape, kind: int = FLOAT, axes: tuple[int, int] = (2, 3)) -> str:
    """The means of the channels: what the network sees can be read off what it says."""
    cast = onnx.helper.make_node("Cast", ["image"], ["x"], to=FLOAT)
    nodes = [cast, node("ReduceMean", "x", "axes", to="logits", keepdims=0)]
    return saved(path, {"image": shape}, nodes, ["logits"], kind, axes=np.array(axes, np.int64))


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "axes"), [(["n", 3, "h", "w"], (2, 3)), ([1, 3, "h", "w"], (2, 3)), ([2, "h", "w", 3], (1, 2))]
)
def test_channels_and_batches_are_as_the_file_has_them(tmp_path: Path, shape: Shape, axes: tuple[int, int]) -> None:
    victim = build_onnx("classification", means(tmp_path / "net.onnx", shape, axes=axes), classes=["r", "g", "b"])
    assert (victim.name, victim.classes, victim.differentiable) == ("net", ("r", "g", "b"), False)
    frames = noise(5, 1, 3, 6, 7)
    torch.testing.assert_close(victim(frames), frames[:, 0].mean(dim=(2, 3)))


def test_the_size_is_the_files(tmp_path: Path) -> None:
    file = means(tmp_path / "net.onnx", ["n", 3, 4, 8])
    victim: Any = build_onnx("classification", file)
    assert victim.size == (4, 8)
    assert victim(noise(1, 1, 3, 20, 20)).shape == (1, 3)
    with pytest.raises(InputError, match=r"victim\.size: expected \[4, 8\], which .* is made for, got \[8, 8\]"):
        build_onnx("classification", file, size=[8, 8])


def test_the_input_is_made_in_the_order_that_is_promised(tmp_path: Path) -> None:
    file = means(tmp_path / "net.onnx", ["n", 3, 6, 7])
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    frames = noise(2, 1, 3, 6, 7)
    victim = build_onnx("classification", file, bgr=True, range=[0, 255], mean=mean, std=std)
    expected = (frames[:, 0].flip(1).mean(dim=(2, 3)) * 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(victim(frames), expected)


@pytest.mark.parametrize(("kind", "highest"), [(UINT8, 255), (HALF, 1), (FLOAT, 1)])
def test_numbers_are_as_the_file_has_them(tmp_path: Path, kind: int, highest: int) -> None:
    victim = build_onnx("classification", means(tmp_path / "net.onnx", ["n", 3, 2, 2], kind))
    frames = torch.full((1, 1, 3, 2, 2), 0.6)
    torch.testing.assert_close(victim(frames), torch.full((1, 3), 0.6 * highest), rtol=1e-3, atol=0)


def test_a_detector_as_yolo_exports_it(tmp_path: Path) -> None:
    """``[B, 4 + K, A]`` with centres and sizes."""
    rows = np.array([[8, 4, 6, 2, 0.1, 0.9], [1, 1, 2, 2, 0.2, 0.3], *[[0] * 6] * 7], np.float32).T[None]
    nodes = [node("ReduceMean", "images", to="mean", keepdims=1), node("Mul", "mean", "zero", to="none")]
    nodes += [node("Squeeze", "none", "last", to="three"), node("Add", "rows", "three", to="output0")]
    constants = {"zero": np.float32(0), "last": np.array([3], np.int64), "rows": rows}
    file = saved(tmp_path / "yolo.onnx", {"images": [1, 3, 32, 32]}, nodes, ["output0"], **constants)
    victim = build_onnx("detection", file, classes=["car", "sign"], centres=True)
    found = victim(noise(2, 1, 3, 32, 32))
    assert found.shape == (2, 9, 6)
    torch.testing.assert_close(found[1, 0], torch.tensor([4.5, 2.5, 10.5, 4.5, 0.1, 0.9]))
    assert build_onnx("detection", file).classes == ("class 0", "class 1")  # more candidates than numbers in each


def test_flow_of_two_inputs_of_fixed_size_is_in_pixels_of_the_frames(tmp_path: Path) -> None:
    nodes = [node("Sub", "second", "first", to="change"), node("Slice", "change", "0", "2", "1", to="flow")]
    ends = {"0": np.array([0], np.int64), "2": np.array([2], np.int64), "1": np.array([1], np.int64)}
    shape: Shape = [1, 3, 8, 16]
    file = saved(tmp_path / "flow.onnx", {"first": shape, "second": shape}, nodes, ["flow"], **ends)
    victim = build_onnx("flow", file)
    frames = torch.zeros(2, 2, 3, 16, 64)
    frames[:, 1, 0], frames[:, 0, 1] = 1, 0.5
    expected = torch.tensor([1 * 64 / 16, -0.5 * 16 / 8]).view(1, 2, 1, 1).expand(2, 2, 16, 64)
    torch.testing.assert_close(victim(frames), expected)


def test_one_of_several_outputs_is_named(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", "image", "axes", to="a", keepdims=0), node("Neg", "a", to="b")]
    axes = np.array([2, 3], np.int64)
    file = saved(tmp_path / "net.onnx", {"image": ["n", 3, 4, 4]}, nodes, ["a", "b"], axes=axes)
    frames = noise(1, 1, 3, 4, 4)
    torch.testing.assert_close(build_onnx("classification", file, output="b")(frames), -frames[:, 0].mean(dim=(2, 3)))
    with pytest.raises(InputError, match=r"victim\.output: expected one of a, b, got None"):
        build_onnx("classification", file)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    victim = build_onnx("classification", means(tmp_path / "net.onnx", [1, 3, 16, 16]), mean=(0.5, 0.4, 0.3))
    found = contract.check(victim, (16, 24))
    assert not [finding for finding in found if finding.passed is False]


INPUTS: dict[str, tuple[dict[str, Shape], str]] = {
    "two": ({"image": [1, 3, 8, 8], "mask": [1, 1, 8, 8]}, r"got 2 in .*: image \[1, 3, 8, 8\] tensor\(float\), mask"),
    "rank": ({"image": [1, 192]}, r"got 1 in .*: image \[1, 192\]"),
    "channels": ({"image": ["n", 4, "h", "w"]}, r"got 1 in .*: image \[n, 4, h, w\]"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_are_refused(tmp_path: Path, name: str) -> None:
    inputs, message = INPUTS[name]
    file = saved(tmp_path / "net.onnx", inputs, [node("Identity", "image", to="logits")], ["logits"])
    with pytest.raises(InputError, match=message) as caught:
        build_onnx("classification", file)
    assert "expected 1 input(s) of images [B, 3, h, w] or [B, h, w, 3]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_for_the_task_is_refused(tmp_path: Path) -> None:
    file = means(tmp_path / "net.onnx", ["n", 3, 8, 8])
    with pytest.raises(InputError, match=r"expected 2 input\(s\) of images"):
        build_onnx("flow", file)
    with pytest.raises(
        InputError, match=r"expected depth .* got an array \[1, 3\] \(asked about a grey image of 8 × 8"
    ):
        build_onnx("depth", file)
    with pytest.raises(InputError, match=r"expected logits \[B, 2\], got an array \[1, 3\]"):
        build_onnx("classification", file, classes=["a", "b"])
    with pytest.raises(InputError, match=r"victim\.centres: expected false"):
        build_onnx("classification", file, centres=True)
    with pytest.raises(InputError, match=r"victim\.providers: expected some of .*CPUExecutionProvider.*, got Abacus"):
        build_onnx("classification", file, providers=["Abacus"])


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an ONNX file, found none at .*nowhere\.onnx"):
        build_onnx("classification", str(tmp_path / "nowhere.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01 no network")
    with pytest.raises(InputError, match="expected an ONNX file that onnxruntime can run, got") as caught:
        build_onnx("classification", str(tmp_path / "broken.onnx"))
    assert "\n" not in str(caught.value)


def test_without_onnxruntime_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install patchattack\[onnx\]"):
        build_onnx("classification", "net.onnx")
