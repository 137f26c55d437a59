"""The gate's own decisions, searched exhaustively at a small size.

`world` plays a gate around the real `decide`, `chunk`, `recheck` and `apply`; `invariants` says what
must never be seen, in words of its own; `search` walks every interleaving to a depth; `mutants` are
kernels with one thing wrong, each of which the search has to catch. `python -m authority.proof.kernel`
does all of it.
"""
