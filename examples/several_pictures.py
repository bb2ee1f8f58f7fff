"""A question about several pictures: python examples/several_pictures.py [PICTURE PICTURE… QUESTION]

The model calls them image_1, image_2, … in the order in which they stand in the question.
"""

import os
import sys
from pathlib import Path

from vl2 import LLM, Message

PICTURES = Path(__file__).parent / "pictures"

*pictures, question = sys.argv[1:] or [
    str(PICTURES / "product.webp"),
    str(PICTURES / "street.webp"),
    "Which image has the bus?",
]

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    print(llm.chat([Message("user", "<image>\n" * len(pictures) + question, tuple(pictures))]).text)
