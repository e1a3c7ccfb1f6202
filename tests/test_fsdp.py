"""FSDP2: on two processes, each with half of every weight, training makes the masks and the model that one makes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from helpers.compare import assert_same, every
from helpers.models import build, vectors
from helpers.pairs import on_two
from helpers.sharded import CASES, SHAPES, alone
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, inject_, mask_, update_
from optimum.dendritic.huggingface.trainer.deepspeed import around_steps_
from optimum.dendritic.huggingface.trainer.engines import check_engine
from optimum.dendritic.state import layout_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fsdp")]  # one worker, or each would start the processes anew


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two gloo processes saw."""
    return on_two("helpers.sharded", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one() -> dict[str, tuple[nn.Module, dict[str, torch.Tensor]]]:
    """The same trainings on one process."""
    return {name: alone(case) for name, case in CASES.items()}


def test_there_are_two_processes_and_each_holds_a_part(ranks):
    assert [found["rank"] for found in ranks] == [0, 1] and {found["world"] for found in ranks} == {2}
    assert ranks[0]["pid"] != ranks[1]["pid"]
    for case in CASES:
        first, second = (found["cases"][case]["held"] for found in ranks)
        assert first.keys() == second.keys()
        for name, (part, everything) in first.items():
            assert part + second[name][0] == everything and 0 < part and (second[name][0] > 0 or part == everything)
        assert sum(part for part, _ in second.values()) > 0.4 * sum(everything for _, everything in second.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("what", ["sums", "blank", "put"])
def test_the_pieces_of_two_shards_make_up_the_tiles_of_the_weight(ranks, name, what):
    for found in ranks:
        torch.testing.assert_close(*found["pieces"][name][what])


@pytest.mark.parametrize("name", CASES)
def test_both_processes_have_the_same_scores_masks_and_model(ranks, name):
    assert_same(*(found["cases"][name]["seen"] for found in ranks))


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_one_process(ranks, one, name):
    expected, found = one[name][1], ranks[0]["cases"][name]["seen"]
    assert expected.keys() == found.keys()
    assert any(expected[f"{step}.regrown"] > 0 for step in (2, 4)) and any("mask" in key for key in expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_packing_gathers_each_parameter_once_and_no_two_layers_at_a_time(ranks, name):
    found = ranks[0]["cases"][name]
    gathered = [size for size in found["sizes"] if size > 1]  # one number is the verdict of the verification
    if "sprout" not in name:
        assert sorted(gathered) == sorted(found["parameters"])
    largest = max(map(sum, found["targets"]))
    assert found["peak"] <= 4 * (found["others"] + largest)
    assert found["peak"] < 4 * sum(found["parameters"])


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_fsdp_is_left_of_a_packed_model(ranks, one, name):
    model = one[name][0]
    stock = {key: (type(m).__qualname__, sorted(vars(m))) for key, m in model.named_modules()}
    hooks = {key: {k: len(v) for k, v in vars(m).items() if "_hooks" in k and v} for key, m in model.named_modules()}
    for found in ranks:
        assert found["cases"][name]["attributes"] == stock and found["cases"][name]["hooks"] == hooks


def test_a_model_that_fails_its_verification_trains_on_in_shards(ranks):
    for found in ranks:
        assert "packing changes its outputs" in found["undone"]["said"]
        assert_same(found["undone"]["with"], found["undone"]["without"])


def test_in_mixed_precision_both_processes_agree(ranks):
    assert_same(*(found["bf16"] for found in ranks))
    scores = [value for key, value in ranks[0]["bf16"].items() if key.endswith(".score")]
    assert every(score.dtype == torch.float32 and score.isfinite().all() for score in scores)
    assert ranks[0]["bf16"]["packed.answer"].dtype == torch.float32


class TestTrainer:
    def test_it_trains_in_shards_and_ends_packed_and_whole(self, ranks):
        for found in ranks:
            run = found["trainer"]
            assert run["packed"] and all(run["through sharded"]) and len(run["through sharded"]) > 0
            assert not any("dendrite" in name for name in run["through"])
        assert_same(*(found["trainer"]["through"] for found in ranks))

    def test_evaluate_and_save_model_go_on_with_it(self, ranks):
        for found in ranks:
            answer, loaded = found["trainer"]["answers"]
            assert torch.equal(answer, loaded) and found["trainer"]["loss"] > 0

    def test_resumed_from_a_sharded_checkpoint_it_is_the_same_bit_for_bit(self, ranks):
        for found in ranks:
            assert len(found["trainer"]["resumed sharded"]) < len(found["trainer"]["through sharded"])
            assert_same(found["trainer"]["resumed"], found["trainer"]["through"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("inject_", "sharded over several processes already"),
            ("prune_", "sharded over several processes already"),
            ("other dimension", "only shards along the first dimension"),
        ],
    )
    def test_sharded_models_are_refused_by_name(self, ranks, what, words):
        for found in ranks:
            assert words in found["refusals"][what]

    def test_zero_3_is_refused_from_the_trainer_before_anything_changes(self, tmp_path):
        """The config object is accelerate's own; deepspeed itself is not installed."""
        config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
        set_hf_deepspeed_config(config)
        model = build("bert")[0]
        before = {name: type(module) for name, module in model.named_modules()}
        try:
            with pytest.raises(DendriticError, match="stage = 3.*ZeRO-3.*Set it to 1 or 2"):
                Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True), callbacks=[DendriticCallback({})])
        finally:
            unset_hf_deepspeed_config()
        assert layout_of(model) is None
        assert {name: type(module) for name, module in model.named_modules()} == before

    def test_parameters_that_zero_3_has_emptied_are_refused(self):
        """A mock of what `deepspeed.zero.Init` leaves: an empty tensor with `ds_id` and `ds_shape`."""

        def emptied(model: nn.Module) -> nn.Module:
            for index, parameter in enumerate(model.parameters()):
                vars(parameter).update(ds_id=index, ds_shape=parameter.shape)
                parameter.data = torch.empty(0)
            return model

        with pytest.raises(DendriticError, match="sharded over several processes already"):
            inject_(emptied(build("residual_mlp")[0]), DendriticConfig(), example_inputs=vectors(1))
        model = build("residual_mlp")[0]
        inject_(model, DendriticConfig(segment_size=4), example_inputs=vectors(1))
        emptied(model)
        for verb in (mask_, lambda model: update_(model, 0.1)):
            with pytest.raises(DendriticError, match="ZeRO-3 keeps the values"):
                verb(model)

    def test_another_optimizer_of_deepspeed_is_refused_and_the_engine_stays_as_it_was(self):
        """A mock of an engine whose optimizer has no flat parts."""
        engine = SimpleNamespace(optimizer=torch.optim.SGD([torch.zeros(1)]))
        with pytest.raises(DendriticError, match="optimizer = 'SGD': must be that of ZeRO.*zero_optimization.stage"):
            around_steps_(engine, nn.Linear(1, 1), lambda: True, lambda: None)
        assert not hasattr(engine, "step")

    @pytest.mark.parametrize(
        ("kind", "plugin", "compiled", "words"),
        [
            ("DEEPSPEED", {"zero_stage": 0}, False, "zero_optimization.stage = 0.*Set it to 1 or 2"),
            ("DEEPSPEED", {"zero_stage": 2}, False, None),
            ("FSDP", {"fsdp_version": 1}, False, "fsdp_version = 1"),
            ("FSDP", {"fsdp_version": 2, "cpu_ram_efficient_loading": True}, False, "fsdp_cpu_ram_efficient_loading"),
            ("FSDP", {"fsdp_version": 2}, True, "torch_compile = True"),
            ("FSDP", {"fsdp_version": 2}, False, None),
            ("MULTI_GPU", {}, True, None),
        ],
    )
    def test_engines_are_judged_by_what_accelerate_says(self, kind, plugin, compiled, words, tmp_path, monkeypatch):
        """accelerate shards on accelerators alone, so its state is set by hand here; DeepSpeed's plugin is a mock, as
        the real one needs DeepSpeed."""
        Trainer(nn.Linear(1, 1), TrainingArguments(str(tmp_path), use_cpu=True))  # makes a state
        for shared in (AcceleratorState._shared_state, PartialState._shared_state):
            monkeypatch.setitem(shared, "distributed_type", DistributedType[kind])
        for name in ("FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
            monkeypatch.setenv(name, "")  # the plugin writes them: they must not outlive this test
            monkeypatch.delenv(name)
        if kind == "FSDP":
            monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", FullyShardedDataParallelPlugin(**plugin))
        if kind == "DEEPSPEED":
            monkeypatch.setitem(AcceleratorState._shared_state, "deepspeed_plugins", SimpleNamespace(**plugin))
        if words is None:
            check_engine(compiled)
        else:
            with pytest.raises(DendriticError, match=words):
                check_engine(compiled)
