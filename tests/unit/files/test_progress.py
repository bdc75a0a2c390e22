"""Bars of long stages, as they read in a log."""

import io
import sys

from onejump.files import progress


def test_a_log_has_a_line_for_each_state_of_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_bar(None, "dump", "token", total=4) as bar:
        bar.mininterval = 0
        for _ in range(4):
            bar.update()
    log = sys.stderr.getvalue()
    assert "\r" not in log
    assert log.endswith("\n")
    lines = log.splitlines()
    assert lines[0].startswith("dump:   0%|")
    assert lines[-1].startswith("dump: 100%|")
    assert all(line == line.strip() for line in lines)
    assert " 4/4 [" in lines[-1]


def test_without_a_description_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress.progress_bar([1, 2, 3], None, "step")) == [1, 2, 3]
    assert sys.stderr.getvalue() == ""


def test_a_terminal_has_one_bar_that_moves(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.progress_bar([1, 2, 3], "fit", "step")) == [1, 2, 3]
    assert terminal.getvalue().startswith("\rfit:   0%|")
