# The paper's claims, tested by name.


rule assess_claims:
    input:
        evaluation=f"{VARIANT}/evaluation.parquet",
        references=lambda wildcards: f"{BRANCH}/references/{{target}}.{{positions}}.parquet".format(
            **wildcards, **config["variants"][wildcards.variant]
        ),
        jumps=jump_paths,
        selection=f"{VARIANT}/selection.json",
    output:
        claims=f"{VARIANT}/claims.parquet",
    log:
        f"{LOGS}/assess_claims/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/assess_claims/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=mem_mb("assess_claims"),
        runtime=runtime("assess_claims"),
        disk_mb=disk_mb("assess_claims"),
    params:
        jumps=lambda wildcards, input: repeat("--jump", input.jumps),
        code=code("analysis.claims"),
    shell:
        "onejump assess-claims --evaluation {input.evaluation:q} --references {input.references:q} {params.jumps}"
        " --selection {input.selection:q} --seed {wildcards.seed} --out {output.claims:q} 2> {log:q}"
