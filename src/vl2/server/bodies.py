"""Route → model of its body: what docs/reference/api.md is generated from."""

from __future__ import annotations

from typing import Any

from vl2.server.openai.schema import ChatRequest, PredictRequest

BODIES: dict[str, Any] = {
    "POST /v1/chat/completions": ChatRequest,
    "POST /predict": PredictRequest,
}
