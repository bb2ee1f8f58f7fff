"""The answer word by word: python examples/stream.py [PICTURE [QUESTION]]"""

import os
import sys
from pathlib import Path

from vl2 import LLM, Message, SamplingParams

STREET = str(Path(__file__).parent / "pictures/street.webp")

picture, question = (*sys.argv[1:], *(STREET, "What is in the picture?")[len(sys.argv) - 1 :])

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    params = SamplingParams(max_tokens=256)  # temperature 0: the same answer each time
    for delta in llm.stream_sync([Message("user", f"<image>\n{question}", (picture,))], params):
        print(delta.text, end="", flush=True)
    print()
