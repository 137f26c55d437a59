"""What a run that read untrusted words, or a secret, may still ask for: decided for every effect.

The table names each effect of the kernel. A new one without a line here fails, so that nobody adds an
effect whose labels nobody thought about. Each line is asked of the kernel four times: trusted (the
control), tainted, secret, and secret with a release for exactly this resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest

from authority.kernel import resources, sinks
from authority.kernel.facts import Request
from authority.kernel.labels import Label
from authority.kernel.policy import Policy, load
from authority.kernel.requests import EFFECTS
from authority.kernel.state import Run, State

POLICY = """
version = 1
[tools.bare]
command = ["x"]
[tools.lookup]
command = ["x"]
effect = "read"
content = ["q"]
[tools.write]
command = ["x"]
effect = "write"
content = ["q"]
[agents.child]
command = ["x"]
[mcp.s]
command = ["x"]
allow = ["t"]
[labels]
trusted = ["user"]
secrets = { payroll = ["fs:/payroll/**"] }
release = { payroll = [RELEASE] }
compute = true
"""
CARRIED, CONTROL = "may carry untrusted words", "wants a trusted run"
KEPT, OUT = "tells nobody", "leaves the run"


class Line(NamedTuple):
    effect: str
    resource: str
    tainted: str
    secret: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    release: str = ""
    verb: str = ""


FILE, URL = "fs:/work/a", "https://host.example:443/a"
TABLE = [
    Line("fs.read", FILE, CARRIED, KEPT),
    Line("fs.stat", FILE, CARRIED, KEPT),
    Line("fs.list", FILE, CARRIED, KEPT),
    Line("fs.look", FILE, CARRIED, KEPT),
    Line("fs.show", FILE, CARRIED, KEPT),
    Line("fs.open", FILE, CARRIED, KEPT),
    Line("fs.mount", FILE, CARRIED, KEPT),
    Line("fs.write", FILE, CARRIED, OUT, {"data": b"x"}),
    Line("fs.append", FILE, CARRIED, OUT, {"data": b"x"}),
    Line("fs.mkdir", FILE, CARRIED, OUT),
    Line("fs.rename", FILE, CARRIED, OUT, {"to": "/work/b"}),
    Line("fs.delete", FILE, CONTROL, OUT),
    Line("fs.modify", FILE, CARRIED, OUT),
    Line("fs.attributes", FILE, CARRIED, OUT),
    Line("fs.symlink", FILE, CARRIED, OUT, {"text": "x"}),
    Line("fs.link", FILE, CARRIED, OUT, {"to": "/work/b"}),
    *(Line("http.request", URL, CARRIED, OUT, {"method": v}, verb=v) for v in ("GET", "HEAD")),
    *(
        Line("http.request", URL, CONTROL, OUT, {"method": v}, verb=v)
        for v in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "CONNECT", "WEBSOCKET")
    ),
    Line("net.connect", "tcp://host.example:443", CONTROL, OUT),
    Line("net.resolve", "dns:host.example", CARRIED, KEPT),
    Line("tool.call", "tool:bare", CONTROL, OUT),
    Line("tool.call", "tool:bare", CONTROL, OUT, {"arguments": {"q": 1}}),
    Line("tool.call", "tool:lookup", CARRIED, OUT, {"arguments": {"q": 1}}),
    Line("tool.call", "tool:lookup", CONTROL, OUT, {"arguments": {"q": 1, "who": 1}}),
    Line("tool.call", "tool:write", CONTROL, OUT, {"arguments": {"q": 1}}),
    Line("tool.call", "tool:s.t", CONTROL, OUT, {"arguments": {"q": 1}}),
    Line("mcp.list", "mcp:s/tools", CARRIED, OUT, release="mcp:s/**"),
    Line("mcp.read", "mcp:s/resources/x:y", CARRIED, OUT, release="mcp:s/**"),
    Line("mcp.prompt", "mcp:s/prompts/p", CONTROL, OUT, {"arguments": {"q": "x"}}, "mcp:s/**"),
    Line("mcp.serve", "run:r2", CARRIED, OUT, release="run"),
    Line("model.chat", "model:m", CARRIED, OUT),
    Line("model.embed", "model:m", CARRIED, OUT),
    Line("model.count", "model:m", CARRIED, OUT),
    Line("agent.spawn", "agent:child", CONTROL, OUT, {"arguments": ["x"]}),
    Line("agent.wait", "run:r2", CARRIED, KEPT),
    Line("msg.send", "run:r2", CARRIED, OUT, {"data": b"x"}, "run"),
    Line("msg.receive", "run:r", CARRIED, KEPT),
    Line("sys.time", "sys:time", CARRIED, KEPT),
    Line("sys.random", "sys:random", CARRIED, KEPT),
    Line("sys.uuid", "sys:uuid", CARRIED, KEPT),
    Line("value.reveal", "handle:h1", CARRIED, KEPT),
    Line("value.compute", "room:python", CARRIED, KEPT, {"program": "x"}),
    Line("output", "output:stdout", CARRIED, OUT, {"data": b"x"}, "output"),
]


def policy(release: str = "") -> Policy:
    def none(_base: str, name: str) -> Any:
        raise AssertionError(name)

    text = POLICY.replace("RELEASE", f'"{release}"' if release else "")
    return load(text, format="toml", base="/", name="p.toml", read_parent=none)


def refusal(line: Line, label: Label, release: str = "") -> str:
    arguments = msgspec.convert(
        dict(line.arguments), EFFECTS[line.effect].arguments, builtin_types=(bytes,)
    )
    request = Request(
        run="r", stream=0, n=1, effect=line.effect, shown=line.resource, digest="0" * 64,
        resource=resources.parse_text(line.resource), arguments=arguments, verb=line.verb,
    )  # fmt: skip
    run = Run(id="r", policy="p", capability="c", started=0, cwd="/", label=label)
    return sinks.judge(State(), policy(release), run, request).why


def test_every_effect_is_decided() -> None:
    assert {line.effect for line in TABLE} == set(EFFECTS)


@pytest.mark.parametrize("line", TABLE, ids=lambda e: f"{e.effect} {e.resource} {e.verb}")
def test_what_a_run_may_ask_for_after_it_read(line: Line) -> None:
    assert refusal(line, Label()) == ""
    tainted = refusal(line, Label(frozenset({"tool:web"})))
    assert tainted == ("" if line.tainted == CARRIED else "the run is shaped by untrusted tool:web")
    secret = refusal(line, Label(frozenset(), frozenset({"payroll"})))
    assert secret == ("" if line.secret == KEPT else "the run may reveal secret payroll")


@pytest.mark.parametrize(
    "line", [e for e in TABLE if e.secret == OUT], ids=lambda e: f"{e.effect} {e.resource} {e.verb}"
)
def test_a_release_is_for_what_it_names(line: Line) -> None:
    label = Label(frozenset(), frozenset({"payroll"}))
    named = line.release or line.resource
    assert refusal(line, label, named) == ""
    assert refusal(line, label, "fs:/elsewhere/**")
    assert refusal(line, Label(frozenset(), frozenset({"payroll", "other"})), named)
