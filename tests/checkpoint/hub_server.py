"""A stand-in for the hub: one repository's files over HTTP, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The repository, what was asked of it, and where a download is to break off."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.break_after: int | None = None  # bytes of the next file above that size
        self.address = ""


@contextmanager
def serve(name: str, folder: Path) -> Iterator[Hub]:
    """Run the server for as long as the block lasts."""
    hub = Hub(name, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith(f"/api/models/{hub.name}/tree/"):
                tree = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in sorted(hub.folder.iterdir())
                ]
                self.reply(200, json.dumps(tree).encode(), {}, body)
                return
            if path.startswith(f"/api/models/{hub.name}"):
                files = [{"rfilename": p.name} for p in sorted(hub.folder.iterdir())]
                info = {"id": hub.name, "sha": COMMIT, "siblings": files, "private": False}
                self.reply(200, json.dumps(info).encode(), {}, body)
                return
            file = hub.folder / path.rpartition("/")[2]
            if not path.startswith(f"/{hub.name}/resolve/") or not file.is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            self.send_file(file.read_bytes(), body)

        def send_file(self, data: bytes, body: bool) -> None:
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            wanted = self.headers.get("Range")
            if wanted and body:
                first = int(wanted.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                self.reply(206, data[first:], headers, body)
            else:
                self.reply(200, data, headers, body)

        def reply(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            limit, large = hub.break_after, len(data) > (hub.break_after or 0)
            if limit is not None and large:
                hub.break_after = None
                self.wfile.write(data[:limit])
                self.close_connection = True
            else:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
