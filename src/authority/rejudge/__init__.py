"""Judging again: every verdict of a log recomputed from the log, and what another policy would say.

`judge` runs the kernel's own functions on the recorded facts and compares entry for entry; `requests`
and `presented` put a request and its capability together again from what the log holds; `sources`
finds policies and bodies; `whatif` asks the recorded requests of another policy.
"""
