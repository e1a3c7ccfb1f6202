"""`optimum-cli dendritic`: quick to start, measures what is on disk, and tells the user's mistakes in a sentence."""

import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from optimum.commands.optimum_cli import main
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

OPTIMUM_CLI = Path(sysconfig.get_path("scripts")) / "optimum-cli"

OWN_MODULE = '''
"""An architecture that transformers does not know."""
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

class TinyConfig(PretrainedConfig):
    model_type = "tiny-pixels"

class TinyForImageClassification(PreTrainedModel):
    config_class = TinyConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Linear(16, 3)
        self.post_init()

    def forward(self, pixel_values):
        return self.classifier(pixel_values.flatten(1))

AutoConfig.register("tiny-pixels", TinyConfig)
AutoModelForImageClassification.register(TinyConfig, TinyForImageClassification)
'''
OWN_CONFIG = {
    "model_type": "tiny-pixels",
    "architectures": ["TinyForImageClassification"],
    "image_size": 4,
    "num_channels": 1,
}


def save_bert(folder: Path, hidden_size: int, kind: type = BertForSequenceClassification) -> Path:
    config = BertConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=32,
    )
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run `optimum-cli` in this process, in a folder of its own: arguments -> (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return (code, *capsys.readouterr())

    return run


class TestStart:
    def test_help_lists_the_subcommands(self, cli):
        code, output, _ = cli("dendritic", "--help")
        assert code == 0 and "bench" in output

    def test_without_a_subcommand_it_shows_the_help(self, cli):
        code, output, _ = cli("dendritic")
        assert code == 0 and "bench" in output

    def test_help_is_as_fast_as_that_of_env(self):
        def seconds(command: str) -> float:
            start = time.perf_counter()
            subprocess.run([OPTIMUM_CLI, command, "--help"], check=True, capture_output=True)
            return time.perf_counter() - start

        ratios = sorted(seconds("dendritic") / seconds("env") for _ in range(5))
        assert ratios[2] < 2, ratios

    def test_help_imports_neither_torch_nor_transformers(self):
        code = """if True:
            import sys
            from optimum.commands.optimum_cli import main
            sys.argv = ["optimum-cli", "dendritic", "--help"]
            try:
                main()
            finally:
                assert not {"torch", "transformers", "optimum.dendritic"} & set(sys.modules)
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestBench:
    def test_a_folder_beside_a_baseline(self, tmp_path):
        small, large = save_bert(tmp_path / "small", 16), save_bert(tmp_path / "large", 256)
        options = ["--batch-size", "4", "--sequence-length", "12", "--threads", "1", "--seconds", "0.1"]
        done = subprocess.run(
            [
                OPTIMUM_CLI,
                "dendritic",
                "bench",
                small,
                "--baseline",
                large,
                "--json",
                tmp_path / "report.json",
                *options,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].split() == ["baseline", "model", "ratio"]
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["bytes"] == (small / "model.safetensors").stat().st_size
        assert report["baseline"]["bytes"] == (large / "model.safetensors").stat().st_size
        assert set(report["latency_ms"]) == {"1", "4"} and report["context"]["threads"] == 1
        assert report["context"]["input_shapes"]["input_ids"] == [1, 12]
        assert len(report["ratios"]) == 6 and "peak_memory_bytes" in report["ratios"]
        assert all(0 < ratio < 1 for ratio in report["ratios"].values()), report["ratios"]

    def test_an_own_architecture_needs_its_module(self, cli, tmp_path):
        (tmp_path / "tiny_pixels.py").write_text(OWN_MODULE)
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny/config.json").write_text(json.dumps(OWN_CONFIG))
        weights = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.zeros(3)}
        save_file(weights, tmp_path / "tiny/model.safetensors", metadata={"format": "pt"})
        code, output, errors = cli("dendritic", "bench", "tiny")
        assert code == 1 and output == "" and "cannot load 'tiny'" in errors and "--import my_module" in errors
        code, output, _ = cli(
            "dendritic", "bench", "tiny", "--import", "tiny_pixels", "--seconds", "0.05", "--dtype", "bfloat16"
        )
        assert code == 0 and "parameters" in output and "bfloat16" in output and "pixel_values (1, 1, 4, 4)" in output
        assert next(line for line in output.splitlines() if line.startswith("peak memory")).endswith("B")


class TestMistakes:
    """Exit code 1, the sentence on stderr, nothing on stdout, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere/at/all"], "cannot load 'nowhere/at/all'"),
            (["bert", "--baseline", "./absent"], "cannot load './absent'"),
            (["bert", "--json", "absent/report.json"], "--json absent/report.json: its folder does not exist"),
            (["bert", "--import", "absent_module"], "--import absent_module: No module named"),
            (["bert", "--device", "abacus"], "--device abacus"),
            (["bert", "--sequence-length", "33"], "--sequence-length 33: the model takes at most 32 tokens"),
            (["unnamed"], "cannot load 'unnamed': no Auto class knows its architecture []"),
        ],
    )
    def test_told_in_a_sentence(self, cli, tmp_path, monkeypatch, arguments: list[str], message: str):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        save_bert(tmp_path / "bert", 16)
        BertConfig().save_pretrained(tmp_path / "unnamed")
        code, output, errors = cli("dendritic", "bench", *arguments)
        assert code == 1 and output == "", errors
        assert f"optimum-cli dendritic bench: {message}" in errors and "Traceback" not in errors

    @pytest.mark.parametrize(
        ("option", "value", "rule"),
        [("--batch-size", "0", "an integer greater than 0"), ("--seconds", "soon", "a number greater than 0")],
    )
    def test_numbers_are_checked_while_parsing(self, cli, option: str, value: str, rule: str):
        code, _, errors = cli("dendritic", "bench", "bert", option, value)
        assert code == 2 and f"argument {option}: {value!r} is not {rule}" in errors


class TestAutoClass:
    @pytest.mark.parametrize(
        "name", ["BertModel", "BertForMaskedLM", "ResNetForImageClassification", "GPT2LMHeadModel"]
    )
    def test_builds_the_architecture_that_the_config_names(self, name: str):
        import transformers

        from optimum.commands.register.register_dendritic import _auto_class_for

        model_class = getattr(transformers, name)
        config = model_class.config_class(architectures=[name])
        auto_class = _auto_class_for("model", config)
        assert auto_class._model_mapping[type(config)] is model_class
