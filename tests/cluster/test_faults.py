"""The whole study on Slurm while its jobs, its node and Snakemake are being killed: it ends, with the same bytes."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from cluster import SlurmStudy, recipe, slurm_jobs, stage_process

from onejump.artifacts import OnejumpError, TensorFile, read_json, read_table

pytestmark = pytest.mark.xdist_group("study")

FAULTS = (
    ["cancel the job"] * 6
    + ["kill the stage"] * 4
    + ["kill the stage while it writes"] * 6
    + ["drain the node"] * 2
    + ["lose the node"] * 1
    + ["kill snakemake"] * 3
)
MOST_OF_A_RULE = 2  # more could use up a job's retries


def check_whole(folder: Path) -> None:
    """Every file under its final name can be read to its end."""
    readers = {".safetensors": lambda path: TensorFile(path).tensors(), ".parquet": read_table, ".json": read_json}
    for path in folder.rglob("[!.]*"):
        if path.suffix in readers and "cache" not in path.parts:
            try:
                readers[path.suffix](path)
            except OnejumpError as error:
                assert "no such file" in str(error)  # Snakemake has removed it meanwhile


class Faults:
    """Injects the faults of a list, one after another, each at a random moment of a job of a rule seldom hit so far.

    Attributes:
        hits: rule -> faults that hit a job of it.
        done: kinds of the faults injected.
        log: the faults, readable.
    """

    def __init__(self, study: SlurmStudy, orders: Path, seed: int) -> None:
        self.study, self.orders = study, orders
        self.rng = random.Random(seed)
        self.waiting = self.rng.sample(FAULTS, len(FAULTS))
        self.hits, self.done, self.log = Counter(), [], []

    def try_one(self, process: psutil.Process) -> None:
        """Inject the next fault if a suitable job runs."""
        jobs = [job for job in slurm_jobs("--states=running") if self.hits[job.rule] < MOST_OF_A_RULE]
        if not jobs or not self.waiting:
            return
        job = min(jobs, key=lambda job: (self.hits[job.rule], self.rng.random()))
        time.sleep(self.rng.uniform(0, 5))
        kind = self.waiting[0]
        if self.inject(kind, job, process):
            self.waiting.pop(0)
            self.done.append(kind)
            self.hits[job.rule] += 1
            self.log.append(f"{kind}: {job.work}")

    def inject(self, kind: str, job, process: psutil.Process) -> bool:
        """Whether the fault hit the job; it may have ended a moment before."""
        run = self.study.command
        if kind == "kill the stage" or kind == "kill the stage while it writes":
            found = stage_process(job)
            if found is None:
                return False
            if kind == "kill the stage":
                found.process.kill()
                return True
            order = self.orders / found.command
            order.touch()
            psutil.wait_procs([found.process], timeout=60)
            carried_out = not order.exists()
            order.unlink(missing_ok=True)
            check_whole(self.study.results())
            return carried_out
        if job.number not in {job.number for job in slurm_jobs("--states=running")}:
            return False
        if kind == "cancel the job":
            run(f"scancel {job.number}")
        elif kind == "drain the node":
            run("scontrol update nodename=localhost state=drain reason=test")
            time.sleep(3)
            run("scontrol update nodename=localhost state=resume")
        elif kind == "lose the node":
            run("scontrol update nodename=localhost state=down reason=test")
            time.sleep(1)
            run("scontrol update nodename=localhost state=resume")
        else:
            for candidate in (process, *process.children(recursive=True)):
                if "snakemake" in [Path(part).name for part in candidate.cmdline()[:2]]:
                    candidate.kill()
            check_whole(self.study.results())
        return True


def test_a_study_on_slurm_survives_faults_in_all_stages(slurm_study, finished_study, tmp_path):
    seed = int(time.time())
    print(f"faults: seed {seed}")
    study, log, orders = slurm_study, tmp_path / "snakemake.log", tmp_path / "orders"
    orders.mkdir()
    faults = Faults(study, orders, seed)
    path = os.pathsep.join(
        [str(Path(__file__).with_name("faulty")), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    environment = {"PYTHONPATH": path, "ONEJUMP_TEST_ORDERS": str(orders)}
    began = time.monotonic()
    process = study.start_command("snakemake --profile slurm", log, **environment)
    recoveries = 0
    while True:
        while process.poll() is None:
            faults.try_one(psutil.Process(process.pid))
            time.sleep(0.3)
        if (study.folder / "reports" / "test.html").exists() and process.returncode == 0:
            break
        assert recoveries < len(FAULTS), log.read_text()[-6000:]
        recoveries += 1
        process = study.start_command(recipe("After a crash"), log, **environment)
    seconds = time.monotonic() - began

    text = log.read_text()
    jobs = slurm_jobs("--states=all")
    names = {line.removeprefix("SLURM run ID: ") for line in text.splitlines() if line.startswith("SLURM run ID: ")}
    jobs = [job for job in jobs if job.name in names]
    print("\n".join(faults.log))
    print(f"{len(faults.done)} faults, {recoveries} restarts of Snakemake, {len(jobs)} Slurm jobs in {seconds:.0f} s")
    assert len(faults.done) >= 20
    assert len({job.work for job in jobs}) >= 60
    assert set(faults.hits) == {job.rule for job in jobs}  # every stage was hit

    wanted = {path.relative_to(finished_study.folder) for path in result_files(finished_study.results())}
    found = {path.relative_to(study.folder) for path in result_files(study.results())}
    assert found == wanted
    differing = [
        path for path in wanted if (study.folder / path).read_bytes() != (finished_study.folder / path).read_bytes()
    ]
    assert differing == []


def result_files(folder: Path) -> list[Path]:
    """All that a study leaves, temporary files too, but for logs and times, which differ from run to run."""
    return [path for path in folder.rglob("*") if path.is_file() and not {"logs", "benchmarks"} & set(path.parts)]
