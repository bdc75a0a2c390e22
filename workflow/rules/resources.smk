# What each job asks for, from the library's plan: memory, minutes and disk, more at each attempt.
import dataclasses

from onejump.planning.machines import MACHINES
from onejump.planning.plan import fitted_by, mean_seconds, sizes_of
from onejump.planning.work import work_of

# Runtimes are for the GPU that the site's environment names, or for `two-cores`; unset, for a modest one.
MACHINE_NAME = os.environ.get("ONEJUMP_MACHINE", "v100-32gb")
if MACHINE_NAME not in MACHINES:
    raise WorkflowError(f"ONEJUMP_MACHINE: {MACHINE_NAME!r} is not known, expected one of {', '.join(MACHINES)}")
MACHINE = MACHINES[MACHINE_NAME]

# Priorities where cores are few: jobs that others wait for, then those that take long, so that none of the cores is
# left with a long job at the end.
AWAITED, LONG = 10, 5

SIZES = {model: sizes_of(model, config) for model in config["models"]}


def asked(stage, times, sizes, resource, wildcards, attempt):
    """A resource of a stage's job, or of several of them in one job; `sizes` are fields of `Sizes`."""
    changes = dict(sizes)
    if "variant" in wildcards.keys():
        changes |= fitted_by(config["variants"][wildcards.variant])
    if "split" in wildcards.keys():
        changes["split"] = wildcards.split
    work = times * work_of(stage, dataclasses.replace(SIZES[wildcards.model], **changes))
    return work.resources(MACHINE, attempt)[resource]


def planned(stage, times=1, **sizes):
    """Memory, minutes and disk of a stage's job, or of several of them in one job; `sizes` are fields of `Sizes`."""
    return {name: partial(asked, stage, times, sizes, name) for name in ("mem_mb", "runtime", "disk_mb")}


# Seconds of a rule's average job.
WORK = mean_seconds(config, MACHINE)
