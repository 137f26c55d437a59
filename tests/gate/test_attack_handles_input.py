"""Attacks: references, pointers, types and amounts that no honest program sends.

What is malformed is refused in the open with a sentence that says what is wrong; what is too much
because of what is behind a handle is refused in secret. The gate answers the next request either way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from authority import protocol
from authority.agent import Handle, join

from .lab import SECONDS, Attached, Lab, code_of

TOOL = """\
import json, sys
asked = json.loads(sys.stdin.readline())["arguments"]
print(json.dumps({"result": asked if len(sys.argv) > 1 else {"a": "x", "b": [1, 2]}}))
"""
POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "requests"
[tools.web]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
[tools.echo]
command = ["python3", "tool.py", "echo"]
content = ["q"]
effect = "read"
[network]
http = ["GET,POST http://127.0.0.1:9/**"]
private = ["127.0.0.1:9"]
[labels]
trusted = ["user", "fs:./**"]
content = ["http://127.0.0.1:9/**"]
[budgets]
denials = 100_000
"""
DEEP: Any = {"type": "integer"}
for _ in range(9):
    DEEP = {"type": "array", "items": DEEP}


@pytest.fixture
def run(lab: Lab) -> Iterator[Attached]:
    lab.file("tool.py", TOOL)
    with lab.attached(POLICY) as found:
        found.gate().tool("web", {"q": "x"}, handle=True)
        yield found


def ref(**more: Any) -> dict[str, Any]:
    return {"$handle": "h1", **more}


BAD: list[tuple[str, Any, str]] = [
    ("a name that is none", {"$handle": "h1\n"}, "name of a handle"),
    ("unicode digits", {"$handle": "h\u0661"}, "name of a handle"),
    ("a large name", {"$handle": "h" + "9" * 5000}, "name of a handle"),
    ("a list for a name", {"$handle": ["h1"]}, "name of a handle"),
    ("a key too many", ref(label="trusted"), "nothing else"),
    ("its label", ref(sources=[]), "nothing else"),
    ("two kinds", ref(**{"$join": ["x"]}), "nothing else"),
    ("a pointer without a slash", ref(path="a"), "pointer"),
    ("a pointer with ~2", ref(path="/~2"), "~0"),
    ("a pointer that ends in ~", ref(path="/~"), "~0"),
    ("a pointer of a million steps", ref(path="/a" * 100_000), "pointer"),
    ("a pointer of bytes", ref(path=b"/a"), "pointer"),
    ("a schema too deep", ref(schema=DEEP), "8 deep"),
    ("a schema that refers", ref(schema={"$ref": "#"}), "type"),
    ("an endless enum", ref(schema={"enum": list(range(1001))}), "1 to 1000"),
    ("an enum of lists", ref(schema={"enum": [[]]}), "enum holds"),
    ("a pattern", ref(schema={"type": "string", "pattern": "(a+)+$"}), "has no pattern"),
    ("a float for a bound", ref(schema={"type": "integer", "minimum": 0.5}), "minimum"),
    ("a schema that leaves it open", ref(schema={"type": "object", "additionalProperties": True}),
     "no other"),
    ("a format that is a list", ref(schema={"type": "string", "format": ["id"]}), "format is"),
    ("a format that is false", ref(schema={"type": "string", "format": False}), "format is"),
    ("a list for what is required",
     ref(schema={"type": "object", "properties": {}, "required": [["a"]]}), "required a list"),
    ("within without a type", ref(within="/a"), "within"),
    ("joining numbers", {"$join": [1, ref()]}, "$join holds"),
    ("joining no handle", {"$join": ["x", "y"]}, "a handle at least"),
    ("joining nothing", {"$join": []}, "is a list"),
    ("joining joins", {"$join": [{"$join": ["x"]}]}, "$join holds"),
    ("some texts", {"$some": ["x", ref()]}, "$some holds"),
    ("too many", [ref()] * 257, "more than 256"),
    ("an unknown one", {"$handle": "h4097"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_malformed_reference_is_refused_with_a_reason(
    lab: Lab, run: Attached, bad: Any, says: str
) -> None:
    wire, token = run.wire(), run.token
    whole = {"arguments": {"q": bad}}
    code, _ = wire.ask("tool.call", "tool:echo", whole, token=token, flags=1)
    assert code == "E_SCHEMA_INVALID"
    denied = lab.denials(run=run.run)[-1]
    assert says in denied["reason"]
    assert "hidden" not in denied
    good = {"arguments": {"q": ref(path="/a")}}
    assert wire.ask("tool.call", "tool:echo", good, token=token, flags=1)[0] == ""


@pytest.mark.parametrize("depth", [100, 1_000_000])
def test_arguments_without_end(run: Attached, depth: int) -> None:
    wire = run.wire()
    nested = b"\x81\xa9arguments\x81\xa1q" + b"\x91" * depth + b"\x81\xa7$handle\xa2h1"
    wire.send(wire.request("tool.call", "tool:echo", nested, token=run.token, flags=1))
    said = wire.message()
    if depth == 100:
        assert protocol.decode_refused(said[0].body).code == "E_SCHEMA_INVALID"
    else:  # no message at all: it ends its channel, and no other
        assert said.code == "E_SCHEMA_INVALID"
    assert run.gate().tool("echo", {"q": 1}) == {"q": 1}


NOWHERE: list[tuple[str, str, dict[Any, Any]]] = [
    ("http.request", "http://127.0.0.1:9/x", {"method": ref()}),
    ("http.request", "http://127.0.0.1:9/x", {"headers": [["x", ref()]]}),
    ("http.request", "http://127.0.0.1:9/x", {"headers": ref()}),
    ("http.request", "http://127.0.0.1:9/x", {"max_bytes": ref()}),
    ("http.request", "http://127.0.0.1:9/x", {"url": ref()}),
    ("tool.call", "tool:echo", {"arguments": ref()}),
    ("tool.call", "tool:echo", ref()),
    ("tool.call", "tool:echo", {"arguments": {"q": 1}, "name": ref()}),
    ("model.chat", "model:x", {"api": "x", "request": {"model": ref()}}),
    ("model.chat", "model:x", {"api": ref(), "request": {}}),
    ("agent.spawn", "agent:x", {"arguments": [ref()]}),
    ("fs.write", "out/x", {"data": b"", "create_only": ref()}),
    ("fs.rename", "out/x", {"to": ref()}),
    ("msg.send", "run:x", {"to": ref(), "data": b""}),
]


@pytest.mark.parametrize(("effect", "resource", "arguments"), NOWHERE)
def test_no_handle_chooses_where_something_goes(
    lab: Lab, run: Attached, effect: str, resource: str, arguments: dict[Any, Any]
) -> None:
    before = len(lab.log(kind="admit", run=run.run))
    code, _ = run.wire().ask(effect, resource, arguments, token=run.token, flags=1)
    assert code == "E_SCHEMA_INVALID"
    assert "no handle may stand at /" in lab.denials(run=run.run)[-1]["reason"]
    assert len(lab.log(kind="admit", run=run.run)) == before


def test_a_handle_is_no_part_of_a_name(run: Attached) -> None:
    """A URL, a path or a key is text, and a handle is none."""
    gate = run.gate()
    held = Handle("h1")
    for make in (
        lambda: f"http://127.0.0.1:9/{held}",
        lambda: "out/" + held,  # type: ignore[operator]
        lambda: str(held),
        lambda: "{}".format(held),  # noqa: UP032
    ):
        with pytest.raises(TypeError):
            make()
    assert code_of(lambda: gate.http("POST", "http://127.0.0.1:9/x", body=b"x")) == (
        "E_EFFECT_FAILED"
    )


def test_handles_of_another_run_and_of_one_that_is_over(lab: Lab, run: Attached) -> None:
    with lab.attached(POLICY) as other:
        gate = other.gate()
        for name in ("h1", "h2", "h4096"):
            assert code_of(lambda n=name: gate.tool("echo", {"q": Handle(n)})) == (
                "E_SCHEMA_INVALID"
            )
            assert code_of(lambda n=name: gate.reveal(Handle(n))) == "E_SCHEMA_INVALID"
        kept = gate.tool("web", {"q": "x"}, handle=True)
        assert gate.reveal(kept["/a"]) == "x"
        token = other.token
    with lab.attached(POLICY) as later:
        # The dead run's capability is none here, and neither is its handle.
        later.gate().tool("web", {"q": "x"}, handle=True)
        code, _ = later.wire().ask("value.reveal", f"handle:{kept.name}", {}, token=token)
        assert code == "E_CAP_INVALID"


def test_so_many_handles_and_no_more(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    made = 1
    while made < 4096:
        with gate.batch() as batch:
            some = [
                batch.call("fs.stat", "data/a.txt", {}, handle=True)
                for _ in range(min(200, 4096 - made))
            ]
        assert all(isinstance(one.result(), Handle) for one in some)
        made += len(some)
    assert code_of(lambda: gate.call("fs.stat", "data/a.txt", {}, handle=True)) == (
        "E_BUDGET_EXCEEDED"
    )
    assert gate.stat("data/a.txt")["size"] == 5
    assert gate.reveal(Handle("h4096")["/size"]) == 5


def test_what_is_put_together_is_bounded(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    lab.file("data/large", b"x" * (4 * 1024 * 1024))
    large = gate.call("fs.read", "data/large", {}, handle=True)
    text = large["/data"]
    gate.call("fs.write", "out/fits", {"data": join(text, "y")})
    assert (lab.work / "out/fits").stat().st_size == 4 * 1024 * 1024 + 1
    for parts in ([text, text, text], [text] * 256):
        assert isinstance(gate.call("fs.write", "out/more", {"data": join(*parts)}), Handle)
        denied = lab.denials(run=run.run)[-1]
        assert (denied["hidden"], denied["code"]) == (True, "E_SCHEMA_INVALID")
    assert not (lab.work / "out/more").exists()
    many = [gate.call("fs.read", "data/large", {}, handle=True)["/eof"] for _ in range(9)]
    assert isinstance(gate.tool("echo", {"q": many[:7]}), Handle)
    assert lab.log(kind="admit", run=run.run)[-1]["resource"] == "tool:echo"
    gate.tool("echo", {"q": many})
    assert lab.denials(run=run.run)[-1]["reason"].startswith("the request names more")


def test_holding_to_a_type_is_bounded(lab: Lab, run: Attached) -> None:
    """A list of a million words, each compared with a thousand, in each of two hundred places."""
    gate, other = run.gate(), run.gate()
    lab.file("data/list", json.dumps(["x"] * 1_000_000))
    lab.file("data/short", json.dumps(["w0"] * 100))
    schema = {"type": "array", "items": {"enum": [f"w{n}" for n in range(1000)]}}
    short = gate.call("fs.read", "data/short", {}, handle=True)["/data"].typed(schema)
    gate.tool("echo", {"q": [short["/0"]]})
    assert json.loads(lab.log(kind="admit", run=run.run)[-1]["filled"]["text"]) == {
        "arguments": {"q": ["w0"]}
    }
    long = gate.call("fs.read", "data/list", {}, handle=True)["/data"].typed(
        {"type": "array", "items": {"enum": ["y"] * 999 + ["x"]}}
    )
    answers: list[Any] = []
    work = threading.Thread(
        target=lambda: answers.append(gate.tool("echo", {"q": [long["/0"]] * 50})), daemon=True
    )
    work.start()
    assert other.stat("data/a.txt")["size"] == 5
    work.join(SECONDS)
    assert isinstance(answers[0], Handle)
    assert "held to a type" in lab.denials(run=run.run)[-1]["reason"]
