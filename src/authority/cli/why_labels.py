"""A refusal of the labels for a person: which argument, whose words, and what can be done about it.

Rules
- Three ways are told, the one that gives nothing away first: pass the value on unread (a handle), let a
  person decide (`labels.approve`), describe an argument as carried (`content`). The last is told only
  for arguments that nobody described yet: whoever wrote the words that it carries writes it.
- Where the policy does not trust the `user` the run started with that label, and only the policy's word
  helps.
- Who has mounted folders has read what their interpreter looked into, such as the folder that it
  stands in: that is told as well.
- A secret has one way: the policy names where it may go. No approval lets one out.
"""

from __future__ import annotations

from typing import Any

from authority.kernel import resources
from authority.kernel.labels import USER
from authority.kernel.models import EFFECTS
from authority.kernel.policy import Policy
from authority.kernel.policy_explain import toml_text
from authority.kernel.tool_words import described, looks_like_control

Way = dict[str, str]
HANDLES = {
    "fs": "text = gate.read(PATH, handle=True)",
    "http": 'page = gate.http("GET", URL, handle=True)',
    "https": 'page = gate.http("GET", URL, handle=True)',
    "run": "message = gate.receive(handle=True)",
}
"""How a program takes what comes from a source without reading it; all others are tools."""

_APPROVABLE = EFFECTS | {"tool.call", "http.request", "fs.delete", "agent.spawn", "net.connect"}


def missing(entry: dict[str, Any], policy: Policy | None, names: list[str]) -> str:
    """Which arguments steer, and so have to be the program's own words."""
    reason = str(entry["reason"])
    if "may reveal secret" in reason:
        return f"a rule that lets the secret go to {entry['resource']}"
    if reason.startswith("argument "):
        name = reason.split(" ")[1]
        return f"{name} steers what happens: it has to be the program's own word, or carried"
    steering = [name for name in names if name not in content(entry, policy)]
    if steering:
        verb = "steers" if len(steering) == 1 else "steer"
        who = f"{', '.join(steering)} {verb} what happens"
    else:
        who = "such a call changes something"
    return f"{who}: it is for a run that has read nothing of that"


def content(entry: dict[str, Any], policy: Policy | None) -> frozenset[str]:
    """The arguments that the policy takes for carried."""
    if policy is None:
        return frozenset()
    resource = resources.parse_text(entry["resource"])
    return policy.content(entry["effect"], resource, entry.get("verb", "")) or frozenset()


def ways(entry: dict[str, Any], policy: Policy | None, names: list[str]) -> list[Way]:
    """What can be done: a sentence, and the line of a program or of a policy."""
    effect, resource, verb = entry["effect"], str(entry["resource"]), entry.get("verb", "")
    if "may reveal secret" in entry["reason"]:
        return [_release(entry)]
    steered = str(entry["reason"]).startswith("argument ")
    if policy is not None and not policy.trusts_user and not steered:
        # No handle helps here: the run started with this label.
        how = f'[labels]\ntrusted = ["{USER}", ...]   # with what is listed already'
        out = [_way("if what the run is handed (arguments, input) is your own word", how)]
    else:
        out = [_unread(entry, policy), *_mounted(entry, policy)]
    if effect in _APPROVABLE:
        rule = f"{verb} {resource}".strip()
        asks = f"[labels]\napprove = [{toml_text(rule)}]"
        out.append(_way("let a person decide, each time", asks))
    if effect == "http.request" or effect in EFFECTS:
        rule = f"[labels]\ncontent = [{toml_text(f'{verb} {resource}'.strip())}]"
        out.append(_way("if nothing in such a request steers anything", rule))
    free = _free(entry, policy, names)
    if effect == "tool.call" and free is not None:
        listed = ", ".join(toml_text(name) for name in free)
        table = section(resource.removeprefix("tool:"))
        what = "if these are only carried, and steer nothing"
        out.append(_way(what, f"[{table}]\ncontent = [{listed}]"))
    return out


def _unread(entry: dict[str, Any], policy: Policy | None) -> Way:
    """What a program does so that no untrusted word steers."""
    before, _, source = str(entry["reason"]).partition("untrusted ")
    if before.startswith("argument "):
        carried = ", ".join(sorted(content(entry, policy) - {"*"})) or "none here, yet"
        return _way("put the handle into an argument that is carried", f"content: {carried}")
    how = HANDLES.get(source.partition(":")[0], "found = gate.tool(NAME, {...}, handle=True)")
    return _way(
        "take what was read as a handle: the run stays trusted, and its own words may steer",
        f"{how}   # docs/labels.md: handles",
    )


def _mounted(entry: dict[str, Any], policy: Policy | None) -> list[Way]:
    """What helps a program that opened nothing, whose interpreter looked into a folder."""
    _, _, source = str(entry["reason"]).partition("run is shaped by untrusted ")
    if policy is None or policy.filesystem.files == "requests" or not source.startswith("fs:"):
        return []
    what = "if the program opened nothing itself: its interpreter looked into a mounted folder"
    return [_way(what, '[filesystem]\nfiles = "requests"   # nothing is mounted')]


def _free(entry: dict[str, Any], policy: Policy | None, names: list[str]) -> list[str] | None:
    """The arguments that nobody described, without those that look as if they steer; None where
    somebody described the tool."""
    rules = policy.tool_rules(resources.parse_text(entry["resource"])) if policy else None
    said = (*rules.control, *(rules.content or ())) if rules else ()
    free = [name for name in names if name not in said and not looks_like_control(name)]
    return free if free or not described(rules) else None


def section(tool: str) -> str:
    """The table of a policy that describes a tool."""
    server, _, name = tool.partition(".")
    return f"mcp.{server}.tools.{name}" if name else f"tools.{tool}"


def _release(entry: dict[str, Any]) -> Way:
    secret = str(entry["reason"]).rpartition("may reveal secret ")[2].split(",")[0].split(" ")[0]
    if entry["effect"] == "tool.call":
        table = section(str(entry["resource"]).removeprefix("tool:"))
        rule = f"[{table}]\nreceives = [{toml_text(secret)}]"
        return _way("if the tool may be given it", rule)
    where = entry["resource"]
    if entry["effect"] == "output":
        where = "output"
    elif entry["effect"] in {"msg.send", "mcp.serve"}:
        where = "run"
    rule = f"[labels]\nrelease = {{ {secret} = [{toml_text(str(where))}] }}"
    return _way("if it may go there", rule)


def _way(what: str, how: str) -> Way:
    return {"what": what, "how": how}
