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


def test_image_classification_ends_with_a_reloaded_smaller_model(tmp_path):
    printed = run("image_classification.py", "--epochs", "4", "--max_train_samples", "512", cwd=tmp_path)
    assert "reloaded in a fresh process: tensors equal" in printed
    assert "accuracy: dense" in printed
    dense, packed = (
        tmp_path / "runs/image_classification" / name / "model.safetensors" for name in ("dense", "packed")
    )
    assert packed.stat().st_size < 0.45 * dense.stat().st_size
