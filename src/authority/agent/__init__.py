"""What runs beside the agent: a connection to the gate. See `authority.agent.client`."""

from authority.agent.client import Answer, Batch, Gate, connect
from authority.agent.errors import (
    BadReply,
    BadRequest,
    Denied,
    GateError,
    GateGone,
    NoChannel,
    Receipt,
)
from authority.agent.handles import Handle, join, some
from authority.agent.values import HttpResponse, Message

__all__ = [
    "Answer",
    "BadReply",
    "BadRequest",
    "Batch",
    "Denied",
    "Gate",
    "GateError",
    "GateGone",
    "Handle",
    "HttpResponse",
    "Message",
    "NoChannel",
    "Receipt",
    "connect",
    "join",
    "some",
]
