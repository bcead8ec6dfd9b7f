"""The command line, called from Python."""

import json

from click.testing import CliRunner

from gradflow import open_run
from gradflow.cli import main


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def config(path):
    with open_run(path) as ds:
        return json.loads(ds.attrs["gradflow_config"])
