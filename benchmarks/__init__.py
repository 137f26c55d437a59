"""What Authority costs, measured beside its peers and beside the bare machine.

Each `bench_*.py` has one function, `run(quick: bool) -> list[dict]`. A row is
`{name, value, unit, target, ok, detail}`: `value` is a number, or None when nothing could be
measured (a peer that is not installed); `target` is the text of what was to be reached, or "";
`ok` says whether it was, or None when there is nothing to reach. Figures are ratios to something
measured in the same minute, so they hold on a slow machine and on a fast one.
"""
