"""Proofs: statements about all requests, decided exactly, and certificates that anyone re-checks.

The engine is automata: what a rule covers is a regular set of paths, and hosts, ports, queries and
verbs that no rule tells apart are finitely many. So every question has an answer, with a shortest
request where the answer is no, and nothing is approximated that a proof rests on.

`alphabets`, `automata` and `space` know what a request can be; `encoding` reads a compiled policy;
`prover` asks; `statements`, `claims`, `widening` and `dead` are what is asked; `certificate` keeps
it. `kernel` searches the gate's own decisions instead of its policies.
"""
