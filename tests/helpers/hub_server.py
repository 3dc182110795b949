"""
A stand-in for the Hub on loopback that accepts uploads.

It implements the calls of `huggingface_hub` and npm's `@huggingface/hub` in their LFS mode, with branches, tags,
private repositories and commits. Its state is stored in a folder, so it survives a kill.

    python hub_server.py FOLDER [--port 0] [--die-after FILES] [--part-size BYTES]

prints the address. `--die-after` ends the process, like a kill, when one more than FILES files have arrived.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "StandInForTests" * 3
USER = "me"
LARGE = (".safetensors", ".gz", ".parquet", ".bin")  # stored outside git at any size
PIECE = 1 << 16


class Refusal(Exception):
    """An HTTP error: status, message, and the Hub's error code."""

    def __init__(self, status: int, message: str, code: str = "", **body):
        self.status, self.message, self.code, self.body = status, message, code, body


class Store:
    """Repositories, commits and file contents, written to disk after every change."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.RLock()
        (root / "contents").mkdir(parents=True, exist_ok=True)
        self.file = root / "repos.json"
        self.repos = json.loads(self.file.read_text()) if self.file.exists() else {}

    def save(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.repos))
        os.replace(partial, self.file)

    def content(self, name: str) -> Path:
        return self.root / "contents" / name

    def keep(self, data: bytes) -> dict:
        """Stores a small file under its git object id."""
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.content(oid).write_bytes(data)
        return {"oid": oid, "size": len(data), "lfs": None}

    def create(self, key: str, private: bool) -> None:
        self.repos[key] = {"private": private, "refs": {}, "commits": {}}
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        self.commit(key, "heads/main", "initial commit", {".gitattributes": self.keep(rules.encode())})

    def commit(self, key: str, ref: str, title: str, files: dict) -> str:
        repo = self.repos[key]
        parent = repo["refs"].get(ref)
        oid = hashlib.sha1(json.dumps([key, parent, title, files, len(repo["commits"])]).encode()).hexdigest()
        repo["commits"][oid] = {"parent": parent, "title": title, "files": files}
        repo["refs"][ref] = oid
        self.save()
        return oid

    def find(self, key: str, revision: str) -> str:
        """Returns the commit id of a branch, a tag or a commit id."""
        repo = self.repos[key]
        revision = "main" if revision == "HEAD" else revision
        for ref in (f"heads/{revision}", f"tags/{revision}"):
            if ref in repo["refs"]:
                return repo["refs"][ref]
        if revision in repo["commits"]:
            return revision
        raise Refusal(404, f"no revision {revision}", "RevisionNotFound")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "HubServer"
    headers: Message

    def log_message(self, *args) -> None:
        """Silences the default log; `handle_any` writes requests.log, which the tests read."""

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.query, path = parse_qs(address.query), unquote(address.path)
        raw = address.path
        try:
            for method, pattern, action in ROUTES:
                if method in (self.command, "ANY") and (match := re.fullmatch(pattern, raw)):
                    with self.server.log_lock, open(self.server.store.root / "requests.log", "a") as log:
                        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                        log.write(f"{self.command} {path} {'token' if known else '-'}\n")
                    return action(self, *(unquote(group) if group else group for group in match.groups()))
            raise Refusal(404, f"no such address: {path}")
        except Refusal as refusal:
            self.read()
            self.answer(
                {"error": refusal.message, **refusal.body},
                refusal.status,
                {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message},
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    # Requests and responses

    def pieces(self):
        """Yields the body in pieces as they arrive."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            del self.headers["Transfer-Encoding"]  # a body is read once
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            remaining = int(self.headers.get("Content-Length") or 0)
            del self.headers["Content-Length"]
            while remaining and (piece := self.rfile.read(min(remaining, PIECE))):
                remaining -= len(piece)
                yield piece

    def read(self) -> bytes:
        return b"".join(self.pieces())

    def json(self) -> dict:
        body = self.read()
        if "form-urlencoded" in (self.headers.get("Content-Type") or ""):
            return parse_qs(body.decode())
        return json.loads(body or b"{}")

    def answer(self, body, status: int = 200, headers: dict | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            if value:
                self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def must_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid username or password.")

    def repo(self, kind: str | None, name: str) -> str:
        """Returns the repository's key; without a token a private repository does not exist."""
        key = f"{(kind or 'models').rstrip('/')}/{name}"
        repo = self.server.store.repos.get(key)
        if repo is None or (repo["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Refusal(401 if repo else 404, "Repository not found", "RepoNotFound")
        return key

    # Users and repositories

    def whoami(self) -> None:
        self.must_write()
        self.answer({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate(self) -> None:
        problems = complaints(self.json()["content"])
        self.answer(
            {"errors": [{"message": problem} for problem in problems], "warnings": []}, 400 if problems else 200
        )

    def create(self) -> None:
        self.must_write()
        request, store = self.json(), self.server.store
        kind = request.get("type") or "model"
        name = f"{request.get('organization') or USER}/{request['name']}"
        url = f"{self.server.address}/{'' if kind == 'model' else kind + 's/'}{name}"
        with store.lock:
            if f"{kind}s/{name}" in store.repos:
                raise Refusal(409, "You already created this repo", url=url)
            private = request.get("private") or request.get("visibility") == "private"
            store.create(f"{kind}s/{name}", bool(private))
        self.answer({"url": url, "name": name, "id": name})

    def delete(self) -> None:
        self.must_write()
        request = self.json()
        owner = request.get("organization") or USER
        key = self.repo((request.get("type") or "model") + "s", f"{owner}/{request['name']}")
        with self.server.store.lock:
            del self.server.store.repos[key]
            self.server.store.save()
        self.answer({})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        key = self.repo(kind, name)
        oid = self.server.store.find(key, revision or "main")
        repo = self.server.store.repos[key]
        files = repo["commits"][oid]["files"]
        self.answer(
            {
                "_id": hashlib.sha1(key.encode()).hexdigest()[:24],
                "id": name,
                "modelId": name,
                "sha": oid,
                "private": repo["private"],
                "siblings": [{"rfilename": path} for path in sorted(files)],
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "gated": False,
                "disabled": False,
            }
        )

    def refs(self, kind: str, name: str) -> None:
        refs = self.server.store.repos[self.repo(kind, name)]["refs"]

        def listed(prefix: str) -> list[dict]:
            return [
                {"name": ref.split("/", 1)[1], "ref": f"refs/{ref}", "targetCommit": oid}
                for ref, oid in refs.items()
                if ref.startswith(prefix)
            ]

        self.answer({"branches": listed("heads/"), "tags": listed("tags/"), "converts": [], "pullRequests": []})

    def branch(self, kind: str, name: str, branch: str) -> None:
        self.point(self.repo(kind, name), f"heads/{branch}", self.json().get("startingPoint", "main"))

    def tag(self, kind: str, name: str, revision: str) -> None:
        self.point(self.repo(kind, name), f"tags/{self.json()['tag']}", revision)

    def point(self, key: str, ref: str, revision: str) -> None:
        self.must_write()
        store = self.server.store
        with store.lock:
            if ref in store.repos[key]["refs"]:
                raise Refusal(409, "Reference already exists")
            store.repos[key]["refs"][ref] = store.find(key, revision)
            store.save()
        self.answer({})

    def commits(self, kind: str, name: str, revision: str) -> None:
        key, listed = self.repo(kind, name), []
        oid = self.server.store.find(key, revision)
        while oid:
            commit = self.server.store.repos[key]["commits"][oid]
            listed.append(
                {"id": oid, "title": commit["title"], "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            )
            oid = commit["parent"]
        self.answer(listed)

    # Files

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        key = self.repo(kind, name)
        oid = self.server.store.find(key, revision)
        files = self.server.store.repos[key]["commits"][oid]["files"]
        prefix = f"{folder.strip('/')}/" if folder else ""
        below = {path: file for path, file in files.items() if path.startswith(prefix)}
        if prefix and not below:
            raise Refusal(404, f"no folder {folder}", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        entries = {}
        for path, file in sorted(below.items()):
            inner = path[len(prefix) :].split("/")
            for depth in range(1, len(inner)):
                if recursive or depth == 1:
                    parent = prefix + "/".join(inner[:depth])
                    entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0}
            if recursive or len(inner) == 1:
                entries[path] = self.entry(path, file)
        self.answer(list(entries.values()))

    @staticmethod
    def entry(path: str, file: dict) -> dict:
        entry = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
        if file["lfs"]:
            entry["lfs"] = {"oid": file["lfs"], "size": file["size"], "pointerSize": 130}
        return entry

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        key = self.repo(kind, name)
        files = self.server.store.repos[key]["commits"][self.server.store.find(key, revision)]["files"]
        self.answer([self.entry(path, files[path]) for path in self.json()["paths"] if path in files])

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        key = self.repo(kind, name)
        oid = self.server.store.find(key, revision)
        file = self.server.store.repos[key]["commits"][oid]["files"].get(path)
        headers = {"X-Repo-Commit": oid}
        if file is None:
            raise Refusal(404, f"no file {path}", "EntryNotFound")
        etag = f'"{file["lfs"] or file["oid"]}"'
        headers |= {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if file["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": file["size"]}
        start, end, status = 0, file["size"] - 1, 200
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end, status = int(part[1]), min(int(part[2] or end), end), 206
            headers["Content-Range"] = f"bytes {start}-{end}/{file['size']}"
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        if self.command != "HEAD":
            with open(self.server.store.content(file["lfs"] or file["oid"]), "rb") as stream:
                stream.seek(start)
                remaining = end + 1 - start
                while remaining > 0 and (piece := stream.read(min(remaining, PIECE))):
                    self.wfile.write(piece)
                    remaining -= len(piece)

    # Uploads

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self.must_write()
        key = self.repo(kind, name)
        files = self.server.store.repos[key]["commits"][self.server.store.find(key, revision)]["files"]
        answers = []
        for file in self.json()["files"]:
            large = file["path"].endswith(LARGE) or file["size"] > 1 << 20
            known = files.get(file["path"], {})
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known.get("lfs") or known.get("oid"),
                }
            )
        self.answer({"files": answers})

    def batch(self, kind: str | None, name: str) -> None:
        self.must_write()
        self.repo(kind, name)
        objects, part = [], self.server.part_size
        base = f"{self.server.address}/{kind or ''}{name}.git/info/lfs/objects"
        for request in self.json()["objects"]:
            oid, size = request["oid"], request["size"]
            answer = {"oid": oid, "size": size}
            if not self.server.store.content(oid).exists():
                upload = {"href": f"{base}/{oid}", "header": {}}
                if part and size > part:
                    numbers = range(1, -(-size // part) + 1)
                    parts = {f"{number:05}": f"{base}/{oid}/part/{number}" for number in numbers}
                    upload = {"href": f"{base}/{oid}/complete", "header": {"chunk_size": str(part), **parts}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{base}/{oid}/verify", "header": {}}}
            objects.append(answer)
        self.answer({"transfer": "multipart" if part else "basic", "objects": objects})

    def put(self, oid: str, number: str | None = None) -> None:
        """Stores a content. The Hub signs these addresses, so requests have no token."""
        target = self.server.store.content(f"{oid}.part{number}" if number else oid)
        partial = target.with_name(f"{target.name}.{threading.get_ident()}.incoming")
        digest = hashlib.sha256()
        with open(partial, "wb") as stream:
            for piece in self.pieces():
                stream.write(piece)
                digest.update(piece)
        if number is None and digest.hexdigest() != oid:
            raise Refusal(400, "the content does not have the announced SHA-256")
        self.server.arrived()
        os.replace(partial, target)
        self.answer({}, headers={"ETag": f'"{digest.hexdigest()[:32]}"'})

    def complete(self, oid: str) -> None:
        parts = sorted(part["partNumber"] for part in self.json()["parts"])
        target = self.server.store.content(oid)
        digest = hashlib.sha256()
        with open(target.with_name(f"{oid}.incoming"), "wb") as stream:
            for number in parts:
                part = target.with_name(f"{oid}.part{number}")
                digest.update(data := part.read_bytes())
                stream.write(data)
                part.unlink()
        if digest.hexdigest() != oid:
            raise Refusal(400, "the joined parts do not have the announced SHA-256")
        os.replace(target.with_name(f"{oid}.incoming"), target)
        self.answer({})

    def verify(self, oid: str) -> None:
        self.must_write()
        content = self.server.store.content(oid)
        if not content.exists() or content.stat().st_size != self.json()["size"]:
            raise Refusal(404, "no such object")
        self.answer({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self.must_write()
        store, key = self.server.store, self.repo(kind, name)
        lines = [json.loads(line) for line in self.read().splitlines() if line]
        with store.lock:
            if f"heads/{revision}" not in store.repos[key]["refs"]:
                raise Refusal(404, f"no branch {revision}", "RevisionNotFound")
            head = store.find(key, revision)
            files, title = dict(store.repos[key]["commits"][head]["files"]), ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, head):
                        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                elif line["key"] == "file":
                    content = value["content"]
                    data = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
                    files[value["path"]] = store.keep(data)
                elif line["key"] == "lfsFile":
                    content = store.content(value["oid"])
                    if not content.exists():
                        raise Refusal(400, f"{value['path']}: its content was not uploaded")
                    pointer = hashlib.sha1(b"pointer" + value["oid"].encode()).hexdigest()
                    files[value["path"]] = {"oid": pointer, "size": content.stat().st_size, "lfs": value["oid"]}
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                elif line["key"] == "deletedFolder":
                    files = {p: f for p, f in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
                else:
                    raise Refusal(400, f"unknown operation {line['key']}")
            oid = store.commit(key, f"heads/{revision}", title, files)
        url = f"{self.server.address}/{'' if kind == 'models' else kind + '/'}{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


NAME = r"([\w.-]+/[\w.-]+)"
API = rf"/api/(models|datasets)/{NAME}"
LFS = r"/(?:datasets/)?[\w.-]+/[\w.-]+\.git/info/lfs/objects/([0-9a-f]{64})"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("GET", rf"{API}/refs", Handler.refs),
    ("GET", rf"{API}/tree/([^/]+)(?:/(.*))?", Handler.tree),
    ("GET", rf"{API}/commits/([^/]+)", Handler.commits),
    ("POST", rf"{API}/paths-info/([^/]+)", Handler.paths_info),
    ("POST", rf"{API}/branch/([^/]+)", Handler.branch),
    ("POST", rf"{API}/tag/([^/]+)", Handler.tag),
    ("POST", rf"{API}/preupload/([^/]+)", Handler.preupload),
    ("POST", rf"{API}/commit/([^/]+)", Handler.commit),
    ("ANY", rf"{API}(?:/revision/([^/]+))?", Handler.info),
    ("POST", rf"/(datasets/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", rf"{LFS}(?:/part/(\d+))?", Handler.put),
    ("POST", rf"{LFS}/complete", Handler.complete),
    ("POST", rf"{LFS}/verify", Handler.verify),
    ("ANY", rf"/(datasets/)?{NAME}/(?:resolve|raw)/([^/]+)/(.+)", Handler.resolve),
]


def complaints(card: str) -> list[str]:
    """Returns the Hub's complaints about the metadata of a card."""
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    problems = []

    def several(name: str) -> list:
        value = data.get(name) or []
        return value if isinstance(value, list) else [value]

    for language in several("language"):
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(language)):
            problems.append(f"language {language!r} is no ISO 639 code")
    for name in ("datasets", "base_model"):
        for repository in several(name):
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(repository)) or str(repository).startswith("."):
                problems.append(f"{name}: {repository!r} is no name of a repository")
    if not re.fullmatch(r"[a-z0-9.-]+", str(data.get("license", "other"))):
        problems.append(f"license {data['license']!r} is no identifier")
    for model in several("model-index"):
        if not model.get("name"):
            problems.append("model-index: no name")
        for result in model.get("results") or [{}]:
            for part, fields in {"task": ["type"], "dataset": ["type", "name"]}.items():
                problems += [
                    f"model-index: no {part}.{field}" for field in fields if not (result.get(part) or {}).get(field)
                ]
            for metric in result.get("metrics") or [{}]:
                problems += [f"model-index: no metrics.{f}" for f in ("type", "value") if metric.get(f) is None]
    return problems


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path, port: int = 0, die_after: int | None = None, part_size: int | None = None):
        super().__init__(("127.0.0.1", port), Handler)
        self.store, self.die_after, self.part_size = Store(Path(root)), die_after, part_size
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.log_lock = threading.Lock()

    def arrived(self) -> None:
        """Counts a complete file; beyond the limit the process ends and the file is lost."""
        with self.log_lock:
            if self.die_after is not None:
                self.die_after -= 1
                if self.die_after < 0:
                    os._exit(9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    for name in ("--port", "--die-after", "--part-size"):
        parser.add_argument(name, type=int, default=0 if name == "--port" else None)
    args = parser.parse_args()
    server = HubServer(args.root, args.port, args.die_after, args.part_size)
    print(server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
