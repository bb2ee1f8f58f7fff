"""`python -m vl2` is `vl2`."""

from vl2.cli import main

main()
