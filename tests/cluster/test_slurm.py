"""What the slurm profile asks of Slurm, and what a job does that is packed, requeued or too big."""

import re
import time

import pytest
from cluster import recipe, slurm_jobs, stage_process

pytestmark = pytest.mark.xdist_group("copies")

JUMPS = "tiny-llama/seed-0/exact/jumps"


def jobs_of(output: str) -> list:
    """Slurm's view of the jobs that a run of Snakemake submitted."""
    name = re.search(r"SLURM run ID: (\S+)", output)[1]
    return [job for job in slurm_jobs("--states=all") if job.name == name]


def only(study, rule: str, *files) -> str:
    """Options that make files anew, and nothing that follows from them."""
    return f"-R {' '.join(str(file.relative_to(study.folder)) for file in files)} --until {rule}"


def wait_for(condition, seconds: float = 600):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def test_level_jobs_run_at_once_each_on_a_gpu_of_its_own(finished_slurm_study):
    study = finished_slurm_study
    jumps = [study.results(JUMPS, f"level-{level:02d}.safetensors") for level in (0, 1)]
    before = [jump.read_bytes() for jump in jumps]
    # Stopped, both stages stay long enough to be looked at.
    log = study.folder / "run.log"
    process = study.start_command(f"snakemake --profile slurm {only(study, 'fit_jump', *jumps)}", log)
    stages = {}
    while len(stages) < 2:
        assert process.poll() is None, log.read_text()
        for job in slurm_jobs("--states=running"):
            if job.number not in stages and (found := stage_process(job)):
                found.process.suspend()
                stages[job.number] = found
        time.sleep(0.02)
    gpus = {stage.variables["CUDA_VISIBLE_DEVICES"] for stage in stages.values()}
    for stage in stages.values():
        stage.process.resume()
    assert process.wait() == 0, log.read_text()
    assert len(gpus) == 2 and all(re.fullmatch(r"\d", gpu) for gpu in gpus)
    assert [jump.read_bytes() for jump in jumps] == before
    assert {(job.rule, job.megabytes, job.minutes) for job in jobs_of(log.read_text())} == {("fit_jump", 1000, 30)}


def test_short_level_jobs_are_packed_into_one_as_documented(finished_slurm_study):
    study = finished_slurm_study
    jumps = sorted(study.results(JUMPS).glob("level-*"))
    before = [jump.read_bytes() for jump in jumps]
    command = recipe("Short jobs").strip().replace("levels=4", "levels=1")
    done = study.run(f"{command} {only(study, 'fit_jump_00_02', *jumps)}")
    assert len(jumps) == 3 and [jump.read_bytes() for jump in jumps] == before
    (job,) = jobs_of(done.stdout)
    assert job.rule == "fit_jump_00_02"


def test_a_failed_job_is_submitted_again_with_twice_the_memory_and_time(finished_slurm_study):
    study = finished_slurm_study
    selection = study.results("tiny-llama/seed-0/exact/selection.json")
    before, log = selection.read_bytes(), study.folder / "run.log"
    process = study.start_command(f"snakemake --profile slurm {only(study, 'select_jump', selection)}", log)
    wait_for(lambda: next(filter(None, map(stage_process, slurm_jobs("--states=running"))), None)).process.kill()
    assert process.wait() == 0, log.read_text()
    assert [(job.state, job.megabytes, job.minutes) for job in jobs_of(log.read_text())] == [
        ("FAILED", 1000, 30),
        ("COMPLETED", 2000, 60),
    ]
    assert selection.read_bytes() == before


def test_a_requeued_fit_goes_on_from_its_checkpoint(finished_slurm_study):
    study = finished_slurm_study
    jump = study.results("tiny-gpt2/seed-0/paper/jumps/joint.safetensors")
    before, log = jump.read_bytes(), study.folder / "run.log"
    command = f"snakemake --profile slurm {only(study, 'fit_joint_jump', jump)}"
    process = study.start_command(command, log, ONEJUMP_CHECKPOINT_SECONDS="0")
    checkpoint = jump.with_name(f".{jump.name}.checkpoint")
    wait_for(checkpoint.exists)
    (job,) = slurm_jobs("--states=running")
    stage_process(job).process.suspend()  # so that it cannot end before it is requeued
    study.command(f"scontrol requeue {job.number}")
    assert process.wait() == 0, log.read_text()
    assert jump.read_bytes() == before
    assert not checkpoint.exists()
    stage_log = study.results("logs/fit_joint_jump/tiny-gpt2.seed-0.paper.log").read_text()
    assert f"resuming from {checkpoint.relative_to(study.folder)}" in stage_log
    assert [job.state for job in jobs_of(log.read_text())] == ["COMPLETED"]


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        ("", {"ONEJUMP_PARTITION": "absent"}, "Invalid partition name specified"),
        ("", {"ONEJUMP_PARTITION": "members", "ONEJUMP_ACCOUNT": "guests"}, "Invalid account or account/partition"),
        ("", {"ONEJUMP_CONSTRAINT": "a100"}, "Invalid feature specification"),
        ("--set-resources fit_jump:gpu=9", {}, "Requested node configuration is not available"),
        ("", {"ONEJUMP_STATUS_COMMAND": "sacct"}, "set ONEJUMP_STATUS_COMMAND=squeue"),
        ("", {"ONEJUMP_POLL_SECONDS": "2000"}, "set ONEJUMP_POLL_SECONDS=1200 or less"),
        ("", {"SLURM_CONF": "absent.conf"}, "Unable to contact slurm controller"),
    ],
)
def test_what_slurm_would_refuse_is_said_before_anything_is_submitted(slurm_study, command, variables, message):
    (slurm_study.folder / "absent.conf").write_text("ClusterName=absent\nSlurmctldHost=localhost\nSlurmctldPort=1\n")
    before = {job.number for job in slurm_jobs("--states=all")}
    # A plan of little, since it is made anew each time.
    target = "results/test/tiny-gpt2/seed-0/exact/jumps/level-00.safetensors"
    done = slurm_study.run(f"snakemake --profile slurm {command} -- {target}", check=False, **variables)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if "slurm: " in line]
    assert len(lines) == 1 and message in lines[0], done.stdout
    assert "Traceback" not in done.stdout
    # Slurm forgets old jobs in the meantime.
    assert {job.number for job in slurm_jobs("--states=all")} <= before


def test_a_second_study_takes_from_the_cache_what_the_first_made(slurm_study, tmp_path):
    """With the line of docs/cluster.md, which names no rules."""
    cache, made = tmp_path / "cache", []
    for name in ("first", "second"):
        sentences = f"results/{name}/corpus/seed-0/sentences.parquet"
        command = f"snakemake --profile slurm --cache --config study={name} -- {sentences}"
        slurm_study.run(command, SNAKEMAKE_OUTPUT_CACHE=str(cache))
        entry = (slurm_study.folder / sentences).resolve()
        assert entry.parent == cache
        made.append((entry, entry.stat().st_mtime_ns))
    assert made[0] == made[1]
