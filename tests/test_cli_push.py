"""`optimum-cli dendritic push`: from a folder to the Hub, and every mistake in a sentence."""

import json

import pytest
from hub import actions, commands
from hub.server import ALICE, READ_ONLY

pytestmark = pytest.mark.slow

REPO = "alice/from-the-shell"


@pytest.fixture(scope="module")
def folder(client, tmp_path_factory):
    """A packed model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    client(commands.save, path)
    return path


@pytest.fixture
def cli(client):
    """Run `optimum-cli dendritic push` in the client, logged in as Alice: arguments -> (exit code, output, errors)."""

    def run(*arguments: object, token: str | None = ALICE) -> tuple[int, str, str]:
        code, output, errors = client(commands.run, ["dendritic", "push", *map(str, arguments)], token)
        assert not token or token not in output + errors
        return code, output, errors

    return run


def test_it_pushes_the_folder(cli, client, hub, folder, tmp_path):
    options = ["--private", "--revision", "v1", "--message", "first", "--remote-code", "--json", tmp_path / "out.json"]
    code, output, errors = cli(folder, REPO, *options)
    repository = hub.repositories[REPO]
    commit, initial = repository.history("v1")
    assert (code, initial.author, commit.title, repository.private) == (0, "system", "first", True), errors
    assert output == f"Pushed {folder}, with its TokenizersBackend: {hub.url}/{REPO}/commit/{commit.sha}\n"
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["commit"] == commit.sha and told["repo_id"] == REPO and told["url"].endswith(commit.sha)
    assert b"auto_map" in commit.files["config.json"].content and "tokenizer.json" in commit.files
    assert client(actions.load, REPO, revision="v1", token=ALICE) == client(actions.logits)


def test_mistakes_are_told(cli, hub, folder, tmp_path):
    for arguments, says in [
        ((tmp_path / "nowhere", REPO), "MODEL = "),
        ((folder, "bob/model"), "403"),
        ((folder, "not/a/name"), "repo_id = 'not/a/name'"),
        ((folder, REPO, "--json", tmp_path / "nowhere" / "out.json"), "Create the folder first"),
    ]:
        code, output, errors = cli(*arguments)
        assert code == 1 and not output and says in errors and "Traceback" not in errors
    assert not hub.repositories


def test_the_hub_is_asked_before_anything_is_loaded_or_measured(cli, hub, folder, tmp_path):
    for token, says in [(None, "token = None: nobody is logged in"), (READ_ONLY, "the token of alice may only read")]:
        code, _, errors = cli(tmp_path, REPO, token=token)  # a folder without a model, which nobody has looked into
        assert code == 1 and says in errors and "Nothing was pushed" in errors and "MODEL" not in errors
    assert [record["request"] for record in hub.log] == ["GET /api/whoami-v2"] and not hub.repositories
    code, _, errors = cli(folder, REPO, "--no-measure")
    files = hub.repositories[REPO].history()[0].files
    assert code == 0 and not json.loads(files["efficiency.json"].content).get("efficiency"), errors
