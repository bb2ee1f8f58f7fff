"""Where this run's models and kernels live: `pytest --device cuda` on a machine with a GPU."""

DEVICE = "cpu"
