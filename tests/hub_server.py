"""A hub on this machine, for tests: repositories in a folder, served as https://huggingface.co serves them.

    ROOT/models/ORG/NAME/FILE…      ROOT/datasets/ORG/NAME/FILE…      ROOT/converted/ORG/NAME/SUBSET/SPLIT/0000.parquet

Files above `large` bytes are sent from a second port, as from a storage of another host. What goes wrong is set by the
test: see Trouble."""

import hashlib
import json
import re
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Trouble:
    gated: bool = False  # without the token
    private: bool = False
    statuses: list = field(default_factory=list)  # of the next answers, before anything else: 429, 500, …
    retry_after: str = "0"
    cut: int = 0  # so many of the next bodies end in the middle
    wrong_bytes: bool = False
    slow: float = 0  # seconds before each 64 kB


class Hub:
    def __init__(self, root, token="hf_secret", large=1000):
        self.root, self.token, self.large = Path(root), token, large
        self.trouble = Trouble()
        self.renamed = {}  # old name → new name, as the hub answers after a repository has moved
        self.requests = []  # (method, path, was the token sent?, range)
        self.storage_requests = []
        self.lock = threading.Lock()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self.handler(storage)) for storage in (False, True)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def handler(hub, storage):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, storage)

            do_GET = do_HEAD

        return Handler

    # ------------------------------------------------------------------------------------------------- what is there

    def files(self, kind, repository):
        folder = self.root / kind / repository
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else None

    def commit(self, kind, repository):
        folder = self.root / kind / repository
        content = "".join(f"{name} {self.etag(folder / name)}" for name in self.files(kind, repository))
        return hashlib.sha1(content.encode()).hexdigest()

    def etag(self, path):
        data = path.read_bytes()
        if len(data) > self.large:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    # -------------------------------------------------------------------------------------------------------- answers

    def answer(self, request, storage):
        token = request.headers.get("Authorization")
        with self.lock:
            log = self.storage_requests if storage else self.requests
            log.append((request.command, request.path, token is not None, request.headers.get("Range")))
            status = self.trouble.statuses.pop(0) if self.trouble.statuses and not storage else 0
        path = urllib.parse.unquote(urllib.parse.urlparse(request.path).path)
        if status:
            return self.send(request, status, b"", {"Retry-After": self.trouble.retry_after})
        if storage and Path(path).is_file():
            return self.send_file(request, Path(path), {})
        for old, new in self.renamed.items():
            if old in path:
                return self.send(request, 307, b"moved", {"Location": request.path.replace(old, new)})
        if (self.trouble.gated or self.trouble.private) and token != f"Bearer {self.token}":
            code = "GatedRepo" if self.trouble.gated else "RepoNotFound"
            return self.send(request, 401, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"})
        if token not in (None, f"Bearer {self.token}"):
            return self.send(request, 401, b"{}", {"X-Error-Message": "Invalid credentials"})
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/(.+)", path):
            return self.send_listing(request, *match.groups())
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+", path):
            return self.send_tree(request, *match.groups())
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/parquet", path):
            return self.send_converted(request, match.group(1))
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/convert/parquet|[^/]+)/(.+)", path):
            is_data, repository, revision, name = match.groups()
            kind = "converted" if revision.startswith("refs/") else "datasets" if is_data else "models"
            return self.send_resolved(request, kind, repository, name)
        return self.send(request, 404, b"{}", {})

    def send_listing(self, request, kind, repository, revision):
        files = self.files(kind, repository)
        if files is None:
            return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = self.commit(kind, repository)
        if revision not in ("main", commit):
            return self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        body = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_tree(self, request, kind, repository):
        tree = []
        for name in self.files(kind, repository):
            path = self.root / kind / repository / name
            tree.append({"type": "file", "path": name, "size": path.stat().st_size, "oid": self.etag(path)})
        return self.send(request, 200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def send_converted(self, request, repository):
        listing = {}
        for name in self.files("converted", repository) or []:
            subset, split, _ = name.split("/")
            url = f"{self.endpoint}/datasets/{repository}/resolve/refs%2Fconvert%2Fparquet/{name}"
            listing.setdefault(subset, {}).setdefault(split, []).append(url)
        return self.send(request, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def send_resolved(self, request, kind, repository, name):
        path = self.root / kind / repository / name
        if self.files(kind, repository) is None:
            return self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        headers = {"X-Repo-Commit": self.commit(kind, repository)}
        if not path.is_file():
            return self.send(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        etag, size = self.etag(path), path.stat().st_size
        if size <= self.large:
            return self.send_file(request, path, headers | {"ETag": f'"{etag}"'})
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size), "Location": self.storage + str(path)}
        return self.send(request, 302, b"", headers)

    def send_file(self, request, path, headers):
        data, status, begin = path.read_bytes(), 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            begin, status = int(match.group(1)), 206
            headers = headers | {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        if self.trouble.wrong_bytes:
            data = bytes(len(data))
        headers.setdefault("ETag", f'"{self.etag(path)}"')
        return self.send(request, status, data[begin:], headers)

    def send(self, request, status, body, headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        with self.lock:
            cut = self.trouble.cut > 0 and len(body) > self.large
            self.trouble.cut -= cut
        end = len(body) // 2 if cut else len(body)
        for begin in range(0, end, 65536):
            time.sleep(self.trouble.slow)
            request.wfile.write(body[begin : min(begin + 65536, end)])
        if cut:
            request.close_connection = True
            request.connection.close()
