"""A denial in the words that an agent gets: the same when it is given and when it is played again."""

from __future__ import annotations

from typing import Any

from authority.kernel import entries
from authority.kernel.codes import SENTENCES, Code, Layer
from authority.kernel.policy import Policy


def rendering(denied: entries.Denied, policy: Policy | None) -> list[Any]:
    """Code, layer, one plain sentence, the denial's number, and the rule where the policy shows it.

    Where labels refuse an argument that the program named, the sentence names it, too.
    """
    code = Code(denied.code)
    rule = denied.rule if policy and policy.explain == "agent" else None
    sentence = denied.reason if denied.layer == Layer.SCHEMA else SENTENCES[code]
    if denied.layer == Layer.LABELS and denied.reason.startswith("argument "):
        sentence += f" (argument {denied.reason.split(' ', 2)[1]})"
    return [str(code), denied.layer, sentence, denied.number, rule]
