"""A Trainer's pushes: packed at the end, loadable at every commit, with our card, and never with the token."""

import pytest
from hub import actions, training
from hub.server import ALICE, LOST

pytestmark = pytest.mark.slow

REPO = "alice/trained"


@pytest.fixture
def train(client, hub):
    """Train and push, and see that the token is in nothing that a user or a reader of the repository could see."""

    def attempt(**arguments) -> actions.Outcome:
        outcome = client(actions.attempt, training.train_and_push, REPO, hub_token=ALICE, **arguments)
        assert ALICE not in outcome.shown()
        repository = hub.repositories[REPO]
        contents = [file.content for commit in repository.commits.values() for file in commit.files.values()]
        assert not [content for content in [*contents, *hub.blobs.whole.values()] if ALICE.encode() in content]
        return outcome

    return attempt


def ours(hub) -> list[str]:
    """The commits with a model, newest first."""
    return [commit.sha for commit in hub.repositories[REPO].history() if "config.json" in commit.files]


def test_one_call_after_training(hub, train, client):
    outcome = train(push={"license": "mit", "tags": "tiny", "dataset": "glue", "commit_message": "done"})
    commit, initial = hub.repositories[REPO].history()
    assert outcome.result[0] == commit.sha
    assert commit.title == "done" and initial.author == "system"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} < commit.files.keys()
    assert client(actions.load, REPO) == outcome.result[1]
    assert client(training.forms, REPO, [commit.sha]) == ["packed"]
    card = commit.files["README.md"].content.decode()
    assert "import optimum.dendritic" in card and "Model description" not in card, "ours, and not the Trainer's"
    for known in ("license: mit", "- tiny", "- generated_from_trainer", "- dendritic", f'from_pretrained("{REPO}")'):
        assert known in card
    arguments = hub.blobs.whole[str(commit.files["training_args.bin"].sha256)]
    assert client(training.reload_arguments, arguments) is None


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_commit_of_every_strategy_loads(hub, train, client, strategy):
    outcome = train(push_to_hub=True, hub_strategy=strategy)
    assert not outcome.error
    last, *earlier = ours(hub)
    assert last == outcome.result[0] and client(actions.load, REPO) == outcome.result[1]
    assert client(training.forms, REPO, [last, *earlier]) == ["packed"] + ["injected"] * len(earlier)
    assert len(earlier) == {"end": 0, "every_save": 3}.get(strategy, 6)
    for sha in earlier:
        assert b"import optimum.dendritic" in hub.repositories[REPO].at(sha).files["README.md"].content
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-6"]}
    for folder in folders.get(strategy, []):
        assert client(training.forms, REPO, [last], folder) == ["injected"]


def test_a_push_that_fails_in_mid_training_is_told(hub, train):
    hub.fault("POST .*/commit/", 503, message="busy: {token}")
    outcome = train(push_to_hub=True, hub_strategy="every_save")
    assert not outcome.error and len(ours(hub)) == 3
    told = [line for line in outcome.log if "a push in mid-training failed, and training goes on" in line]
    assert len(told) == 1 and "503" in told[0] and "busy: ***" in told[0]


@pytest.mark.parametrize("fault", [503, LOST])
def test_the_last_push_is_tried_again(hub, train, fault):
    hub.fault("POST .*/commit/", fault)
    outcome = train()
    assert not outcome.error and ours(hub) == [outcome.result[0]]


def test_the_last_push_is_refused(hub, train):
    hub.fault("POST .*/commit/", 403, message="no: {token}")
    outcome = train()
    assert outcome.error.startswith(f"PushError: repo_id = '{REPO}': HfHubHTTPError 403") and not ours(hub)
    assert "the model is in /" in outcome.error and "may write there" in outcome.error
