# D_m of every jump, and the choice of one.


rule score_jumps:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("train"),
        jumps=of_branch(LAYOUT.jumps),
    output:
        **patterns("scores", "cosines"),
    log:
        f"{LOGS}/score_jumps/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/score_jumps/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("score_jumps"),
        gpu=1,
    params:
        **choices("target"),
        rows=rows_options,
        shards=options("--shard", "shards"),
        jumps=options("--jump", "jumps"),
        code=stage_digest("score_jumps"),
    shell:
        "onejump score-jumps --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards} {params.jumps}"
        " --target {params.target} {params.rows} --threads {threads} --scores {output.scores:q}"
        " --cosines {output.cosines:q} 2> {log:q}"


rule select_jump:
    input:
        cosines=of_branch(LAYOUT.cosines),
        sentences=LAYOUT.pattern(LAYOUT.texts),
    output:
        selection=LAYOUT.pattern("selection"),
    log:
        f"{LOGS}/select_jump/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/select_jump/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("select_jump"),
    params:
        score_levels=choice("score_levels"),
        code=stage_digest("select_jump"),
    shell:
        "onejump select-jump --cosines {input.cosines:q} --sentences-file {input.sentences:q}"
        " --score-levels {params.score_levels} --seed {wildcards.seed} --out {output.selection:q} 2> {log:q}"


rule evaluate_oracle:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("train"),
        jumps=of_branch(LAYOUT.jumps),
        joint=of_branch(LAYOUT.joint),
        cosines=of_branch(LAYOUT.cosines),
    output:
        oracle=LAYOUT.pattern("oracle"),
    log:
        f"{LOGS}/evaluate_oracle/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_oracle/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_oracle"),
        gpu=1,
    params:
        **choices("score_levels", "target"),
        rows=rows_options,
        shards=options("--shard", "shards"),
        jumps=options("--jump", "jumps"),
        again=again("evaluation"),
        code=stage_digest("evaluate_oracle"),
    shell:
        "onejump evaluate-oracle --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards} {params.jumps}"
        " --joint {input.joint:q} --cosines {input.cosines:q} --score-levels {params.score_levels}"
        " --target {params.target} {params.rows} --threads {threads} --out {output.oracle:q} 2> {log:q}"
