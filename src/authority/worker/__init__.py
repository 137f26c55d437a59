"""The confined process in which bytes of remote servers and of programs are parsed.

It has no file, no network, no key of the gate and no log. It sees a connection's bytes on a
descriptor that the gate handed in, asks the gate for every act, and speaks to servers on sockets
that the gate dialled. What it says to the gate is taken for what a stranger says.
"""
