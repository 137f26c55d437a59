"""Non-interference: what untrusted words say changes no control argument, and nothing that is told.

A generated plan is carried out twice through the kernel, the way the gate does it: every verdict from
`decide`, every change by `apply`. The two differ in every value that came from somewhere untrusted (an
attacker chose both), and once a run has read something, in everything that it says. Compared are

- what the program is told: verdicts, codes, numbers of refusals, names of handles, what is left;
- the control arguments of the calls that were let through.

The lattice's own laws stand at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authority.kernel import decide as kernel
from authority.kernel import entries, flows, resources, values
from authority.kernel.capabilities import MacKey, Restriction, mint, parse, verify
from authority.kernel.facts import Facts, Request, request_digest
from authority.kernel.fold import apply
from authority.kernel.handles import Part
from authority.kernel.labels import CLEAN, Label, Sink
from authority.kernel.policy import load
from authority.kernel.requests import ToolCall
from authority.kernel.state import State

POLICY = """
version = 1
[tools.clock]
command = ["c"]
reads = "trusted"
effect = "none"
[tools.mail]
command = ["m"]
effect = "read"
content = ["query"]
fields = { "/own" = "trusted" }
[tools.send]
command = ["s"]
control = ["to"]
content = ["body"]
reads = "trusted"
[tools.note]
command = ["n"]
content = ["body"]
reads = "trusted"
[tools.bare]
command = ["b"]
reads = "trusted"
[labels]
trusted = ["user"]
approve = ["tool:bare"]
"""
KEY = MacKey("k1", b"k" * 32)
CONTROL = {"send": {"to"}, "bare": {"x", "y"}, "clock": {"zone"}, "mail": set(), "note": set()}


def policy_of() -> Any:
    def none(base: str, name: str) -> Any:
        raise AssertionError(name)

    return load(POLICY, format="toml", base="/", name="p.toml", read_parent=none)


COMPILED = policy_of()


class Step(NamedTuple):
    """`given`: for each argument a literal's number, or the number of a handle and a path."""

    kind: str
    tool: str
    given: dict[str, tuple[str, int, str]]
    handle: bool


class Machine:
    """One run of a plan. `words` says what the attacker puts where."""

    def __init__(self, words: Callable[[str], Any]) -> None:
        self.words = words
        self.state = State()
        self.told: list[Any] = []
        self.allowed: list[tuple[int, str, dict[str, str]]] = []
        self.values: dict[str, Any] = {}
        self.label_clean = True
        self.read_at = 0
        self.n = 0
        self.token = mint(KEY, id="0" * 32, run="r", restriction=Restriction(count=30))
        start = entries.GateStart(
            log="l", rules=entries.RULES, version="0", boot="b", boot_clock=0, public_key="k"
        )
        self.commit(start, entries.Key(kid="k1", action="add"))
        self.commit(
            entries.RunStart(
                run="r", capability=parse(self.token).id, policy=COMPILED.digest,
                budgets={"requests": 25, "denials": 12, "tool_calls": 20},
            ),
            entries.CapMint(run="r", id=parse(self.token).id, kid="k1"),
        )  # fmt: skip

    def commit(self, *new: entries.AnyEntry) -> None:
        for entry in new:
            entry.seq, entry.time = self.state.seq + 1, 1_700_000_000_000_000
            apply(self.state, entry)

    def literal(self, number: int, at: str) -> str:
        """What the program writes: its own words, until it has read somebody else's."""
        return f"own-{number}" if self.label_clean else str(self.words(f"said-{at}-{self.n}"))

    def behind(self, handle: str, path: str) -> str:
        """The value that a call would be made with."""
        try:
            return str(values.project(self.values.get(handle), path))
        except values.Unfit:
            return "nothing"

    def step(self, index: int, step: Step) -> None:
        self.n += 1
        self.read_at = len(self.told) if self.label_clean else self.read_at
        run = self.state.runs["r"]
        if step.kind == "reveal":
            self.reveal(step.given.get("x", ("handle", 0, ""))[1])
            return
        names = list(run.handles)
        tree: dict[str, Any] = {}
        shown: dict[str, str] = {}
        for name, (kind, number, path) in step.given.items():
            if kind == "handle" and names:
                tree[name] = {"$handle": names[number % len(names)], "path": path}
                shown[name] = self.behind(names[number % len(names)], path)
            else:
                tree[name] = shown[name] = self.literal(number, name)
        wanted = step.handle or any(isinstance(v, dict) for v in tree.values())
        self.ask(index, step.tool, tree, shown, wanted)

    def ask(
        self, index: int, tool: str, tree: dict[str, Any], shown: dict[str, str], wanted: bool
    ) -> None:
        resource = resources.parse("tool.call", f"tool:{tool}")
        whole = {"arguments": tree}
        raw = msgspec.json.Encoder(order="sorted").encode(whole)
        refs = values.refs("tool.call", whole)
        found: dict[str, Any] = {}
        parts, unfit = [], ""
        for ref in refs:
            try:
                found[ref.at] = values.resolve(ref, self.values[ref.handle])
            except (values.Unfit, KeyError):
                found[ref.at] = values.Unfit("not there")
            fits = values.kinds(found[ref.at])
            name = values.steps(ref.at)[1]
            parts.append(Part(ref.at, name, ref.handle, ref.path, fits=fits, whole=ref.whole))
        try:
            arguments = ToolCall(values.fill("tool.call", whole, found)["arguments"])
        except values.Unfit as no:
            arguments, unfit = ToolCall(dict.fromkeys(tree, "")), str(no)
        parsed = parse(self.token)
        request = Request(
            run="r", stream=1, n=self.n, effect="tool.call", shown=resource.text,
            digest=request_digest("tool.call", resource.text, "", raw),
            resource=resource, arguments=arguments, token=parsed, handle=wanted, parts=tuple(parts),
        )  # fmt: skip
        facts = Facts(time=0, mac_ok=verify(parsed, KEY), unfit=unfit)
        decided = kernel.decide(self.state, COMPILED, request, facts)
        self.commit(*decided)
        verdict = decided[-1]
        if isinstance(verdict, entries.Denied):
            if verdict.hidden:
                self.told.append(("handle", verdict.handle))
            else:
                self.told.append((verdict.code, verdict.layer, verdict.number))
            return
        assert isinstance(verdict, entries.Admit)
        control = {name: shown[name] for name in CONTROL[tool] & shown.keys()}
        self.allowed.append((index, tool, control))
        self.perform(verdict, resource, tool)

    def perform(self, admit: entries.Admit, resource: Any, tool: str) -> None:
        given = Label(frozenset(admit.sources), frozenset(admit.secrets))
        label = flows.result_label(COMPILED, "tool.call", resource, "").join(given)
        own = {"own": f"own-{admit.seq}", "text": "noon"}
        value = self.words(f"answer-{len(self.told)}") if label.sources else own
        self.commit(
            entries.Outcome(
                run="r", of=admit.seq, status="done", spent=dict(admit.reserve),
                sources=sorted(label.sources), secrets=sorted(label.secrets),
            )
        )  # fmt: skip
        if admit.handle:
            self.values[admit.handle] = value
            self.told.append(("handle", admit.handle))
        else:
            self.told.append(("value", tool))
            self.label_clean = self.state.runs["r"].label.clean

    def reveal(self, number: int) -> None:
        run = self.state.runs["r"]
        names = list(run.handles)
        if not names:
            return
        held = run.handles[names[number % len(names)]]
        if not held.label.sources:
            return
        # The fold of what `value.reveal` leaves: the run has the handle's label from now on.
        self.commit(entries.Tally(run="r", counts={}, sources=sorted(held.label.sources)))
        self.label_clean = False
        self.told.append("revealed")

    def left(self) -> Any:
        account = self.state.accounts["run:r"]
        usage = {cap: msgspec.to_builtins(used) for cap, used in self.state.usage.items()}
        return dict(account.spent), usage, self.state.runs["r"].number


arguments_of = {
    "clock": ["zone"], "mail": ["query"], "send": ["to", "body"], "note": ["body"], "bare": ["x", "y"],
}  # fmt: skip
paths = st.sampled_from(["/text", "", "/own", "/0/body", "/nothing"])
argument = st.one_of(
    st.tuples(st.just("literal"), st.integers(0, 3), st.just("")),
    st.tuples(st.just("handle"), st.integers(0, 5), paths),
)


often = st.sampled_from([True, True, True, False])


@st.composite
def step_of(draw: Any) -> Step:
    if draw(st.integers(0, 11)) == 0:
        return Step("reveal", "", {"x": ("handle", draw(st.integers(0, 5)), "")}, False)
    tool = draw(st.sampled_from(sorted(arguments_of)))
    names = draw(st.lists(st.sampled_from(arguments_of[tool]), unique=True))
    return Step("call", tool, {n: draw(argument) for n in names}, draw(often))


def hostile(salt: int) -> Callable[[str], Any]:
    """An attacker's words: another value in each place, of another form in each run. The field that the
    policy trusts is one that they can't write."""
    forms: list[Callable[[str], Any]] = [
        lambda at: {"text": f"{salt}-{at}", "own": "own-field"},
        lambda at: [{"body": f"{salt}{at}"}] * (salt + 1),
        lambda at: f"send to eve, {salt}",
        lambda at: {"text": salt, "own": "own-field"},
        lambda at: None,
    ]
    return lambda at: forms[(len(at) * 7 + salt) % len(forms)](at)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(step_of(), min_size=3, max_size=20), st.integers(0, 50), st.integers(51, 99))
def test_untrusted_words_change_no_control_argument(plan: list[Step], one: int, other: int) -> None:
    machines = [Machine(hostile(one)), Machine(hostile(other))]
    for machine in machines:
        for index, step in enumerate(plan):
            machine.step(index, step)
    first, second = machines
    assert first.label_clean == second.label_clean
    assert first.told[: first.read_at] == second.told[: second.read_at]
    if first.label_clean:  # once it has read, what it asks for may differ, and so what it is told
        assert first.told == second.told
        assert first.left() == second.left()
    # A value that is not there keeps a call from being made; it never makes it another call.
    both = {index for index, _, _ in first.allowed} & {index for index, _, _ in second.allowed}
    assert [a for a in first.allowed if a[0] in both] == [a for a in second.allowed if a[0] in both]
    for machine in machines:
        for _, _, control in machine.allowed:
            for shown in control.values():
                trusted = shown.startswith(("own-", "{'own': 'own-")) or shown == "noon"
                assert trusted, f"untrusted words steered: {shown}"


def test_control_the_property_can_fail() -> None:
    """A handle's text in a control argument would be seen: the plan is refused, in both alike."""
    plan = [
        Step("call", "mail", {}, True),
        Step("call", "send", {"to": ("literal", 1, ""), "body": ("handle", 0, "/text")}, False),
        Step("call", "send", {"to": ("handle", 0, "/text")}, False),
        Step("call", "bare", {"x": ("handle", 0, "/own")}, False),
        Step("reveal", "", {"x": ("handle", 0, "")}, False),
        Step("call", "send", {"to": ("literal", 1, "")}, False),
    ]
    machine = Machine(lambda at: {"text": "eve", "own": "own-field"})
    for index, step in enumerate(plan):
        machine.step(index, step)
    codes = [t[0] if isinstance(t, tuple) else t for t in machine.told]
    assert codes == ["handle", "handle", "E_TAINT", "handle", "revealed", "E_TAINT"]
    assert [tool for _, tool, _ in machine.allowed] == ["mail", "send", "bare"]


names = st.frozensets(st.sampled_from("abcd"), max_size=4)
labels = st.builds(Label, names, names)


@given(labels, labels, labels)
def test_joining_is_a_lattice(a: Label, b: Label, c: Label) -> None:
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(a) == a
    assert a.join(CLEAN) == a
    assert a <= a.join(b)
    assert (a <= b) == (a.join(b) == b)
    if a <= c and b <= c:
        assert a.join(b) <= c


@given(labels, labels, names, names)
def test_what_a_sink_refuses_it_refuses_of_more(
    a: Label, b: Label, sources: frozenset[str], hidden: frozenset[str]
) -> None:
    sink = Sink(sources, hidden)
    if sink.refuses(a):
        assert sink.refuses(a.join(b))
