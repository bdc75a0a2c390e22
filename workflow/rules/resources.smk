# What each job asks for, from the library's cost plan: memory, minutes and disk, all growing with each attempt.
import collections
import glob

from onejump.planning import GPUS, TWO_CORES, plan_model, plan_study

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


def mean_work():
    """Seconds of a rule's average job as planned for this machine; "" is a rule that no plan knows."""
    machine = MACHINE if glob.glob("/dev/nvidia[0-9]*") else TWO_CORES
    jobs, seconds = collections.Counter(), collections.Counter()
    for line in plan_study(config):
        jobs[line.cost.rule] += line.jobs
        seconds[line.cost.rule] += line.jobs * line.cost.seconds(machine)
    return {
        "": machine.start_seconds,
        **{rule: seconds[rule] / jobs[rule] for rule in jobs if jobs[rule]},
    }


# For `--logger onejump`, which foretells from it how much time is left.
os.environ["ONEJUMP_WORK"] = json.dumps(mean_work())
