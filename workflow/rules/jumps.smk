# The jumps of each variant, and their joint jump; beside them the lenses, whose rules are in lenses.smk.
#
# One job a level, as a cluster wants it. On one machine a profile asks for fewer, which saves starting PyTorch for each:
# `--set-scatter levels=4` makes four jobs of a variant's levels. The files are the same.


wildcard_constraints:
    level=r"\d\d+",


scattergather:
    levels=max(model["blocks"] for model in config["models"].values()),


# A fit's own module is imported by name.
FIT_DIGESTS = {fit: stage_digest("fit_jump", f"jumps.{fit}") for fit in FITS}
JOBS = fitting_jobs(len(gather.levels("{scatteritem}")))

for (kind, end), (jumps, models) in JOBS.items():
    name = kind + re.sub(r"\W", "_", end.removesuffix(".level-{level}").replace(".level", ""))
    WORK.setdefault(name, len(jumps) * WORK[kind])

    rule:
        name:
            name
        input:
            **patterns("unembedding", "positions"),
            shards=shards("train"),
        output:
            jumps=[LAYOUT.pattern("jump").replace("{jump}", jump) for jump in jumps],
        log:
            f"{LOGS}/{kind}/{{model}}.seed-{{seed}}.{{variant}}{end}.log",
        benchmark:
            f"{BENCHMARKS}/{kind}/{{model}}.seed-{{seed}}.{{variant}}{end}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, models)),
        # Of all fits the joint one takes longest: let it start first.
        priority: AWAITED + (kind == "fit_joint_jump")
        conda:
            "../../envs/study.yaml"
        resources:
            **planned(kind, len(jumps)),
            gpu=1,
        params:
            **choices("fit", "target", "gate", "scales", "inputs"),
            rows=rows_options,
            # Told by the output, so that Snakemake takes a level for the same whatever job fits it.
            jumps=level_options,
            shards=options("--shard", "shards"),
            rank=rank_option,
            seed=lambda wildcards: seed_of_fit(int(wildcards.seed), choice("fit_seed")(wildcards)),
            joint_batches=(choice("joint_batches") if kind == "fit_joint_jump" else "mixed"),
            again=again("fits"),
            code=lambda wildcards: FIT_DIGESTS[choice("fit")(wildcards)],
        shell:
            "onejump fit-jump --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
            " --target {params.target} {params.rows} --threads {threads}"
            " --fit {params.fit} {params.rank} --gate {params.gate} --scales {params.scales} --inputs {params.inputs} --joint-batches {params.joint_batches} --seed {params.seed}"
            " {params.jumps} 2> {log:q}"
