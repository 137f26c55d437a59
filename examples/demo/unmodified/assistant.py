"""An office assistant as people write them today: the vendor's SDK, `open`, `requests`, git.

It knows nothing of Authority; there is no line in it that would not run on any machine. It reads the
documents, asks a model about each, lets the model use tools as it likes, writes a report and commits
it. The key and the address of the model, the proxy and the certificates come from the environment,
as they always do.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import requests
from openai import OpenAI

OFFICE, MODEL = sys.argv[1], sys.argv[2]
ROUNDS = 3  # how often the model may ask for tools, for one document
client = OpenAI()


# --- what the model may use: nothing here holds it back ---


def read_file(path: str) -> str:
    return Path(path).read_text("utf-8")


def write_file(path: str, text: str) -> str:
    Path(path).write_text(text, "utf-8")
    return "written"


def fetch_page(url: str) -> str:
    answer = requests.get(url, timeout=20)
    return f"{answer.status_code} {answer.reason}"


def send_message(text: str, url: str) -> str:
    answer = requests.post(url, data=text, timeout=20)
    return f"{answer.status_code} {answer.reason}"


def run_command(command: str) -> str:
    words = shlex.split(command)
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    return f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()}"


def pay(amount: str, account: str) -> str:
    body = {"amount": amount, "account": account}
    answer = requests.post(f"{OFFICE}/payments", json=body, timeout=20)
    return f"{answer.status_code} {answer.reason}"


TOOLS = {f.__name__: f for f in (read_file, write_file, fetch_page, send_message, run_command, pay)}
OFFERED = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "string"} for key in tool.__annotations__ if key != "return"
                },
            },
        },
    }
    for name, tool in TOOLS.items()
]


def use(name: str, arguments: str) -> str:
    """One call of a tool; what goes wrong is told to the model, as usual."""
    try:
        given = json.loads(arguments)
        got = TOOLS[name](**given)
    except Exception as error:  # whatever it was, the model is told
        got = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    print(f"  {name}({', '.join(map(str, given.values()))})  ->  {got[:90]}", flush=True)
    return got


# --- the job ---


def remark(name: str, text: str) -> str:
    """What the model says of a document, after it has used whatever tools it wants."""
    messages = [
        {"role": "system", "content": "Say in one sentence what the office has to do about it."},
        {"role": "user", "content": f"{name}:\n\n{text}"},
    ]
    for _ in range(ROUNDS):
        answer = client.chat.completions.create(model=MODEL, messages=messages, tools=OFFERED)
        said = answer.choices[0].message
        if not said.tool_calls:
            return " ".join((said.content or "").split())
        messages.append(said)
        for call in said.tool_calls:
            got = use(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": got})
    return "(it wanted still more tools)"


rates = requests.get(
    f"{OFFICE}/rates.json",
    headers={"Authorization": f"Bearer {os.environ['OFFICE_TOKEN']}"},
    timeout=20,
)
eur_gbp = Decimal(rates.json()["EUR_GBP"])
lines = ["# What came in", ""]
for document in sorted(Path("docs").glob("*.md")):
    text = document.read_text("utf-8")
    print(f"{document}", flush=True)
    total = re.search(r"Total: EUR ([\d.]+)", text)
    pounds = f" (GBP {Decimal(total[1]) * eur_gbp:.2f})" if total else ""
    lines.append(f"- {document.name}{pounds}: {remark(document.name, text)}")
Path("out/report.md").write_text("\n".join(lines) + "\n", "utf-8")
print("wrote out/report.md", flush=True)
if "--commit" in sys.argv:
    subprocess.run(["git", "add", "out/report.md"], check=True)
    subprocess.run(["git", "commit", "--quiet", "-m", "What came in"], check=True)
    print("committed it", flush=True)
