# Every method at every exit level: one job for a variant's jumps, one for the references that variants share.


rule evaluate_jumps:
    input:
        unembedding=f"{RESULTS}/{{model}}/unembedding.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("test"),
        jumps=jump_paths,
        joint=shared(joint_of, "jumps/joint.safetensors"),
        selection=f"{VARIANT}/selection.json",
    output:
        evaluation=f"{VARIANT}/evaluation.parquet",
        transfer=f"{VARIANT}/transfer.parquet",
    log:
        f"{LOGS}/evaluate_jumps/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_jumps/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("evaluate_jumps"),
        runtime=runtime("evaluate_jumps"),
        disk_mb=disk_mb("evaluate_jumps"),
        gpu=1,
    params:
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        jumps=lambda wildcards, input: repeat("--jump", input.jumps),
        target=choice("target"),
        positions=choice("positions"),
        transfer_sentences=config["evaluation"]["transfer_sentences"],
        code=code("exits.evaluation"),
    shell:
        "onejump evaluate-jumps --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " {params.jumps} --joint {input.joint:q} --selection {input.selection:q} --target {params.target}"
        " --positions {params.positions} --transfer-sentences {params.transfer_sentences} --threads {threads}"
        " --evaluation {output.evaluation:q} --transfer {output.transfer:q} 2> {log:q}"


rule evaluate_references:
    input:
        unembedding=f"{RESULTS}/{{model}}/unembedding.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        shards=shard_paths("test"),
        jtc=f"{BRANCH}/jtc/{{target}}.{{positions}}.safetensors",
    output:
        references=f"{BRANCH}/references/{{target}}.{{positions}}.parquet",
    log:
        f"{LOGS}/evaluate_references/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_references/{{model}}.seed-{{seed}}.{{target}}.{{positions}}.tsv"
    priority: LONG
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("evaluate_references"),
        runtime=runtime("evaluate_references"),
        disk_mb=disk_mb("evaluate_references"),
        gpu=1,
    params:
        shards=lambda wildcards, input: repeat("--shard", input.shards),
        code=code("exits.evaluation", "jumps.fitting"),
    shell:
        "onejump evaluate-references --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --jtc {input.jtc:q} --target {wildcards.target} --positions {wildcards.positions} --threads {threads}"
        " --out {output.references:q} 2> {log:q}"


# Of exact variants: their solutions are nested in rank. Among evaluations it takes longest: let it start first.
rule evaluate_ranks:
    input:
        unembedding=f"{RESULTS}/{{model}}/unembedding.safetensors",
        positions=f"{BRANCH}/positions.parquet",
        train=shard_paths("train"),
        test=shard_paths("test"),
        jumps=jump_paths,
        joint=shared(joint_of, "jumps/joint.safetensors"),
    output:
        ranks=f"{VARIANT}/ranks.parquet",
    log:
        f"{LOGS}/evaluate_ranks/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_ranks/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: LONG
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("evaluate_ranks"),
        runtime=runtime("evaluate_ranks"),
        disk_mb=disk_mb("evaluate_ranks"),
        gpu=1,
    params:
        train=lambda wildcards, input: repeat("--shard", input.train),
        test=lambda wildcards, input: repeat("--test-shard", input.test),
        jumps=lambda wildcards, input: repeat("--jump", input.jumps),
        target=choice("target"),
        positions=choice("positions"),
        score_levels=choice("score_levels"),
        sentences=config["evaluation"]["transfer_sentences"],
        code=code("analysis.ranks"),
    shell:
        "onejump evaluate-ranks --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.train} {params.test}"
        " {params.jumps} --joint {input.joint:q} --target {params.target} --positions {params.positions}"
        " --score-levels {params.score_levels} --sentences {params.sentences} --threads {threads}"
        " --out {output.ranks:q} 2> {log:q}"
