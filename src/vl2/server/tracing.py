"""Traces of requests for OpenTelemetry: a span for the request, one for each stage. Optional: `vl2[traces]`.

Spans tell numbers and hashes, never what was said. The caller's W3C context is taken up, and the request's own goes
back as the response header `traceparent`; it does not go to the hosts that pictures are fetched from.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vl2.core.config import ServerConfig
from vl2.core.errors import SetupError
from vl2.core.types import ImagePart, Message, Usage
from vl2.server.results import picture_bytes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

HEADER = "traceparent"
HASH_BYTES = 8


class Tracing:
    """Where spans go. Sends in a thread of its own; what cannot be sent is dropped and logged."""

    def __init__(self, endpoint: str, share: float, model: str) -> None:
        """`endpoint`: of an OTLP collector over HTTP; `share` of the requests that bring no decision with them.

        Raises: SetupError.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise SetupError("--otlp-endpoint needs OpenTelemetry; pip install 'vl2[traces]'") from None
        from vl2 import __version__

        resource = Resource.create({"service.name": "vl2", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)))
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vl2", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    @classmethod
    def of(cls, config: ServerConfig, model: str) -> Tracing | None:
        """None where no endpoint is given. Raises: SetupError."""
        return cls(config.otlp_endpoint, config.trace_share, model) if config.otlp_endpoint else None

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> RequestTrace:
        """At the request's arrival."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(f"{method} {route}", context=parent, kind=SpanKind.SERVER)
        span.set_attributes({"http.request.method": method, "http.route": route, "gen_ai.request.model": self._model})
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return RequestTrace(self._tracer, span, carrier.get(HEADER, ""))

    def shutdown(self) -> None:
        """Sends what is left; blocks for as long as that takes."""
        self._provider.shutdown()


class RequestTrace:
    """One request's spans. Stages behind the first token's are known at the end only, and made then."""

    def __init__(self, tracer: Any, span: Span, traceparent: str) -> None:
        self._tracer, self._span, self.traceparent = tracer, span, traceparent
        self._started_ns, self._started_s = time.time_ns(), time.monotonic()
        self._read_s: float | None = None  # since the start
        self._pictures: list[str] = []
        self._prompt: dict[str, Any] = {}

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    async def note_messages(self, messages: Sequence[Message]) -> None:
        """They are read: all pictures are here."""
        self._read_s = time.monotonic() - self._started_s
        if self._span.is_recording():
            self._pictures = await asyncio.to_thread(picture_hashes, messages)

    def note_prompt(self, token_ids: Sequence[int]) -> None:
        """As the model sees it."""
        if self._span.is_recording():
            self._prompt = {"vl2.prompt.hash": _hash(array("q", token_ids).tobytes())}

    def end(self, status: int, error_code: str | None, first_token_s: float | None, usage: Usage | None) -> None:
        """`first_token_s`: since the request's arrival."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attribute("http.response.status_code", status)
        if error_code is not None:
            span.set_attribute("error.type", error_code)
        if status >= 500:
            span.set_status(StatusCode.ERROR, error_code)
        if span.is_recording():
            self._add_stages(first_token_s, usage)
        span.end()

    def _add_stages(self, first_token_s: float | None, usage: Usage | None) -> None:
        if self._read_s is not None:
            pictures = {"vl2.pictures": len(self._pictures), "vl2.picture.hashes": self._pictures}
            self._stage("read", 0.0, self._read_s, pictures)
        if usage is None:
            return
        tokens = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
        image, cached = {"vl2.image_tokens": usage.image_tokens}, {"vl2.cached_tokens": usage.cached_tokens}
        self._span.set_attributes({**tokens, **image, **cached, **self._prompt})
        timing = usage.timing
        if timing is None or first_token_s is None or self._read_s is None:
            return
        computed_s = timing.queue_s + timing.vision_s + timing.prefill_s
        at_s = max(self._read_s, first_token_s - computed_s)
        text = {"vl2.text_tokens": usage.prompt_tokens - usage.image_tokens}
        self._stage("process", self._read_s, at_s, {**image, **text, **self._prompt})
        for name, seconds, attributes in (
            ("queue", timing.queue_s, {}),
            ("vision", timing.vision_s, {**image, "vl2.picture.hashes": self._pictures}),
            ("prefill", timing.prefill_s, {"vl2.prompt_tokens": usage.prompt_tokens, **cached}),
            ("decode", timing.decode_s, {"vl2.generated_tokens": usage.completion_tokens}),
        ):
            if name != "vision" or usage.image_tokens:
                self._stage(name, at_s, at_s + seconds, attributes)
            at_s += seconds

    def _stage(self, name: str, start_s: float, end_s: float, attributes: Mapping[str, Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(name, set_span_in_context(self._span), start_time=self._at_ns(start_s))
        span.set_attributes(attributes)
        span.end(self._at_ns(end_s))

    def _at_ns(self, seconds: float) -> int:
        return self._started_ns + int(seconds * 1e9)


def picture_hashes(messages: Sequence[Message]) -> list[str]:
    """Of each picture as it was sent; of a page, its pixels."""
    sources = [part.source if isinstance(part, ImagePart) else part for m in messages for part in m.images]
    return [_hash(data) for data in map(picture_bytes, sources) if data is not None]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()
