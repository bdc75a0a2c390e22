"""The whole study on Slurm while its jobs, its node and Snakemake fail: it ends with the same bytes, nothing else."""

import os
import random
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from cluster import Job, SlurmStudy, recipe, slurm_jobs, stage_process
from studies import Study

from onejump.files.atomic import OnejumpError, read_json
from onejump.files.tables import read_table
from onejump.files.tensors import TensorFile

pytestmark = pytest.mark.xdist_group("copies")

# The study is run so many times, each with at least so many faults.
ROUNDS, FAULTS_A_ROUND = 5, 20
FAULTS = (
    ["cancel the job"] * 3
    + ["kill the stage"] * 3
    + ["kill the stage while it writes"] * 4
    + ["terminate the stage"] * 3
    + ["fill the disk"] * 4
    + ["requeue the job"] * 2
    + ["let the job time out"] * 1
    + ["drain the node"] * 1
    + ["lose the node"] * 1
    + ["kill snakemake"] * 2
)
# Each rule is hit once, and some twice; more could use up a job's retries.
SECOND_HITS = 8


def check_whole(folder: Path) -> None:
    """Every file under its final name can be read to its end."""
    readers = {".safetensors": lambda path: TensorFile(path).tensors(), ".parquet": read_table, ".json": read_json}
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)  # a folder of a temporary name
        if path.suffix in readers and not hidden:
            try:
                readers[path.suffix](path)
            except OnejumpError:
                if path.exists():  # Snakemake may have removed it in the meantime
                    raise


class Faults:
    """Injects one fault after another, each at a random moment of a job, first of rules that were not hit so far.

    Attributes:
        hits: rule -> faults that hit a job of it.
        log: the faults, readable.
    """

    def __init__(self, study: SlurmStudy, orders: Path, seed: int) -> None:
        self.study, self.orders = study, orders
        self.rng = random.Random(seed)
        self.deck: list[str] = []
        self.hits: Counter[str] = Counter()
        self.log: list[str] = []

    def try_one(self, snakemake: subprocess.Popen) -> None:
        """Inject a fault if a suitable job runs."""
        running = slurm_jobs("--states=running")
        most = 2 if sum(hits - 1 for hits in self.hits.values()) < SECOND_HITS else 1
        jobs = [job for job in running if self.hits[job.rule] < most]
        if not jobs:
            return
        # Of the rules that were hit least, one with few jobs: its time is short.
        peers = Counter(job.rule for job in running)
        job = min(jobs, key=lambda job: (self.hits[job.rule], peers[job.rule], self.rng.random()))
        self.deck = self.deck or self.rng.sample(FAULTS, len(FAULTS))
        try:
            hit = self.inject(self.deck[-1], job, snakemake)
        except (psutil.Error, subprocess.CalledProcessError):  # the job ended a moment before
            hit = False
        if hit:
            self.hits[job.rule] += 1
            self.log.append(f"{self.deck.pop()}: {job.work}")

    def inject(self, kind: str, job: Job, snakemake: subprocess.Popen) -> bool:
        """Whether the fault hit the job."""
        if kind in ("kill the stage", "kill the stage while it writes", "terminate the stage", "fill the disk"):
            while (stage := stage_process(job)) is None:
                if not self.runs(job):
                    return False
                time.sleep(0.1)
            time.sleep(self.rng.uniform(0, 0.8))
            if kind == "kill the stage":
                stage.process.kill()
                return True
            if kind == "terminate the stage":
                stage.process.terminate()
                return True
            if kind == "fill the disk":  # no file can become longer than this
                stage.process.rlimit(psutil.RLIMIT_FSIZE, (500, 500))
                psutil.wait_procs([stage.process], timeout=600)
                return self.state(job, ended=True) == "FAILED"
            order = self.orders / stage.command
            order.touch()
            psutil.wait_procs([stage.process], timeout=600)
            carried_out = not order.exists()
            order.unlink(missing_ok=True)
            check_whole(self.study.results())
            return carried_out
        time.sleep(self.rng.uniform(0, 2))
        if not self.runs(job):
            return False
        if kind == "cancel the job":
            self.study.command(f"scancel {job.number}")
        elif kind == "requeue the job":
            self.study.command(f"scontrol requeue {job.number}")
        elif kind == "let the job time out":
            if (stage := stage_process(job)) is None:
                return False
            stage.process.suspend()
            self.study.command(f"scontrol update jobid={job.number} timelimit=1")
        elif kind == "kill snakemake":
            main = psutil.Process(snakemake.pid)
            for process in (main, *main.children(recursive=True)):
                if "snakemake" in [Path(part).name for part in process.cmdline()[:2]]:
                    process.kill()
            check_whole(self.study.results())
        else:
            state = {"drain the node": "drain", "lose the node": "down"}[kind]
            self.study.command(f"scontrol update nodename=localhost state={state} reason=test")
            time.sleep(self.rng.uniform(1, 4))
            # A node that was lost may have come back by itself.
            self.study.command("scontrol update nodename=localhost state=resume", check=False)
        return True

    def runs(self, job: Job) -> bool:
        return self.state(job) == "RUNNING"

    def state(self, job: Job, ended: bool = False) -> str | None:
        """Slurm's word for the state of a job, if need be after it has ended."""
        while True:
            state = next((other.state for other in slurm_jobs("--states=all") if other.number == job.number), None)
            if not (ended and state in ("RUNNING", "COMPLETING")):
                return state
            time.sleep(0.2)


@pytest.fixture(scope="module")
def hit() -> set[str]:
    """The rules that a fault has hit in any round."""
    return set()


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_study_on_slurm_survives_faults_in_all_stages(slurm_study, finished_study, tmp_path, number, hit):
    seed = int(time.time())
    print(f"seed of the faults: {seed}")
    study, log, orders = slurm_study, tmp_path / "snakemake.log", tmp_path / "orders"
    orders.mkdir()
    path = os.pathsep.join([str(Path(__file__).with_name("faulty")), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": path, "ONEJUMP_TEST_ORDERS": str(orders)}
    faults, restarts, began = Faults(study, orders, seed), 0, time.monotonic()
    snakemake = study.start_command("snakemake --profile slurm", log, **variables)
    try:
        while True:
            while snakemake.poll() is None:
                faults.try_one(snakemake)
                time.sleep(0.2)
            if snakemake.returncode == 0:
                break
            assert restarts < len(FAULTS), log.read_text()[-6000:]
            restarts += 1
            snakemake = study.start_command(recipe("After a crash"), log, **variables)
    finally:
        snakemake.kill()
    seconds = time.monotonic() - began

    names = set(re.findall(r"^SLURM run ID: (\S+)$", log.read_text(), re.M))
    jobs = [job for job in slurm_jobs("--states=all") if job.name in names]
    print("\n".join(faults.log))
    print(f"round {number}: {len(faults.log)} faults", end=", ")
    print(f"{restarts} restarts of Snakemake, {len(jobs)} Slurm jobs in {seconds:.0f} s")
    print(", ".join(f"{kind}: {n}" for kind, n in Counter(line.split(":")[0] for line in faults.log).items()))
    assert len(faults.log) >= FAULTS_A_ROUND
    assert len({job.work for job in jobs}) >= 60
    hit |= set(faults.hits)
    assert number < ROUNDS or hit == {job.rule for job in jobs}  # every stage was hit in some round

    wanted, found = result_files(finished_study), result_files(study)
    assert found.keys() == wanted.keys()
    assert [path for path in wanted if found[path].read_bytes() != wanted[path].read_bytes()] == []


def result_files(study: Study) -> dict[Path, Path]:
    """What a study leaves, by its path in the study; logs and times differ from run to run.

    Also what is hidden: temporary folders and checkpoints would be.
    """
    files = {path.relative_to(study.folder): path for path in study.results().rglob("*") if path.is_file()}
    return {
        path: file for path, file in files.items() if not {"logs", "benchmarks", "timings.parquet"} & set(path.parts)
    }
