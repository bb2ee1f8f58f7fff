"""Files that bring `vl2 serve` to where it runs: nginx, containers, compose, Kubernetes, Ray."""
