"""One picture, one question, one answer: python examples/describe.py [PICTURE [QUESTION]]"""

import os
import sys
from pathlib import Path

from vl2 import LLM, Message

STREET = str(Path(__file__).parent / "pictures/street.webp")

picture, question = (*sys.argv[1:], *(STREET, "What is in the picture?")[len(sys.argv) - 1 :])

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    answer = llm.chat([Message("user", f"<image>\n{question}", (picture,))])  # <image> is where the picture stands
    print(answer.text)
    print(f"{answer.usage.prompt_tokens} tokens in, {answer.usage.image_tokens} of them the picture", file=sys.stderr)
