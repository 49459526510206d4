"""A small stand-in for the Hub on this machine: it serves repositories at pinned revisions, and can misbehave."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import pytest
from conftest import IMDB, ROOT

from finetuning.profiles import POCKET_REVIEWS, POCKET_T5, PROFILES


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


# What the tests load from it

SMALL = PROFILES["small"]
TOKENIZER = ROOT.parent / "shared" / "data" / "t5-small-tokenizer"  # T5's own; pocket T5's where it is not there
SPLITS = {"train": 60, "test": 40, "unsupervised": 10}
CARD = """---
configs:
- config_name: plain_text
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
  - {split: unsupervised, path: plain_text/unsupervised-*}
  default: true
dataset_info:
  config_name: plain_text
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': neg, '1': pos}}}
---
"""
# The libraries wait between their tries, up to eight seconds.
IMPATIENT = """
import time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.1))
"""
# One process that loads what it is told and answers in a line: the imports are paid once.
WORKER = f"""{IMPATIENT}
import json, sys
from finetuning.data import load_reviews
from finetuning.errors import CourseError
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import choose
for line in sys.stdin:
    asked = json.loads(line)
    settings = choose("small", reviews=asked.get("reviews", ""), base_model=asked.get("model", ""))
    try:
        if asked["load"] == "reviews":
            splits = load_reviews(settings.reviews, asked.get("revision") or settings.reviews_revision)
            answer = {{name: [len(split), sorted(set(split["label"]))] for name, split in splits.items()}}
        elif asked["load"] == "tokenizer":
            answer = load_tokenizer(settings)("positive", add_special_tokens=False)["input_ids"]
        else:
            answer = load_model(settings).num_parameters()
    except CourseError as error:
        answer = str(error)
    print("ANSWER " + json.dumps(answer), flush=True)
"""


def parquet(frame):
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    return content.getvalue()


def some_reviews(rows):
    """Real IMDb reviews where they are there, else Pocket Reviews: a data frame with as many of both labels."""
    if IMDB.is_dir():
        all_reviews = pd.read_parquet(IMDB / "train.parquet")
    else:
        all_reviews = pd.read_json(POCKET_REVIEWS / "train.jsonl", lines=True)[["text", "label"]]
        all_reviews["label"] = all_reviews["label"].replace({"negative": 0, "positive": 1}).astype(int)
    return pd.concat([all_reviews[all_reviews["label"] == label].head(rows // 2) for label in (0, 1)])


@pytest.fixture(scope="session", name="hub")
def hub_fixture(tmp_path_factory):
    """The stand-in with a small random T5, T5's tokenizer, and a slice of IMDb in the Hub's layout."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    source = TOKENIZER if TOKENIZER.is_dir() else POCKET_T5
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=160, d_kv=8, num_heads=4, d_ff=64, num_layers=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    hub = Hub()
    hub.repositories["models", SMALL.model] = (
        SMALL.model_revision, {path.name: path.read_bytes() for path in folder.iterdir()},
    )  # fmt: skip
    files = {f"plain_text/{name}-00000-of-00001.parquet": parquet(some_reviews(rows)) for name, rows in SPLITS.items()}
    hub.repositories["datasets", SMALL.reviews] = (SMALL.reviews_revision, {"README.md": CARD.encode(), **files})
    yield hub
    hub.shutdown()


@pytest.fixture(name="load")
def load_fixture(hub, worker):
    """A function that loads a model, tokenizer or reviews in the worker, its cache empty at the start of each test."""
    hub.fault, hub.asked = (lambda path: None), []
    processes, cache = worker
    subprocess.run(["rm", "-rf", cache / "hub", cache / "datasets", cache / "xet"], check=True)

    def ask(what, *, offline=False, **more):
        process = processes[offline]
        process.stdin.write(json.dumps({"load": what, **more}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line[7:])
        raise AssertionError("the worker died")

    return ask


@pytest.fixture(scope="session", name="worker")
def worker_fixture(hub, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")} | {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "5",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    log = (cache / "log").open("w")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], env=environment | {"HF_HUB_OFFLINE": offline}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )
        for offline in ("0", "1")
    ]  # fmt: skip
    yield processes, cache
    for process in processes:
        process.stdin.close()
        process.wait(timeout=20)
