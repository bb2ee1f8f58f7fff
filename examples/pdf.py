"""A question about pages of a PDF: python examples/pdf.py FILE.pdf [PAGES [QUESTION]]; PAGES as 1-3,5

Needs a server (`vl2 serve`) at VL2_URL, and its key in VL2_API_KEY if it wants one. Each page becomes a picture there.
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) < 2:
    sys.exit(__doc__)
file, pages, question = (*sys.argv[1:], *("1", "What does the text say?")[len(sys.argv) - 2 :])
data = base64.b64encode(Path(file).read_bytes()).decode()

client = OpenAI(
    base_url=os.environ.get("VL2_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("VL2_API_KEY", "none"),
)
answer = client.chat.completions.create(
    model="default",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}", "pages": pages}},
                {"type": "text", "text": question},
            ],
        }
    ],
)
print(answer.choices[0].message.content)
