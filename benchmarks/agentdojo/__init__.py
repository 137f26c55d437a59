"""AgentDojo on the real gate: injected instructions, and agents that always obey them.

    scripts   attackers' calls where the benchmark has none          (the suites' interpreter)
    world     the suites, the environments and the scoring, a process (the suites' interpreter)
    room      a gate whose tools are played by that process
    stage     one gate and one world, with runs attached to them
    declared  `tools.toml` as a policy
    agents    who calls: plain, planned, one that does not obey
    plans     the plans of the planned agent, written from prompts and tool documents alone
    adaptive  an attacker who knows the gate
    table     what is measured, controls and targets

Rules
- The gate decides and records every call as in any attached run; it is never told who issued it.
- The environment lives behind the gate. An agent gets what the gate answers and nothing else; the
  oracle that plays the attacker may ask the world what its calls would be, and calls through the gate.
- Labels come from `tools.toml`, one declaration a tool, from the tools' documentation alone.
"""
