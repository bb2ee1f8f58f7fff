"""A product photo → a description for a catalogue: python examples/product.py [PICTURE] → JSON

The schema is the contract with the shop: whatever the picture shows, the answer fits it. nano, the built-in model, fits
it too but mostly guesses (it was never shown JSON); use VL2_MODEL=tiny or larger for real descriptions.
"""

import json
import os
import sys
from pathlib import Path

from vl2 import LLM, Grammar, Message, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 3, "maxLength": 60},
        "category": {"enum": ["shoe", "shirt", "hat", "bag", "camera", "other"]},
        "colours": {
            "type": "array",
            "items": {"enum": ["black", "white", "grey", "red", "blue", "green"]},
            "maxItems": 3,
        },
        "text_on_product": {"type": ["string", "null"], "maxLength": 40},
    },
    "required": ["title", "category", "colours", "text_on_product"],
    "additionalProperties": False,
}

picture = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "pictures/product.webp")

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    question = f"<image>\nDescribe this product for a shop, as JSON by this schema: {json.dumps(SCHEMA)}"
    params = SamplingParams(grammar=Grammar("json_schema", json.dumps(SCHEMA)), max_tokens=400)
    answer = llm.chat([Message("user", question, (picture,))], params)
    print(json.dumps(json.loads(answer.text), indent=2, ensure_ascii=False))
