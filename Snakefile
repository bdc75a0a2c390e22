# One Jump Fits All: from sampled sentences to a report, one branch of the DAG per model, seed and variant.
# Library and command line are in src/onejump; what a study consists of is in config/ (see workflow/schemas).
from snakemake.utils import min_version

min_version("9.0")


# Snakemake would merge a --configfile into this one, and models of both would run.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/arguments.smk"
include: "workflow/rules/paths.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/jumps.smk"
include: "workflow/rules/selection.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/preflight.smk"


# Snakemake refuses to measure a job whose output may come from the cache.
for candidate in workflow.rules:
    if candidate.cache and candidate.cache.output:
        candidate._benchmark = None

# For `--logger onejump`, which foretells from it how much time is left.
os.environ.update(ONEJUMP_WORK=json.dumps(WORK))


localrules:
    all,


rule all:
    default_target: True
    input:
        f"reports/{STUDY}.html",
