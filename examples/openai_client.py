"""The `openai` client: streaming, boxes and times: python examples/openai_client.py [PICTURE [QUESTION]]

Needs a server (`vl2 serve`) at VL2_URL, and its key in VL2_API_KEY if it wants one; and `pip install openai`.
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

STREET = str(Path(__file__).parent / "pictures/street.webp")

picture, question = (*sys.argv[1:], *(STREET, "<|grounding|>Describe the picture.")[len(sys.argv) - 1 :])
data = base64.b64encode(Path(picture).read_bytes()).decode()

client = OpenAI(
    base_url=os.environ.get("VL2_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("VL2_API_KEY", "none"),
)
stream = client.chat.completions.create(
    model="default",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{data}"}},
                {"type": "text", "text": question},
            ],
        }
    ],
    stream=True,
    stream_options={"include_usage": True},
    extra_headers={"X-VL2-Timing": "1"},
)
for chunk in stream:
    if chunk.usage:  # the last one
        print(f"\n{chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out")
        print(", ".join(f"{stage} {seconds}" for stage, seconds in chunk.usage.timing.items()))
        break
    delta = chunk.choices[0].delta
    print(delta.content or "", end="", flush=True)
    for found in getattr(delta, "grounding", None) or ():
        print(f"\n{found['label']}: {found['boxes']}", end="")
