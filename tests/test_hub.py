"""What is pushed is what is loaded: by name, by pipeline, by revision, in private, from the cache, and by others."""

import pytest
import torch
from helpers.models import build
from hub import actions
from hub.client import Client, start
from hub.server import ALICE, BOB, Hub
from torch import nn

from optimum.dendritic import DendriticError, push_to_hub

pytestmark = pytest.mark.slow

NAME = "alice/bert"


@pytest.fixture(scope="module")
def shelf(session_hub: Hub, client: Client):
    """A Hub with one packed model on it: the public commit, a private twin, and a branch with the injected one."""
    session_hub.reset()
    pushed = client(actions.push, NAME, token=ALICE, remote_code=True)
    client(actions.push, "alice/secret", token=ALICE, private=True)
    client(actions.push, NAME, name="injected", token=ALICE, revision="training", commit_message="half way")
    session_hub.log.clear()
    return session_hub, pushed, client(actions.logits)


def test_everything_is_in_one_commit(shelf):
    hub, pushed, _ = shelf
    commit, initial = hub.repositories[NAME].history()
    assert commit.sha == pushed and commit.title == "Upload model" and initial.author == "system"
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} < commit.files.keys()
    assert b"import optimum.dendritic" in commit.files["README.md"].content
    assert b'"quant_method": "optimum-dendritic"' in commit.files["config.json"].content


def test_by_name_from_cache_and_by_revision(shelf, client):
    hub, pushed, expected = shelf
    assert client(actions.load, NAME) == expected
    assert any("/lfs/" in record["request"] for record in hub.log)
    hub.log.clear()
    assert client(actions.load, NAME) == expected and client(actions.load, NAME, revision=pushed) == expected
    assert not any("/lfs/" in record["request"] for record in hub.log)
    other = client(actions.load, NAME, revision="training")
    assert other == client(actions.logits, "injected")
    newest = hub.repositories[NAME].history("training")[0]
    assert newest.title == "half way" and b'"segments"' in newest.files["config.json"].content


def test_by_pipeline(shelf, client):
    expected = client(actions.classify_here, "good bad film")
    assert client(actions.classify, NAME, "good bad film") == expected


def test_private(shelf, client):
    hub, _, expected = shelf
    assert hub.repositories["alice/secret"].private and not hub.repositories[NAME].private
    assert client(actions.load, "alice/secret", token=ALICE) == expected
    for token in (BOB, False):
        refused = client(actions.attempt, actions.load, "alice/secret", token=token)
        assert "alice/secret" in refused.error and BOB not in refused.shown()


def test_without_the_import(shelf, client, tmp_path):
    """Loud at first; with `trust_remote_code=True` the stub imports the package."""
    hub, _, expected = shelf
    with start(hub.url, tmp_path, HF_HUB_DISABLE_XET="1") as stranger:
        for name in (NAME, "alice/secret"):
            with pytest.raises(RuntimeError, match="mismatch"):
                stranger(actions.load, name, register=False, token=ALICE)
        assert stranger(actions.load, NAME, register=False, trust_remote_code=True) == expected
        [shape] = stranger(actions.load, NAME, register=False, trust_remote_code=True, auto_class="AutoModel")
        assert shape == client(actions.load, NAME, auto_class="AutoModel")[0]


def test_offline_once_it_is_cached(shelf, client):
    hub, pushed, expected = shelf
    score = client(actions.classify, NAME, "good film")
    hub.log.clear()
    with start(hub.url, client.home, HF_HUB_OFFLINE="1") as offline:
        assert offline(actions.load, NAME) == offline(actions.load, NAME, revision=pushed) == expected
        assert offline(actions.classify, NAME, "good film") == score
        refused = offline(actions.attempt, actions.push, NAME, token=ALICE)
        assert "Unset HF_HUB_OFFLINE" in refused.error and ALICE not in refused.shown()
    assert not hub.log


def test_by_xet(tmp_path):
    """The weights go to xet storage, and come from there."""
    with Hub({ALICE: "alice"}, xet=tmp_path / "xet") as hub, start(hub.url, tmp_path / "home") as modern:
        hub.fault("POST .*/commit/", 503)
        hub.fault("GET .*/xet-write-token", 503)
        outcome = modern(actions.attempt, actions.push, NAME, token=ALICE)
        assert not outcome.error and ALICE not in outcome.shown()
        commit, _ = hub.repositories[NAME].history()
        assert commit.files["model.safetensors"].xet_hash and not hub.blobs.whole
        assert modern(actions.load, NAME) == modern(actions.logits)
        hub.fault("GET .*/xet-write-token", 403, message="no: {token}")
        refused = modern(actions.attempt, actions.push, NAME, name="injected", token=ALICE)
        assert "Nothing was pushed" in refused.error and ALICE not in refused.shown()
        assert hub.repositories[NAME].history()[0].sha == commit.sha


class TestArguments:
    """Refused before anything is sent."""

    def test_a_model_without_a_config(self):
        with pytest.raises(DendriticError, match="model = 'Linear'.*PreTrainedModel"):
            push_to_hub(nn.Linear(2, 2), NAME)

    def test_a_wrapped_model(self):
        model, _ = build("bert")
        with pytest.raises(DendriticError, match="not a wrapper"):
            push_to_hub(torch.nn.DataParallel(model), NAME)

    def test_an_empty_message(self):
        with pytest.raises(DendriticError, match="commit_message = ''"):
            push_to_hub(build("bert")[0], NAME, commit_message="")
