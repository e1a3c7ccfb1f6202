"""`optimum-cli dendritic`: quick to start, measures what is on disk, and tells the user's mistakes in a sentence."""

import importlib
import json
import subprocess
import sys
import sysconfig
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.compare import every
from helpers.vocabulary import WORDS, save_tokenizer
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, score_, update_
from optimum.dendritic.config import BUDGETS, IMPORTANCES, PRESETS, SCOPES

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
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
OWN_CONFIG = {
    "model_type": "tiny-pixels",
    "architectures": ["TinyForImageClassification"],
    "image_size": 4,
    "num_channels": 1,
}

OPTIONS = [("--budget", BUDGETS), ("--importance", IMPORTANCES), ("--scope", SCOPES), ("--units", list(PRESETS))]


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


class TestStart:
    def test_help_lists_the_subcommands(self, cli):
        code, output, _ = cli("dendritic", "--help")
        assert code == 0 and all(name in output for name in ("compress", "bench", "card", "show", "export", "push"))

    def test_every_command_takes_the_same_common_options_and_explains_its_own(self):
        from optimum.commands.register.register_dendritic import DendriticCommand

        for command in DendriticCommand.SUBCOMMANDS:
            parser = ArgumentParser()
            command.subcommand_class.parse_args(parser)
            options = {name for action in parser._actions for name in action.option_strings or [action.dest]}
            common = {"model", "--json", "--dtype", "--import", "--trust-remote-code"}
            assert common <= options, (command.name, common - options)
            assert every(action.help and action.help[-1] == "." for action in parser._actions[1:]), command.name
            assert parser.description and parser.description[-1] == "." and command.help[-1] == "."
            assert callable(importlib.import_module(f"optimum.dendritic.cli.{command.name}").run)

    def test_without_a_subcommand_it_shows_the_help(self, cli):
        code, output, _ = cli("dendritic")
        assert code == 0 and "bench" in output

    def test_its_help_imports_no_more_than_that_of_env(self):
        """It is as quick to start, on any machine."""
        code = """if True:
            import sys
            from optimum.commands.optimum_cli import main
            try:
                main()
            finally:
                print("modules:", *sys.modules)
        """

        def modules(command: str) -> set[str]:
            shown = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
            assert shown.returncode == 0, shown.stderr
            return set(shown.stdout.rpartition("modules:")[2].split())

        ours, theirs = modules("dendritic"), modules("env")
        assert "optimum.commands.optimum_cli" in ours and not {"torch", "transformers"} & ours
        assert {name.split(".")[0] for name in ours - theirs} <= {"optimum"}


class TestBench:
    @pytest.mark.slow
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
        smaller = ("parameters", "bytes", "macs", "peak_memory_bytes")
        assert every(0 < report["ratios"][name] < 1 for name in smaller), report["ratios"]
        assert every(ratio > 0 for ratio in report["ratios"].values())

    @pytest.mark.slow
    def test_an_own_architecture_needs_its_module(self, cli, tmp_path):
        (tmp_path / "tiny_pixels.py").write_text(OWN_MODULE)
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny/config.json").write_text(json.dumps(OWN_CONFIG))
        weights = {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.zeros(3)}
        save_file(weights, tmp_path / "tiny/model.safetensors", metadata={"format": "pt"})
        code, output, errors = cli("dendritic", "bench", "tiny")
        assert (
            code == 1
            and output == ""
            and "MODEL = 'tiny': cannot be loaded" in errors
            and "--import my_module" in errors
        )
        code, output, _ = cli(
            "dendritic", "bench", "tiny", "--import", "tiny_pixels", "--seconds", "0.05", "--dtype", "bfloat16"
        )
        assert code == 0 and "parameters" in output and "bfloat16" in output and "pixel_values (1, 1, 4, 4)" in output
        assert next(line for line in output.splitlines() if line.startswith("peak memory")).endswith("B")


def reviews(count: int, **columns: list) -> Dataset:
    draw = np.random.default_rng(count)
    texts = [" ".join(draw.choice(WORDS, draw.integers(3, 8))) for _ in range(count)]
    return Dataset.from_dict({"sentence": texts, "label": [int("good" in text) for text in texts], **columns})


def save_reviews(folder: Path) -> Path:
    folder.mkdir()
    for split, count in (("train", 40), ("validation", 20)):
        reviews(count).to_parquet(folder / f"{split}.parquet")
    return folder


def save_classifier(folder: Path) -> Path:
    save_bert(folder, 16)
    save_tokenizer(folder)
    return folder


class TestCompress:
    options = ["--sparsity", "0.3", "--sequence-length", "12", "--samples", "24", "--batch-size", "8"]

    @pytest.mark.slow
    def test_a_classifier_with_its_accuracy_before_and_after(self, cli, tmp_path):
        save_classifier(tmp_path / "bert")
        save_reviews(tmp_path / "data")
        arguments = ["bert", "--dataset", "data", "--output", "small", "--json", "figures.json", *self.options]
        code, output, errors = cli("dendritic", "compress", *arguments)
        assert code == 0, errors
        assert output.splitlines()[0].split() == ["before", "after", "ratio"] and "accuracy" in output
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert (figures["calibration_samples"], figures["evaluation_samples"]) == (24, 20)
        assert figures["config"]["sparsity"] == 0.3 and figures["reconstruct"]
        model = AutoModelForSequenceClassification.from_pretrained("small")
        assert sum(p.numel() for p in model.parameters()) == figures["after"]["parameters"]
        assert (tmp_path / "small/model.safetensors").stat().st_size == figures["after"]["bytes"]
        card = (tmp_path / "small/README.md").read_text()
        for label, when in (("dense", "before"), ("this model", "after")):
            assert f"| {label} | data, validation split, 20 samples | {figures[when]['accuracy']:.4g} (" in card
        assert "*Dense* is this model before it was pruned" in card and "from the local model `bert`" in card
        assert "Calibrated on: data, train split, 24 samples" in card and str(tmp_path) not in card
        for name in ("parameters", "bytes", "macs"):
            assert figures["after"][name] < figures["before"][name]
        data = save_reviews(tmp_path / "again")
        texts = Dataset.from_parquet(str(data / "validation.parquet"), cache_dir=str(tmp_path / "cache"))
        encoded = AutoTokenizer.from_pretrained("small")(list(texts["sentence"]), padding=True, return_tensors="pt")
        with torch.no_grad():
            right = model(**encoded).logits.argmax(-1) == torch.tensor(list(texts["label"]))
        assert figures["after"]["accuracy"] == right.double().mean().item()

    @pytest.mark.slow
    def test_a_division_is_searched_and_kept_to(self, cli, tmp_path):
        save_classifier(tmp_path / "bert")
        save_reviews(tmp_path / "data")
        usual = ["bert", "--dataset", "data", *self.options]
        options = ["--evaluations", 3, "--cache", "losses.jsonl", "--json", "found.json", "--output", "division.json"]
        code, output, errors = cli("dendritic", "search", *usual, *options)
        assert code == 0 and "evolution" in output and "Saved in division.json." in output, errors
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["loss"] <= found["controls"]["global"]
        code, _, errors = cli("dendritic", "compress", *usual, "--output", "small", "--allocation", "division.json")
        assert code == 0, errors
        code, _, errors = cli("dendritic", "compress", *usual, "--output", "other", "--allocation", "found.json")
        assert code == 1 and "is not an allocation" in errors

    @pytest.mark.slow
    def test_a_native_model_is_a_stock_one(self, cli, tmp_path):
        save_classifier(tmp_path / "bert")
        save_reviews(tmp_path / "data")
        arguments = ["bert", "--dataset", "data", "--output", "small", "--native", *self.options]
        code, output, errors = cli("dendritic", "compress", *arguments)
        assert code == 0 and output.rstrip().endswith("Saved in small; it loads in stock transformers."), errors
        config, dense = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("small", "bert"))
        assert config.keys() <= dense.keys() | {"problem_type"} and "dendrit" not in json.dumps(config)
        turned = {key for key in dense if config[key] != dense[key]}
        assert turned and turned <= {"intermediate_size", "num_hidden_layers", "architectures", "dtype"}

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_model(self, cli, tmp_path):
        save_classifier(tmp_path / "bert")
        save_reviews(tmp_path / "data")
        for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"]), ("d", ["--no-reconstruct"])):
            code, _, errors = cli(
                "dendritic", "compress", "bert", "--dataset", "data", "--output", name, *self.options, *more
            )
            assert code == 0, errors
        a, b, c, d = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abcd")
        assert a == b and a != c and a != d

    @pytest.mark.slow
    @pytest.mark.parametrize("budget", ["params", "macs"])
    def test_a_language_model_with_its_perplexity(self, cli, tmp_path, budget: str):
        config = GPT2Config(
            n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=20, bos_token_id=2, eos_token_id=3
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        save_tokenizer(tmp_path / "gpt2")
        (tmp_path / "data").mkdir()
        for split in ("train", "test"):
            (tmp_path / "data" / f"{split}.txt").write_text("the film was good\n" * 60)
        arguments = ["gpt2", "--dataset", "data", "--output", "small", "--budget", budget, *self.options]
        code, output, errors = cli("dendritic", "compress", *arguments)
        assert code == 0, errors
        assert "perplexity" in output and (tmp_path / "small/model.safetensors").exists()

    def test_an_image_classifier_without_a_split_to_evaluate_on(self, cli, tmp_path):
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=8, num_labels=2,
        )  # fmt: skip
        ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
        from PIL import Image

        draw = np.random.default_rng(0)
        for label in ("cat", "dog"):
            (tmp_path / "data" / label).mkdir(parents=True)
            for index in range(6):
                pixels = draw.integers(0, 256, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
        arguments = ["vit", "--dataset", "data", "--output", "small", "--sparsity", "0.3", "--importance", "activation"]
        code, output, errors = cli("dendritic", "compress", *arguments)
        assert code == 0, errors
        assert "accuracy" not in output and "MACs" in output

    @pytest.mark.parametrize(("option", "choices"), OPTIONS)
    def test_the_choices_are_those_of_the_config(self, cli, option, choices):
        code, shown, _ = cli("dendritic", "compress", "--help")
        assert code == 0 and every(choice in shown for choice in choices)
        arguments = ["model", "--dataset", "data", "--output", "small", "--sparsity", "0.3"]
        code, _, errors = cli("dendritic", "compress", *arguments, option, "most")
        assert code == 2 and option in errors and every(choice in errors for choice in choices)


class TestCard:
    def save_pruned(self, folder: Path) -> Path:
        """Half of the smallest BERT, saved with its tokenizer."""
        model = BertForSequenceClassification.from_pretrained(save_classifier(folder))
        inject_(model, DendriticConfig(sparsity=0.5, segment_size=8, importance="magnitude"))
        score_(model)
        update_(model, 0.5)
        compress_(model).save_pretrained(folder)
        return folder

    @pytest.mark.slow
    def test_into_the_folder_of_the_model(self, cli, tmp_path):
        folder = self.save_pruned(tmp_path / "small")
        options = ["--seconds", "0.02", "--threads", "1", "--batch-size", "2", "--sequence-length", "12"]
        code, output, errors = cli("dendritic", "card", "small", "--json", "card.json", *options)
        assert code == 0, errors
        assert output.splitlines()[0].split() == ["dense", "this", "model", "ratio"] and "small/README.md" in output
        text, record = (folder / "README.md").read_text(), json.loads((tmp_path / "card.json").read_text())
        assert record == json.loads((folder / "efficiency.json").read_text())
        assert record["efficiency"]["context"]["input_shapes"]["input_ids"] == [1, 12]
        assert 0 < record["efficiency"]["peak_memory_bytes"] and "| peak memory, batch 1 | not" not in text
        assert (folder / "figures/density.png").exists() and "figures/density.png" in text
        arguments = ["small", "--no-measure", "--output", "card", "--repo-id", "me/tiny", "--license", "mit"]
        code, output, errors = cli("dendritic", "card", *arguments)
        assert code == 0, errors
        again = json.loads((tmp_path / "card/efficiency.json").read_text())
        assert again == record, "what was measured of these weights is still known"
        card = (tmp_path / "card/README.md").read_text()
        assert 'from_pretrained("me/tiny")' in card and "license: mit" in card

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["me/small"], "MODEL = 'me/small': is not a folder. Name a folder for the card with --output"),
            (["bert", "--output", "bert/config.json/card"], "--output = 'bert/config.json/card': cannot be created"),
            (["bert", "--json", "absent/card.json"], "--json = 'absent/card.json': its folder does not exist"),
            (["bert", "--sequence-length", "33"], "--sequence-length = 33: the model takes at most 32 tokens"),
        ],
    )
    def test_mistakes_are_told_in_a_sentence(self, cli, tmp_path, arguments: list[str], message: str):
        save_bert(tmp_path / "bert", 16)
        code, output, errors = cli("dendritic", "card", *arguments)
        assert code == 1 and output == "" and "Traceback" not in errors
        assert f"optimum-cli dendritic card: {message}" in errors and not (tmp_path / "bert/README.md").exists()


class TestMistakesOfCompress:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--sparsity", "1.5"], "--sparsity = 1.5: must be a number in [0, 1)"),
            (["--sparsity", "0.999"], "sparsity = 0.999: at most"),
            (["--dataset", "./absent"], "--dataset = './absent': there is no such folder"),
            (["--sparsity", "60"], "--sparsity = 60.0: is the fraction that goes, below 1. Did you mean 0.6?"),
            (["--split", "training"], "--split = 'training': the dataset has no such split. Its splits are train"),
            (["--eval-split", "dev"], "--eval-split = 'dev': the dataset has no such split"),
            (
                ["--text-column", "words"],
                "--text-column = 'words': the dataset has no such column. Its columns are sentence, label",
            ),
            (
                ["--text-column", "label"],
                "--text-column = 'label': is of another type. Its columns are sentence, label",
            ),
            (["--text-column", "a", "b", "c"], "--text-column = 'a b c': such a model reads at most 2"),
            (["--label-column", "sentence"], "which is not a class of the model; it knows LABEL_0, LABEL_1"),
            (["--output", "bert"], "--output = 'bert': holds the model that is compressed"),
            (["--output", "bert/config.json/small"], "--output = 'bert/config.json/small': cannot be created"),
            (["--json", "absent/report.json"], "--json = 'absent/report.json': its folder does not exist"),
            (["--sequence-length", "33"], "--sequence-length = 33: the model takes at most 32 tokens"),
        ],
    )
    def test_told_in_a_sentence(self, cli, tmp_path, monkeypatch, arguments: list[str], message: str):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        save_classifier(tmp_path / "bert")
        save_reviews(tmp_path / "data")
        usual = ["--dataset", "data", "--output", "small", *TestCompress.options]
        code, output, errors = cli("dendritic", "compress", "bert", *usual, *arguments)
        assert code == 1 and output == "", errors
        assert "optimum-cli dendritic compress: " in errors and message in errors and "Traceback" not in errors
        assert not (tmp_path / "small").exists()

    def test_a_model_of_another_kind(self, cli, tmp_path):
        from transformers import BertModel

        save_bert(tmp_path / "bert", 16, BertModel)
        usual = ["--dataset", "data", "--output", "small", *TestCompress.options]
        code, _, errors = cli("dendritic", "compress", "bert", *usual)
        assert (
            code == 1
            and "MODEL = 'BertModel': only sequence" in errors
            and "are compressed from the command line" in errors
        )

    @pytest.mark.slow
    def test_a_model_without_its_tokenizer_and_one_that_is_packed(self, cli, tmp_path):
        save_bert(tmp_path / "bert", 16)
        save_reviews(tmp_path / "data")
        usual = ["--dataset", "data", *TestCompress.options]
        code, _, errors = cli("dendritic", "compress", "bert", "--output", "small", *usual)
        assert (
            code == 1 and "MODEL = 'bert': has no Tokenizer: the one that was loaded has only special tokens" in errors
        )
        save_tokenizer(tmp_path / "bert")
        assert cli("dendritic", "compress", "bert", "--output", "small", *usual)[0] == 0
        code, _, errors = cli("dendritic", "compress", "small", "--output", "smaller", *usual)
        assert code == 1 and "is packed already" in errors and "Traceback" not in errors


class TestMistakes:
    """Exit code 1, the sentence on stderr, nothing on stdout, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere/at/all"], "MODEL = 'nowhere/at/all': there is no such folder"),
            (["bert", "--baseline", "./absent"], "--baseline = './absent': there is no such folder"),
            (["bert", "--json", "absent/report.json"], "--json = 'absent/report.json': its folder does not exist"),
            (["bert", "--import", "absent_module"], "--import = 'absent_module': ModuleNotFoundError: No module named"),
            (["bert", "--device", "abacus"], "--device = 'abacus': "),
            (["bert", "--sequence-length", "33"], "--sequence-length = 33: the model takes at most 32 tokens"),
            (
                ["unnamed"],
                "MODEL = 'unnamed': cannot be loaded (DendriticError: architectures = []: no Auto class knows it",
            ),
            (["broken"], "MODEL = 'broken': cannot be loaded ("),
            (["bert", "--import", "syntax"], "--import = 'syntax': SyntaxError"),
            (["bert", "--json", "bert"], "--json = 'bert': is a folder. Name a file."),
            (["bert", "--device", "meta"], "--device = 'meta': holds no values"),
            (
                ["bert", "--baseline", "resnet", "--sequence-length", "9"],
                "--baseline = 'resnet': does not run on the inputs",
            ),
        ],
    )
    def test_told_in_a_sentence(self, cli, tmp_path, monkeypatch, arguments: list[str], message: str):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        save_bert(tmp_path / "bert", 16)
        BertConfig().save_pretrained(tmp_path / "unnamed")
        (save_bert(tmp_path / "broken", 16) / "model.safetensors").write_bytes(b"no weights")
        (tmp_path / "syntax.py").write_text("def")
        ResNetForImageClassification(RESNET).save_pretrained(tmp_path / "resnet")
        code, output, errors = cli("dendritic", "bench", *arguments)
        assert code == 1 and output == "", errors
        assert f"optimum-cli dendritic bench: {message}" in errors and "Traceback" not in errors

    def test_one_line_unless_the_traceback_is_asked_for(self, cli, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code, _, errors = cli("dendritic", "bench", "me/absent")
        assert code == 1 and errors.startswith("optimum-cli dendritic bench: MODEL") and errors.count("\n") == 1
        with pytest.raises(
            DendriticError, match="^MODEL = 'me/absent': there is no such folder, and from the Hub it cannot be loaded"
        ):
            cli("dendritic", "bench", "me/absent", "--debug")

    @pytest.mark.slow
    def test_a_file_that_cannot_be_written_is_told_in_one_line(self, cli, tmp_path, monkeypatch):
        save_bert(tmp_path / "bert", 16)

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device", "report.json")

        monkeypatch.setattr("optimum.dendritic.cli.bench.write_json", full)
        options = ["--sequence-length", "8", "--seconds", "0.01", "--json", "report.json"]
        code, output, errors = cli("dendritic", "bench", "bert", *options)
        assert code == 1 and output == "" and "Traceback" not in errors
        assert errors.endswith("optimum-cli dendritic bench: [Errno 28] No space left on device: 'report.json'\n")

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

        from optimum.dendritic.huggingface.checkpoint.auto_class import auto_class_for

        model_class = getattr(transformers, name)
        config = model_class.config_class(architectures=[name])
        auto_class = auto_class_for(config)
        assert auto_class._model_mapping[type(config)] is model_class

    def test_by_the_name_that_a_user_would_write(self):
        from transformers import BertModel

        from optimum.dendritic.huggingface.checkpoint.auto_class import auto_class_for

        names = {"AutoModelForCausalLM": GPT2LMHeadModel, "AutoModel": BertModel}
        for name, model_class in names.items():
            assert auto_class_for(model_class.config_class(architectures=[model_class.__name__])).__name__ == name
