"""Process tools: JSON in, JSON out, and everything that a bad tool can do instead."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.tools import MAX_OUTPUT, ToolEffect
from authority.kernel import canonical
from authority.kernel.codes import Code

from .support import PlainStarter, call, policy, run

ENVIRONMENT = {"LANG": "C.UTF-8", "TOKEN": "caller's secret", "PATH": "/usr/bin:/bin"}


def use(script: str, arguments: dict[str, Any] | None = None, more: str = "") -> Any:
    command = json.dumps([sys.executable, "-I", "-c", script])
    under = policy(f"[tools.t]\ncommand = {command}\n{more}")
    effect = ToolEffect(PlainStarter(), environment=ENVIRONMENT)
    done = run(effect.perform(call("tool.call", "tool:t", under=under, arguments=arguments or {})))
    canonical.encode(done.facts)
    return done


def failure(script: str, more: str = "") -> EffectFailed:
    with pytest.raises(EffectFailed) as failed:
        use(script, more=more)
    canonical.encode(failed.value.facts)
    assert failed.value.spent == {"requests": 1, "tool_calls": 1}
    return failed.value


ECHO = "import sys, json; json.dump({'result': json.load(sys.stdin)}, sys.stdout)"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"q": "ü\u2028\0'\"; rm -rf /"}, {"n": [1, -2, 2**60, 0.5, None, True, {"a": {}}]}],
)
def test_arguments_go_in_and_the_result_comes_out(arguments: dict[str, Any]) -> None:
    done = use(ECHO, arguments)
    assert done.value == {"result": {"arguments": arguments}}
    assert done.spent == {"requests": 1, "tool_calls": 1}
    assert done.facts["code"] == 0
    msgspec.msgpack.encode(done.value)


def test_standard_error_is_kept_for_the_operator_only() -> None:
    script = "import sys; sys.stderr.write('\\x1b[31mbad' + 'x' * 9000); print('{\"result\": 1}')"
    done = use(script)
    assert done.facts["stderr"].startswith("\\u001b[31mbad")
    assert len(done.facts["stderr"]) <= 4096
    assert done.value == {"result": 1}


def test_its_environment_is_what_the_policy_says() -> None:
    script = "import os, json; print(json.dumps({'result': dict(os.environ)}))"
    more = 'pass_env = ["LANG", "MISSING"]\nenv = { MODE = "demo" }\n'
    seen = use(script, more=more).value["result"]
    seen.pop("LC_CTYPE", None)  # the interpreter sets it for itself
    assert seen == {"LANG": "C.UTF-8", "MODE": "demo"}
    assert "TOKEN" not in use(script).value["result"]


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("", "one JSON object"),
        ("hello", "one JSON object"),
        ('{"result": 1} {"result": 2}', "one JSON object"),
        ('{"result": 1, "result": 2}', "one JSON object"),
        ('{"result": NaN}', "one JSON object"),
        ('{"result": 1e999}', "one JSON object"),
        ('{"result": ' + str(2**64) + "}", "one JSON object"),
        ('{"result": "\\ud800"}', "one JSON object"),
        ('{"result": {"\\udfff": 1}}', "one JSON object"),
        ('{"result": ' + "[" * 40 + "]" * 40 + "}", "one JSON object"),
        ("[1]", "no object"),
        ("{}", "neither of the two"),
        ('{"trusted": true}', "neither of the two"),
        ('{"result": 1, "error": "x"}', "both of the two"),
        ('{"result": 1, "label": "trusted"}', '"label" beside its "result"'),
        ('{"_meta": {}, "error": "x", "trusted": 1}', '"_meta", "trusted" beside its "error"'),
        (
            '{"result": 1, "a": 1, "\\u202e": 1, "c": 1, "d": 1}',
            r'"a", "\\u202e", "c" and 1 more be',
        ),
        (
            '{"result": 1, "trusted": 1}',
            r"in \[tools.t\] of the policy \(reads, secret, fields\), and",
        ),
        ('{"error": 5}', "an error that is no text"),
        ('{"error": "disk\\u001b[2J full"}', r"reports: disk\\u001b\[2J full"),
    ],
)
def test_what_is_no_answer_fails(output: str, why: str) -> None:
    failed = failure(f"print({output!r})")
    assert re.search(why, failed.sentence), failed.sentence


@pytest.mark.parametrize("rest", ["'[' * 100_000", "'9' * 10_000 + '}'"])
def test_json_that_exhausts_a_reader(rest: str) -> None:
    assert "one JSON object" in failure(f"print('{{\"result\": ' + {rest})").sentence


def test_bytes_that_are_not_utf8() -> None:
    script = 'import sys; sys.stdout.buffer.write(b\'{"result": "\\xff"}\')'
    assert "one JSON object" in failure(script).sentence


def test_an_exit_code_beats_an_answer() -> None:
    failed = failure("import sys; print('{\"result\": 1}'); sys.exit(3)")
    assert failed.sentence == "The tool t ended with exit code 3."
    assert failed.facts["code"] == 3
    killed = failure("import os; print('{\"result\": 1}', flush=True); os.kill(os.getpid(), 11)")
    assert "signal 11" in killed.sentence


def test_its_time_is_limited() -> None:
    failed = failure("import time; time.sleep(6000)", more='timeout = "300ms"\n')
    assert "took longer than 0.3 s" in failed.sentence


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_its_output_is_limited(stream: str) -> None:
    script = f"import sys; [sys.{stream}.write('x' * 65536) for _ in iter(int, 1)]"
    failed = failure(script)
    assert f"more than {MAX_OUTPUT}" in failed.sentence


def test_as_much_output_as_is_allowed() -> None:
    size = MAX_OUTPUT - len('{"result": ""}')
    done = use(f"import sys; sys.stdout.write('{{\"result\": \"' + 'x' * {size} + '\"}}')")
    assert len(done.value["result"]) == size


def test_a_tool_that_reads_nothing() -> None:
    done = use("print('{\"result\": null}')", {"big": "x" * 2_000_000})
    assert done.value == {"result": None}


def test_a_command_that_is_not_there() -> None:
    under = policy('[tools.t]\ncommand = ["/nowhere/at/all"]\n')
    effect = ToolEffect(PlainStarter(), environment={})
    with pytest.raises(EffectFailed) as failed:
        run(effect.perform(call("tool.call", "tool:t", under=under)))
    assert failed.value.sentence == "The tool t could not be started."
    with pytest.raises(EffectRefused) as refused:
        run(effect.perform(call("tool.call", "tool:other", under=under)))
    assert refused.value.code == Code.POLICY_DENY


@pytest.mark.parametrize("arguments", [{"a": b"bytes"}, {"a": float("nan")}, {"a": float("inf")}])
def test_arguments_that_are_not_json(arguments: dict[str, Any]) -> None:
    with pytest.raises(EffectRefused) as refused:
        use(ECHO, arguments)
    assert refused.value.code == Code.SCHEMA_INVALID


def test_arguments_nested_without_end() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(EffectRefused):
        use(ECHO, {"a": nested})


def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    starter = PlainStarter()
    command = json.dumps([sys.executable, "-I", "-c", "import time; time.sleep(60)"])
    under = policy(f"[tools.t]\ncommand = {command}\n")
    effect = ToolEffect(starter, environment={})

    async def main() -> None:
        task = asyncio.create_task(effect.perform(call("tool.call", "tool:t", under=under)))
        while not starter.started:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        for _ in range(3000):
            try:
                os.kill(starter.started[0], 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the process still runs")

    run(main())
