"""`python -m authority.worker`: the process."""

from authority.worker.main import main

main()
