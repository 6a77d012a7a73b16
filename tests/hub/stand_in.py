"""A Hugging Face Hub of its own on 127.0.0.1: what the client `huggingface_hub` asks for when it looks names up and
downloads, answered as huggingface.co does, from repositories that a test makes out of folders or texts.

    with StandIn() as hub:
        hub.commit("org/name", {"config.json": "{}"})
        subprocess.run(..., env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": ..., "HF_HUB_OFFLINE": "0"})
"""

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)(?:/revision/([^/]+))?")
WRITE = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)")
TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit -> every file of it, by its path."""
    refs: dict[str, str] = field(default_factory=dict)
    """Branch or tag -> commit."""
    is_gated: bool = False
    """Everybody may see what is there, and who has been granted access may read it."""
    is_private: bool = False
    """To others than its readers it is not there."""
    readers: set[str] = field(default_factory=set)
    """Tokens that may read a gated or private one."""

    def at(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


class StandIn:
    """The hub, at `url` while its `with` block lasts."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        """("models" or "datasets", org/name) -> repository."""
        self.asked: list[str] = []
        """Every request, as `GET /api/models/org/name`."""
        self.cuts: dict[str, int] = {}
        """File -> bytes after which the connection breaks when it is read next; broken once."""
        self.failing: dict[str, int] = {}
        """File -> status that every request for it is answered with."""
        self.tokens: set[str] = set()
        """Those of known users, whatever they may read."""
        self.messages: list[str] = []
        """Of the commits that came over the network."""
        self.writers: dict[str, list[str]] = {}
        """Token -> the users and organizations in whose name it may write, its own user first."""
        self.status: int | None = None
        """What every request is answered with while it is set, as of a hub that is down."""
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StandIn":
        Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos.setdefault((kind, name), Repo())

    def commit(
        self, name: str, files: Path | Mapping[str, str | bytes], kind: str = "models", *, branch: str = "main"
    ) -> str:
        """Put files, by name or of a folder, over those of the branch; a repository that is not there is made.

        Returns:
            The commit.
        """
        if isinstance(files, Path):
            found = {
                file.relative_to(files).as_posix(): file.read_bytes() for file in files.rglob("*") if file.is_file()
            }
        else:
            found = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        repo = self.repo(name, kind)
        parent = repo.refs.get(branch, repo.refs.get("main", ""))
        whole = {**repo.commits.get(parent, {}), **found}
        made = sha1(repr((parent, sorted((path, blob(content)) for path, content in whole.items()))).encode())
        repo.commits[made.hexdigest()] = whole
        repo.refs[branch] = made.hexdigest()
        return made.hexdigest()

    def times_asked(self, begin: str) -> int:
        return sum(request.startswith(begin) for request in self.asked)


def blob(content: bytes) -> str:
    """The name that git gives a file's bytes."""
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Who makes a repository or a branch of one, or commits to it."""
        path = urlsplit(self.path).path
        self.stand_in.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        match = WRITE.fullmatch(path)
        if self.stand_in.status is not None:
            self._refuse(self.stand_in.status, "", "the hub is down")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif token not in self.stand_in.tokens:
            self._refuse(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self._create(asked, asked.get("organization") or (self.stand_in.writers.get(token) or [""])[0], token)
        elif match is None:
            self._refuse(404, "", "no such page")
        elif match[1].partition("/")[0] not in self.stand_in.writers.get(token, []):
            self._refuse(403, "", "Forbidden: you must use a write token")
        else:
            self._write(match[1], match[2], unquote(match[3]), body)

    def _create(self, asked: dict[str, Any], owner: str, token: str) -> None:
        name = f"{owner}/{asked['name']}"
        if owner not in self.stand_in.writers.get(token, []):
            self._refuse(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        elif ("models", name) in self.stand_in.repos:
            self._refuse(409, "", "You already created this model repo", url=f"{self.stand_in.url}/{name}")
        else:
            self.stand_in.commit(name, {".gitattributes": ""})
            self.stand_in.repo(name).is_private = asked.get("private") or asked.get("visibility") == "private"
            self.stand_in.repo(name).readers.add(token)
            self._json({"url": f"{self.stand_in.url}/{name}", "name": name, "id": name})

    def _write(self, name: str, what: str, branch: str, body: bytes) -> None:
        repo = self.stand_in.repo(name)
        if what == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif what == "branch":
            repo.refs.setdefault(branch, repo.refs["main"])
            self._json({})
        elif repo.at(branch) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        else:
            lines = [json.loads(line) for line in body.splitlines() if line]
            files = {
                line["value"]["path"]: b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
            }
            self.stand_in.messages.append(lines[0]["value"]["summary"])
            oid = self.stand_in.commit(name, files, branch=branch)
            url = f"{self.stand_in.url}/{name}/commit/{oid}"
            self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.stand_in.asked.append(f"{self.command} {path}")
        if self.stand_in.status is not None:
            self._refuse(self.stand_in.status, "", "the hub is down")
        elif match := TREE.fullmatch(path):
            kind, name, revision = match.groups()
            self._with_commit(kind, name, revision, self._tree)
        elif match := INFO.fullmatch(path):
            kind, name, revision = match.groups()
            self._with_commit(kind, name, revision or "main", self._info)
        elif match := RESOLVE.fullmatch(path):
            kind, name, revision, file = match.groups()
            self._with_commit("datasets" if kind else "models", name, revision, self._file, unquote(file))
        else:
            self._refuse(404, "", "no such page")

    def _with_commit(self, kind: str, name: str, revision: str, answer: Any, *more: str) -> None:
        """Answer out of the repository at the revision, where there is such a thing and it may be seen."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repo = self.stand_in.repos.get((kind, name))
        if token and token not in self.stand_in.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.is_private and token not in repo.readers):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif (commit := repo.at(unquote(revision))) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif more and repo.is_gated and token not in repo.readers:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
        else:
            answer(repo, name, commit, *more)

    def _info(self, repo: Repo, name: str, commit: str) -> None:
        siblings = [
            {"rfilename": path, "size": len(content), "blobId": blob(content)}
            for path, content in sorted(repo.commits[commit].items())
        ]
        gated = "manual" if repo.is_gated else False
        self._json({"id": name, "sha": commit, "private": repo.is_private, "gated": gated, "siblings": siblings})

    def _tree(self, repo: Repo, name: str, commit: str) -> None:
        self._json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
                for path, content in sorted(repo.commits[commit].items())
            ]
        )

    def _file(self, repo: Repo, name: str, commit: str, path: str) -> None:
        content = repo.commits[commit].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", commit)
            return
        if path in self.stand_in.failing:
            self._refuse(self.stand_in.failing[path], "", "try again later")
            return
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{blob(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if begin:
            self.stand_in.asked[-1] += f" from {first}"
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.stand_in.cuts.pop(path, None)
        self.wfile.write(content[first:] if cut is None else content[first : first + cut])
        if cut is not None:
            self.close_connection = True

    def _json(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _refuse(self, status: int, code: str, message: str, commit: str | None = None, **more: str) -> None:
        text = json.dumps({"error": message, **more}).encode()
        self.send_response(status)
        self.send_header("X-Error-Message", message)
        if code:
            self.send_header("X-Error-Code", code)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
