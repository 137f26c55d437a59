"""Runs in virtual machines: the same as in name spaces, and what only a machine can show."""
