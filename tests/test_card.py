"""The card of a compressed model: true of the model, valid on the Hub, and silent about what is not known."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from datasets import Dataset, load_dataset
from helpers.cards import pruned, tiny_bert
from helpers.compare import every
from helpers.models import build
from helpers.vocabulary import save_tokenizer
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, compress_, inject_, score_, update_
from optimum.dendritic.huggingface.card import dense_baseline, figures
from optimum.dendritic.huggingface.card.dataset import data_of
from optimum.dendritic.huggingface.card.provenance import POINTS, curve, facts_of, fingerprint, note_evaluation
from optimum.dendritic.huggingface.card.schema import FILE as SCHEMA
from optimum.dendritic.huggingface.card.write import write_card

pytestmark = pytest.mark.xdist_group("card")  # one worker, or each would make the fixture anew

QUICK = {"seconds": 0.02, "threads": 1, "large_batch": 2, "memory": False}
CONFIG = DendriticConfig(sparsity=0.5, updates=5, segment_size=8)
CHECK = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def reviews(folder: Path) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 50, (32, 6), generator=generator).tolist()
    folder.mkdir()
    table = Dataset.from_dict({"input_ids": rows, "labels": [int(row[0] < 25) for row in rows]})
    table.to_parquet(folder / "train.parquet")
    return load_dataset(str(folder), cache_dir=str(folder / "cache"))["train"]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class Trained:
    """A model that a Trainer has trained and packed, evaluated before and after, saved with its card."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "small-bert"
        tiny_bert().save_pretrained(root / "base-bert")
        data = reviews(root / "my_reviews")
        arguments = TrainingArguments(
            str(root / "run"), max_steps=20, per_device_train_batch_size=4, logging_steps=2, eval_strategy="steps",
            eval_steps=5, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        self.trainer = Trainer(
            model=BertForSequenceClassification.from_pretrained(root / "base-bert"),
            args=arguments,
            train_dataset=data,
            eval_dataset=data,
            compute_metrics=accuracy,
            callbacks=[DendriticCallback(CONFIG)],
        )
        self.before = self.trainer.evaluate()
        self.trainer.train()
        self.after = self.trainer.evaluate()
        assert self.trainer.model is not None
        self.model: PreTrainedModel = self.trainer.model
        self.trainer.save_model(str(self.folder))
        self.record = write_card(self.model, self.folder, repo_id="me/small-bert", measuring=QUICK)
        self.text = (self.folder / "README.md").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("private"))


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What the dense baseline and the figures warn of."""
    messages: list[str] = []
    monkeypatch.setattr(dense_baseline.logger, "warning", messages.append)
    monkeypatch.setattr(figures.logger, "warning", messages.append)
    return messages


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def rendered(model: PreTrainedModel, folder: Path, **options: Any) -> str:
    write_card(model, saved(model, folder), **{"measuring": False, **options})
    return (folder / "README.md").read_text()


def sections(text: str) -> list[str]:
    """The headings; every one must be followed by something else than a heading."""
    assert not re.search(r"^#.*\n+#", text.replace("# small", "small"), re.M) and "\n\n\n" not in text
    return re.findall(r"^## (.*)$", text, re.M)


class TestMetadata:
    @pytest.mark.slow
    def test_the_hub_reads_it_back(self, trained):
        data = ModelCard.load(trained.folder / "README.md").data
        assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
        assert data.tags is not None and data.tags[:3] == ["optimum-dendritic", "dendritic", "pruned"]
        assert data.metrics == ["accuracy"] and data.model_name == "small-bert"
        assert data.base_model is None and data.datasets is None, "they are folders of this machine, not on the Hub"

    def test_every_result_is_whole_and_survives_the_round_trip(self, trained):
        data = ModelCard.load(trained.folder / "README.md").data
        results = data.eval_results
        assert results is not None and data.model_name is not None
        index = eval_results_to_model_index(data.model_name, results)
        assert model_index_to_eval_results(index) == ("small-bert", results)
        for part in index[0]["results"]:
            assert part["task"]["type"] == "text-classification" and part["dataset"]["name"] and part["dataset"]["type"]
            assert every(metric["type"] and math.isfinite(metric["value"]) for metric in part["metrics"])
        values = {result.metric_type: result.metric_value for result in results}
        assert values["accuracy"] == trained.after["eval_accuracy"]
        assert values["parameters"] == sum(p.numel() for p in trained.model.parameters())
        assert values["macs_ratio"] == trained.record["efficiency"]["ratios"]["macs"] < 1
        assert "peak_memory_bytes" not in values and "energy_joules" not in values, "not measured"

    def test_a_base_on_the_hub(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        model = tiny_bert()
        model.name_or_path = "acme/tiny-bert"
        text = rendered(pruned(model), tmp_path / "small")
        data = ModelCard(text).data
        assert (data.base_model, data.get("base_model_relation")) == ("acme/tiny-bert", "finetune")
        assert "[acme/tiny-bert](https://huggingface.co/acme/tiny-bert)" in text and data.license is None

    def test_the_license_the_language_and_the_tags_of_an_earlier_card_stay(self, trained, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "small")
        earlier = {"license": "mit", "language": "en", "tags": ["reviews", "pruned"], "base_model": "/home/me/bert"}
        front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in earlier.items())
        (folder / "README.md").write_text(f"---\n{front}\n---\n# Old\n")
        write_card(trained.model, folder, measuring=False)
        data = ModelCard.load(folder / "README.md").data
        assert (data.license, data.language, data.base_model) == ("mit", "en", None)
        assert data.tags == ["optimum-dendritic", "dendritic", "pruned", "reviews"]


class TestBody:
    def test_its_code_loads_the_model(self, trained):
        code = re.findall(r"```python\n(.*?)```", trained.text, re.S)[0]
        assert code.startswith("import optimum.dendritic ")
        names: dict[str, Any] = {}
        exec(code.replace("me/small-bert", str(trained.folder)), names)
        assert fingerprint(names["model"]) == fingerprint(trained.model)

    def test_it_says_what_was_removed_and_from_what(self, trained):
        left, dense = (
            sum(layer[name] for layer in trained.record["compression"]["layers"].values())
            for name in ("parameters", "dense_parameters")
        )
        assert f"{100 * (1 - left / dense):.1f} % of the parameters of its 19 target layers are gone" in trained.text
        assert "It was made from the local model `base-bert`" in trained.text
        assert "DendriticConfig(sparsity=0.5, segment_size=8, updates=5)" in trained.text
        assert "Data: my_reviews, train split, 32 samples" in trained.text and "steps 20" in trained.text

    def test_the_table_sets_it_beside_the_dense_model(self, trained):
        own, dense = sum(p.numel() for p in trained.model.parameters()), tiny_bert().num_parameters()
        assert f"| parameters | {dense:,} | {own:,} | {own / dense:.3f} |" in trained.text
        assert trained.record["efficiency"]["bytes"] == (trained.folder / "model.safetensors").stat().st_size
        assert "not measured" not in trained.text and "random weights" in trained.text
        assert "fewer MACs. A *ratio* is the share of dense's cost that is left" in trained.text
        assert "one sample is input_ids 1 × 12" in trained.text, "as many tokens as the model has places for"
        assert (
            "dendritic card me/small-bert --output card --threads 1 --batch-size 2 --sequence-length 12" in trained.text
        )

    def test_scores_are_those_of_the_dense_and_of_the_packed_model(self, trained):
        dense, packed = (f"{scores['eval_accuracy']:.4g}" for scores in (trained.before, trained.after))
        rows = [line for line in trained.text.splitlines() if "my_reviews, train split" in line and line[0] == "|"]
        assert [row.split("|")[3].strip() for row in rows] == ["0", "20"]
        assert [row.split("|")[5].split()[0] for row in rows] == [dense, packed]
        assert "before its first segment was removed" in trained.text

    def test_every_figure_is_there_and_shown(self, trained):
        shown = re.findall(r"!\[.*?\]\((.*?)\)", trained.text)
        drawn = [str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*.png")]
        assert sorted(shown) == sorted(drawn) and len(drawn) == 3
        assert every((trained.folder / path).read_bytes()[1:4] == b"PNG" for path in shown)

    def test_no_section_is_empty(self, trained):
        assert sections(trained.text) == [
            "What it costs",
            "How well it answers",
            "What was removed",
            "Training",
            "Intended use and limits",
        ]

    def test_no_path_of_this_machine_is_in_any_file(self, trained):
        for path in (trained.folder / "README.md", trained.folder / "efficiency.json", *trained.folder.rglob("*.png")):
            content = path.read_bytes()
            for part in (*trained.root.parts[1:], str(Path.home()), "/run", "cache"):
                assert part.encode() not in content, (path.name, part)


class TestWhatIsUnknownIsAbsent:
    def test_without_a_trainer_and_a_measurement(self, tmp_path):
        text = rendered(pruned(tiny_bert()), tmp_path / "small")
        assert sections(text) == ["What was removed", "Intended use and limits"]
        assert "No score of these weights is known" in text and "made from" not in text.replace("that it was made", "")
        assert not (set(json.loads((tmp_path / "small/efficiency.json").read_text())) & {"efficiency", "training"})
        assert ModelCard(text).data.eval_results is None

    def test_scores_that_are_handed_in(self, tmp_path):
        text = rendered(pruned(tiny_bert()), tmp_path / "small", metrics={"accuracy": 0.875, "f1": math.nan})
        assert "|  | accuracy |\n| --- | ---: |\n| this model | 0.875 |\n" in text and "nan" not in text.lower()
        assert ModelCard(text).data.metrics == ["accuracy"]
        assert ModelCard(text).data.eval_results is None, "the Hub wants to know on what data"

    def test_other_weights_have_no_scores(self, trained, tmp_path):
        """Neither those of the file, nor those kept on the model: it was trained on since."""
        folder = shutil.copytree(trained.folder, tmp_path / "small")
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        facts_of(model).evaluations = list(facts_of(trained.model).evaluations)
        with torch.no_grad():
            model.classifier.bias += 1e-3
        text = rendered(model, folder)
        assert "How well it answers" not in sections(text) and "What it costs" not in sections(text)

    def test_a_checkpoint_from_the_middle_says_so(self, tmp_path):
        text = rendered(pruned(tiny_bert(), pack=False), tmp_path / "small")
        assert "from the middle of a compression" in text and "would go if it were packed now" in text
        assert "are masked" in text and sections(text) == ["What was removed", "Intended use and limits"]

    def test_the_native_form_needs_no_import_and_remembers_what_it_was(self, tmp_path):
        model = inject_(tiny_bert(), DendriticConfig(sparsity=0.4, importance="magnitude", native=True))
        score_(model)
        update_(model, 0.4)
        text = rendered(compress_(model), tmp_path / "small", measuring=QUICK)
        code, body = text.split("```")[1:3]
        assert "dendritic" not in code and "loads without the package" in body and "It needs" not in text
        removed = json.loads((tmp_path / "small/efficiency.json").read_text())["compression"]["removed"]
        assert removed == pytest.approx(0.4, abs=0.1) and f"{100 * removed:.1f} % of the parameters" in body
        assert "| parameters | " in text and "ratio" not in text.split("## What was")[0], "its twin would be itself"
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
        assert rendered(loaded, tmp_path / "again" / "small") == text

    def test_a_dense_model_needs_no_import(self, tmp_path):
        text = rendered(tiny_bert(), tmp_path / "small", measuring=QUICK)
        assert sections(text) == ["What it costs", "Intended use and limits"]
        assert "dendritic" not in text.split("```")[1] and "|  | this model |" in text and "nothing of it" in text

    def test_what_cannot_be_measured_is_left_out_and_told(self, tmp_path, told):
        inputs = {"pixel_values": torch.zeros(1, 3)}
        text = rendered(pruned(tiny_bert()), tmp_path / "small", example_inputs=inputs, measuring=QUICK)
        assert "What it costs" not in sections(text)
        assert len(told) == 1 and "is not measured: ValueError: You must specify" in told[0]

    def test_without_matplotlib_it_has_no_figures(self, trained, tmp_path, monkeypatch, told):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        text = rendered(trained.model, tmp_path / "small")
        assert "![" not in text and not (tmp_path / "small/figures").exists() and "Training" in sections(text)
        assert len(told) == 1 and "pip install optimum-dendritic[plots]" in told[0]

    def test_numbers_that_are_none_are_dropped(self):
        history = [{"step": 1, "loss": math.nan, "sparsity": 0.0}, {"step": 2, "loss": 1.0}, {"eval_loss": 1.0}]
        model = tiny_bert()
        facts_of(model).history = history
        note_evaluation(model, {"eval_accuracy": 0.5, "eval_loss": math.inf, "eval_runtime": 1.0})
        known = json.loads(json.dumps(facts_of(model).to_dict(), allow_nan=False))
        assert known["history"] == [{"step": 1, "sparsity": 0.0}, {"step": 2, "loss": 1.0}]
        assert known["evaluations"][0]["metrics"] == {"accuracy": 0.5}

    def test_no_folder(self, tmp_path):
        with pytest.raises(DendriticError, match="folder = 'absent': is not a folder"):
            write_card(tiny_bert(), tmp_path / "absent")


class TestLoadedAgain:
    def test_a_loaded_model_knows_what_the_saved_one_knew(self, trained, tmp_path):
        model = AutoModelForSequenceClassification.from_pretrained(trained.folder)
        folder = saved(model, tmp_path / "again")
        assert write_card(model, folder, repo_id="me/small-bert", measuring=False) == trained.record
        assert (folder / "README.md").read_text() == trained.text

    @pytest.mark.slow
    def test_a_damaged_file_is_as_good_as_none(self, trained, tmp_path):
        ours = {"format_version": 1, "model": trained.record["model"]}
        strange = [{"training": None}, {"training": {"colour": 1}}, {"evaluations": [3]}, {"evaluations": 3}]
        strange += [{"base": {"name": 1, "shape": 2}}, {"training": {"data": "sst2"}}, {"evaluations": [{"data": 1}]}]
        cut = ("", "[]", '{"format_version": 1}', '{"format_version": 2}', '{"model": {"weights": 1}}')
        for damage in (*cut, *(json.dumps(ours | part) for part in strange)):
            folder = shutil.copytree(trained.folder, tmp_path / "small", dirs_exist_ok=True)
            (folder / "efficiency.json").write_text(damage)
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            record = write_card(model, folder, measuring=False)
            assert "training" not in record and "evaluations" not in record


class TestSchema:
    def test_what_is_written_is_valid(self, trained):
        CHECK.check_schema(CHECK.schema)
        CHECK.validate(trained.record)
        assert json.loads((trained.folder / "efficiency.json").read_text()) == trained.record
        history = trained.record["training"]["history"]
        assert [point["step"] for point in history] == list(range(2, 21, 2)) and history[-1]["sparsity"] >= 0.5

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("format_version", 2),
            ("model.weights", "abc"),
            ("surprise", 1),
            ("compression.packed", "yes"),
            ("compression.removed", 1.5),
            ("efficiency.macs", -1),
            ("efficiency.latency_ms.1.median", 0),
            ("efficiency.baseline.bytes", "many"),
            ("efficiency.context.threads", 0),
            ("training.history", [{"loss": 1.0}]),
            ("training.history", [{"step": 1}] * 501),
            ("evaluations", [{"metrics": {"accuracy": "high"}, "weights": "0" * 64}]),
        ],
    )
    def test_a_wrong_file_is_refused(self, trained, place, value):
        wrong = json.loads(json.dumps(trained.record))
        *path, last = place.split(".")
        inner = wrong
        for key in path:
            inner = inner[key]
        inner[last] = value
        with pytest.raises(jsonschema.ValidationError):
            CHECK.validate(wrong)


class TestFacts:
    @pytest.mark.slow
    def test_a_fingerprint_is_of_the_weights_alone(self, tmp_path):
        model = pruned(tiny_bert())
        loaded = AutoModelForSequenceClassification.from_pretrained(saved(model, tmp_path / "small"))
        assert fingerprint(loaded) == fingerprint(model) != fingerprint(pruned(tiny_bert(num_labels=3)))
        optimizer = torch.optim.SGD(loaded.parameters(), lr=1e-3)
        loaded(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.tensor([0])).loss.backward()
        optimizer.step()
        assert fingerprint(loaded) != fingerprint(model) != fingerprint(model.half())

    def test_a_long_curve_keeps_its_ends(self):
        kept = curve([{"step": step, "loss": 1.0, "density/a": 0.5} for step in range(1, 2001)])
        steps = [point["step"] for point in kept]
        assert len(kept) == POINTS and (steps[0], steps[-1]) == (1, 2000) and steps == sorted(set(steps))
        assert kept[0] == {"step": 1, "loss": 1.0}

    def test_a_dataset_of_the_hub_tells_its_id(self):
        table = Dataset.from_dict({"a": [1, 2]})
        assert data_of(table) is None and data_of([1, 2]) is None
        table.info.dataset_name = "sst2"
        table.info.download_checksums = {"hf://datasets/stanfordnlp/sst2@8d51e7e/data/train.parquet": {}}
        data = data_of(torch.utils.data.DataLoader(table))
        assert data is not None and (data.name, data.on_hub, data.samples) == ("stanfordnlp/sst2", True, 2)


class TestTwin:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["gpt2", "vit", "resnet_basic", "t5"])
    def test_it_costs_what_the_dense_model_did(self, name):
        """Counted, not timed: see `test_efficiency.py`."""
        dense, _ = build(name)
        assert isinstance(dense, PreTrainedModel)
        shapes = {key: tensor.shape for key, tensor in dense.state_dict().items()}
        state = torch.get_rng_state()
        built = dense_baseline.dense_baseline(pruned(dense))
        assert {key: tensor.shape for key, tensor in built.state_dict().items()} == shapes
        assert torch.equal(torch.get_rng_state(), state)


class TestWhatIsHandedIn:
    def test_the_scores_of_a_control_the_license_and_the_base_model(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        told = {"license": "mit", "base_model": "acme/tiny-bert", "baseline_metrics": {"eval_accuracy": 0.875}}
        model = pruned(tiny_bert())
        text = rendered(model, tmp_path / "small", metrics={"accuracy": 0.75}, **told)
        assert "| dense | 0.875 |\n| this model | 0.75 |" in text and "trained as long without pruning" in text
        data = ModelCard(text).data
        assert (data.license, data.base_model) == ("mit", "acme/tiny-bert")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
        assert "| dense | 0.875 |" in rendered(again, tmp_path / "small"), "what was told is kept"

    def test_a_later_control_takes_the_place_of_an_earlier_one(self, tmp_path):
        model = pruned(tiny_bert())
        rendered(model, tmp_path / "small", metrics={"accuracy": 0.75}, baseline_metrics={"accuracy": 0.8})
        text = rendered(model, tmp_path / "small", baseline_metrics={"accuracy": 0.9})
        assert "| dense | 0.9 |" in text and "0.8" not in text.split("## How well")[1].split("##")[0]

    def test_the_names_of_the_classes_and_a_pipeline_where_a_tokenizer_is_beside(self, tmp_path):
        names = {0: "negative", 1: "positive"}
        model = pruned(tiny_bert(id2label=names, label2id={name: i for i, name in names.items()}))
        text = rendered(model, tmp_path / "small")
        assert "It tells apart: negative, positive." in text and "pipeline(" not in text
        save_tokenizer(tmp_path / "small")
        assert 'pipe = pipeline("text-classification", model="path/to/small")' in rendered(model, tmp_path / "small")
