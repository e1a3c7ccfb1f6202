"""A local Hub: the HTTP routes of huggingface.co that its client uses for models, on 127.0.0.1, without git.

with Hub(tokens={"hf_alice": "alice"}) as hub:  # HF_ENDPOINT=hub.url in a client process
    hub.fault("/commit/", status=503)           # the next commit is refused
    hub.log, hub.repositories["alice/model"].history()

Clients are other processes: huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET when it is imported.
Large files are served from a second port: the client follows a redirect to the same one and then loses their headers.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hub.cards import faults_of_card
from hub.commits import commit
from hub.repository import Refused, Repository
from hub.storage import Blobs

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+))?(?:/(.+))?)?$")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
LFS_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
LFS_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})(/complete|/verify)?$")
ALICE, BOB, READ_ONLY = "hf_" + "a" * 34, "hf_" + "b" * 34, "hf_" + "r" * 34  # tokens
CUT, LOST, NONE = 0, -1, -2
WRITING = {"preupload", "commit", "branch", "xet-write-token"}


class Cut(Exception):
    """The connection ends here, without an answer."""


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD path" matches.

    `status` answers so instead of acting; CUT ends the connection before acting, LOST after acting, and with NONE only
    `before` happens. A `body` is sent with the status instead of the usual words.
    """

    match: str
    status: int
    times: int = 1
    message: str = "injected fault"  # {token} echoes the one that was sent
    headers: dict[str, str] | None = None
    before: Callable[[], Any] | None = None
    body: Any = None


class Hub:
    """The server.

    Args:
        tokens: each token's user.
        read_only: the tokens that cannot write.
        xet: the folder for xet storage; without it large files come by LFS.
        part_bytes: longer files come in parts.
    """

    def __init__(
        self, tokens: dict[str, str], read_only: tuple[str, ...] = (), xet: Path | None = None, part_bytes: int = 2**30
    ) -> None:
        self.tokens, self.read_only, self.xet, self.part_bytes = tokens, read_only, xet, part_bytes
        self.reset()
        self.lock = threading.RLock()
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.large_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> Self:
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def reset(self) -> None:
        """Forget everything but the users."""
        self.repositories: dict[str, Repository] = {}
        self.blobs, self.faults, self.log = Blobs(), list[Fault](), list[dict[str, Any]]()

    def fault(self, match: str, status: int, **fields: Any) -> Fault:
        """Let requests fail; see `Fault`."""
        self.faults.append(Fault(match, status, **fields))
        return self.faults[-1]

    def due(self, request: str) -> Fault | None:
        """The fault that a request meets, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Silent; requests are in `Hub.log`."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.route_path, self.query = url.path, {key: values[0] for key, values in parse_qs(url.query).items()}
        self.raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.muted = False
        request = f"{self.command} {self.path}"
        self.record = {"request": request, "time": time.time(), "status": None}
        self.hub.log.append(self.record)
        fault = self.hub.due(request)
        try:
            self.act(fault)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message.replace("\n", " ")[:500]}
            if refused.code is not None:
                headers["X-Error-Code"] = refused.code
            if fault is not None:
                headers |= fault.headers or {}
            self.send(refused.status, refused.body or {"error": refused.message}, headers)
        except Cut:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def act(self, fault: Fault | None) -> None:
        status = NONE if fault is None else fault.status
        if fault is not None and fault.before is not None:
            fault.before()
        if status == CUT:
            raise Cut
        if fault is not None and fault.body is not None:
            return self.send(status, fault.body, fault.headers)
        if fault is not None and status > 0:
            raise Refused(status, fault.message.format(token=self.token()))
        self.muted = status == LOST
        with self.hub.lock:
            self.route()
        if self.muted:
            raise Cut

    def send(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        self.record["status"] = status
        if self.muted and status < 300:
            return
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def json(self) -> Any:
        return json.loads(self.raw or b"{}")

    # who asks

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip()

    def user(self, write: bool = False) -> str | None:
        token = self.token()
        if not token and not write:
            return None
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid username or password.")
        if write and token in self.hub.read_only:
            raise Refused(403, "You don't have the rights to write with this token: it is read-only")
        return self.hub.tokens[token]

    def repository(self, name: str, write: bool = False) -> Repository:
        user, found = self.user(write), self.hub.repositories.get(name)
        mine = name.split("/")[0] == user
        if found is None or (found.private and not mine):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not mine:
            raise Refused(403, f"You don't have write access to {name}")
        return found

    # what is asked

    def route(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        path = self.route_path
        if path == "/api/whoami-v2":
            user = self.user(write=not self.token())
            role = "read" if self.token() in self.hub.read_only else "write"
            auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
            return self.send(200, {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})
        if path == "/api/agent-harnesses":
            return self.send(200, {"standardEnvVars": [], "harnesses": {}})
        if path == "/api/repos/create" and method == "POST":
            return self.create()
        if path == "/api/validate-yaml" and method == "POST":
            errors = [{"message": message} for message in faults_of_card(self.json["content"])]
            return self.send(400 if errors else 200, {"errors": errors, "warnings": []})
        if match := LFS_BATCH.match(path):
            self.repository(match[1], write=True)
            return self.lfs_batch()
        if match := LFS_OBJECT.match(path):
            return self.lfs_object(match[1], match[2])
        if match := RESOLVE.match(path):
            return self.resolve(self.repository(match[1]), unquote(match[2]), unquote(match[3]))
        if match := MODEL.match(path):
            name, verb, argument, rest = match.groups()
            write = verb in WRITING
            return self.model(self.repository(name, write), verb, unquote(argument or "main"), unquote(rest or ""))
        raise Refused(404, f"no route {self.command} {path}")

    def create(self) -> None:
        user, wanted = self.user(write=True), self.json
        if (wanted.get("organization") or user) != user:
            raise Refused(403, f"You don't have the rights to create a model under {wanted['organization']}")
        name = f"{user}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            raise Refused(409, "You already created this model repo", body={"error": "it exists", **answer})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[name] = Repository(name, private)
        self.send(200, answer)

    def model(self, repository: Repository, verb: str | None, revision: str, rest: str) -> None:
        if verb in (None, "revision"):
            return self.send(200, repository.describe(revision))
        if verb == "commits":
            return self.send(200, [commit.describe() for commit in repository.history(revision)])
        if verb == "tree":
            return self.send(200, repository.tree(revision, rest))
        if verb == "preupload":
            files = repository.preupload(revision, self.json["files"])
            return self.send(200, {"files": files, "commitOid": repository.at(revision).sha})
        if verb == "commit":
            lines = [json.loads(line) for line in self.raw.splitlines() if line.strip()]
            new = commit(repository, revision, lines, self.user() or "", self.hub.blobs, self.hub.xet)
            url = f"{self.hub.url}/{repository.id}/commit/{new.sha}"
            return self.send(200, {"success": True, "commitOid": new.sha, "commitUrl": url})
        if verb == "branch":
            if revision in repository.branches:
                raise Refused(409, f"Reference already exists: {revision}")
            repository.branches[revision] = repository.at(self.json.get("startingPoint", "main")).sha
            return self.send(200, {})
        if verb in ("xet-write-token", "xet-read-token") and self.hub.xet is not None:
            token = {"casUrl": f"local://{self.hub.xet}", "accessToken": "x", "exp": int(time.time()) + 3600}
            headers = {"X-Xet-Cas-Url": token["casUrl"], "X-Xet-Access-Token": "x"}
            return self.send(200, token, headers | {"X-Xet-Token-Expiration": str(token["exp"])})
        raise Refused(404, f"no route {verb}")

    # large files

    def lfs_batch(self) -> None:
        objects = []
        for wanted in self.json["objects"]:
            href, size = f"{self.hub.large_url}/lfs/{wanted['oid']}", wanted["size"]
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": size, "authenticated": True}
            if wanted["oid"] not in self.hub.blobs.whole:
                upload: dict[str, Any] = {"href": href}
                if size > self.hub.part_bytes and "multipart" in self.json["transfers"]:
                    parts = range(1, -(-size // self.hub.part_bytes) + 1)
                    links = {f"{number:05d}": f"{href}?part={number}" for number in parts}
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": str(self.hub.part_bytes), **links}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify", "header": {}}}
            objects.append(answer)
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_object(self, sha256: str, action: str | None) -> None:
        blobs = self.hub.blobs
        if self.command == "PUT" and "part" in self.query:
            blobs.put_part(sha256, int(self.query["part"]), self.raw)
            return self.send(200, headers={"ETag": f'"{self.query["part"]}"'})
        if self.command == "PUT":
            blobs.put(sha256, self.raw)
            return self.send(200)
        if action == "/complete":
            blobs.complete(sha256)
            return self.send(200, {})
        if sha256 not in blobs.whole:
            raise Refused(404, "no such object")
        self.send(200, {} if action == "/verify" else blobs.whole[sha256], {"ETag": f'"{sha256}"'})

    def resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.at(revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.sha256 or file.oid}"'}
        if file.sha256 is None:
            return self.send(200, file.content, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.lfs_size)}
        headers["Location"] = f"{self.hub.large_url}/lfs/{file.sha256}"
        if file.xet_hash is not None:
            route = f"{self.hub.url}/api/models/{repository.id}/xet-read-token/{commit.sha}"
            headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": route}
        self.send(302, headers=headers)
