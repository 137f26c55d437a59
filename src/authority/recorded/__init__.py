"""A run as the log has it: read, held against what is asked now, and answered again.

Knows the kernel and the log, and nothing that performs. `replay` plays whole runs with it, the gate the
beginning of one that it goes on with.
"""
