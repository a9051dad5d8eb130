"""``python -m torchassay``, as torchrun starts it."""

from torchassay.cli import main

main(prog_name="torchassay")
