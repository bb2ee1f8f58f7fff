"""An answer that a program can read: python examples/json_schema.py [PICTURE]

Tokens that would leave the schema are ruled out before one is drawn, so the answer needs no second try. Whether it is
*true* is another matter: nano was never shown JSON, the larger models were.
"""

import json
import os
import sys
from pathlib import Path

from vl2 import LLM, Grammar, Message, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"enum": ["street", "room", "field", "other"]},
        "num_vehicles": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["place", "num_vehicles"],
    "additionalProperties": False,
}

picture = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "pictures/street.webp")
params = SamplingParams(grammar=Grammar("json_schema", json.dumps(SCHEMA)), max_tokens=256)

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    question = f"<image>\nDescribe the scene as JSON by this schema: {json.dumps(SCHEMA)}"
    print(json.dumps(json.loads(llm.chat([Message("user", question, (picture,))], params).text)))
