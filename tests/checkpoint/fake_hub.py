"""A hub on loopback that speaks as much of Hugging Face's and ModelScope's HTTP APIs as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPOSITORY = "someone/some-vl2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` as one repository, as long as the `with` block lasts."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.token: str | None = None  # asked of every request, if set
        self.break_once: dict[str, int] = {}  # file → bytes after which its first download breaks off
        self.damaged: set[str] = set()  # files that arrive with other bytes than announced
        self.downloads: list[tuple[str, str | None]] = []  # (file, Range header)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, http: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path, query = urlsplit(http.path).path, parse_qs(urlsplit(http.path).query)
        if self.token is not None and http.headers.get("Authorization") != f"Bearer {self.token}":
            self._error(http, 401)
        elif path == f"/api/models/{REPOSITORY}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self._json(http, {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            self._error(http, 404, **{"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            self._json(http, [self._tree_entry(name) for name in self.files])
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._file(http, path.rpartition("/")[2], with_body)
        elif path == f"/api/v1/models/{REPOSITORY}/repo/files" and query["Revision"] == ["master"]:
            self._json(http, {"Code": 200, "Data": {"Files": [self._modelscope_entry(name) for name in self.files]}})
        elif path == f"/api/v1/models/{REPOSITORY}/repo":
            self._file(http, query["FilePath"][0], with_body)
        else:
            self._error(http, 404, **{"X-Error-Code": "RepoNotFound"})

    def _tree_entry(self, name: str) -> dict[str, Any]:
        size = len(self.files[name])
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": self._etag(name)[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": self._etag(name), "size": size, "pointerSize": 130}
        return entry

    def _modelscope_entry(self, name: str) -> dict[str, Any]:
        return {"Path": name, "Type": "blob", "Size": len(self.files[name]), "Sha256": self._etag(name)}

    def _etag(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def _file(self, http: BaseHTTPRequestHandler, name: str, with_body: bool) -> None:
        if name not in self.files:
            return self._error(http, 404, **{"X-Error-Code": "EntryNotFound"})
        content, wanted = self.files[name], http.headers.get("Range")
        if name in self.damaged:
            content = bytes(byte ^ 1 for byte in content)
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        body = content[start:]
        http.send_response(206 if start else 200)
        http.send_header("Content-Length", str(len(body)))
        http.send_header("X-Repo-Commit", COMMIT)
        http.send_header("ETag", f'"{self._etag(name) if name.endswith(".safetensors") else self._etag(name)[:40]}"')
        if start:
            http.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        http.end_headers()
        if with_body:
            self.downloads.append((name, wanted))
            http.wfile.write(body[: self.break_once.pop(name, len(body))])
            http.close_connection = True
        return None

    def _json(self, http: BaseHTTPRequestHandler, value: Any) -> None:
        body = json.dumps(value).encode()
        http.send_response(200)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(body)))
        http.end_headers()
        http.wfile.write(body)

    def _error(self, http: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("Content-Length", "0")
        http.end_headers()
