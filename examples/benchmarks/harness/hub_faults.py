"""Pushing to a local Hub that refuses, breaks off, loses its answers, repeats the token or answers nonsense.

The Hub is the one of the tests: real requests of huggingface_hub to a server on this machine.
"""

import random
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[3] / "tests"
sys.path.append(str(TESTS))

from hub import actions  # noqa: E402  # pyright: ignore[reportMissingImports]
from hub.client import Client  # noqa: E402  # pyright: ignore[reportMissingImports]
from hub.pushing import PUSHED, REPO  # noqa: E402  # pyright: ignore[reportMissingImports]
from hub.pushing import STEPS as PUSH  # noqa: E402  # pyright: ignore[reportMissingImports]
from hub.server import ALICE, CUT, LOST, Hub  # noqa: E402  # pyright: ignore[reportMissingImports]

from .trials import Tell  # noqa: E402

CONFIG = "(GET|HEAD) /alice/model/resolve/.*config.json"
*EARLIER, COMMIT = PUSH.items()  # in the order of the requests: what a seed draws follows from it
STEPS = dict([("whoami", "GET /api/whoami"), *EARLIER, ("config", CONFIG), COMMIT, ("anything", ".")])
STATUSES = [CUT, LOST, 301, 304, 400, 401, 403, 404, 408, 409, 410, 412, 413, 416, 418, 422, 429]
STATUSES += [500, 501, 502, 503, 504]
NONSENSE: list[Any] = [b"", b"{", b"null", b"\xff\xfe\x00", b"<html>busy</html>", b"[" * 5000, [], {}, 0, "words"]
NONSENSE += [[None], {"id": None}, {"id": 5, "sha": []}, {"sha": None, "siblings": None}, {"siblings": [{}]}]
NONSENSE += [{"siblings": [5]}, {"files": None}, {"files": [{"path": "x"}]}, {"files": [{}]}, {"objects": {}}]
NONSENSE += [{"objects": [{"oid": 1}]}, {"objects": [{"oid": "0" * 64, "size": 1, "actions": {"upload": {}}}]}]
NONSENSE += [{"commitOid": None, "commitUrl": 7}, {"name": None}, {"name": ["alice"]}, {"url": 5}, {"errors": 5}]
NONSENSE += [{"url": "x", "name": "../..", "id": "a/b/c"}, {"errors": [{}], "warnings": None}, {"error": {"a": 1}}]
NONSENSE += [{"success": False}, {"a": "b" * 100_000}]
HEADERS: list[dict[str, str]] = [{"Retry-After": value} for value in ("0", "-1", "soon", "1e9", "0x1", "\u00b2")]
HEADERS += [{"X-Error-Code": "Nonsense"}, {"X-Error-Code": "RepoNotFound"}, {"Location": "/elsewhere"}]


def fault(chance: random.Random, hub: Hub) -> str:
    """Prepare one fault; what it is."""
    step, times = chance.choice(list(STEPS)), chance.choice([1, 1, 1, 2, 3, 99])
    if chance.random() < 0.4:
        status, body = chance.choice([200, 200, 200, 201, 400, 500]), chance.choice(NONSENSE)
        hub.fault(STEPS[step], status, times=times, body=body, headers=chance.choice([None, *HEADERS[:2]]))
        return f"{step}: {status} with {body!r:.40}, {times} times"
    status = chance.choice(STATUSES)
    headers = {key: text.encode().decode("latin-1") for key, text in chance.choice([{}, *HEADERS]).items()}
    hub.fault(STEPS[step], status, times=times, message="no: {token}", headers=headers)
    return f"{step}: {status} {headers}, {times} times"


def push(hub: Hub, client: Client, seed: int, index: int, tell: Tell) -> str:
    """Case number `index`: tells what happens to it, and returns `"pushed"`, `"refused"`, or what is wrong."""
    chance = random.Random(f"hub {seed} {index}")
    hub.reset()
    earlier = chance.random() < 0.4
    if earlier:
        client(actions.attempt, actions.push, REPO, name="gpt2", token=ALICE)
    name = chance.choice(["model", REPO]) if not earlier else REPO
    revision = chance.choice([None, None, "dev"])
    what = "; ".join(fault(chance, hub) for _ in range(chance.choice([1, 1, 2])))
    tell(what.partition(":")[0], what)
    before = commits(hub)
    outcome = client(actions.attempt, actions.push, name, token=ALICE, revision=revision)
    return judge(hub, before, outcome)


def commits(hub: Hub) -> dict[str, list[str]]:
    """Of every repository and branch, the commits that somebody made, newest first."""
    return {
        f"{name}@{branch}": [commit.sha for commit in found.history(branch) if commit.author != "system"]
        for name, found in hub.repositories.items()
        for branch in found.branches
    }


def judge(hub: Hub, before: dict[str, list[str]], outcome: actions.Outcome) -> str:
    if ALICE in outcome.shown():
        return "token: it is shown"
    new = {
        place: [sha for sha in found if not any(sha in known for known in before.values())]
        for place, found in commits(hub).items()
    }
    made = {sha: place for place, found in new.items() for sha in found}
    for sha, place in made.items():
        name, _, branch = place.partition("@")
        newest = hub.repositories[name].history(branch)[0]
        if newest.sha == sha and not newest.files.keys() >= PUSHED:
            return f"half a push: {sorted(PUSHED - newest.files.keys())} is missing"
    if len(made) > 1:
        return f"twice: {len(made)} commits"
    if outcome.error:
        if not outcome.error.startswith(("PushError: ", "DendriticError: ")):
            return f"other error: {outcome.error[:200]}"
        denied = made and "Nothing was pushed" in outcome.error
        return "contradiction: it says that nothing was pushed" if denied else "refused"
    return "pushed" if made else "nothing: no error, and no commit"
