"""The gate's process, `python -I -m authority.gate`.

Nothing is collected until it serves: what is loaded by then stays, and looking through it again and
again would be a good part of a start.
"""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.disable()
    from authority.gate.process import main

    sys.exit(main())
