from tests.gate.conftest import *  # noqa: F403
