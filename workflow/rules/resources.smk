# What each job asks for, from the library's cost plan: memory, minutes and disk, all growing with each attempt.
from onejump.planning import GPUS, TWO_CORES, mean_seconds, plan_model

# Runtimes are for the GPU that the site's environment names, or for `two-cores`; unset, for a modest one.
MACHINES = {**GPUS, TWO_CORES.name: TWO_CORES}
MACHINE_NAME = os.environ.get("ONEJUMP_MACHINE", "v100-32gb")
if MACHINE_NAME not in MACHINES:
    raise WorkflowError(
        f"ONEJUMP_MACHINE: {MACHINE_NAME!r} is not known, expected one of {', '.join(MACHINES)}"
    )
MACHINE = MACHINES[MACHINE_NAME]
PLANS = {
    name: plan_model(model, name, config) for name, model in config["models"].items()
}


def planned_cost(job, wildcards):
    """What the plan says about a rule's job."""
    variant = config["variants"].get(wildcards.get("variant"))
    return PLANS[wildcards.model].job(job, wildcards.get("split"), variant)


def mem_mb(job):
    """Host memory: as planned on a host without a GPU, and a third for what the plan does not know."""
    return lambda wildcards, attempt: planned_cost(job, wildcards).mem_mb(attempt)


def runtime(job):
    """Minutes: three times what is planned, and at least half an hour: a job cut off is a whole job lost."""
    return lambda wildcards, attempt: planned_cost(job, wildcards).runtime(
        MACHINE, attempt
    )


def disk_mb(job):
    """Disk for the files that the job writes."""
    return lambda wildcards, attempt: planned_cost(job, wildcards).disk_mb(attempt)


# For `--logger onejump`, which foretells from it how much time is left.
os.environ.update(ONEJUMP_WORK=json.dumps(mean_seconds(config, MACHINE)))
