"""A W&B server for tests, on 127.0.0.1: it keeps what clients upload, and can be taken away and brought back.

It answers what the `wandb` client asks while it logs, resumes and syncs runs: GraphQL operations by name, the file
stream (https://github.com/wandb/wandb, core/internal/filestream) and plain uploads. An operation that it lacks is
noted in `unknown` and refused; a test that needs one adds it:

    with WandbServer() as server:
        server.answers["UpsertView2"] = lambda variables: {"upsertView": {...}}
"""

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

KEY = "a" * 40  # the key that the server takes
ENTITY = "tester"

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def forget_login(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Leave no key and no other server of the machine: an empty home folder."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class StoredRun:
    """What the server knows of a run."""

    id: str
    project: str = ""
    name: str = ""
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    stored_config: dict[str, Any] = field(default_factory=dict)  # as sent: {key: {"value": ...}}
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None  # of the last process that ended it
    completions: int = 0  # how often a process ended it

    @property
    def config(self) -> dict[str, Any]:
        """The plain values."""
        return {key: entry["value"] for key, entry in self.stored_config.items() if key != "_wandb"}

    def rows(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of every row of the history that has the key."""
        return [(row["_step"], row[key]) for row in self.history if key in row]


class WandbServer:
    """A server on a free port of 127.0.0.1; a context manager that starts and stops it.

    Attributes:
        runs: by id.
        answers: GraphQL operation -> function of its variables that returns the `data` of the answer.
        asked: names of the GraphQL operations that came, in order.
        unknown: what came that there is no answer for.
        status: an HTTP status that refuses every request, for as long as it is set (401: the key has expired).
    """

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.answers: dict[str, Answer] = {
            "Viewer": self._viewer, "UpsertBucket": self._upsert_run, "RunResumeStatus": self._resume_status,
            "CreateRunFiles": self._upload_addresses,
        }  # fmt: skip
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.status: int | None = None
        self.lock = threading.RLock()
        self._port = 0
        self._server: _Http | None = None
        self._place: socket.socket | None = None  # holds the port while the server is away

    def __enter__(self) -> "WandbServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._leave()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, folder: Path, key: str = KEY) -> dict[str, str]:
        """Variables that make a client log in here, and keep its own files in `folder`."""
        own = {f"WANDB_{n}": str(folder) for n in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR")}
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key, "WANDB_MODE": "online", **own}

    def start(self) -> None:
        """Take requests; after `stop`, on the same port again."""
        self._leave()
        self._server = _Http(("127.0.0.1", self._port), _Handler)
        self._server.wandb = self
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away at once: open connections break, new ones are refused. What was stored stays."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            server.break_connections()
            # Bound without listening: it refuses, and no other server, nor a client's own end, gets the port meanwhile.
            self._place = socket.socket()
            self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._place.bind(("127.0.0.1", self._port))

    def _leave(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None

    def run(self) -> StoredRun:
        """The only run there is."""
        assert len(self.runs) == 1, f"one run was expected, there are {sorted(self.runs)}"
        return next(iter(self.runs.values()))

    # GraphQL

    def answer(self, query: str, variables: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body for a GraphQL request."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else query[:60]
        with self.lock:
            self.asked.append(name)
            if name in self.answers:
                return 200, {"data": self.answers[name](variables)}
            self.unknown.append(name)
        return 400, {"data": None, "errors": [{"message": f"there is no {name} here"}]}

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _upsert_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        new = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], StoredRun(variables["name"]))
        names = {"project": "project", "displayName": "name", "groupName": "group", "jobType": "job_type"}
        for sent, kept in {**names, "tags": "tags", "sweep": "sweep"}.items():
            if variables.get(sent) is not None:
                setattr(run, kept, variables[sent])
        if variables.get("config"):
            run.stored_config = json.loads(variables["config"])
        bucket = {
            **self._bucket(run), "displayName": run.name or run.id, "description": None, "sweepName": run.sweep,
            "project": self._project(run),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new, "serverSettings": {"serverMessages": []}}}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": None}
        bucket = {
            **self._bucket(run), "displayName": run.name, "tags": run.tags, "logLineCount": 0,
            "summaryMetrics": json.dumps(run.summary), "wandbConfig": json.dumps({"t": 1}),
            "eventsLineCount": len(run.events),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
        }  # fmt: skip
        return {"model": {**self._project(run), "bucket": bucket}}

    def _upload_addresses(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _bucket(self, run: StoredRun) -> dict[str, Any]:
        config = json.dumps(run.stored_config)
        return {"id": run.id, "name": run.id, "config": config, "historyLineCount": len(run.history)}

    def _project(self, run: StoredRun) -> dict[str, Any]:
        return {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}

    # The file stream and uploads

    def stream(self, run_id: str, sent: dict[str, Any]) -> None:
        """Take a chunk of a run: rows of its history at their offset, its summary, its end."""
        with self.lock:
            run = self.runs.setdefault(run_id, StoredRun(run_id))
            for name, chunk in (sent.get("files") or {}).items():
                rows, offset = chunk["content"], chunk.get("offset", 0)
                if name == "wandb-summary.json":
                    run.summary = json.loads(rows[-1])
                elif name in ("wandb-history.jsonl", "wandb-events.jsonl"):
                    kept = run.history if name == "wandb-history.jsonl" else run.events
                    kept[offset : offset + len(rows)] = [json.loads(row) for row in rows]
            if sent.get("complete"):
                run.exit_code, run.completions = sent.get("exitcode"), run.completions + 1

    def store(self, run_id: str, name: str, content: bytes) -> None:
        """Take a file of a run."""
        with self.lock:
            self.runs.setdefault(run_id, StoredRun(run_id)).files[name] = content


class _Http(ThreadingHTTPServer):
    """An HTTP server whose open connections can be broken."""

    daemon_threads = True
    wandb: WandbServer

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # it had ended
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show any error but a broken connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if self.path == "/graphql":
            request = json.loads(body)
            status, answer = self.server.wandb.answer(request["query"], request.get("variables") or {})
            self._send(json.dumps(answer).encode(), status)
        elif stream:
            self.server.wandb.stream(stream[1], json.loads(body))
            self._send(b'{"exitcode": null, "limits": {}}')
        else:
            self.server.wandb.unknown.append(f"POST {self.path}")
            self._send(b"{}", 404)

    def do_PUT(self) -> None:
        body = self._body()
        if not self._refused():
            run, name = unquote(self.path).removeprefix("/upload/").split("/", 1)
            self.server.wandb.store(run, name, body)
            self._send(b"{}")

    def do_GET(self) -> None:
        if self._refused():
            return
        run, _, name = unquote(self.path).removeprefix("/upload/").partition("/")
        stored = self.server.wandb.runs.get(run)
        content = None if stored is None else stored.files.get(name)
        if content is None:
            self.server.wandb.unknown.append(f"GET {self.path}")
        self._send(content or b"{}", 200 if content is not None else 404)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing for each request."""

    def _refused(self) -> bool:
        status = self.server.wandb.status
        if status is not None:
            self._send(b'{"errors": [{"message": "refused by the test"}]}', status)
        return status is not None

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
