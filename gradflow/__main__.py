"""``python -m gradflow`` is ``gradflow``."""

from gradflow.cli import main

main(prog_name="python -m gradflow")
