"""The two model APIs as pure code: what a request may cost, what an answer used, how to refuse.

Pure: no I/O, no clock. The worker reads bytes with it, the gate reads values that a program gave it
through the channel; both come to the same `Demand`.
"""
