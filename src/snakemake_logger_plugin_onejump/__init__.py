"""What a person sees of a running study, as `snakemake --logger onejump`: one line a job, and the time left.

Everything else, such as plans, errors and the logs of failed jobs, is Snakemake's own text.
"""

import json
import logging
import os
import sys
import time

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

# The work of a rule's average job, as JSON: Snakemake hands nothing else from a workflow to its loggers.
WORK_VARIABLE = "ONEJUMP_WORK"
# With less of the work done, no time is told.
SMALLEST_SHARE = 0.02
_CHATTER = ("Select jobs to execute", "Execute ", "Using shell", "Conda environments: ignored")


class LogHandler(LogHandlerBase):
    """Counts jobs and work, and writes a line when a job starts."""

    writes_to_stream = True  # in place of Snakemake's own output
    writes_to_file = has_filter = has_formatter = needs_rulegraph = False  # what Snakemake has of these stays

    def __post_init__(self) -> None:
        """Start counting; Snakemake's base class calls this."""
        self._work: dict[str, float] = {}
        self._rules: dict[int, str] = {}  # job -> rule
        self._finished: set[int] = set()
        self._counts: dict[str, int] = {}
        self._begun = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write what belongs on the screen, in one piece."""
        if (text := self._text(record)) is not None:
            print(text, file=sys.stdout if self.common_settings.stdout else sys.stderr, flush=True)

    def _text(self, record: logging.LogRecord) -> str | None:
        event = getattr(record, "event", None)
        if self.common_settings.dryrun:
            return self.format(record)
        if event == LogEvent.RUN_INFO:
            # Not before: the workflow sets the variable when it is read, after Snakemake has made its loggers.
            self._work = json.loads(os.environ.get(WORK_VARIABLE, "{}"))
            self._counts = {rule: count for rule, count in record.stats.items() if rule != "total"}
            self._begun = time.monotonic()
        elif event == LogEvent.JOB_INFO:
            self._rules[record.jobid] = record.rule_name
            return self._line(record)
        elif event == LogEvent.JOB_FINISHED:
            self._finished.add(record.job_id)
            return None
        elif event == LogEvent.PROGRESS:
            return self.format(record) if record.done == record.total else None
        elif event in (LogEvent.WORKFLOW_STARTED, LogEvent.JOB_STARTED, LogEvent.RESOURCES_INFO):
            return None
        text = self.format(record)
        return None if event is None and (not text.strip() or text.startswith(_CHATTER)) else text

    def _line(self, record: logging.LogRecord) -> str:
        total = sum(self._counts.values())
        left = self._left()
        said = "" if left is None else f"about {_duration(left)} left"
        count = f"{time.strftime('%H:%M:%S')} {len(self._finished):5}/{total}"
        return f"{count}  {said:<17} {record.rule_name:<20} {_place(record.wildcards)}".rstrip()

    def _left(self) -> float | None:
        """Seconds until the end, if the work goes on as fast as so far; None while there is too little to tell from."""
        every = sum(self._weight(rule) * count for rule, count in self._counts.items())
        done = sum(self._weight(self._rules[job]) for job in self._finished if job in self._rules)
        if not every or done < SMALLEST_SHARE * every:
            return None
        return (every - done) / done * (time.monotonic() - self._begun)

    def _weight(self, rule: str) -> float:
        return self._work.get(rule, self._work.get("", 1.0))


def _place(wildcards: dict[str, str]) -> str:
    """Model, seed, variant and level of a job, in words."""
    named = ("seed", "level", "shard")
    return ", ".join(f"{name} {value}" if name in named else value for name, value in (wildcards or {}).items())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d}"
