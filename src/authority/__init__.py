"""Authority: a runtime for AI agents that nobody has to trust."""

__version__ = "0.1.0"
