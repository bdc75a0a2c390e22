# One job a level: the jumps of each variant; beside them their joint jump, and the full-rank reference (JTC).


rule train_jump:
    input:
        head=f"{RESULTS}/{{model}}/head.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("train"),
    output:
        jump=f"{VARIANT}/jumps/level-{{level}}.safetensors",
    log:
        f"{LOGS}/train_jump/{{model}}.seed-{{seed}}.{{variant}}.{{level}}.log",
    benchmark:
        f"{BENCHMARKS}/train_jump/{{model}}.seed-{{seed}}.{{variant}}.{{level}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("train_jump"),
        runtime=runtime("train_jump"),
        disk_mb=disk_mb("train_jump"),
        gpu=1,
    params:
        level=lambda wildcards: int(wildcards.level),
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        fit=choice("fit"),
        target=choice("target"),
        positions=choice("positions"),
        rank=rank_args,
        joint_batches="mixed",
        code=code("fitting.train"),
    shell:
        "onejump train-jump --head {input.head:q} --positions-file {input.positions:q} {params.shards}"
        " --target {params.target} --positions {params.positions} --threads {threads} --level {params.level}"
        " --fit {params.fit} {params.rank} --joint-batches {params.joint_batches} --seed {wildcards.seed}"
        " --out {output.jump:q} 2> {log:q}"


# Of all fits the joint one takes longest: let it start first.
use rule train_jump as train_joint_jump with:
    output:
        jump=f"{VARIANT}/jumps/joint.safetensors",
    log:
        f"{LOGS}/train_joint_jump/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/train_joint_jump/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: 10
    resources:
        mem_mb=mem_mb("train_joint_jump"),
        runtime=runtime("train_joint_jump"),
        disk_mb=disk_mb("train_joint_jump"),
        gpu=1,
    params:
        level="joint",
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        fit=choice("fit"),
        target=choice("target"),
        positions=choice("positions"),
        rank=rank_args,
        joint_batches=choice("joint_batches"),
        code=code("fitting.train"),


rule fit_jtc:
    input:
        head=f"{RESULTS}/{{model}}/head.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("train"),
    output:
        jtc=f"{BRANCH}/jtc/{{target}}.{{positions}}.safetensors",
    log:
        f"{LOGS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.log",
    benchmark:
        f"{BENCHMARKS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.tsv"
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
        code=code("fitting.train"),
    shell:
        "onejump fit-jtc --head {input.head:q} --positions-file {input.positions:q} {params.shards}"
        " --target {params.target} --positions {params.positions} --threads {threads} --out {output.jtc:q} 2> {log:q}"
