"""Numbers of several processes in one folder: a module that imports nothing, as it is needed before that client."""

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus_client keeps numbers in files of a folder that processes share."""
