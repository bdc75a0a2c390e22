# What each job asks for, from the library's cost plan: memory, minutes and disk, all growing with each attempt.
from onejump.planning.machines import GPUS, TWO_CORES
from onejump.planning.cost import mean_seconds, plan_model

# Runtimes are for the GPU that the site's environment names, or for `two-cores`; unset, for a modest one.
MACHINES = {**GPUS, TWO_CORES.name: TWO_CORES}
MACHINE_NAME = os.environ.get("ONEJUMP_MACHINE", "v100-32gb")
if MACHINE_NAME not in MACHINES:
    raise WorkflowError(
        f"ONEJUMP_MACHINE: {MACHINE_NAME!r} is not known, expected one of {', '.join(MACHINES)}"
    )
MACHINE = MACHINES[MACHINE_NAME]

# Priorities where cores are few: jobs that others wait for, then those that take long, so that none of the cores is
# left with a long job at the end.
AWAITED, LONG = 10, 5

PLANS = {
    name: plan_model(model, name, config) for name, model in config["models"].items()
}


def planned_cost(job, wildcards, times=1):
    """What the plan says about a rule's job, or about several of them as one."""
    variant = config["variants"].get(wildcards.get("variant"))
    plan = PLANS[wildcards.model].job(job, wildcards.get("split"), variant)
    return plan.repeated(times)


def mem_mb(job):
    """Host memory: as planned on a host without a GPU, and a third for what the plan does not know."""
    return lambda wildcards, attempt: planned_cost(job, wildcards).mem_mb(attempt)


def runtime(job, times=1):
    """Minutes: three times what is planned, and at least half an hour: a job cut off is a whole job lost."""
    return lambda wildcards, attempt: planned_cost(job, wildcards, times).runtime(
        MACHINE, attempt
    )


def disk_mb(job, times=1):
    """Disk for the files that the job writes."""
    return lambda wildcards, attempt: planned_cost(job, wildcards, times).disk_mb(
        attempt
    )


# Seconds of a rule's average job.
WORK = mean_seconds(config, MACHINE)
