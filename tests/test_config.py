"""`DendriticConfig`: validated once, frozen, JSON both ways."""

import dataclasses
import inspect
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum.dendritic import DendriticConfig, DendriticError

BAD = [
    ("sparsity", -0.1),
    ("sparsity", 1.0),
    ("sparsity", float("nan")),
    ("sparsity", "0.5"),
    ("sparsity", True),
    ("start", 1.0),
    ("start", 0.7),
    ("end", -0.1),
    ("end", 1.1),
    ("regrow", 1),
    ("decay", 1.0),
    ("floor", 1.1),
    ("floor", -1e-9),
    ("segment_size", 0),
    ("segment_size", 2.0),
    ("segment_size", True),
    ("arbors", 0),
    ("arbors", "2"),
    ("updates", 0),
    ("seed", -1),
    ("budget", "flops"),
    ("budget", None),
    ("importance", "oracle"),
    ("schedule", ["cubic"]),
    ("sprout_rank", -1),
    ("sprout_rank", 1.0),
    ("sprout_rank", True),
    ("distillation", -0.5),
    ("distillation", math.inf),
    ("version", 2),
    ("version", True),
    ("target_modules", "(unclosed"),
    ("target_modules", []),
    ("target_modules", [1]),
    ("target_modules", [""]),
    ("exclude_modules", 3),
    ("exclude_modules", {"a": 1}),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(DendriticError, match=f"^{field} = "):
        DendriticConfig(**{field: value})


patterns = (
    st.none() | st.sampled_from([".*dense", "query"]) | st.lists(st.text("ab.", min_size=1), min_size=1, max_size=3)
)
configs = st.builds(
    DendriticConfig,
    sparsity=st.floats(0, 1, exclude_max=True) | st.just(0),
    budget=st.sampled_from(["params", "macs"]),
    target_modules=patterns,
    exclude_modules=patterns,
    segment_size=st.integers(1, 4096),
    arbors=st.integers(1, 64),
    importance=st.sampled_from(["dendritic", "magnitude", "taylor", "movement", "activation", "random"]),
    schedule=st.sampled_from(["cubic", "linear"]),
    start=st.floats(0, 0.4),
    end=st.floats(0.5, 1),
    regrow=st.floats(0, 0.9),
    updates=st.integers(1, 500),
    floor=st.floats(0, 1) | st.just(1),
    seed=st.integers(0, 2**31),
    sprout_rank=st.integers(0, 64),
)


@given(configs)
def test_json_gives_the_same_config_back(config):
    assert DendriticConfig.from_json(config.to_json()) == config
    assert DendriticConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(configs)
def test_equal_configs_have_equal_hashes(config):
    assert hash(DendriticConfig.from_dict(config.to_dict())) == hash(config)


def test_the_dict_form_holds_every_field_and_only_json():
    fields = DendriticConfig(target_modules=("query", "key")).to_dict()
    assert list(fields) == [field.name for field in dataclasses.fields(DendriticConfig)]
    assert fields["target_modules"] == ["query", "key"]


def test_an_unknown_field_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(DendriticError, match="sparsty.*sparsity"):
        DendriticConfig.from_dict({"sparsty": 0.5})


def test_an_unknown_field_of_the_constructor_is_refused_in_the_same_way():
    rule = (
        r"^sparcity = 0.6: is not a field of DendriticConfig. Did you mean sparsity\? The fields are sparsity, budget"
    )
    for build in (DendriticConfig, lambda **fields: DendriticConfig.from_dict(fields)):
        with pytest.raises(DendriticError, match=rule):
            build(sparcity=0.6)
    with pytest.raises(DendriticError, match="^importence = "):
        dataclasses.replace(DendriticConfig(), importence="taylor")


def test_the_constructor_shows_its_fields():
    fields = [field.name for field in dataclasses.fields(DendriticConfig)]
    assert list(inspect.signature(DendriticConfig).parameters) == fields


def test_a_choice_that_is_spelt_wrongly_is_answered_with_the_right_one():
    with pytest.raises(DendriticError, match=r"Did you mean magnitude\?"):
        DendriticConfig(importance="magnitud")


@pytest.mark.parametrize("text", ["", "{", "{'sparsity': 0.5}", "[" * 100_000, "9" * 5000, None])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(DendriticError, match="^text = .*: is not JSON"):
        DendriticConfig.from_json(text)


@pytest.mark.parametrize("fields", [{1: 2}, {None: 0.5}, ["sparsity"]])
def test_fields_without_names_are_refused(fields):
    with pytest.raises(DendriticError, match="^config = .*must be a JSON object"):
        DendriticConfig.from_dict(fields)


@pytest.mark.parametrize("text", ["[]", "null", '"sparsity"', "3", "[1]"])
def test_json_that_is_no_object_is_refused(text):
    with pytest.raises(DendriticError):
        DendriticConfig.from_json(text)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DendriticConfig().sparsity = 0.1


def test_a_set_of_names_has_one_order():
    assert DendriticConfig(target_modules={"b", "a", "c"}).target_modules == ("a", "b", "c")


def test_a_preset_is_an_ordinary_config():
    assert DendriticConfig.preset("speed") == DendriticConfig(budget="macs", units="structured")
    assert DendriticConfig.preset("speed", sparsity=0.5, floor=0.1).floor == 0.1
    assert DendriticConfig.preset("speed", speedup=2.0) == DendriticConfig(speedup=2.0, units="structured")
    assert DendriticConfig.preset("high-sparsity", parameters=1e6).sparsity is None
    assert DendriticConfig.preset("high-sparsity").to_dict()["floor"] == 0.0


@pytest.mark.parametrize(("name", "fields"), [("fast", {}), ("speed", {"florr": 0}), ("speed", {"sparsity": 60})])
def test_a_preset_refuses_what_the_config_refuses(name, fields):
    with pytest.raises(DendriticError, match="must be one of speed, high-sparsity|not a field|Did you mean 0.6"):
        DendriticConfig.preset(name, **fields)
