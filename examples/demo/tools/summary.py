"""The tool `summarise`: one JSON object in, one out, and nothing else that it could touch.

Authority starts it in a sandbox of its own for each call: no network, no files but this one, and a
capability that covers this call. In: `{"arguments": {"text": "..."}}`. Out: `{"result": {...}}`.
"""

import json
import re
import sys


def summarise(text: str) -> dict[str, object]:
    title = next((line.strip("# ") for line in text.splitlines() if line.strip()), "")
    visible = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return {
        "title": title,
        "words": len(re.findall(r"\w+", visible)),
        "total": next(iter(re.findall(r"Total: ([A-Z]{3} [\d.]+)", visible)), ""),
    }


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump({"result": summarise(request["arguments"]["text"])}, sys.stdout)
