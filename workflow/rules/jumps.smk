# The jumps of each variant, and their joint jump; beside them the full-rank reference (JTC).
#
# One job a level, as a cluster wants it. On one machine a profile asks for fewer, which saves starting PyTorch for each:
# `--set-scatter levels=4` makes four jobs of a variant's levels. The files are the same.


scattergather:
    levels=max(model["blocks"] for model in config["models"].values()),


JOBS = fitting_jobs(len(gather.levels("{scatteritem}")))

for (kind, end), (files, models) in JOBS.items():
    name = kind + end.replace(".{level}", "").replace(".", "_").replace("-", "_")
    WORK.setdefault(name, len(files) * WORK[kind])

    rule:
        name:
            name
        input:
            unembedding=f"{RESULTS}/{{model}}/unembedding.safetensors",
            positions=f"{BRANCH}/positions.parquet",
            shards=shard_paths("train"),
        output:
            jumps=[f"{VARIANT}/jumps/{file}.safetensors" for file in files],
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
        threads: 1
        resources:
            mem_mb=mem_mb(kind),
            runtime=runtime(kind, len(files)),
            disk_mb=disk_mb(kind, len(files)),
            gpu=1,
        params:
            # Told by the output, so that Snakemake takes a level for the same whatever job fits it.
            jumps=fitting_args,
            shards=lambda wildcards, input: repeat("--shard", input.shards),
            fit=choice("fit"),
            target=choice("target"),
            positions=choice("positions"),
            rank=rank_args,
            joint_batches=(
                choice("joint_batches") if kind == "fit_joint_jump" else "mixed"
            ),
            code=code("jumps.fitting"),
        shell:
            "onejump fit-jump --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
            " --target {params.target} --positions {params.positions} --threads {threads}"
            " --fit {params.fit} {params.rank} --joint-batches {params.joint_batches} --seed {wildcards.seed}"
            " {params.jumps} 2> {log:q}"


rule fit_jtc:
    input:
        unembedding=f"{RESULTS}/{{model}}/unembedding.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("train"),
    output:
        jtc=f"{BRANCH}/jtc/{{target}}.{{positions}}.safetensors",
    log:
        f"{LOGS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.log",
    benchmark:
        f"{BENCHMARKS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.tsv"
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("fit_jtc"),
        runtime=runtime("fit_jtc"),
        disk_mb=disk_mb("fit_jtc"),
        gpu=1,
    params:
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        target=lambda wildcards: wildcards.target,
        positions=lambda wildcards: wildcards.positions,
        code=code("jumps.fitting"),
    shell:
        "onejump fit-jtc --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --target {params.target} --positions {params.positions} --threads {threads} --out {output.jtc:q} 2> {log:q}"
