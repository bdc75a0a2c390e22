# Before the first job starts: what would make all of them fail is said once, in one line.
import subprocess
import tempfile

# sbatch option of each resource that a site can get wrong.
SBATCH = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "constraint": "--constraint",
    "qos": "--qos",
    "gres": "--gres",
    "gpu": "--gpus",
    "mem_mb": "--mem",
    "runtime": "--time",
}


def check_folder(folder, advice):
    """Make a folder, and refuse one that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise WorkflowError(
            f"{folder.absolute()}: {error.strerror}; make room, fix its permissions, or {advice}"
        ) from error


def ask_slurm(*command):
    """Output of a Slurm command, which must be there and succeed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise WorkflowError(
            f"slurm: there is no {command[0]} here; run on a login node of the cluster, or use --profile profiles/local"
        )
    except subprocess.TimeoutExpired:
        raise WorkflowError(
            f"slurm: {command[0]} has not answered for a minute; look whether the cluster is up (scontrol ping)"
        )
    if done.returncode != 0:
        said = done.stderr.strip() or f"no message, exit status {done.returncode}"
        reason = said.splitlines()[-1].split("error: ")[-1]
        raise WorkflowError(f"slurm: {reason}; asked by: {shlex.join(command)}")
    return done.stdout


def check_status_command():
    """Refuse a status command that never sees a job end: Snakemake would wait for ever."""
    settings = workflow.executor_settings
    facts = dict(re.findall(r"^(\w+)\s*= (.*\S)", ask_slurm("scontrol", "show", "config"), re.M))
    if facts["AccountingStorageType"] not in ("accounting_storage/none", "(null)"):
        return
    if settings.status_command != "squeue":
        raise WorkflowError(
            "slurm: this cluster keeps no accounts of jobs (AccountingStorageType is none), so sacct would never see a "
            "job end; set ONEJUMP_STATUS_COMMAND=squeue"
        )
    age, needed = (
        int(facts["MinJobAge"].split()[0]),
        3 * settings.init_seconds_before_status_checks,
    )
    if age < needed:
        raise WorkflowError(
            f"slurm: this cluster forgets a job {age} s after its end (MinJobAge), expected at least {needed} s, three "
            f"times the polling interval; set ONEJUMP_POLL_SECONDS={age // 3} or less"
        )


def check_requests():
    """Let Slurm judge, without submitting, each kind of request that the planned jobs will make."""
    requests = {}
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            given = {name: job.resources.get(name) for name in SBATCH}
            if model := job.resources.get("gpu_model"):
                given["gpu"] = f"{model}:{given['gpu'] or 1}"
            # A value that depends on files which are yet to be made is no value so far.
            options = [f"{SBATCH[name]}={value}" for name, value in given.items() if value and str(value) != "<TBD>"]
            options += shlex.split(job.resources.get("slurm_extra", ""))
            requests.setdefault((*options, f"--cpus-per-task={job.threads}"), job.rule.name)
    for options, rule_name in requests.items():
        try:
            ask_slurm("sbatch", "--test-only", *options, "--wrap=true")
        except WorkflowError as error:
            nodes = ask_slurm("sinfo", "--noheader", "-o", "%R: %c CPUs, %m MB, %G, %f")
            raise WorkflowError(
                f"jobs of {rule_name} cannot be submitted: {error}; this cluster has {'; '.join(nodes.splitlines())}; set "
                "ONEJUMP_PARTITION, ONEJUMP_ACCOUNT or ONEJUMP_CONSTRAINT, or give the rule other --set-resources"
            )


onstart:
    check_folder(Path("results"), "run elsewhere with --directory")
    if TIMES:
        write_text(AGAIN_FILE, json.dumps(TIMES))
    if CACHING and "://" not in CACHE:  # a folder, not a store of a storage plugin
        check_folder(Path(CACHE), "set SNAKEMAKE_OUTPUT_CACHE to another one")
    if workflow.executor_plugin.name == "slurm":
        check_status_command()
        check_requests()
