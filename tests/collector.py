"""A collector of traces on loopback: OTLP over HTTP, by the protocol's own types."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span:
    """A received span."""

    def __init__(self, raw: Any) -> None:
        self.name = raw.name
        self.trace_id, self.span_id, self.parent_id = raw.trace_id.hex(), raw.span_id.hex(), raw.parent_span_id.hex()
        self.start_s, self.end_s = raw.start_time_unix_nano / 1e9, raw.end_time_unix_nano / 1e9
        self.is_error = raw.status.code == 2
        self.attributes = {item.key: _value(item.value) for item in raw.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def collecting() -> Iterator[tuple[str, list[Span]]]:
    """Its address, and what it has received so far."""
    received: list[Span] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            received.extend(Span(s) for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
