"""What the matrix tells a program: ports, paths, names; by one of them the host knows its process."""

from __future__ import annotations

import json
import sys
from typing import Any

from calls import name_process  # type: ignore[import-not-found]

GIVEN: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}

if "mark" in GIVEN:
    name_process(GIVEN["mark"])
