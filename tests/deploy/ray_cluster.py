"""Run as a process: a local Ray with two replicas of nano on the CPU. Prints the address, and ends with its input."""

from __future__ import annotations

import sys

import ray
from ray import serve

from vl2.deploy.ray import app


def main(port: int) -> None:
    ray.init(num_cpus=4, num_gpus=0, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = {
        "model": "nano",
        "min_replicas": 2,
        "max_replicas": 2,
        "num_gpus": 0,
        "num_cpus": 0.5,
        "device": "cpu",
        "dtype": "float32",
        "threads": "1",
        "allow_without_keys": True,
        "allowed_host": "*",
    }
    serve.run(app(args), name="vl2", route_prefix="/")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
