"""What one tenant's request leaves in the caches, no other tenant's request can meet."""

from __future__ import annotations

import asyncio

from PIL import Image

from vl2 import LLM, Message
from vl2.core.config import EngineConfig
from vl2.core.types import QueueOptions, SamplingParams, Usage


def test_prefixes_and_pictures_are_met_again_by_the_same_tenant_only() -> None:
    question = [Message("user", "<image>\nWhat is in the picture?", (Image.new("RGB", (90, 60), "red"),))]

    async def main() -> tuple[list[int], list[int]]:
        llm = LLM("nano", engine=EngineConfig(threads=1))
        await llm.start()

        async def ask(tenant: str) -> tuple[int, int]:
            before = (await llm.stats()).tiles_encoded_total
            usage: Usage | None = None
            options = QueueOptions(tenant=tenant)
            async for delta in llm.stream(question, SamplingParams(max_tokens=2), options=options):
                usage = delta.usage or usage
            assert usage is not None
            return usage.cached_tokens, (await llm.stats()).tiles_encoded_total - before

        asked = [await ask(tenant) for tenant in ("alice", "alice", "bob", "bob", "alice", "")]
        await llm.stop()
        return [cached for cached, _ in asked], [tiles for _, tiles in asked]

    cached, encoded = asyncio.run(main())
    assert [count > 0 for count in cached] == [False, True, False, True, True, False]
    assert [count > 0 for count in encoded] == [True, False, True, False, False, True]
