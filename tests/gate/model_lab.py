"""A run that makes model requests as it is told, against the upstream of `model_upstream`.

`ask` starts a run whose program sends each request with nothing but `http.client`, and gives back what
it got. Requests are dictionaries: `path`, `body` (a value, or text as it is sent), `headers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .lab import Lab, Ran
from .model_upstream import Upstream

KEY = "sk-upstream-0123456789"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
MESSAGES, COUNT, EMBEDDINGS = "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"

POLICY = """\
version = 1
[models]
allow = ["up-*", "obedient*"]
default_max_output = 500
input_bound = "INPUT_BOUND"
[models.upstream.local]
url = "http://127.0.0.1:PORT/v1"
api = "openai"
from_env = "UP_KEY"
models = ["up-*"]
[models.upstream.claude]
url = "http://127.0.0.1:PORT"
api = "anthropic"
from_env = "UP_KEY"
MODELS
[budgets]
denials = 10_000
BUDGETS
"""
PRICE = """
[models.price."NAME"]
input = 1_000_000
output = 4_000_000
cached = 100_000
overhead = 100
"""
NAMES = [
    *("plain", "high", "low", "free", "silent", "cut", "slow", "large", "event", "deep"),
    *("nojson", "key", "head", "429", "500", "away", "gzip", "tier"),
]
LIMITS = 'input_tokens = 100_000\noutput_tokens = 100_000\ncost_usd = "1.00"'

PROGRAM = """
import http.client, json, sys, threading
calls = json.loads(CALLS)
results = [None] * len(calls)
def one(number, call):
    c = http.client.HTTPConnection("127.0.0.1", 48102, timeout=60)
    body = call.get("body")
    if body is not None and not isinstance(body, str):
        body = json.dumps(body)
    headers = {"content-type": "application/json", **call.get("headers", {})}
    try:
        data = body and body.encode("utf-8", "surrogatepass")
        c.request(call.get("method", "POST"), call["path"], data, headers)
        r = c.getresponse()
        data = r.read()
        found = dict((k.lower(), v) for k, v in r.getheaders())
        results[number] = [r.status, found, data.decode("utf-8", "replace")[:20000]]
    except Exception as error:
        results[number] = [0, {}, type(error).__name__]
    c.close()
if PARALLEL:
    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(calls)]
    for t in threads: t.start()
    for t in threads: t.join()
else:
    for pair in enumerate(calls): one(*pair)
print(json.dumps(results))
"""


@dataclass
class Got:
    """One answer as the program saw it."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """Authority's code in a refusal, whatever the dialect."""
        error = self.json["error"]
        return str(error.get("authority", {}).get("code", ""))


def policy_text(
    upstream: Upstream | None,
    budgets: str = LIMITS,
    *,
    price: str = PRICE,
    names: Sequence[str] = NAMES,
    bound: str = "bytes",
    extra: Mapping[str, str] | None = None,
) -> str:
    models = "".join(price.replace("NAME", f"up-{name}") for name in names)
    text = POLICY.replace("PORT", str(upstream.port if upstream else 1))
    text = text.replace("MODELS", models).replace("BUDGETS", budgets).replace("INPUT_BOUND", bound)
    for old, new in (extra or {}).items():
        assert old in text
        text = text.replace(old, new)
    return text


def ask(
    lab: Lab, policy: str, calls: Sequence[Mapping[str, Any]], *, parallel: bool = False
) -> tuple[list[Got], Ran]:
    """What a program in a run got for its requests."""
    program = PROGRAM.replace("CALLS", repr(json.dumps(list(calls)))).replace(
        "PARALLEL", str(parallel)
    )
    ran = lab.run(program, policy)
    assert ran.summary["code"] == 0, ran.err
    return [Got(*one) for one in json.loads(ran.out)], ran


def chat(model: str, text: str = "SAY hello", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return {"path": CHAT, "body": body}


def message(model: str, text: str = "SAY hello", **more: Any) -> dict[str, Any]:
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}]}
    return {"path": MESSAGES, "body": {**body, **more}}


def spent(ran: Ran) -> dict[str, int]:
    return dict(ran.summary["budgets"]["spent"])
