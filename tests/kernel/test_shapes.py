"""Recorded fields: what is left of an answer, what may have changed before it, and old entries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.kernel import entries, pointers, shapes, sinks
from authority.kernel.facts import Request
from authority.kernel.fold import apply
from authority.kernel.handles import Held, Part
from authority.kernel.labels import Label
from authority.kernel.pointers import Unfit
from authority.kernel.policy import Policy, load
from authority.kernel.requests import ToolCall
from authority.kernel.resources import parse
from authority.kernel.state import Run, State

RULES = 'fields = { "/*/own" = "trusted" }\nshape = "trusted"\n'
POLICY = f"""
version = 1
[tools.list]
command = ["l"]
effect = "read"
content = ["query"]
{RULES}
[tools.write]
command = ["w"]
content = ["body"]
effect = "write"
[tools.words]
command = ["v"]
content = ["body"]
[mcp.cal]
command = ["m"]
allow = ["*"]
[mcp.cal.tools.events]
effect = "read"
content = ["day"]
{RULES}
"""


def policy_of(text: str = POLICY) -> Policy:
    def none(base: str, name: str) -> Any:
        raise AssertionError(name)

    return load(text, format="toml", base="/", name="p.toml", read_parent=none)


names = st.sampled_from(["own", "text", "0", "1", "a/b", "~"])
documents = st.recursive(
    st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["", "x"])),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(names, below, max_size=3)),
    max_leaves=8,
)
places = st.lists(names, max_size=4).map(lambda steps: pointers.pointer_of(tuple(steps)))
patterns = st.lists(st.one_of(names, st.just("*")), max_size=3).map(
    lambda steps: pointers.pointer_of(tuple(steps))
)


def found(value: Any, pointer: str) -> Any:
    try:
        return pointers.project(value, pointer)
    except Unfit:
        return "nothing"


@given(st.lists(patterns, min_size=1, max_size=3), documents, places)
def test_what_is_cut_keeps_the_fields_and_no_more(
    fields: list[str], value: Any, pointer: str
) -> None:
    left = shapes.cut(tuple(fields), value)
    if any(pointers.covers(pattern, pointer) for pattern in fields):
        assert found(left, pointer) == found(value, pointer)
    elif not isinstance(inside := found(left, pointer), dict | list):
        assert inside in (None, "nothing")


def test_a_cut_names_no_other_member_and_keeps_how_many_there_are() -> None:
    rows = [{"own": 1, "text": "eve"}, "eve", {"text": ["eve"]}]
    assert shapes.cut(("/*/own",), rows) == [{"own": 1}, None, {}]
    assert shapes.cut(("/*/own",), "eve") is None
    assert shapes.cut(("",), rows) == rows


def held(
    tool: str, asked: int, hinges: str = "", *, effect: str = "tool.call", verb: str = ""
) -> Held:
    own = Label(frozenset([f"tool:{tool}"]))
    resource = f"tool:{tool}" if effect == "tool.call" else tool
    return Held(asked, effect, resource, verb, asked + 1, own, hinges=frozenset(hinges.split()))


def run(name: str, *handles: Held, parent: str = "", children: tuple[str, ...] = ()) -> Run:
    return Run(
        id=name, policy="", capability="", started=0, cwd="/", parent=parent, children=[*children],
        handles={f"h{n + 1}": one for n, one in enumerate(handles)},
    )  # fmt: skip


def hinge(*others: Held, child: tuple[Held, ...] = (), tool: str = "list") -> set[str]:
    """What a lookup in entry 10 hinges on, after these calls of its run and of its child."""
    lookup = held(tool, 10)
    own = run("r", *others, lookup, children=("c",))
    state = State(runs={"r": own, "c": run("c", *child, parent="r")})
    return set(shapes.hinge(state, policy_of(), own, lookup).sources)


def test_what_may_have_changed_before_counts_and_nothing_else_does() -> None:
    assert hinge() == set()
    assert hinge(held("write", 5, "mail")) == {"mail"}
    assert hinge(held("words", 5, "mail")) == {"mail"}  # nobody said that it only reads
    assert hinge(held("nobody-knows", 5, "mail")) == {"mail"}
    assert hinge(held("list", 5, "mail")) == set()
    assert hinge(held("cal.events", 5, "mail")) == set()
    assert hinge(held("cal.other", 5, "mail")) == {"mail"}
    assert hinge(held("write", 15, "mail")) == set()  # after it
    assert hinge(held("write", 5)) == set()  # in the open
    assert hinge(held("https://h/x", 5, "mail", effect="http.request", verb="POST")) == {"mail"}
    assert hinge(held("https://h/x", 5, "mail", effect="http.request", verb="GET")) == set()
    assert hinge(held("fs:/a", 5, "mail", effect="fs.write")) == {"mail"}
    assert hinge(held("model:m", 5, "mail", effect="model.chat")) == set()
    assert hinge(held("write", 5, "mail"), held("write", 6, "web")) == {"mail", "web"}
    assert hinge(tool="cal.events") == set()
    assert hinge(held("cal.other", 5, "mail"), tool="cal.events") == {"mail"}


def test_what_a_child_did_counts_and_what_a_parent_did() -> None:
    written = held("write", 5, "mail")
    assert hinge(child=(written,)) == {"mail"}
    lookup = held("list", 10)
    child = run("c", lookup, parent="r")
    state = State(runs={"r": run("r", written, children=("c",)), "c": child})
    assert set(shapes.hinge(state, policy_of(), child, lookup).sources) == {"mail"}
    stranger = State(runs={"r": run("r", written), "c": run("c", lookup)})
    assert not shapes.hinge(stranger, policy_of(), stranger.runs["c"], lookup).sources


@pytest.mark.parametrize(
    ("path", "typed", "resource", "yes"),
    [
        ("/0/own", False, "tool:list", True),
        ("/0/own/x", False, "tool:list", True),
        ("/0/own", False, "tool:cal.events", True),
        ("/0/own", True, "tool:list", False),
        ("/0", False, "tool:list", False),
        ("/0/text", False, "tool:list", False),
        ("/0/own", False, "tool:write", False),
        ("/0/own", False, "tool:nobody-knows", False),
        ("/0/own", False, "tool:cal.other", False),
    ],
)
def test_which_part_is_a_recorded_field(path: str, typed: bool, resource: str, yes: bool) -> None:
    one = held(resource.removeprefix("tool:"), 1)
    assert shapes.recorded(policy_of(), one, path, typed=typed) is yes
    strict = policy_of(POLICY.replace('shape = "trusted"', ""))
    assert not shapes.recorded(strict, one, path, typed=typed)


def test_an_entry_from_before_there_were_shapes_hinges_on_all_of_its_parts() -> None:
    state = State(seq=20, runs={"r": run("r", held("list", 5))})
    state.runs["r"].accounts = []
    old = entries.Admit(
        run="r", effect="tool.call", resource="tool:list", stream=1, n=1, request="", caps=[],
        rule="", handle="h2", sources=["tool:list"], parts=[Part("/a", "query", "h1", "/0/own")],
    )  # fmt: skip
    assert b"hinges" not in msgspec.json.encode(old)
    old.seq = 21
    apply(state, old)
    assert state.runs["r"].handles["h2"].hinges == {"tool:list"}
    new = msgspec.structs.replace(old, seq=22, handle="h3", hinges=[])
    assert b'"hinges":[]' in msgspec.json.encode(new)
    apply(state, new)
    assert state.runs["r"].handles["h3"].hinges == set()


def test_a_field_that_is_no_more_trusted_than_its_call_stays_so() -> None:
    """A secret goes with a recorded field, and so does what its lookup was asked with."""
    lookup = held("list", 5, "mail")
    lookup.label = lookup.label.join(Label(frozenset(["mail"]), frozenset(["diary"])))
    own = run("r", lookup)
    part = Part("/arguments/query", "query", "h1", "/0/own")
    request = Request(
        run="r", stream=1, n=1, effect="tool.call", shown="tool:list", digest="",
        resource=parse("tool.call", "tool:list"), arguments=ToolCall({"query": ""}), parts=(part,),
    )  # fmt: skip
    label = sinks.answered(State(runs={"r": own}), own, policy_of(), request)
    assert label == Label(frozenset(["mail", "tool:list"]), frozenset(["diary"]))
