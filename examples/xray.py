"""A 16-bit X-ray: python examples/xray.py [PICTURE [QUESTION]]

NOT A MEDICAL DEVICE. Neither this software nor DeepSeek-VL2 has been examined or approved for medical use. Do not
diagnose, treat or decide about a person by what it says; the models' licence asks for human care, too.

What is shown here is the picture's way: detectors give 10 to 16 bits of grey. Values are scaled by the fewest bits that
hold the brightest one, so that an X-ray neither turns white nor black. Convert DICOM to PNG of 16 bits first, and take
out what names a person: the server logs no pictures, but whoever reads the answers may.
"""

import os
import sys
from pathlib import Path

from PIL import Image

from vl2 import LLM, Message

XRAY = str(Path(__file__).parent / "pictures/xray.png")

picture, question = (*sys.argv[1:], *(XRAY, "What does the text say?")[len(sys.argv) - 1 :])

with Image.open(picture) as image:
    print(f"{image.width} × {image.height}, {image.mode}, brightest value {image.getextrema()[-1]}", file=sys.stderr)

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    print(llm.chat([Message("user", f"<image>\n{question}", (picture,))]).text)
print("Not a medical device: for demonstration only.", file=sys.stderr)
