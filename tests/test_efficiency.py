"""Every figure of `measure` against one that is known: counted by hand, written to disk, or allocated on purpose."""

import json
import os
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
from helpers.compare import every
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config as checking
from safetensors.torch import save_file
from torch import nn
from torch.utils.benchmark import Timer
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from optimum.dendritic import DendriticError
from optimum.dendritic.efficiency import EfficiencyReport, latency, measure, memory
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.compiled import compiled_forms
from optimum.dendritic.efficiency.latency import paired_ratio, summarise
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.efficiency.size import count_parameters, serialised_bytes

QUICK = {"seconds": 0.05, "threads": 1, "large_batch": 4, "memory": False}


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as in a user's process, so that a wrong type reaches our own refusal."""
    monkeypatch.setattr(checking, "jaxtyping_disable", True)


def bert(hidden_size: int, kind: type = BertForSequenceClassification) -> nn.Module:
    config = BertConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=32,
    )
    return kind(config)


def tokens(batch: int = 2, length: int = 16) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(batch * length).view(batch, length) % 100}


def macs(model: nn.Module, *inputs: torch.Tensor) -> int:
    return count_macs(model.eval(), Batch.of(inputs))


class TestMacs:
    def test_linear(self):
        assert macs(nn.Linear(7, 5), torch.randn(1, 3, 7)) == 3 * 7 * 5

    def test_grouped_convolution(self):
        convolution = nn.Conv2d(4, 6, 3, groups=2)
        assert macs(convolution, torch.randn(1, 4, 10, 10)) == 8 * 8 * 6 * (4 // 2) * 9

    @pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
    def test_recurrent(self, kind: type, gates: int):
        layer = kind(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        first, second = gates * 16 * (8 + 16), gates * 16 * (32 + 16)
        assert macs(layer, torch.randn(1, 5, 8)) == 5 * 2 * (first + second)

    def test_fused_attention_counts(self):
        projections, attention, feed_forward = 5 * 8 * 8 * 4, 2 * 5 * 5 * 8, 5 * 8 * 16 * 2
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        assert macs(layer, torch.randn(1, 5, 8)) == projections + attention + feed_forward
        assert torch.backends.mha.get_fastpath_enabled()

    def test_bert(self):
        width, length, inner = 32, 16, 64
        layer = length * (4 * width * width + 2 * width * inner) + 2 * length * length * width
        pooler, classifier = width * width, width * 2
        assert count_macs(bert(width).eval(), Batch.of(tokens(1, length))) == 2 * layer + pooler + classifier

    def test_a_view_of_a_parameter_may_be_an_input_of_a_layer(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.layer = nn.Parameter(torch.ones(4, 6)), nn.Linear(6, 5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.layer(self.table[None])

        model = Positions()
        model.layer.bias.requires_grad_(False)
        assert macs(model, torch.ones(1, 4, 5)) == 4 * 6 * 5
        assert [p.requires_grad for p in model.parameters()] == [True, True, False]


class TestSize:
    def test_equal_to_the_file_that_save_pretrained_writes(self, tmp_path):
        model = bert(32, BertForMaskedLM)
        model.save_pretrained(tmp_path)
        assert serialised_bytes(model) == (tmp_path / "model.safetensors").stat().st_size

    def test_tied_parameters_count_once(self):
        first, second = nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False)
        second.weight = first.weight
        model = nn.Sequential(first, second)
        assert count_parameters(model) == 2500
        assert 10_000 < serialised_bytes(model) < 10_200

    def test_index_buffers_views_and_transposes_count(self, tmp_path):
        model = nn.Linear(3, 4)
        shared = torch.randn(8, 6)
        model.register_buffer("inputs", torch.arange(10))
        model.register_buffer("upper", shared[:4])
        model.register_buffer("lower", shared[4:])
        model.register_buffer("turned", torch.randn(5, 2).T)
        copies = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(copies, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert serialised_bytes(model) == (tmp_path / "model.safetensors").stat().st_size


class Clock:
    """A clock that stands still, unless someone spends time: the more, the later it is."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds * (1 + self.now)


class TestLatency:
    def test_models_take_turns(self, monkeypatch):
        monkeypatch.setattr(latency, "BLOCK_SECONDS", 1e-9)  # one timed call per block, after two untimed ones
        turns: list[str] = []
        blocks = latency.time_in_turn([lambda: turns.append("A"), lambda: turns.append("B")], threads=1, seconds=1e-9)
        assert [len(each) for each in blocks] == [latency.FEWEST_BLOCKS] * 2
        assert "".join(turns).endswith("AAABBB" * latency.FEWEST_BLOCKS)

    @given(st.lists(st.floats(1.0, 9.0), min_size=2, max_size=20), st.floats(0.1, 10.0))
    def test_a_drift_of_the_machine_leaves_the_ratio_alone(self, drift: list[float], ratio: float):
        assert paired_ratio([ratio * d for d in drift], drift) == pytest.approx(ratio)

    def test_summary(self):
        summary = summarise([float(i) for i in range(101)])
        assert (summary.median, summary.p95, summary.blocks) == (50.0, pytest.approx(95.0), 101)

    @pytest.mark.parametrize(("ours", "theirs"), [(1e-3, 1e-3), (1e-3, 2e-3), (3e-3, 1e-3)])
    def test_on_a_machine_that_slows_down_a_model_takes_its_share_of_the_time(self, monkeypatch, ours, theirs):
        """The clock is moved by the models alone, and each second takes a second more than the one before."""
        clock = Clock()
        monkeypatch.setattr(latency, "Timer", partial(Timer, timer=clock))
        monkeypatch.setattr(latency.time, "perf_counter", clock)
        calls = [partial(clock.spend, ours), partial(clock.spend, theirs)]
        blocks, baseline = latency.time_in_turn(calls, threads=1, seconds=1.0)
        assert len(blocks) > latency.FEWEST_BLOCKS and blocks[-1] > 2 * blocks[0], "it did slow down"
        assert paired_ratio(blocks, baseline) == pytest.approx(ours / theirs, rel=0.1)
        assert blocks[0] == pytest.approx(1e3 * ours, rel=0.5)

    def test_a_model_is_as_large_as_itself(self):
        model = bert(64)
        report = measure(model, tokens(), baseline=model, **QUICK)
        assert report.ratios["parameters"] == report.ratios["bytes"] == report.ratios["macs"] == 1
        assert report.ratios["latency_ms_batch_1"] > 0


IMPORTS = "import torch\nfrom torch import nn\nfrom optimum.dendritic.efficiency import measure\n"


def run_script(folder, body: str) -> subprocess.CompletedProcess:
    """Run what it says, after `IMPORTS`, as a script in a folder; a warning would be an error."""
    script = folder / "script.py"
    script.write_text(IMPORTS + textwrap.dedent(body))
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


class TestMemory:
    def test_absent_with_one_warning_when_the_model_does_not_travel(self, monkeypatch):
        warnings: list[str] = []
        monkeypatch.setattr(memory.logger, "warning", warnings.append)
        model = nn.Linear(2, 2)
        model.register_forward_hook(lambda *_: None)
        report = measure(model, torch.randn(1, 2), **QUICK | {"memory": True})
        assert report.peak_memory_bytes is None
        assert len(warnings) == 1 and "fresh process" in warnings[0] and "lambda" in warnings[0]

    @pytest.mark.slow
    def test_a_model_that_noted_hidden_states_travels(self):
        model, batch = bert(64), tokens()
        model(**batch, output_hidden_states=True)  # transformers leaves closures behind as hooks
        hooks = [list(module._forward_hooks.items()) for module in model.modules()]
        assert memory.peak_memory(model, Batch.of(batch), device=torch.device("cpu"), threads=1) is not None
        assert [list(module._forward_hooks.items()) for module in model.modules()] == hooks and any(hooks)

    @pytest.mark.slow
    def test_absent_when_the_child_fails(self, monkeypatch):
        warnings: list[str] = []
        monkeypatch.setattr(memory.logger, "warning", warnings.append)
        wrong = Batch.of(torch.randn(1, 3))
        assert memory.peak_memory(nn.Linear(2, 2), wrong, device=torch.device("cpu"), threads=1) is None
        assert len(warnings) == 1 and "RuntimeError in the fresh process" in warnings[0]

    def test_absent_on_a_device_without_a_counter(self, monkeypatch):
        monkeypatch.setattr(memory.logger, "warning", lambda message: None)
        batch = Batch.of(torch.randn(1, 2))
        assert memory.peak_memory(nn.Linear(2, 2), batch, device=torch.device("mps"), threads=1) is None

    @pytest.mark.slow
    def test_a_known_model_whose_class_is_in_the_script(self, tmp_path):
        """200 MB of weights: far above what libraries and page tables add. What the caller holds does not count."""
        done = run_script(
            tmp_path,
            """
            class Own(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.weight = nn.Parameter(torch.ones(50_000_000))
                def forward(self, x):
                    return x * self.weight.sum()

            if __name__ == "__main__":
                held = torch.ones(100_000_000)
                print(measure(Own(), torch.ones(1, 1), seconds=0.01, large_batch=1, threads=1).peak_memory_bytes)
            """,
        )
        assert int(done.stdout) == pytest.approx(200e6, rel=0.05)

    @pytest.mark.slow
    def test_a_script_without_a_guard_runs_once(self, tmp_path):
        """Where its class stands in the script, the script's definitions are made again; nothing else of it runs."""
        done = run_script(
            tmp_path,
            """
            open("runs", "a").write("once, ")
            FACTOR: float = 2.0

            class Own(nn.Linear):
                def forward(self, x):
                    return FACTOR * twice(super().forward(x))

            def twice(x):
                return 2 * x

            print(measure(Own(500, 500), torch.ones(1, 500), seconds=0.01, large_batch=1, threads=1).peak_memory_bytes)
            """,
        )
        assert int(done.stdout) >= 500 * 500 * 4
        assert (tmp_path / "runs").read_text() == "once, "

    @pytest.mark.slow
    def test_a_class_of_the_script_that_needs_more_than_definitions_is_not_measured(self, tmp_path):
        done = run_script(
            tmp_path,
            """
            factor = float("2")

            class Own(nn.Linear):
                def forward(self, x):
                    return factor * super().forward(x)

            print(measure(Own(2, 2), torch.ones(1, 2), seconds=0.01, large_batch=1, threads=1).peak_memory_bytes)
            """,
        )
        assert done.stdout == "None\n"
        assert "name 'factor' is not defined" in done.stderr and "defined in __main__" in done.stderr
        assert "Move the class" in done.stderr

    @pytest.mark.slow
    def test_a_class_of_an_interpreter_is_not_measured(self, tmp_path):
        code = (
            "class Own(nn.Linear): pass\n"
            "print(measure(Own(2, 2), torch.ones(1, 2), seconds=0.01, large_batch=1, threads=1).peak_memory_bytes)"
        )
        done = subprocess.run([sys.executable, "-c", IMPORTS + code], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == "None\n", done.stderr
        assert "Own is defined in __main__, which is not a file. Move the class" in done.stderr

    @pytest.mark.slow
    def test_what_the_process_says_before_it_dies_is_told(self, monkeypatch):
        warnings: list[str] = []
        monkeypatch.setattr(memory.logger, "warning", warnings.append)
        batch = Batch.of(torch.randn(1, 2))
        assert memory.peak_memory(Dying(2, 2), batch, device=torch.device("cpu"), threads=1) is None
        assert warnings == ["Peak memory is not measured: the fresh process ended with exit code 9 (out of luck)."]


@pytest.fixture(scope="module")
def report() -> EfficiencyReport:
    return measure(bert(64), tokens(), baseline=bert(256), **QUICK | {"large_batch": 8})


class TestReport:
    def test_a_smaller_model_is_smaller_everywhere(self, report: EfficiencyReport):
        """Peak memory too: see `test_cli.py`, which starts the processes that it needs."""
        assert set(report.ratios) == {"parameters", "bytes", "macs", "latency_ms_batch_1", "latency_ms_batch_8"}
        assert every(0 < report.ratios[name] < 1 for name in ("parameters", "bytes", "macs")), report.ratios
        assert every(ratio > 0 for ratio in report.ratios.values())

    def test_ratios_are_of_the_baseline(self, report: EfficiencyReport):
        assert report.baseline is not None
        for name in ("parameters", "bytes", "macs"):
            assert report.ratios[name] * report.baseline.figures()[name] == pytest.approx(report.figures()[name])

    def test_what_is_not_measured_is_absent(self, report: EfficiencyReport):
        assert report.energy_joules is None and report.peak_memory_bytes is None
        rows = [line.split("  ")[0] for line in report.table().splitlines() if line.count("not measured") == 2]
        assert rows == ["peak memory, batch 1", "energy, batch 1"]

    def test_json(self, report: EfficiencyReport):
        record = report.to_dict()
        assert json.loads(json.dumps(record)) == record
        assert record["format_version"] == 1
        assert record["latency_ms"]["8"]["median"] == report.latency_ms[8].median
        assert record["context"]["input_shapes"] == {"input_ids": [1, 16]}
        assert record["baseline"]["parameters"] > record["parameters"]

    def test_table(self, report: EfficiencyReport):
        lines = report.table().splitlines()
        assert lines[0].split() == ["baseline", "model", "ratio"]
        row = next(line for line in lines if line.startswith("MACs"))
        assert row.endswith(f"{report.ratios['macs']:.3f}")
        assert len({len(line) for line in lines[:3]}) == 1 and report.table().isascii()

    def test_without_a_baseline(self):
        report = measure(nn.Linear(3, 3), torch.randn(1, 3), **QUICK | {"large_batch": 1})
        assert report.baseline is None and report.ratios == {} and list(report.latency_ms) == [1]
        assert (
            report.table().splitlines()[0].split() == ["model"]
            and "peak memory, batch 1  not measured" in report.table()
        )


class TestModelIsLeftAsItWas:
    def test_everything(self):
        model = bert(32).train()
        model.bert.encoder.eval()  # frozen on purpose
        model.register_forward_hook(print_nothing)
        model(**tokens()).logits.sum().backward()
        parameter = model.classifier.weight
        before = (
            [module.training for module in model.modules()],
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
            [dict(module._forward_hooks) for module in model.modules()],
            torch.get_rng_state(),
            torch.get_num_threads(),
        )
        measure(model, tokens(), baseline=model, **QUICK)
        assert [module.training for module in model.modules()] == before[0]
        assert every(torch.equal(tensor, before[1][name]) for name, tensor in model.state_dict().items())
        assert every(torch.equal(p.grad, before[2][n]) for n, p in model.named_parameters() if p.grad is not None)
        assert [dict(module._forward_hooks) for module in model.modules()] == before[3]
        assert torch.equal(torch.get_rng_state(), before[4])
        assert torch.get_num_threads() == before[5] and model.classifier.weight is parameter
        model(**tokens()).logits.sum().backward()

    def test_when_it_fails(self):
        model = nn.Linear(2, 2).train()
        with pytest.raises(RuntimeError, match="shapes"):
            measure(model, torch.randn(1, 3), **QUICK)
        assert model.training

    def test_what_it_builds_lazily_can_still_train(self):
        model = Lazy()
        measure(model, torch.randn(1, 2), **QUICK)
        model(torch.randn(1, 2)).sum().backward()


class Lazy(nn.Linear):
    """Keeps a tensor of its first call."""

    kept: torch.Tensor | None = None

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, input):
        if self.kept is None:
            self.kept = torch.ones(2)
        return super().forward(input) * self.kept


class Dying(nn.Linear):
    """Takes its process with it."""

    def forward(self, input):
        sys.stderr.write("out of luck")
        sys.stderr.flush()
        os._exit(9)


def print_nothing(*_) -> None:
    """A hook that pickles."""


class TestInputs:
    """Under `--jaxtyping-packages` a wrong type is refused earlier, by an error that names the parameter."""

    def test_mapping_tuple_and_tensor_are_one(self):
        tensor = torch.randn(2, 3)
        assert Batch.of(tensor).args == Batch.of((tensor,)).args == (tensor,)
        assert Batch.of({"input": tensor}).kwargs == {"input": tensor}

    @given(st.integers(1, 5), st.integers(1, 12))
    def test_resized_repeats_the_samples_in_order(self, have: int, want: int):
        ids = Batch.of(torch.arange(have)).resized(want).args[0]
        assert ids.tolist() == [i % have for i in range(want)]

    def test_floating_inputs_take_the_dtype_of_each_model(self):
        model, baseline = nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3)
        report = measure(model, torch.randn(1, 3), baseline=baseline, **QUICK)
        assert report.context.dtype == "bfloat16" and "bfloat16 (baseline float32)" in report.table()

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "^example_inputs = {}: must hold at least one tensor"),
            ("text", "^example_inputs = 'str': must be a mapping"),
            ({"labels": None}, r"^example_inputs\['labels'\] = 'NoneType': every input must be a tensor"),
            ((torch.tensor(1.0),), r"^example_inputs\[0\].shape = \(\): .*unsqueeze"),
            ({"a": torch.ones(2, 3), "b": torch.ones(1, 3)}, "^example_inputs = .*the batch sizes must agree"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_inputs_are_named(self, inputs: object, message: str):
        with pytest.raises(DendriticError, match=message):
            measure(nn.Linear(3, 3), inputs)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"large_batch": 0}, "^large_batch = 0: must be an integer of at least 1"),
            ({"threads": -1}, "^threads = -1: .*for example threads=1"),
            ({"seconds": 0}, "^seconds = 0: must be a number greater than 0"),
            ({"baseline": "bert"}, "^baseline = 'str': must be a torch.nn.Module.*from_pretrained"),
            (
                {"baseline": nn.Linear(3, 3, device="meta")},
                r"^model and baseline = \['cpu', 'meta'\]: all tensors must",
            ),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_arguments_are_named(self, arguments: dict, message: str):
        with pytest.raises(DendriticError, match=message):
            measure(nn.Linear(3, 3), torch.randn(1, 3), **arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own use
def test_compiled_models_are_timed_as_such_and_left_as_they_are():
    model, dense = bert(16), bert(32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model.eval()(**tokens()).logits
    report = measure(model, tokens(), baseline=dense, compiled=True, **{**QUICK, "large_batch": 1})
    assert report.context.compiled and report.baseline is not None and report.baseline.context.compiled
    assert "1 thread(s), compiled;" in report.table() and report.to_dict()["context"]["compiled"] is True
    assert model.state_dict().keys() == before.keys() and type(model) is BertForSequenceClassification
    assert every(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(model(**tokens()).logits, expected, rtol=0, atol=0)
    assert not measure(model, tokens(), **QUICK).context.compiled
    forms = compiled_forms([model])
    with torch.inference_mode():
        torch.testing.assert_close(forms[0](**tokens()).logits, expected)
