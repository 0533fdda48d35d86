"""A Hugging Face hub on this machine: those of its endpoints that are needed, in memory, for its real clients.

What a request and an answer look like was read off huggingface_hub 2.4 and datasets 5.2; the hub itself was not asked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_of_the_test"
# Larger files go through LFS, as the binary files of a store do on the hub.
LFS_NBYTES = 2000


@dataclass
class Repo:
    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict[str, str])
    commits: dict[str, Files] = field(default_factory=dict[str, Files])
    messages: list[str] = field(default_factory=list[str])

    def commit(self, branch: str, files: Files, message: str) -> str:
        sha = hashlib.sha1(repr((len(self.commits), message)).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.branches.get(revision, revision)]


class Hub:
    """A server and what it holds; `fail` says what is answered instead, by the start of method and path."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: dict[str, tuple[int, dict[str, str]]] = {}
        self.ignored: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, content = hub.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def publish(self, name: str, files: Files, *, branch: str = "main", message: str = "") -> str:
        """Commit files to a public dataset, beside those that are there; returns the commit."""
        repo = self.repos.setdefault(("dataset", name), Repo(private=False))
        there = repo.files(branch) if branch in repo.branches else {}
        return repo.commit(branch, {**there, **files}, message)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def listing(self, files: Files) -> list[dict[str, Any]]:
        return [_entry(path, content) for path, content in files.items()]

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts, query = urlsplit(path), parse_qs(urlsplit(path).query)
        line = f"{method} {unquote(parts.path)}"
        self.requests.append(line)
        for start, (status, extra) in self.fail.items():
            if line.startswith(start):
                return status, extra, b'{"error": "made to fail"}'
        self._signed_in = headers.get("authorization", headers.get("Authorization")) == f"Bearer {TOKEN}"
        names = [unquote(part) for part in parts.path.strip("/").split("/")]
        try:
            return self._route(method, names, query, body)
        except LookupError as missing:
            code, *commit = missing.args
            found = {"X-Repo-Commit": commit[0]} if commit else {}
            return 404, {"X-Error-Code": str(code), **found}, b'{"error": "not found"}'
        except PermissionError as refused:
            status, *code = refused.args
            return status, {"X-Error-Code": code[0]} if code else {}, b'{"error": "not allowed"}'

    def _route(
        self, method: str, names: list[str], query: dict[str, Any], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        match method, names:
            case "GET", ["api", "agent-harnesses"]:
                # What programs there are that write code.
                raise LookupError("EntryNotFound")
            case "POST", ["api", "validate-yaml"]:
                return _json({"errors": [], "warnings": []})
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case "PUT", ["lfs", oid]:
                self.blobs[oid] = body
                return _json({})
            case "GET", ["api", kind, owner, name]:
                return self._info(kind, f"{owner}/{name}", "main")
            case "GET", ["api", kind, owner, name, "revision", revision]:
                return self._info(kind, f"{owner}/{name}", revision)
            case "GET", ["api", kind, owner, name, "tree", revision, *path]:
                files = self._files(kind, f"{owner}/{name}", revision)
                return self._tree(files, "/".join(path), recursive=query.get("recursive", [""])[0].lower() == "true")
            case "POST", ["api", kind, owner, name, "branch", branch]:
                repo = self._writable(kind, f"{owner}/{name}")
                if branch in repo.branches:
                    return 409, {}, b'{"error": "Reference already exists"}'
                repo.branches[branch] = repo.branches["main"]
                return _json({})
            case "POST", ["api", kind, owner, name, "preupload", revision]:
                files = self._files(kind, f"{owner}/{name}", revision)
                return _json({"files": [self._upload_mode(one, files) for one in json.loads(body)["files"]]})
            case "POST", ["api", kind, owner, name, "commit", revision]:
                return self._commit(self._writable(kind, f"{owner}/{name}"), revision, body)
            case "POST", [*_, "info", "lfs", "objects", "batch"]:
                wanted = json.loads(body)["objects"]
                uploads = [{**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in wanted]
                return _json({"transfer": "basic", "objects": uploads})
            case _, ["datasets", owner, name, "resolve", revision, *path]:
                return self._file("datasets", f"{owner}/{name}", revision, "/".join(path))
            case _, [owner, name, "resolve", revision, *path]:
                return self._file("models", f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise AssertionError(f"the test's hub does not know {method} {names}")

    def _create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if not self._signed_in:
            raise PermissionError(401)
        key = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"}
        if key in self.repos:
            return 409, {}, json.dumps({**url, "error": "You already created this repo"}).encode()
        self.repos[key] = Repo(private=wanted["visibility"] == "private")
        self.repos[key].commit("main", {".gitattributes": b"*.zarr filter=lfs\n"}, "initial commit")
        return _json(url)

    def _readable(self, kind: str, name: str) -> Repo:
        repo = self.repos.get((kind.removesuffix("s"), name))
        if repo is None or (repo.private and not self._signed_in):
            raise LookupError("RepoNotFound")
        if repo.gated and not self._signed_in:
            raise PermissionError(401, "GatedRepo")
        return repo

    def _writable(self, kind: str, name: str) -> Repo:
        repo = self._readable(kind, name)
        if not self._signed_in:
            raise PermissionError(403)
        return repo

    def _files(self, kind: str, name: str, revision: str) -> Files:
        repo = self._readable(kind, name)
        if repo.branches.get(revision, revision) not in repo.commits:
            raise LookupError("RevisionNotFound")
        return repo.files(revision)

    def _info(self, kind: str, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        files, repo = self._files(kind, name, revision), self._readable(kind, name)
        sha = repo.branches.get(revision, revision)
        siblings = [{"rfilename": path} for path in files]
        return _json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})

    def _tree(self, files: Files, folder: str, *, recursive: bool) -> tuple[int, dict[str, str], bytes]:
        """What is in a folder, and with `recursive` in those below it."""
        start = f"{folder}/" if folder else ""
        below = {path: content for path, content in files.items() if path.startswith(start)}
        if folder and not below:
            raise LookupError("EntryNotFound")
        folders = {path[:end] for path in below for end, mark in enumerate(path) if mark == "/" and end >= len(start)}
        listed = [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders)]
        entries = [*listed, *self.listing(below)]
        return _json([one for one in entries if recursive or "/" not in one["path"][len(start) :]])

    def _upload_mode(self, file: dict[str, Any], files: Files) -> dict[str, Any]:
        mode = "lfs" if file["size"] > LFS_NBYTES else "regular"
        there = _entry(file["path"], files[file["path"]]) if file["path"] in files else {}
        oid = there.get("lfs", there).get("oid")
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in self.ignored, "oid": oid}

    def _commit(self, repo: Repo, revision: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        files, message = dict(repo.files(revision)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repo.commit(revision, files, message)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/o/r/commit/{sha}"})

    def _file(self, kind: str, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        files = self._files(kind, name, revision)
        sha = self._readable(kind, name).branches.get(revision, revision)
        if path not in files:
            raise LookupError("EntryNotFound", sha)
        etag = _entry(path, files[path]).get("lfs", {}).get("oid") or _entry(path, files[path])["oid"]
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": sha}, files[path]


def parquet(rows: Any) -> bytes:
    """A DataFrame as a file."""
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it: the hash of what git holds, and of the content where that is elsewhere."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
    if len(content) > LFS_NBYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        content = sha256.encode()
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
