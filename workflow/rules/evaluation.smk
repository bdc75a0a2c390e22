# Every method at every exit level.


def jtc_path(wildcards):
    name = f"{choice('target')(wildcards)}.{choice('positions')(wildcards)}"
    return f"{BRANCH}/jtc/{name}.safetensors".format(**wildcards)


rule evaluate_level:
    input:
        head=f"{RESULTS}/{{model}}/head.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("test"),
        jumps=level_paths("jumps/level-{level}.safetensors"),
        joint=f"{VARIANT}/jumps/joint.safetensors",
        jtc=jtc_path,
        selection=f"{VARIANT}/selection.json",
    output:
        evaluation=f"{VARIANT}/evaluation/level-{{level}}.parquet",
    log:
        f"{LOGS}/evaluate_level/{{model}}.seed-{{seed}}.{{variant}}.{{level}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_level/{{model}}.seed-{{seed}}.{{variant}}.{{level}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(3000),
        runtime=60,
        gpu=1,
    params:
        level=lambda wildcards: int(wildcards.level),
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        jumps=lambda wildcards, input: repeat("--jump", input.jumps),
        target=choice("target"),
        positions=choice("positions"),
        transfer_sentences=config["evaluation"]["transfer_sentences"],
        code=code("evaluation"),
    shell:
        "onejump evaluate-level --head {input.head:q} --positions-file {input.positions:q} {params.shards}"
        " --level {params.level} {params.jumps} --joint {input.joint:q} --jtc {input.jtc:q}"
        " --selection {input.selection:q} --target {params.target} --positions {params.positions}"
        " --transfer-sentences {params.transfer_sentences} --threads {threads} --out {output.evaluation:q} 2> {log:q}"


rule collect_transfer:
    input:
        evaluations=level_paths("evaluation/level-{level}.parquet"),
    output:
        transfer=f"{VARIANT}/transfer.parquet",
    log:
        f"{LOGS}/collect_transfer/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/collect_transfer/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=30,
    params:
        evaluations=lambda wildcards, input: repeat("--evaluation", input.evaluations),
        code=code("evaluation"),
    shell:
        "onejump collect-transfer {params.evaluations} --out {output.transfer:q} 2> {log:q}"
