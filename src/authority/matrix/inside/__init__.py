"""The attacking programs. Each is run as a file, inside a sandbox or outside, and prints JSON lines.

They import the standard library and `attempts` beside them, nothing of ours: what they can do is
what any program can. None of them harms the machine when it gets through: a file is opened and not
written, a namespace is entered by a child that ends at once.
"""
