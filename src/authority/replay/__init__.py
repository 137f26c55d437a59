"""Playing a recorded run again: the same program, answered from the log and the content store alone.

Nothing imports this room but the command line. What it shows is in `play`, what it holds against the
recording in `matcher`.
"""
