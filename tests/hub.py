"""A small stand-in for the Hub on this machine: it serves repositories at pinned revisions, and can misbehave."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """``repositories``: (kind, id) -> (revision, files), kind "models" or "datasets", files a dict of path -> bytes.

    ``fault`` is called with each request's path before the answer: it returns None, a status code or ``("cut", n)``:
    the connection breaks after n bytes of the file. ``asked`` lists (method, path, Range header) of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[tuple[str, str], tuple[str, dict[str, bytes]]] = {}
        self.fault: Callable = lambda path: None
        self.asked: list[tuple[str, str, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        fault = self.server.fault(path)
        if isinstance(fault, int):
            return self.refuse(fault, "stand-in")
        api = re.fullmatch(
            r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        file = re.fullmatch(r"/(?:(datasets)/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if not api and not file:
            return self.refuse(404, "EntryNotFound")
        kind, name = (api[1], api[2]) if api else (file[1] or "models", file[2])
        if (kind, name) not in self.server.repositories:
            return self.refuse(401, "RepoNotFound")  # as the Hub does for what is not there or private
        revision, files = self.server.repositories[kind, name]
        asked = (api[4] if api else file[3]) or revision
        if asked not in (revision, "main"):
            return self.refuse(404, "RevisionNotFound")
        if file:
            return self.send_file(revision, files, file[4], fault)
        if api[3] == "tree":
            under = (api[5] or "").strip("/")
            found = [entry for entry in self.entries(files) if not under or entry["path"].startswith(under + "/")]
            if under and not found:
                return self.refuse(404, "EntryNotFound")
            if parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() != "true":
                depth = len(under.split("/")) if under else 0
                found = [entry for entry in found if len(entry["path"].split("/")) == depth + 1]
            return self.send_json(found)
        if api[3] == "paths-info":
            wanted = json.loads(self.body)["paths"] if self.body.startswith("{") else parse_qs(self.body)["paths"]
            return self.send_json([entry for entry in self.entries(files) if entry["path"] in wanted])
        return self.send_json(
            {
                "id": name, "sha": revision, "siblings": [{"rfilename": path} for path in files], "private": False,
                "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "cardData": {},
                "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
            }
        )  # fmt: skip

    @staticmethod
    def entries(files):
        folders = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + [
            {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
            for path, content in files.items()
        ]

    def send_file(self, revision, files, path, fault):
        if path not in files:
            return self.refuse(404, "EntryNotFound", revision)
        content, first = files[path], 0
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first = int(found[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", revision)
        self.send_header("Accept-Ranges", "bytes")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault and first < len(content):
            self.wfile.write(content[first : first + fault[1]])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        self.wfile.write(content[first:])
        return None

    def send_json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, code, revision=None):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if revision:
            self.send_header("X-Repo-Commit", revision)
        self.send_header("Content-Length", "0")
        self.end_headers()
