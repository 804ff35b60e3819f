"""A command of ``ppgen`` in this process."""

import sys

import pytest

from ppgen import cli


def call(capsys, *arguments):
    """Exit status, standard output and standard error of one command."""
    before = sys.argv
    sys.argv = ["ppgen", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    code = stop.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0 if code is None else 1), out, err
