"""The examples run as their users run them: as scripts, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
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
