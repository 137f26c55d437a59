"""Attacks on model calls: evading the price, using one's own key, a vendor that lies or floods.

Each refusal has a control beside it: the same request without the trick, or the trick where the
policy gives the bound, passes.
"""

from __future__ import annotations

import json
import socket
import threading

import pytest

from .lab import Lab
from .model_lab import (
    CHAT,
    KEY,
    LIMITS,
    MESSAGES,
    PRICE,
    RESPONSES,
    Got,
    ask,
    chat,
    message,
    policy_text,
    spent,
)
from .model_upstream import HUGE, Upstream

URL = "https://elsewhere.example/a.png"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_id": "file-1"}}
CLAUDE_IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000},
}
TEXT = {"type": "text", "text": "x"}


def parts(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}]


def responses(**body: object) -> dict[str, object]:
    return {"path": RESPONSES, "body": {"model": "up-plain", "input": "x", **body}}


UNBOUNDED = {
    "choices": chat("up-plain", n=2),
    "picture": chat("up-plain", messages=parts(IMAGE)),
    "audio in": chat("up-plain", messages=parts(AUDIO)),
    "audio out": chat("up-plain", modalities=["text", "audio"]),
    "file by id": chat("up-plain", messages=parts(FILE)),
    "a new kind of part": chat("up-plain", messages=parts({"type": "hologram"})),
    "tier": chat("up-plain", service_tier="priority"),
    "a new tier": chat("up-plain", service_tier=["auto"]),
    "prediction": chat("up-plain", prediction={"type": "content", "content": "x"}),
    "web search": chat("up-plain", web_search_options={}),
    "an unknown key": chat("up-plain", turbo=True),
    "a hosted tool": responses(tools=[{"type": "web_search"}]),
    "code interpreter": responses(tools=[{"type": "code_interpreter", "container": "x"}]),
    "stored conversation": responses(previous_response_id="resp_1"),
    "stored prompt": responses(prompt={"id": "p"}),
    "item by id": responses(input=[{"type": "item_reference", "id": "x"}]),
    "background": responses(background=True),
    "claude picture": message("up-plain", messages=parts(CLAUDE_IMAGE)),
    "claude picture in a tool's result": message(
        "up-plain",
        messages=parts({"type": "tool_result", "tool_use_id": "t", "content": [CLAUDE_IMAGE]}),
    ),
    "claude document": message(
        "up-plain", messages=parts({"type": "document", "source": {"type": "url", "url": "x"}})
    ),
    "claude search": message("up-plain", tools=[{"type": "web_search_20250305", "name": "w"}]),
    "claude cache": message(
        "up-plain", messages=parts({**TEXT, "cache_control": {"type": "ephemeral"}})
    ),
    "claude tier": message("up-plain", service_tier="fast"),
    "claude container": message("up-plain", container="c"),
    "claude beta": {
        **message("up-plain"),
        "headers": {"anthropic-beta": "interleaved-thinking-2025-05-14"},
    },
}


def test_what_bytes_do_not_bound_is_refused_where_it_is_budgeted(
    lab: Lab, server: Upstream
) -> None:
    before = len(server.seen)
    got, ran = ask(lab, policy_text(server), list(UNBOUNDED.values()))
    refused = dict(zip(UNBOUNDED, got, strict=True))
    assert {name: one.status for name, one in refused.items() if one.status != 403} == {}
    assert {one.code for one in got} == {"E_BUDGET_EXCEEDED"}
    assert len(server.seen) == before
    assert not lab.log(kind="admit", run=ran.run, effect="model.chat")
    allowed, _ = ask(lab, policy_text(server, ""), list(UNBOUNDED.values()))
    passed = dict(zip(UNBOUNDED, allowed, strict=True))
    assert {name: one.text for name, one in passed.items() if one.status != 200} == {}


BOUNDED = (
    PRICE + "image = 1500\ndocument = 3000\nstored = 5000\nhosted = 7000\nhosted_cost = 9\n"
    "choices = 2\ncache_write = 2_000_000\n"
)


def test_the_price_list_can_bound_them(lab: Lab, server: Upstream) -> None:
    names = ("choices", "picture", "a hosted tool", "stored conversation", "claude picture")
    names += ("claude cache", "claude document")
    calls = [UNBOUNDED[name] for name in names]
    text = policy_text(server, price=BOUNDED, names=["plain"])
    got, ran = ask(lab, text, [*calls, chat("up-plain", n=3)])
    assert [one.status for one in got] == [200] * len(names) + [403]
    admits = lab.log(kind="admit", run=ran.run, effect="model.chat")
    reserved = {name: admit["reserve"] for name, admit in zip(names, admits, strict=True)}
    sizes = {name: a["facts"]["demand"]["size"] for name, a in zip(names, admits, strict=True)}
    assert reserved["choices"]["output_tokens"] == 1000
    assert reserved["picture"]["input_tokens"] == sizes["picture"] - len(URL) + 1500 + 100
    tokens = sizes["claude picture"] - 4000 + 1500 + 100  # the picture's bytes are not text
    assert reserved["claude picture"]["input_tokens"] == tokens
    hosted = reserved["a hosted tool"]
    assert hosted["input_tokens"] == sizes["a hosted tool"] + 7000 + 100
    assert hosted["cost_usd"] == hosted["input_tokens"] + 500 * 4 + 9
    cached = reserved["claude cache"]
    assert cached["cost_usd"] == cached["input_tokens"] * 2 + 50 * 4


def test_a_policy_can_vouch_for_one_of_them(lab: Lab, server: Upstream) -> None:
    names = 'extras = ["beta:interleaved-thinking-2025-05-14", "key:turbo"]\n'
    given = {'allow = ["up-*"': names + 'allow = ["up-*"'}
    calls = [UNBOUNDED["claude beta"], UNBOUNDED["an unknown key"], UNBOUNDED["prediction"]]
    got, _ = ask(lab, policy_text(server, extra=given), calls)
    assert [one.status for one in got] == [200, 200, 403]


def raw_chat(body: str) -> dict[str, str]:
    return {"path": CHAT, "body": body}


PLAIN = '"model":"up-plain","messages":[{"role":"user","content":"SAY x"}]'
MALFORMED = {
    "a key twice": f'{{{PLAIN},"n":1,"n":9}}',
    "a key twice, escaped": f'{{{PLAIN},"n":1,"\\u006e":9}}',
    "the model twice": f'{{{PLAIN},"model":"up-high"}}',
    "a key twice, deep": '{"model":"up-plain","messages":[{"role":"user","role":"x"}]}',
    "a huge limit": f'{{{PLAIN},"max_tokens":1{"0" * 30}}}',
    "an endless number": f'{{{PLAIN},"max_tokens":{"9" * 10_000}}}',
    "a negative limit": f'{{{PLAIN},"max_tokens":-5}}',
    "a limit of zero": f'{{{PLAIN},"max_tokens":0}}',
    "a limit as float": f'{{{PLAIN},"max_tokens":1e9}}',
    "a limit as text": f'{{{PLAIN},"max_tokens":"5"}}',
    "a limit as truth": f'{{{PLAIN},"max_tokens":true}}',
    "two limits": f'{{{PLAIN},"max_tokens":5,"max_completion_tokens":9}}',
    "choices as float": f'{{{PLAIN},"n":2.0}}',
    "a stream that is text": f'{{{PLAIN},"stream":"true"}}',
    "NaN": f'{{{PLAIN},"temperature":NaN}}',
    "infinite": f'{{{PLAIN},"temperature":1e999}}',
    "deep": f'{{{PLAIN},"metadata":{"[" * 50_000}{"]" * 50_000}}}',
    "half a pair": f'{{{PLAIN},"user":"\\ud800"}}',
    "a mark before": f"\ufeff{{{PLAIN}}}",
    "two values": f"{{{PLAIN}}}{{{PLAIN}}}",
    "a list": "[]",
    "nothing": "",
    "no model": '{"messages":[]}',
    "a model that is none": '{"model":["up-plain"],"messages":[]}',
    "messages that are none": '{"model":"up-plain","messages":"x"}',
    "tools that are none": f'{{{PLAIN},"tools":{{"type":"web_search"}}}}',
}


def test_what_two_readers_could_read_differently_is_refused(lab: Lab, server: Upstream) -> None:
    before = len(server.seen)
    text = policy_text(server, "")  # nothing is budgeted: it is the form that is refused
    got, ran = ask(lab, text, [raw_chat(body) for body in MALFORMED.values()])
    found = dict(zip(MALFORMED, got, strict=True))
    assert {name: one.status for name, one in found.items() if one.status != 400} == {}
    assert len(server.seen) == before
    allowed, _ = ask(lab, text, [raw_chat(f"{{{PLAIN}}}"), raw_chat(f' {{{PLAIN},"n":1}} ')])
    assert [one.status for one in allowed] == [200, 200]
    assert ran.summary["code"] == 0


NAMES = [
    *("up-plain ", " up-plain", "up-plain\x00", "up-pl\u0430in", "UP-PLAIN", "up-plain\n"),
    *("gpt-4o", "up-plain-2024", "up-plain-pro", "up-plain:free", "up-plain/x", "up-plain@x"),
    *("", "*", "up-*", "model:up-plain", "../up-plain", "x" * 500, "up\u2010plain", "obedienta"),
]


def test_a_model_by_another_name_is_another_model(lab: Lab, server: Upstream) -> None:
    """Neither spelling, alias nor suffix gets at a price or a permission of another model."""
    before = len(server.seen)
    got, _ = ask(lab, policy_text(server), [chat(name) for name in NAMES])
    statuses = {name: one.status for name, one in zip(NAMES, got, strict=True)}
    assert all(status in (400, 403) for status in statuses.values()), statuses
    assert len(server.seen) == before
    # Control: with a date, a name that the list holds with -DATE has that entry's price.
    price = PRICE + PRICE.replace("NAME", "up-plain-DATE")
    text = policy_text(server, price=price, names=["plain"])
    got, _ = ask(lab, text, [chat("up-plain-2024-05-06"), chat("up-plain-mini")])
    assert [one.status for one in got] == [200, 403]


def test_a_denied_model_beats_the_permission(lab: Lab, server: Upstream) -> None:
    text = policy_text(
        server, extra={"[models.upstream.local]": 'deny = ["up-f*"]\n[models.upstream.local]'}
    )
    got, _ = ask(lab, text, [chat("up-free"), chat("up-plain")])
    assert [one.status for one in got] == [403, 200]
    assert got[0].code == "E_POLICY_DENY"


def test_no_overspending_by_calls_side_by_side(own: Lab, server: Upstream) -> None:
    """Thirty-two at once, each of which could take all that is left: the sum never passes it."""
    budgets = 'input_tokens = 3000\noutput_tokens = 900\ncost_usd = "0.005"'
    calls = [chat("up-silent", f"SAY {n}", max_tokens=100, stream=n % 2 == 0) for n in range(32)]
    got, ran = ask(own, policy_text(server, budgets), calls, parallel=True)
    passed = [one for one in got if one.status == 200]
    assert 0 < len(passed) < 32
    assert {one.status for one in got} == {200, 403}
    limits = {"input_tokens": 3000, "output_tokens": 900, "cost_usd": 5000}
    held = dict.fromkeys(limits, 0)
    reserved: dict[int, dict[str, int]] = {}
    for entry in own.log(run=ran.run):
        if entry["kind"] == "admit":
            reserved[entry["seq"]] = entry.get("reserve", {})
            change = reserved[entry["seq"]]
        elif entry["kind"] == "outcome":
            before, after = reserved[entry["of"]], entry["spent"]
            change = {k: after.get(k, 0) - before.get(k, 0) for k in limits}
        else:
            continue
        for name, limit in limits.items():
            held[name] += change.get(name, 0)
            assert held[name] <= limit, entry
    assert all(spent(ran)[name] == held[name] for name in limits)


# --- the vendor's side ---


def test_a_report_beyond_the_reservation_is_an_incident_and_ends_the_models_use(
    own: Lab, server: Upstream
) -> None:
    calls = [chat("up-high"), chat("up-high"), chat("up-plain"), message("up-high")]
    got, ran = ask(own, policy_text(server), calls)
    assert [one.status for one in got] == [200, 403, 200, 403]
    (first, *_) = own.log(kind="admit", run=ran.run, effect="model.chat")
    (outcome,) = own.log(kind="outcome", of=first["seq"])
    assert outcome["facts"]["reported_output"] == HUGE
    assert outcome["spent"]["output_tokens"] == first["reserve"]["output_tokens"]
    assert outcome["spent"]["cost_usd"] == first["reserve"]["cost_usd"]
    (incident,) = own.log(kind="incident")
    assert "up-high" in incident["detail"]
    assert not own.log(kind="halt")


@pytest.mark.parametrize("stream", [False, True])
def test_a_report_of_nothing_is_charged_what_the_text_proves(
    lab: Lab, server: Upstream, stream: bool
) -> None:
    words = "SAY " + "word " * 400
    got, ran = ask(lab, policy_text(server), [chat("up-low", words, stream=stream)])
    assert got[0].status == 200
    (outcome,) = lab.log(kind="outcome", run=ran.run)
    assert (
        outcome["spent"]["output_tokens"] == -(-1000 // 256) * 0 + outcome["spent"]["output_tokens"]
    )
    assert outcome["spent"]["output_tokens"] >= 7
    assert outcome["spent"]["input_tokens"] >= 2000 // 256
    assert outcome["facts"]["under"] is True


@pytest.mark.parametrize("make", [chat, message])
def test_a_cost_of_zero_is_not_believed(lab: Lab, server: Upstream, make: object) -> None:
    got, ran = ask(lab, policy_text(server), [make("up-free")])  # type: ignore[operator]
    assert got[0].json["usage"]["cost"] == 0
    assert spent(ran)["cost_usd"] > 20


def test_a_claim_that_everything_was_cached_makes_nothing_cheaper(
    lab: Lab, server: Upstream
) -> None:
    _, ran = ask(lab, policy_text(server), [chat("up-tier")])
    (outcome,) = lab.log(kind="outcome", run=ran.run)
    paid = outcome["spent"]
    assert paid["cost_usd"] == paid["input_tokens"] + paid["output_tokens"] * 4


@pytest.mark.parametrize("make", [chat, message])
def test_a_cut_stream_is_charged_as_reserved(lab: Lab, server: Upstream, make: object) -> None:
    got, ran = ask(lab, policy_text(server), [make("up-cut", stream=True), chat("up-plain")])  # type: ignore[operator]
    assert got[0].status == 200
    assert "broke off" in got[0].text
    admit = lab.log(kind="admit", run=ran.run, effect="model.chat")[0]
    (outcome,) = lab.log(kind="outcome", of=admit["seq"])
    assert outcome["status"] == "failed"
    assert outcome["spent"]["output_tokens"] == admit["reserve"]["output_tokens"]
    assert got[1].status == 200


def test_a_vendors_refusal_is_passed_on_and_free(lab: Lab, server: Upstream) -> None:
    got, ran = ask(lab, policy_text(server), [chat("up-429"), chat("up-500", stream=True)])
    assert [one.status for one in got] == [429, 500]
    assert got[0].headers["retry-after"] == "0"
    assert "x-should-retry" not in got[0].headers
    assert spent(ran).get("cost_usd", 0) == 0


FLOODS = {
    "a gigabyte": chat("up-large"),
    "an event without end": chat("up-event", stream=True),
    "deep JSON": chat("up-deep"),
    "no JSON": chat("up-nojson"),
    "compressed": chat("up-gzip"),
    "a redirect": chat("up-away"),
}


def test_floods_and_nonsense_are_bounded_and_the_neighbour_still_works(
    own: Lab, server: Upstream
) -> None:
    before = len(server.seen)
    calls = [*FLOODS.values(), chat("up-nojson", stream=True), chat("up-plain")]
    got, ran = ask(own, policy_text(server, LIMITS.replace("100_000", "1_000_000")), calls)
    assert [one.status for one in got[:-1]] == [502] * len(FLOODS) + [502]
    assert got[-1].status == 200
    assert server.sent < 64 * 1024 * 1024
    assert all(path.startswith("/v1/") for path, _, _ in server.seen[before:])
    assert not [e for e in own.log(kind="outcome", run=ran.run) if e["status"] == "aborted"]
    assert not [e for e in ran.events if e["event"] == "trouble"]


def test_the_key_does_not_come_back(lab: Lab, server: Upstream) -> None:
    calls = [chat("up-key"), chat("up-key", stream=True), message("up-key"), chat("up-head")]
    got, ran = ask(lab, policy_text(server), calls)
    assert [one.status for one in got] == [200] * 4
    for one in got:
        assert KEY not in one.text + json.dumps(one.headers)
    assert "[key]" in got[0].text
    assert "set-cookie" not in got[3].headers
    assert "x-other" not in got[3].headers
    assert KEY not in json.dumps(lab.log())
    assert KEY not in ran.out + ran.err


def test_a_missing_key_or_upstream_is_refused_before_anything_is_reserved(
    lab: Lab, server: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UP_KEY")
    got, ran = ask(lab, policy_text(server), [chat("up-plain"), chat("obedient")])
    assert [one.status for one in got] == [403, 200]
    (denial,) = lab.denials(run=ran.run)
    assert "UP_KEY" in denial["reason"]
    assert "UP_KEY" not in got[0].text


def test_where_an_upstream_may_be(lab: Lab, server: Upstream) -> None:
    """Loopback is as named as the policy names it; a denial and a metadata address still hold."""
    local = f"http://127.0.0.1:{server.port}/v1"
    denied = {"[models.upstream.local]": '[network]\ndeny = ["127.0.0.1"]\n[models.upstream.local]'}
    got, _ = ask(lab, policy_text(server, extra=denied), [chat("up-plain")])
    assert got[0].status == 403
    elsewhere = {local: "http://203.0.113.7:9/v1"}
    got, ran = ask(
        lab, policy_text(server, extra=elsewhere), [chat("up-plain"), message("up-plain")]
    )
    assert [one.status for one in got] == [502, 200]
    assert "only sent over https" in got[0].text
    assert spent(ran)["cost_usd"] < 200  # what was not sent is free


def test_tls_is_verified(lab: Lab, server: Upstream) -> None:
    """The local server speaks no TLS, so there is no certificate to accept."""
    local = f"http://127.0.0.1:{server.port}/v1"
    secure = {local: local.replace("http", "https")}
    got, _ = ask(lab, policy_text(server, extra=secure), [chat("up-plain")])
    assert got[0].status == 502
    assert "TLS" in got[0].text


SMUGGLING = """
import socket
def send(data):
    s = socket.create_connection(("127.0.0.1", 48102), timeout=30)
    s.sendall(data)
    got = b""
    while piece := s.recv(65536):
        got += piece
    return got.split(b"\\r\\n")[0].decode()
body = b'{"model":"obedient","messages":[{"role":"user","content":"SAY x"}]}'
head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n"
size = b"content-length: %d\\r\\n" % len(body)
chunked = b"transfer-encoding: chunked\\r\\n"
for name, data in {
    "plain": head + size + b"\\r\\n" + body,
    "both lengths": head + size + chunked + b"\\r\\n" + b"0\\r\\n\\r\\n" + body,
    "two lengths": head + size + b"content-length: 5\\r\\n\\r\\n" + body,
    "odd coding": head + b"transfer-encoding: gzip, chunked\\r\\n\\r\\n" + body,
    "no host": b"POST / HTTP/1.1\\r\\n\\r\\n",
    "long head": head + b"x: " + b"y" * 200_000 + b"\\r\\n\\r\\n",
    "no http": b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00" + b"a" * 100 + b"\\r\\n\\r\\n",
    "too long": head + b"content-length: 99999999999\\r\\n\\r\\n",
    "compressed": head + size + b"content-encoding: gzip\\r\\n\\r\\n" + body,
    "form": head + size + b"content-type: text/plain\\r\\n\\r\\n" + body,
    "other address": head.replace(b"/v1/chat/completions", b"/v1/files") + size + b"\\r\\n" + body,
    "query": head.replace(b"completions", b"completions?a=b") + size + b"\\r\\n" + body,
    "other host": head.replace(b"/v1", b"http://h.example/v1") + size + b"\\r\\n" + body,
}.items():
    print(f"{name}: {send(data)[9:12]}")
print("plain: " + send(head + size + b"\\r\\n" + body)[9:12])
"""


def test_ambiguous_http_is_refused(lab: Lab, server: Upstream) -> None:
    ran = lab.run(SMUGGLING, policy_text(server))
    lines = dict(line.split(": ") for line in ran.out.splitlines())
    assert lines.pop("plain") == "200", ran.err
    assert ran.out.splitlines()[0] == "plain: 200"
    assert lines.pop("odd coding") == "501"
    assert {name: status for name, status in lines.items() if status[:1] != "4"} == {}
    assert len(lab.log(kind="admit", run=ran.run, effect="model.chat")) == 2


def test_a_run_without_a_models_section_has_no_endpoint(lab: Lab) -> None:
    program = """
import socket
try:
    socket.create_connection(("127.0.0.1", 48102), timeout=5)
    print("CONNECTED")
except OSError as error:
    print("refused")
"""
    assert lab.run(program).out == "refused\n"


def test_a_secret_goes_to_no_model_without_a_release(lab: Lab, server: Upstream) -> None:
    lab.file("data/secret.txt", "the code is 7")
    program = """
import http.client, json
from authority.agent import connect
def ask(model):
    c = http.client.HTTPConnection("127.0.0.1", 48102)
    body = {"model": model, "messages": [{"role": "user", "content": "SAY x"}]}
    c.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return c.getresponse().status
before = ask("up-plain")
connect().read_text("data/secret.txt")
print(before, ask("up-plain"), ask("up-free"))
"""
    extra = """
[filesystem]
read = ["./**"]
[labels]
trusted = ["fs:./**"]
[labels.secrets]
code = ["fs:./data/secret.txt"]
[labels.release]
code = ["model:up-free", "output:stdout"]
"""
    ran = lab.run(program, policy_text(server) + extra)
    assert ran.out == "200 403 200\n", ran.err
    assert lab.denials(run=ran.run)[0]["code"] == "E_TAINT"


def test_untrusted_text_goes_into_prompts_and_shapes_the_answers_run(
    lab: Lab, server: Upstream
) -> None:
    program = """
import http.client, json
from authority.agent import connect
gate = connect()
gate.read_text("data/a.txt")
print(gate.model("up-plain", [{"role": "user", "content": "SAY x"}]).status)
"""
    ran = lab.run(program, policy_text(server) + '[filesystem]\nread = ["./**"]\n')
    assert ran.out == "200\n", ran.err
    assert f"fs:{lab.work}/data/a.txt" in ran.summary["label"]["sources"]


def test_a_slow_sender_holds_up_nobody(lab: Lab, server: Upstream) -> None:
    program = """
import http.client, json, socket
held = [socket.create_connection(("127.0.0.1", 48102)) for _ in range(100)]
for s in held:
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 100\\r\\n\\r\\n{")
c = http.client.HTTPConnection("127.0.0.1", 48102, timeout=30)
body = {"model": "up-plain", "messages": [{"role": "user", "content": "SAY x"}]}
c.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
print(c.getresponse().status)
"""
    ran = lab.run(program, policy_text(server))
    assert ran.out == "200\n", ran.err


def closing_server() -> tuple[socket.socket, int]:
    """A server that is no HTTP: it says a line and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-x\r\n")

    threading.Thread(target=work, daemon=True).start()
    return listener, int(listener.getsockname()[1])


def test_an_upstream_that_is_no_http(lab: Lab, server: Upstream) -> None:
    listener, port = closing_server()
    with listener:
        other = {f"127.0.0.1:{server.port}/v1": f"127.0.0.1:{port}/v1"}
        got, _ = ask(lab, policy_text(server, extra=other), [chat("up-plain"), message("up-plain")])
    assert [one.status for one in got] == [502, 200]


def shape(got: Got) -> str:
    return str(got.json.get("type"))


def test_refusals_have_the_vendors_form_and_are_not_repeated(lab: Lab, server: Upstream) -> None:
    calls = [chat("gpt-4o"), message("claude-x"), {"path": MESSAGES, "body": "{"}]
    got, _ = ask(lab, policy_text(server), calls)
    assert [one.status for one in got] == [403, 403, 400]
    assert got[0].json["error"]["code"] == "E_POLICY_DENY"
    assert shape(got[1]) == shape(got[2]) == "error"
    assert got[1].json["error"]["type"] == "permission_error"
    assert {one.headers["x-should-retry"] for one in got} == {"false"}
