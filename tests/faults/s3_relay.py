"""An HTTP relay in front of a real S3 server, which answers wrongly while it is told to."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "503", "slow", "cut off", "changed content")
SLOW_SECONDS = 4.0
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class S3Relay:
    """`fault`: one of FAULTS while it lasts, or empty. `hits`: how many answers it has spoiled."""

    def __init__(self, port: int) -> None:
        self.fault, self.hits = "", 0
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                relay.answer(self, port)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay  # noqa: N815 - http.server's

            def log_message(self, format: str, *args: object) -> None:
                """Not to the trial's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, caller: BaseHTTPRequestHandler, port: int) -> None:
        """Pass one request on, and its answer back, spoiled if a fault lasts."""
        body = _body(caller)
        fault = self.fault
        if fault in ("500", "503"):
            self.hits += 1
            text = b"<Error><Code>InternalError</Code><Message>tried</Message></Error>"
            _reply(caller, int(fault), {"Content-Type": "application/xml"}, text, len(text))
            return
        if fault == "slow":
            self.hits += 1
            time.sleep(SLOW_SECONDS)
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            upstream.request(caller.command, caller.path, body, dict(caller.headers))
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        length = len(content)
        if caller.command == "HEAD":
            length = int(answer.headers.get("Content-Length") or 0)
        if content and caller.command == "GET" and "list-type" not in caller.path:
            if fault == "cut off":
                self.hits += 1
                content = content[: len(content) // 2]
                caller.close_connection = True
            if fault == "changed content":
                self.hits += 1
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        _reply(caller, answer.status, headers, content, length)


def _body(caller: BaseHTTPRequestHandler) -> bytes:
    """All of a request's body, as it came: a chunked one keeps its chunks' content alone."""
    if "chunked" in (caller.headers.get("Transfer-Encoding") or ""):
        parts = []
        while size := int(caller.rfile.readline().split(b";")[0], 16):
            parts.append(caller.rfile.read(size))
            caller.rfile.readline()
        while caller.rfile.readline().strip():
            pass  # trailers
        del caller.headers["Transfer-Encoding"]
        return b"".join(parts)
    return caller.rfile.read(int(caller.headers.get("Content-Length") or 0))


def _reply(
    caller: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    content: bytes,
    length: int,
) -> None:
    caller.send_response(status)
    for name, value in headers.items():
        caller.send_header(name, value)
    caller.send_header("Content-Length", str(length))
    caller.end_headers()
    caller.wfile.write(content)
