"""A study on the one-node Slurm, in a folder that looks like a clone; and what goes on in the queue."""

import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from studies import ROOT, Study, environment

SCRIPT = Path(__file__).with_name("slurm.sh")
# More than the machine may have: jobs wait for each other's files more than they compute.
NODE = {"SLURM_LAB_CPUS": "4", "SLURM_LAB_GPUS": "4", "SLURM_LAB_MEM_MB": "64000"}


def recipe(heading: str) -> str:
    """The first shell block below a heading of docs/cluster.md, as written."""
    text = (ROOT / "docs" / "cluster.md").read_text().split(f"## {heading}\n")[1]
    return re.search(r"```sh\n(.*?)```", text, re.S)[1]


@dataclass(frozen=True)
class Job:
    """A job in Slurm's queue, running or not.

    Attributes:
        number: of the job.
        name: `onejump_` and the id of the run of Snakemake.
        work: rule and wildcards.
        state: Slurm's word for it.
        megabytes: memory asked for.
        minutes: time limit.
    """

    number: int
    name: str
    work: str
    state: str
    megabytes: int
    minutes: int

    @property
    def rule(self) -> str:
        return self.work.removeprefix("rule_").split("_wildcards_")[0]


def slurm_jobs(*options: str) -> list[Job]:
    """Jobs in the queue, the oldest first; with `--states=all` the finished ones too."""
    command = ["squeue", "--noheader", "--sort=i", "-o", "%i|%j|%k|%T|%m|%l", *options]
    for _ in range(5):  # a busy controller may hang up
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode == 0:
            break
        time.sleep(1)
    done.check_returncode()
    jobs = []
    for line in done.stdout.splitlines():
        number, name, work, state, memory, limit = line.split("|")
        megabytes = float(memory[:-1]) * {"M": 1, "G": 1024}[memory[-1]]
        days, _, clock = limit.rpartition("-")
        hours, minutes, _ = (["0"] * 2 + clock.split(":"))[-3:]
        jobs.append(
            Job(int(number), name, work, state, int(megabytes), int(days or 0) * 1440 + int(hours) * 60 + int(minutes))
        )
    return jobs


@dataclass(frozen=True)
class Stage:
    """A running `onejump` command.

    Attributes:
        process: of the command.
        command: `fit-jump` ...
        variables: its environment.
    """

    process: psutil.Process
    command: str
    variables: dict[str, str]


def stage_process(job: Job) -> Stage | None:
    """The stage that a job runs, once it has begun."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if len(command) > 2 and Path(command[1]).name == "onejump":
                variables = process.environ()
                if variables.get("SLURM_JOB_ID") == str(job.number):
                    return Stage(process, command[2], variables)
        except psutil.Error:  # it has ended meanwhile
            continue
    return None


@dataclass
class SlurmStudy(Study):
    """A study in a folder of its own, laid out as a clone, so that commands run in it as they are documented."""

    def __post_init__(self) -> None:
        for name in ("workflow", "profiles", "envs"):
            shutil.copytree(ROOT / name, self.folder / name)
        shutil.copy(ROOT / "Snakefile", self.folder)
        (self.folder / "slurm").symlink_to("profiles/slurm")
        (self.folder / "reports").mkdir(exist_ok=True)
        (self.folder / "config").mkdir()
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(self.config))

    def start_command(self, command: str, log: Path, **variables: str) -> subprocess.Popen:
        """Start a shell command in the folder; what it says is appended to `log`."""
        variables = {"ONEJUMP_STATUS_COMMAND": "squeue", "ONEJUMP_POLL_SECONDS": "2"} | variables
        with open(log, "ab") as file:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=self.folder,
                env=environment(**variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def command(self, command: str, check: bool = True) -> None:
        """Run a command of Slurm."""
        subprocess.run(shlex.split(command), check=check, capture_output=True)

    def run(self, command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        """Run a shell command in the folder to its end; its output is in `stdout`."""
        log = self.folder / "run.log"
        log.unlink(missing_ok=True)
        code = self.start_command(command, log, **variables).wait()
        text = log.read_text()
        assert not check or code == 0, text[-6000:]
        return subprocess.CompletedProcess(command, code, text)
