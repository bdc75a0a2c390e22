# So that `snakemake` works from the root of a clone.
include: "workflow/Snakefile"


workflow.default_target = "all"
