"""What `optimum-cli dendritic` refuses at once, what it is asked for, and what it tells before it does anything."""

import json
import logging
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch
from helpers.compare import every
from helpers.vocabulary import WORDS, save_tokenizer
from PIL import Image
from transformers import BertConfig, BertForSequenceClassification

from optimum.commands.register.register_dendritic import CompressCommand
from optimum.dendritic import DendriticConfig, DendriticError
from optimum.dendritic.cli.requests import configs_of

WITHOUT_TORCH = """if True:
    import json, sys
    from optimum.commands.optimum_cli import main

    codes = []
    for arguments in json.loads(sys.argv[1]):
        sys.argv = ["optimum-cli", "dendritic", *arguments]
        try:
            main()
        except SystemExit as stop:
            codes.append(stop.code)
    heavy = {"torch", "transformers", "numpy"} & {*sys.modules}
    print(json.dumps([codes, sorted(heavy)]))
"""
DRY = ["--sparsity", "0.5", "--segment-size", "8", "--sequence-length", "8", "--dry-run"]
USUAL = ["m", "--dataset", "d", "--output", "o"]


def parsed(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    CompressCommand.parse_args(parser)
    return parser.parse_args([*USUAL, *arguments])


def save_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_reviews(folder: Path) -> Path:
    folder.mkdir()
    lines = [f"a {word} film,{int(word in WORDS[:3])}" for word in WORDS[:6]]
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    return folder


def test_help_and_mistakes_bring_no_torch(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    helps = [[command, "--help"] for command in ("compress", "bench", "card", "show", "export", "push")]
    mistakes = [
        ["compress", *USUAL, "--sparsity", "1.5"],
        ["compress", *USUAL],
        ["compress", "m", "--sparsity", "0.5"],
        ["compress", "./absent", "--sparsity", "0.5", "--dry-run"],
        ["compress", *USUAL, "--config", "bad.json"],
        ["compress", *USUAL, "--sparsity", "0.5", "--json", "absent/report.json"],
        ["bench", "m", "--baseline", "./absent"],
        ["card", "m", "--output", "bad.json/card"],
        ["show", "m", "--figure", "absent/map.png"],
        ["export", "m", "--output", "o", "--format", "gguf", "--int8"],
        ["export", "m", "--output", "o", "--format", "nir"],
        ["export", "m", "--output", "o", "--format", "nir", "--calibration", "absent.npy"],
        ["export", "m", "--output", "o", "--calibration", "bad.json"],
        ["push", "a/b/c", "me/small"],
    ]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps([*helps, *mistakes])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(helps) + [1] * len(mistakes) and heavy == [], done.stderr
    assert done.stderr.count("\n") == len(mistakes), done.stderr
    assert not (tmp_path / "o").exists()


def test_options_win_over_the_file_and_set_over_both(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(DendriticConfig(sparsity=0.7, floor=0.0, end=0.4).to_json())
    assert configs_of(parsed("--config", str(file))) == [DendriticConfig(sparsity=0.7, floor=0.0, end=0.4)]
    more = [
        "--config",
        str(file),
        "--floor",
        "0.1",
        "--sparsity",
        "0.5",
        "--set",
        "end=0.5",
        "--set",
        "units=structured",
    ]
    (config,) = configs_of(parsed(*more))
    assert config == DendriticConfig(sparsity=0.5, floor=0.1, end=0.5, units="structured")
    assert configs_of(parsed("--parameters", "1e6", "--config", str(file)))[0].target == "parameters"


def test_a_preset_is_where_the_rest_begins():
    assert configs_of(parsed("--preset", "high-sparsity")) == [DendriticConfig.preset("high-sparsity")]
    assert configs_of(parsed("--preset", "speed", "--sparsity", "0.5"))[0].units == "structured"
    with pytest.raises(DendriticError, match="nothing says how much"):
        configs_of(parsed("--preset", "speed"))


def test_every_field_can_be_set():
    values = {"target_modules": '["query", "key"]', "exclude_modules": "embeddings", "units": '["heads"]', "end": "0.9"}
    for name, default in DendriticConfig().to_dict().items():
        if name not in ("sparsity", "speedup", "latency_ms", "parameters", "megabytes"):
            value = values.get(name, json.dumps(default))
            (config,) = configs_of(parsed("--sparsity", "0.5", "--set", f"{name}={value}"))
            assert config.sparsity == 0.5
    assert configs_of(parsed("--set", "sparsity=0.2"))[0].sparsity == 0.2


def test_several_sparsities_are_several_configs():
    assert [config.sparsity for config in configs_of(parsed("--sparsity", "0.3", "0.5"))] == [0.3, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "0.3", "0.3"], "--sparsity = .*has a value twice"),
        (["--sparsity", "0.3", "--set", "floor"], "--set = 'floor': is not field=value"),
        (["--sparsity", "0.3", "--set", "florr=0"], "--set florr = 0: is not a field.*Did you mean floor"),
        (["--sparsity", "0.3", "--floor", "2"], "--floor = 2.0: must be a number"),
        (["--config", "absent.json"], "--config = 'absent.json': cannot be read"),
        ([], "--sparsity = None: nothing says how much is to go"),
    ],
)
def test_what_is_wrong_is_named_by_its_option(arguments, message):
    with pytest.raises(DendriticError, match=message):
        configs_of(parsed(*arguments))


def test_a_dry_run_tells_what_would_go_and_saves_nothing(cli, tmp_path):
    save_classifier(tmp_path / "bert")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, output, errors = cli("dendritic", "compress", "bert", *DRY, "--json", "plan.json")
    assert code == 0, errors
    assert "A dry run of sparsity = 0.5, ranked by the magnitude of the weights" in output
    assert every(name in output for name in ("query", "intermediate", "safetensors file, bytes", "fewer MACs"))
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["dry_run"]
    assert every(plan["after"][name] < plan["before"][name] for name in plan["before"])
    (tmp_path / "plan.json").unlink()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_a_dry_run_with_data_ranks_by_them(cli, tmp_path):
    save_classifier(tmp_path / "bert")
    save_reviews(tmp_path / "data")
    arguments = ["bert", "--dataset", "data", "--sequence-length", "8", "--sparsity", "0.3", "--dry-run"]
    code, output, errors = cli("dendritic", "compress", *arguments)
    assert code == 0 and "ranked by dendritic on the samples" in output, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "data"]


@pytest.mark.slow
def test_several_sparsities_make_several_models_and_one_table(cli, tmp_path):
    save_classifier(tmp_path / "bert")
    save_reviews(tmp_path / "data")
    arguments = ["bert", "--dataset", "data", "--sequence-length", "8", "--sparsity", "0.2", "0.4", "--output", "out"]
    code, output, errors = cli("dendritic", "compress", *arguments, "--segment-size", "8", "--json", "all.json", "-q")
    assert code == 0, errors
    rows = [line.split() for line in output.splitlines()]
    assert [row[0] for row in rows[2:5]] == ["dense", "0.2", "0.4"] and "accuracy" in rows[0]
    models = json.loads((tmp_path / "all.json").read_text())["models"]
    sizes = [model["after"]["bytes"] for model in models]
    assert sizes == [(tmp_path / f"out/{level}/model.safetensors").stat().st_size for level in ("0.2", "0.4")]
    assert sizes[1] < sizes[0] < models[0]["before"]["bytes"]
    assert models[0]["before"] == models[1]["before"]
    with Image.open(tmp_path / "out/sparsities.png") as figure:
        assert "Drawn in out/sparsities.png" in output and figure.width > 1000


def test_a_run_that_fails_leaves_no_folder(cli, tmp_path):
    save_classifier(tmp_path / "bert")
    save_reviews(tmp_path / "data")
    arguments = ["bert", "--dataset", "data", "--sequence-length", "8", "--output", "a/b", "--sparsity"]
    code, _, errors = cli("dendritic", "compress", *arguments, "0.999")
    assert code == 1 and "sparsity = 0.999: at most" in errors and not (tmp_path / "a").exists()


def test_verbose_tells_what_becomes_of_each_layer(cli, tmp_path):
    save_classifier(tmp_path / "bert")
    quiet = cli("dendritic", "compress", "bert", *DRY, "-q")
    assert quiet[0] == 0 and "Injected" not in quiet[2]
    code, _, errors = cli("dendritic", "compress", "bert", *DRY, "-v")
    assert code == 0 and "Injected" in errors and "plain and smaller" in errors
    assert logging.getLogger("optimum.dendritic").level == logging.NOTSET
