"""The examples run as their users run them: as scripts, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from helpers.compare import every
from helpers.processes import HANGS, environment
from helpers.ranks import launch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def smaller(folder: Path, share: float) -> bool:
    """Whether the packed model's file is smaller than `share` of the dense one's."""
    dense, packed = ((folder / name / "model.safetensors").stat().st_size for name in ("dense", "packed"))
    return packed < share * dense


def test_image_classification_ends_with_a_reloaded_smaller_model(tmp_path):
    printed = run("image_classification.py", "--epochs", "4", "--max_train_samples", "512", cwd=tmp_path)
    assert "reloaded in a fresh process: tensors equal" in printed
    assert "accuracy: dense" in printed
    assert smaller(tmp_path / "runs/image_classification", 0.45)


def test_text_classification_distils_and_compresses(tmp_path):
    printed = run("text_classification.py", "--epochs", "0.3", cwd=tmp_path)
    assert "accuracy: dense" in printed
    assert smaller(tmp_path / "runs/text_classification", 0.75)  # the embeddings stay


def test_language_modeling_writes_with_the_packed_model(tmp_path):
    printed = run("language_modeling.py", "--steps", "20", cwd=tmp_path)
    assert "bits per character: dense" in printed
    assert "the packed model writes: 'The " in printed
    assert smaller(tmp_path / "runs/language_modeling", 0.6)


def test_a_plain_accelerate_loop_makes_the_same_model_on_one_process_and_on_two(tmp_path):
    arguments = ["--steps", "40", "--dropout", "0", "--output_dir"]
    alone = run("accelerate_loop.py", *arguments, "one", cwd=tmp_path)
    script, config = str(ROOT / "examples/accelerate_loop.py"), ROOT / "examples/accelerate/ddp.yaml"
    together = launch(2, script, *arguments, "two", "--accumulate", "2", cwd=tmp_path, config=config).stdout
    said = [line for line in alone.splitlines() if not line.startswith("[")]  # in brackets others log, with the time
    assert said and said == [
        line.replace("processes: 2", "processes: 1") for line in together.splitlines() if not line.startswith("[")
    ]
    assert "processes: 2" in together
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert every(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)


@pytest.mark.parametrize("file", sorted((ROOT / "examples/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_config_files(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == 2 and config.compute_environment == "LOCAL_MACHINE"
    assert (config.distributed_type, config.fsdp_config.get("fsdp_version")) == {
        "ddp": (DistributedType.MULTI_GPU, None),
        "fsdp2": (DistributedType.FSDP, 2),
    }[file.stem]


def test_an_example_that_had_ended_is_resumed_with_the_same_model(tmp_path):
    arguments = ("language_modeling.py", "--steps", "12", "--batch_size", "4")
    file = tmp_path / "runs/language_modeling/packed/model.safetensors"
    run(*arguments, cwd=tmp_path)
    first = file.read_bytes()
    file.unlink()
    run(*arguments, "--resume", cwd=tmp_path)
    assert file.read_bytes() == first
