"""The lines that a person sees of a running study, and the time that they say is left."""

import json
import logging
from types import SimpleNamespace

import pytest
from snakemake.logging import DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

import snakemake_logger_plugin_onejump as plugin

WORK = {"dump_activations": 100.0, "fit_jump": 10.0, "": 5.0}
COUNTS = {"dump_activations": 1, "fit_jump": 30, "render_report": 1, "total": 32}


@pytest.fixture
def study(monkeypatch, capsys):
    """`say(event, ...)` hands a record to the handler and gives what it writes; `clock` is its time."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setenv(plugin.WORK_VARIABLE, json.dumps(WORK))
    monkeypatch.setattr(plugin.time, "monotonic", lambda: clock.now)
    handler = plugin.LogHandler(SimpleNamespace(stdout=False, dryrun=False), None)
    handler.setFormatter(DefaultFormatter())

    def say(event=None, message="", **values):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, message, None, None)
        record.__dict__.update(values | ({"event": event} if event else {}))
        handler.emit(record)
        return capsys.readouterr().err

    def start(job, rule, **wildcards):
        return say(LogEvent.JOB_INFO, jobid=job, rule_name=rule, wildcards=wildcards)

    def finish(job):
        return say(LogEvent.JOB_FINISHED, job_id=job)

    return SimpleNamespace(clock=clock, say=say, start=start, finish=finish)


def test_a_job_is_one_line_with_stage_model_level_and_what_is_left_by_the_plan(study):
    assert study.say(LogEvent.RUN_INFO, "Job stats:", stats=COUNTS) == "Job stats:\n"
    first = study.start(1, "dump_activations", model="gpt2", seed="0", split="train", shard="00")
    # Nothing to tell from yet.
    assert " ".join(first.split()[1:]) == "0/32 dump_activations gpt2, seed 0, train, shard 00"
    study.clock.now += 50.0
    assert study.finish(1) == ""
    line = study.start(2, "fit_jump", model="gpt2", seed="0", variant="paper", level="07")
    # Of 100 + 30 * 10 + 5 units, 100 took 50 s: the others take 152.5 s.
    assert " ".join(line.split()[1:]) == "1/32 about 3 min left fit_jump gpt2, seed 0, paper, level 07"
    study.clock.now += 25.0
    for job in range(2, 30):
        study.start(job, "fit_jump", level="07")
        study.finish(job)
    # Two fits and the report, 25 units; 380 took 75 s.
    assert "about 5 s left" in study.start(31, "fit_jump", level="29")


def test_errors_and_messages_are_snakemakes_and_chatter_is_not_shown(study):
    study.say(LogEvent.RUN_INFO, "Job stats:", stats=COUNTS)
    assert study.say(message="Nothing to be done.") == "Nothing to be done.\n"
    assert study.say(LogEvent.ERROR, "config: unknown key") == "config: unknown key\n"
    for chatter in ("Select jobs to execute...", "Execute 2 jobs...", ""):
        assert study.say(message=chatter) == ""
    assert study.say(LogEvent.PROGRESS, done=3, total=32) == ""
    assert study.say(LogEvent.PROGRESS, done=32, total=32) == "32 of 32 steps (100%) done\n"


def test_a_plan_is_printed_as_snakemake_prints_it(study, capsys):
    handler = plugin.LogHandler(SimpleNamespace(stdout=True, dryrun=True), None)
    handler.setFormatter(DefaultFormatter())
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, "Execute 2 jobs...", None, None)
    handler.emit(record)
    assert capsys.readouterr().out == "Execute 2 jobs...\n"
