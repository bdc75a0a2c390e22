# Every method at every exit level: one job for a variant's jumps, and one for their check with a shortlist; one for the
# references that variants share; and the paper's claims.


rule evaluate_jumps:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("test"),
        jumps=of_branch(LAYOUT.jumps),
        joint=of_branch(LAYOUT.joint),
        selection=LAYOUT.pattern("selection"),
    output:
        **patterns("evaluation", "transfer"),
    log:
        f"{LOGS}/evaluate_jumps/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_jumps/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_where(LAYOUT.has_all_jumps),
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_jumps"),
        gpu=1,
    params:
        **choices("target", "positions"),
        shards=options("--shard", "shards"),
        jumps=options("--jump", "jumps"),
        transfer_sentences=config["evaluation"]["transfer_sentences"],
        again=again("evaluation"),
        code=stage_digest("evaluate_jumps"),
    shell:
        "onejump evaluate-jumps --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " {params.jumps} --joint {input.joint:q} --selection {input.selection:q} --target {params.target}"
        " --positions {params.positions} --transfer-sentences {params.transfer_sentences} --threads {threads}"
        " --evaluation {output.evaluation:q} --transfer {output.transfer:q} 2> {log:q}"


rule evaluate_joint_jump:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("test"),
        joint=of_branch(LAYOUT.joint),
    output:
        **patterns("evaluation"),
    log:
        f"{LOGS}/evaluate_joint_jump/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_joint_jump/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_where(lambda name: not LAYOUT.has_all_jumps(name)),
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_joint_jump"),
        gpu=1,
    params:
        **choices("target", "positions"),
        shards=options("--shard", "shards"),
        again=again("evaluation"),
        code=stage_digest("evaluate_joint_jump"),
    shell:
        "onejump evaluate-joint-jump --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --joint {input.joint:q} --target {params.target} --positions {params.positions} --threads {threads}"
        " --evaluation {output.evaluation:q} 2> {log:q}"


# Thresholds of dynamic exit are chosen on it.
rule evaluate_held_out:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("train"),
        jumps=of_branch(LAYOUT.jumps),
        joint=of_branch(LAYOUT.joint),
        selection=of_branch(LAYOUT.selection),
    output:
        **patterns("held_out"),
    log:
        f"{LOGS}/evaluate_held_out/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_held_out/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_held_out"),
        gpu=1,
    params:
        **choices("target"),
        rows=rows_options,
        shards=options("--shard", "shards"),
        jumps=options("--jump", "jumps"),
        selection=options("--selection", "selection"),
        again=again("evaluation"),
        code=stage_digest("evaluate_held_out"),
    shell:
        "onejump evaluate-held-out --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " {params.jumps} --joint {input.joint:q} {params.selection} --target {params.target}"
        " {params.rows} --threads {threads} --out {output.held_out:q} 2> {log:q}"


rule evaluate_shortlist:
    input:
        **patterns("unembedding", "positions"),
        train=shards("train"),
        test=shards("test"),
        joint=of_branch(LAYOUT.joint),
    output:
        **patterns("shortlist", "shortlist_held_out", "shortlist_evaluation", "preview"),
    log:
        f"{LOGS}/evaluate_shortlist/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_shortlist/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_where(LAYOUT.has_shortlist),
    priority: LONG
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_shortlist"),
        gpu=1,
    params:
        **choices("target"),
        rows=rows_options,
        train=options("--shard", "train"),
        test=options("--test-shard", "test"),
        again=again("evaluation"),
        code=stage_digest("evaluate_shortlist"),
    shell:
        "onejump evaluate-shortlist --unembedding {input.unembedding:q} --positions-file {input.positions:q}"
        " {params.train} {params.test} --joint {input.joint:q} --target {params.target} {params.rows}"
        " --threads {threads} --grid {output.shortlist:q} --held-out {output.shortlist_held_out:q}"
        " --evaluation {output.shortlist_evaluation:q} --preview {output.preview:q} 2> {log:q}"


rule evaluate_references:
    input:
        **patterns("unembedding", "positions"),
        train=shards("train"),
        test=shards("test"),
    output:
        **patterns("references", "references_held_out", "norms"),
    log:
        f"{LOGS}/evaluate_references/{{model}}.seed-{{seed}}.{{rows}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_references/{{model}}.seed-{{seed}}.{{rows}}.tsv"
    priority: LONG
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_references"),
        gpu=1,
    params:
        rows=rows_options,
        train=options("--shard", "train"),
        test=options("--test-shard", "test"),
        again=again("evaluation"),
        code=stage_digest("evaluate_references"),
    shell:
        "onejump evaluate-references --unembedding {input.unembedding:q} --positions-file {input.positions:q}"
        " {params.train} {params.test} {params.rows} --threads {threads} --norms {output.norms:q}"
        " --held-out {output.references_held_out:q} --out {output.references:q} 2> {log:q}"


# Of exact variants: their solutions are nested in rank.
rule evaluate_ranks:
    input:
        **patterns("unembedding", "positions"),
        train=shards("train"),
        test=shards("test"),
        jumps=of_branch(LAYOUT.jumps),
        joint=of_branch(LAYOUT.joint),
        sentences=LAYOUT.pattern(LAYOUT.texts),
    output:
        ranks=LAYOUT.pattern("ranks"),
    log:
        f"{LOGS}/evaluate_ranks/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_ranks/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    priority: LONG
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_ranks"),
        gpu=1,
    params:
        **choices("target", "score_levels"),
        rows=rows_options,
        train=options("--shard", "train"),
        test=options("--test-shard", "test"),
        jumps=options("--jump", "jumps"),
        sentences=config["evaluation"]["transfer_sentences"],
        again=again("evaluation"),
        code=stage_digest("evaluate_ranks"),
    shell:
        "onejump evaluate-ranks --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.train} {params.test}"
        " {params.jumps} --joint {input.joint:q} --target {params.target} {params.rows}"
        " --score-levels {params.score_levels} --sentences-file {input.sentences:q} --sentences {params.sentences}"
        " --threads {threads} --out {output.ranks:q} 2> {log:q}"


rule assess_claims:
    input:
        **patterns("positions"),
        sentences=LAYOUT.pattern(LAYOUT.texts),
        evaluation=LAYOUT.pattern("evaluation"),
        references=of_branch(partial(LAYOUT.of_rows, "references")),
        jumps=of_branch(LAYOUT.jumps),
        selection=LAYOUT.pattern("selection"),
    output:
        claims=LAYOUT.pattern("claims"),
    log:
        f"{LOGS}/assess_claims/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/assess_claims/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("assess_claims"),
    params:
        jumps=options("--jump", "jumps"),
        code=stage_digest("assess_claims"),
    shell:
        "onejump assess-claims --evaluation {input.evaluation:q} --references {input.references:q} {params.jumps}"
        " --selection {input.selection:q} --sentences-file {input.sentences:q} --positions-file {input.positions:q}"
        " --seed {wildcards.seed} --out {output.claims:q} 2> {log:q}"
