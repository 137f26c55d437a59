"""A lab (a real gate) for each file that asks for one, and a deadline for everything."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gate.conftest import _deadline, _no_socket_waits_for_ever, lab, own  # noqa: F401
