"""The layout: what is written is read back, and nothing else is read."""

import copy
import json
from typing import Any

import pytest
from helpers.models import build
from hypothesis import given
from hypothesis import strategies as st

from optimum.dendritic import CheckpointError, DendriticConfig, compress_, inject_, update_
from optimum.dendritic.layout.layout import Layout
from optimum.dendritic.layout.left import COUNTED, Left
from optimum.dendritic.layout.records import KINDS, Follower, Form, Group, Member, Run, Segments
from optimum.dendritic.state import injected_layout, layout_of

counts = st.integers(1, 9)
places = st.integers(0, 9)
runs = st.builds(Run, start=places, size=counts, unit=places, count=counts)
members = st.builds(Member, name=st.text(min_size=1), runs=st.tuples(runs) | st.tuples(runs, runs), axis=places)
groups = st.builds(
    Group,
    kind=st.sampled_from(KINDS),
    units=counts,
    producers=st.tuples(members),
    consumers=st.tuples(members) | st.tuples(members, members),
    passers=st.tuples() | st.tuples(members),
    parameters=st.tuples() | st.tuples(members),
    cut=st.booleans(),
)
segments = st.builds(Segments, counts, places, st.booleans(), places)
followers = st.builds(Follower, counts)


@st.composite
def forms(draw):
    arbors = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    kept, gather, scatter = draw(counts), draw(st.booleans()) or len(arbors) > 1, draw(st.booleans())
    span = draw(st.sampled_from((1, 2, 8))) if gather else 1
    kept *= span
    inputs = kept + (span * draw(counts) if gather else 0)
    outputs, sprout = sum(arbors) + (draw(counts) if scatter else 0), draw(st.integers(0, 9))
    shape: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "kept": kept, "arbors": arbors, "span": span}
    return Form(**shape, gather=gather, scatter=scatter, sprout=sprout)


layouts = st.builds(
    Layout,
    st.builds(DendriticConfig, sparsity=st.floats(0, 0.9), target_modules=st.none() | st.just(("a", "b"))),
    st.dictionaries(st.text(min_size=1), segments | followers | forms(), max_size=4),
    st.lists(groups, max_size=2).map(tuple),
    st.dictionaries(st.text(min_size=1), counts),
    st.integers(0, 2**40),
    parameters=st.dictionaries(st.text(min_size=1), st.lists(counts, max_size=3).map(tuple), max_size=2),
    left=st.lists(st.builds(Left, kind=st.sampled_from(COUNTED), units=counts, kept=st.just(1)), max_size=2).map(tuple),
)


@pytest.mark.slow
@given(layouts)
def test_json_gives_the_same_layout_back(layout):
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize("name", ["bert", "plain_cnn"])
def test_layouts_of_real_models_survive_json(name):
    model, inputs = build(name)
    inject_(model, DendriticConfig(sparsity=0.5, segment_size=4, arbors=2), example_inputs=inputs)
    injected = injected_layout(model)
    assert Layout.from_dict(json.loads(json.dumps(injected.to_dict()))) == injected and not injected.packed
    update_(model, 0.5)
    packed = layout_of(compress_(model, inputs))
    assert packed is not None
    assert Layout.from_dict(json.loads(json.dumps(packed.to_dict()))) == packed and packed.packed


WHOLE = (Run(start=0, size=1, unit=0, count=4),)
GOOD = json.loads(
    json.dumps(
        Layout(
            config=DendriticConfig(),
            modules={
                "reader": Segments(2, 4, activity=True),
                "form": Form(inputs=8, outputs=6, kept=4, arbors=(3, 3), gather=True, scatter=False),
                "bn": Follower(4),
            },
            groups=(
                Group(
                    kind="neurons",
                    units=4,
                    producers=(Member(name="form", runs=WHOLE),),
                    consumers=(Member(name="reader", runs=WHOLE),),
                    passers=(Member(name="bn", runs=WHOLE),),
                    parameters=(Member(name="scale", runs=WHOLE, axis=1),),
                ),
            ),
            positions={"reader": 1},
            dense_cost=99,
            parameters={"scale": (1, 4)},
            left=(Left(kind="heads", units=4, kept=3, first="layer.0", last="layer.0"),),
        ).to_dict()
    )
)
RUN = ("groups", 0, "producers", 0, "runs", 0)
BAD = [
    (("version",), 2),
    (("version",), True),
    (("version",), "1"),
    (("quant_method",), "gptq"),
    (("config",), None),
    (("config", "sparsity"), 2),
    (("config", "unknown"), 1),
    (("modules",), []),
    (("modules", "reader"), None),
    (("modules", "reader"), {}),
    (("modules", "reader"), {"pickle": {}}),
    (("modules", "reader"), {"segments": {"arbors": 1, "segments": 1}}),
    (("modules", "reader", "segments", "arbors"), 0),
    (("modules", "reader", "segments", "segments"), -1),
    (("modules", "reader", "segments", "segments"), 2.0),
    (("modules", "reader", "segments", "activity"), 1),
    (("modules", "reader", "segments", "extra"), 1),
    (("modules", "reader", "segments", "sprout"), -1),
    (("modules", "form", "form", "sprout"), None),
    (("modules", "form", "form", "kept"), 9),
    (("modules", "form", "form", "span"), 0),
    (("modules", "form", "form", "span"), 3),
    (("modules", "form", "form", "span"), 8),
    (("modules", "form", "form", "arbors"), []),
    (("modules", "form", "form", "arbors"), [3, 4]),
    (("modules", "form", "form", "arbors"), [7, -1]),
    (("modules", "form", "form", "gather"), False),
    (("modules", "form", "form", "scatter"), None),
    (("modules", "form", "form", "inputs"), 2**31),
    (("modules", "bn", "follower", "channels"), True),
    (("left", 0, "kept"), 5),
    (("left", 0, "kind"), "bundles"),
    (("left", 0, "first"), None),
    (("groups",), None),
    (("groups", 0, "kind"), "bundles"),
    (("groups", 0, "kind"), None),
    (("groups", 0, "cut"), "yes"),
    (("groups", 0, "units"), -1),
    (("groups", 0, "units"), 0),
    (("groups", 0, "units"), 2**31),
    (("groups", 0, "producers"), {}),
    (("groups", 0, "consumers"), []),
    (("groups", 0, "consumers", 0), "reader"),
    (("groups", 0, "parameters", 0, "axis"), -1),
    (("groups", 0, "parameters", 0, "axis"), 1.0),
    ((*RUN[:4], "name"), None),
    ((*RUN, "count"), 2**31),
    ((*RUN, "count"), 0),
    ((*RUN, "size"), 0),
    ((*RUN, "size"), "1"),
    ((*RUN, "start"), -1),
    ((*RUN, "unit"), -1),
    ((*RUN, "more"), 1),
    (("positions",), None),
    (("positions", "reader"), -1),
    (("dense_cost",), 1.5),
    (("parameters",), []),
    (("parameters", "scale"), 4),
    (("parameters", "scale"), [-1]),
    (("extra",), 1),
]


@pytest.mark.parametrize(("path", "value"), BAD)
def test_anything_that_was_never_written_is_refused(path, value):
    data = copy.deepcopy(GOOD)
    assert json.loads(json.dumps(Layout.from_dict(data).to_dict())) == GOOD
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CheckpointError):
        Layout.from_dict(data)


@pytest.mark.parametrize(
    "field", sorted(GOOD.keys() - {"parameters", "left"})
)  # which are written where there are some
def test_a_missing_field_is_refused(field):
    with pytest.raises(CheckpointError):
        Layout.from_dict({key: value for key, value in GOOD.items() if key != field})


@pytest.mark.parametrize("data", [None, [], "layout", 1])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(CheckpointError):
        Layout.from_dict(data)


def test_a_long_bad_value_is_shortened_in_the_message():
    with pytest.raises(CheckpointError) as error:
        Layout.from_dict(GOOD | {"groups": "x" * 10_000})
    assert len(str(error.value)) < 600


def test_a_layout_from_before_sprouts_reads_as_one_without():
    layout = Layout(
        DendriticConfig(),
        {"a": Segments(1, 4), "b": Form(inputs=4, outputs=4, kept=2, arbors=(4,), gather=True, scatter=False)},
    )
    data = layout.to_dict()
    for record in data["modules"].values():
        for fields in record.values():
            del fields["sprout"]
    assert Layout.from_dict(data) == layout
    for name in ("arbors", "activity"):
        broken = json.loads(json.dumps(data))
        del broken["modules"]["a"]["segments"][name]
        with pytest.raises(CheckpointError, match="modules.a"):
            Layout.from_dict(broken)


def test_a_packed_layout_of_an_earlier_release_reads_as_one_without_groups():
    """It called groups bundles, of which a packed model has none."""
    layout = Layout(
        DendriticConfig(), {"b": Form(inputs=4, outputs=4, kept=2, arbors=(4,), gather=True, scatter=False)}
    )
    data = layout.to_dict()
    data["bundles"] = data.pop("groups")
    assert Layout.from_dict(data) == layout
    for bad in ([{"reader": "b"}], None):
        with pytest.raises(CheckpointError, match="bundles|groups"):
            Layout.from_dict(data | {"bundles": bad})
