"""The runner for small boards runs without torch, answers as the model does, and measures or says that it cannot."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.checkpoints import saved
from helpers.counters import LARGEST
from PIL import Image
from transformers import ViTImageProcessorPil

from optimum.dendritic import export_onnx

pytestmark = pytest.mark.xdist_group("edge")  # one worker, or each would make the fixture anew

EDGE = Path(__file__).parents[1] / "examples" / "edge"
WITHOUT = """
import sys, runpy
sys.modules.update(dict.fromkeys(["torch", "transformers", "optimum"]))
sys.path.insert(0, {!r})
runpy.run_path({!r}, run_name="__main__")
"""
TENSORRT = {  # of the operators that TensorRT documents, those that packed CNNs have
    "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "Flatten", "Gather", "Gemm", "GlobalAveragePool",
    "MatMul", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Shape", "Split", "Unsqueeze", "Constant",
    "ConstantOfShape", "Expand", "Slice", "Identity", "Transpose", "Squeeze",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A packed ResNet, its images in folders of the classes that it gives them, and those classes."""
    folder = tmp_path_factory.mktemp("edge")
    model, inputs = saved(folder / "small", "resnet_basic", "packed")
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    file = export_onnx(model, inputs, folder / "exported", processor=processor)
    generator = np.random.default_rng(0)
    for index in range(6):
        image = Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((32, 32))
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            label = model.eval().config.id2label[int(model(pixel_values=pixels).logits.argmax())]
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / label / f"{index}.png")
    return folder, file


@pytest.mark.slow
def test_it_runs_without_torch_and_answers_as_the_model_does(exported):
    folder, _ = exported
    code = WITHOUT.format(str(EDGE), str(EDGE / "classify.py"))
    arguments = ["exported", "--images", "images", "--provider", "cpu", "--threads", "1", "--json", "figures.json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["images"] == 6 and figures["accuracy"] == 1.0
    assert figures["provider"] == "CPUExecutionProvider" and figures["resident_bytes"] > 1e6
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"] and figures["frames_per_second"] > 0
    assert "accuracy: 1.0000" in done.stdout and "joules per frame:" in done.stdout
    assert ".png: LABEL_" in done.stdout


@pytest.mark.slow
def test_the_graph_has_only_what_tensorrt_takes(exported):
    graph = onnx.load(exported[1])
    (opset,) = {entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")}
    assert 9 <= opset <= 20
    assert {node.op_type for node in graph.graph.node} <= TENSORRT


def counters(monkeypatch, folder: Path):
    module = runpy.run_path(str(EDGE / "counters.py"))
    monkeypatch.setitem(module["_number"].__globals__, "SYS", folder)
    return module


def test_joules_of_the_packages_are_counted_over_the_wrap(monkeypatch, tmp_path):
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text(f"{LARGEST - 1_000_000}")
    (zone / "max_energy_range_uj").write_text(str(LARGEST))
    with counters(monkeypatch, tmp_path)["Counter"].find() as counter:
        (zone / "energy_uj").write_text("2000000")
        assert counter.joules() == pytest.approx(3.0) and counter.source == "RAPL"


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_the_power_of_the_board_is_that_of_its_input(kernel: str, monkeypatch, tmp_path):
    if kernel == "new":
        sensor = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
        files = {"in1_label": "VDD_CPU", "in1_input": "5000", "curr1_input": "100"}
        files |= {"in2_label": "VDD_IN", "in2_input": "5000", "curr2_input": "800"}
    else:
        sensor = tmp_path / "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
        files = {"rail_name_0": "POM_5V_IN", "in_power0_input": "4000", "rail_name_1": "POM_5V_GPU"}
        files |= {"in_power1_input": "900"}
    sensor.mkdir(parents=True)
    for name, text in files.items():
        (sensor / name).write_text(f"{text}\n")
    module = counters(monkeypatch, tmp_path)
    assert module["_board_power"]()() == pytest.approx(4.0)
    assert module["Counter"].find().source == "INA3221"


def test_without_a_counter_nothing_is_estimated(monkeypatch, tmp_path):
    with counters(monkeypatch, tmp_path)["Counter"].find() as counter:
        assert counter.joules() is None
