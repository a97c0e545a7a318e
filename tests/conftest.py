"""What several test files share."""

import sys

import pytest

from trompe.cli import main


@pytest.fixture
def trompe(monkeypatch, capsys):
    """Run a command line in this process; returns exit code, output and errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["trompe", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "400")
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
