"""The thirteen tests of the specification as live attacks on this machine.

`perform(...)` in `authority.matrix.runner` does them all; `authority.matrix.against` does those that
make sense elsewhere against other sandboxes. `docs/matrix.md` says what each test tries.

Rules
- An attack is a program or a client that really does it: against a gate that was started as
  `authority run` starts one, in a sandbox that it made, on a log that it wrote.
- What an attacking program says about itself is set against what the host saw.
- Every test has controls: the same thing where it must work (without Authority, or with the genuine
  token, or with the guard taken out). A test whose controls fail has failed.
"""
