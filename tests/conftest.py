"""For all tests, before torch is imported anywhere: waiting threads sleep, as in the engine (engine/worker.py)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
