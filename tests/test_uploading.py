"""Pushing against a Hub that fails: one commit or none, an error that tells which, and no token anywhere.

Every push is real: a client process, HTTP, and a server that refuses, cuts the connection or loses its answer.
"""

import pytest
from hub import actions
from hub.pushing import PUSHED, REPO, STEPS
from hub.repository import Commit, File
from hub.server import ALICE, BOB, CUT, LOST, NONE, READ_ONLY

pytestmark = pytest.mark.slow


@pytest.fixture
def own(hub):
    """The commits of `REPO` that somebody made, newest first."""

    def commits() -> list[Commit]:
        return [commit for commit in hub.repositories[REPO].history() if commit.author != "system"]

    return commits


@pytest.fixture
def push(client, hub):
    """Push, and whatever comes of it, see that the token that was used is in nothing that a user could see."""

    def attempt(token: str = ALICE, repo_id: str = REPO, **options) -> actions.Outcome:
        outcome = client(actions.attempt, actions.push, repo_id, token=token, **options)
        assert token not in outcome.shown()
        return outcome

    return attempt


def requests(hub, step: str) -> int:
    verb, _, path = STEPS[step].partition(" ")
    return sum(1 for record in hub.log if record["request"].startswith(verb) and path.strip(".*") in record["request"])


class TestPassingFailures:
    """Waited for, tried again, and in the end there is one commit with everything."""

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("status", [503, CUT])
    def test_at_every_step(self, hub, own, push, step, status):
        hub.fault(STEPS[step], status)
        outcome = push(revision="dev" if step == "branch" else None)
        assert not outcome.error and hub.faults[0].times == 0
        history = hub.repositories[REPO].history("dev" if step == "branch" else "main")
        assert [commit.sha for commit in history[:-1]] == [outcome.result]
        assert history[0].files.keys() >= PUSHED

    @pytest.mark.parametrize("status", [409, 412, 429, 500, 502, 504])
    def test_statuses_of_a_commit(self, hub, own, push, status):
        hub.fault(STEPS["commit"], status, times=2)
        outcome = push()
        assert [commit.sha for commit in own()] == [outcome.result]
        assert sum(str(status) in line and "trying again" in line for line in outcome.log) == 2

    def test_the_hub_says_how_long_to_wait(self, hub, own, push):
        hub.fault(STEPS["commit"], 429, headers={"Retry-After": "1"})
        assert push().result == own()[0].sha
        first, second = (record["time"] for record in hub.log if "/commit/" in record["request"])
        assert 1 <= second - first < 10

    @pytest.mark.parametrize("step", ["create", "branch", "file", "commit"])
    def test_a_lost_answer_does_nothing_twice(self, hub, own, push, step):
        hub.fault(STEPS[step], LOST)
        revision = "dev" if step == "branch" else "main"
        outcome = push(revision=revision)
        assert not outcome.error and hub.faults[0].times == 0
        assert [commit.sha for commit in hub.repositories[REPO].history(revision)[:-1]] == [outcome.result]
        assert requests(hub, "commit") == 1

    def test_someone_else_commits_meanwhile(self, hub, own, push):
        def other() -> None:
            found = hub.repositories[REPO]
            found.add("main", {**found.at("main").files, "theirs.txt": File(b"!")}, "theirs", "bob")

        hub.fault(STEPS["commit"], NONE, before=other)
        assert not push().error
        assert [commit.author for commit in own()] == ["alice", "bob"]
        assert own()[0].files.keys() >= PUSHED | {"theirs.txt"}


class TestLastingFailures:
    """Refused at once, or given up; the repository is as it was and the error says so."""

    @pytest.mark.parametrize(
        ("token", "owner", "says"),
        [
            ("hf_unknown" + "u" * 20, "alice", ("401", "hf auth login")),
            (READ_ONLY, "alice", ("403", "read-only", "may write there")),
            (BOB, "alice", ("403", "rights", "namespace of your own")),
        ],
        ids=["unknown token", "token that reads", "someone else's namespace"],
    )
    def test_no_right(self, hub, push, token, owner, says):
        outcome = push(token, f"{owner}/new-{token[:6]}")
        assert outcome.error.startswith("PushError: repo_id = ") and "Nothing was pushed" in outcome.error
        assert all(part in outcome.error for part in says)
        assert requests(hub, "create") == 1 and not hub.repositories

    def test_nobody_is_logged_in(self, hub, client):
        outcome = client(actions.attempt, actions.push, REPO)
        assert "401" in outcome.error and "Nothing was pushed. Log in with `hf auth login`" in outcome.error

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
    def test_a_refused_commit_is_not_sent_again(self, hub, own, push, status):
        before = push().result
        hub.fault(STEPS["commit"], status, message="no: {token}")  # a Hub that repeats the token
        outcome = push(name="gpt2")
        assert outcome.error.startswith(f"PushError: repo_id = '{REPO}'") and str(status) in outcome.error
        assert f"Nothing was pushed; {REPO} is as it was, at commit {before}" in outcome.error
        assert "no: ***" in outcome.error and requests(hub, "commit") == 2
        assert [commit.sha for commit in own()] == [before]

    def test_the_hub_stays_away(self, hub, own, push):
        before = push().result
        hub.fault(STEPS["commit"], 503, times=99)
        outcome = push(name="gpt2")
        assert outcome.error.startswith("PushError: endpoint = 'http://") and "repo_id" not in outcome.error
        assert f"the push to {REPO} did not get through: HfHubHTTPError 503" in outcome.error
        assert f"Nothing was pushed; {REPO} is as it was, at commit {before}" in outcome.error
        assert "Push again later" in outcome.error and requests(hub, "commit") == 1 + 6
        hub.faults.clear()
        assert push(name="gpt2").result == own()[0].sha and len(own()) == 2

    def test_nobody_knows(self, hub, own, push):
        """The commit arrived, its answer was lost, and then nothing answers: the error claims neither."""
        hub.fault(STEPS["commit"], LOST, before=lambda: hub.fault(STEPS["info"], CUT, times=99))
        outcome = push()
        assert "Whether the commit arrived is unknown" in outcome.error and len(own()) == 1
        assert outcome.error.startswith("PushError: endpoint = ") and "repo_id" not in outcome.error
        hub.faults.clear()
        assert push().result == own()[0].sha and len(own()) == 1

    def test_a_card_that_the_hub_refuses(self, hub, own, push):
        hub.fault(STEPS["card"], 400)
        outcome = push()
        assert "Invalid metadata in README.md" in outcome.error and "Nothing was pushed" in outcome.error and not own()

    def test_nothing_is_made_public_that_was_to_be_private(self, hub, own, push):
        before = push(private=False).result
        outcome = push(private=True, name="gpt2")
        assert "private = True" in outcome.error and "public" in outcome.error
        assert [commit.sha for commit in own()] == [before]

    @pytest.mark.parametrize("bad", ["a/b/c", "", "alice/-x"])
    def test_a_name_that_is_none(self, hub, push, bad):
        assert push(repo_id=bad).error.startswith("DendriticError: repo_id = ") and not hub.log


def test_what_another_model_left_goes_with_the_same_commit(hub, own, push):
    """Else a loader would find an adapter, or shards of the old weights, beside the new layout."""
    stale = {
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "adapter_config.json",
    }
    kept = {"notes.md", "data/model.safetensors"}
    push()
    hub.repositories[REPO].add("main", {name: File(b"{}") for name in stale | kept}, "other", "bob")
    assert not push().error
    assert own()[0].files.keys() & (stale | kept) == kept and own()[0].files.keys() >= PUSHED


def test_pushing_the_same_again_commits_nothing(own, push):
    assert push().result == push().result and len(own()) == 1


def test_a_name_without_a_user_is_that_of_the_token(hub, push):
    assert not push(repo_id="mine").error
    assert b'from_pretrained("alice/mine")' in hub.repositories["alice/mine"].at("main").files["README.md"].content


OF_ANOTHER = {
    "another type": b'{"model_type": "gpt2", "vocab_size": 50}',
    "another vocabulary": b'{"model_type": "bert", "vocab_size": 51}',
    "of another library": b'{"architecture": "resnet18"}',
    "no config": b"[]",
}


@pytest.mark.parametrize("was", [*OF_ANOTHER, "the same", "only a tokenizer"])
def test_the_leftovers_of_another_model_end_in_the_same_commit(hub, own, push, was):
    push()
    others = {
        "vocab.json",
        "merges.txt",
        "modeling_mine.py",
        "tf_model.h5",
        "generation_config.json",
        "onnx/model.onnx",
    }
    kept = {"notes.txt", "LICENSE", "data/table.csv"}
    files = {name: File(b"{}") for name in others | kept}
    if was != "only a tokenizer":
        files["config.json"] = File(OF_ANOTHER.get(was, b'{"model_type": "bert", "vocab_size": 50, "num_labels": 9}'))
    hub.repositories[REPO].add("main", files, "other", "bob")
    before = len(own())
    push()
    left = own()[0].files.keys() & (others | kept)
    assert left == (kept if was in OF_ANOTHER else others | kept) and len(own()) == before + 1
