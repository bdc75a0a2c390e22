# Lenses, the reference methods with an affine map a level: JTC from moments, the tuned lens and LoRA-Lens by the
# divergence, the Jacobian lenses from the model itself, others' lenses from their files; and their evaluation. Variants
# share them.

# One job takes all of these, since they are made of the same derivatives.
JACOBIAN = [lens for lens in config["evaluation"]["lenses"] if lens in JACOBIAN_LENSES]


rule fit_jtc:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("train"),
    output:
        lens=lens_pattern("lens", "jtc"),
    log:
        f"{LOGS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{rows}}.log",
    benchmark:
        f"{BENCHMARKS}/fit_jtc/{{model}}.seed-{{seed}}.{{target}}.{{rows}}.tsv"
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("fit_jtc"),
        gpu=1,
    params:
        shards=options("--shard", "shards"),
        target=lambda wildcards: wildcards.target,
        rows=rows_options,
        again=again("fits"),
        code=stage_digest("fit_jtc"),
    shell:
        "onejump fit-jtc --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --target {params.target} {params.rows} --threads {threads} --out {output.lens:q} 2> {log:q}"


rule fit_kl_lens:
    input:
        **patterns("unembedding", "positions"),
        shards=shards("train"),
    output:
        lens=lens_pattern("lens", target="pre_norm"),
    log:
        f"{LOGS}/fit_kl_lens/{{model}}.seed-{{seed}}.{{lens}}.{{rows}}.log",
    benchmark:
        f"{BENCHMARKS}/fit_kl_lens/{{model}}.seed-{{seed}}.{{lens}}.{{rows}}.tsv"
    wildcard_constraints:
        lens="|".join(KL_LENSES),
    priority: AWAITED + 1
    conda:
        "../../envs/study.yaml"
    threads: 2
    resources:
        **planned("fit_kl_lens"),
        gpu=1,
    params:
        shards=options("--shard", "shards"),
        rows=rows_options,
        seed=lambda wildcards: int(wildcards.seed),
        again=again("fits"),
        code=stage_digest("fit_kl_lens"),
    shell:
        "onejump fit-kl-lens --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --lens {wildcards.lens} {params.rows} --seed {params.seed} --threads {threads} --out {output.lens:q} 2> {log:q}"


if JACOBIAN:

    rule fit_jacobian_lens:
        input:
            **patterns("unembedding", "positions"),
            model=model_files,
        output:
            lenses=[lens_pattern("lens", lens, "pre_norm") for lens in JACOBIAN],
        log:
            f"{LOGS}/fit_jacobian_lens/{{model}}.seed-{{seed}}.{{rows}}.log",
        benchmark:
            f"{BENCHMARKS}/fit_jacobian_lens/{{model}}.seed-{{seed}}.{{rows}}.tsv"
        priority: AWAITED + 1
        conda:
            "../../envs/study.yaml"
        threads: 2
        resources:
            **planned("fit_jacobian_lens"),
            gpu=model_choice("gpus"),
        params:
            model=model_args,
            dtype=model_choice("dtype"),
            text=lambda wildcards: text_option(ROWS[wildcards.rows]),
            seed=lambda wildcards: int(wildcards.seed),
            lenses=lambda wildcards, output: " ".join(
                f"--lens {lens} --out {shlex.quote(path)}" for lens, path in zip(JACOBIAN, output.lenses)
            ),
            again=again("fits"),
            code=stage_digest("fit_jacobian_lens"),
        shell:
            "onejump fit-jacobian-lens {params.model} --dtype {params.dtype} --unembedding {input.unembedding:q}"
            " --positions-file {input.positions:q} {params.text} --seed {params.seed} --gpus {resources.gpu}"
            " --threads {threads} {params.lenses} 2> {log:q}"


rule import_lens:
    input:
        **patterns("unembedding"),
        source=lambda wildcards: local_files(lens_source(wildcards)),
    output:
        lens=lens_pattern("lens", target="pre_norm"),
    log:
        f"{LOGS}/import_lens/{{model}}.seed-{{seed}}.{{lens}}.{{rows}}.log",
    benchmark:
        f"{BENCHMARKS}/import_lens/{{model}}.seed-{{seed}}.{{lens}}.{{rows}}.tsv"
    wildcard_constraints:
        lens="|".join(IMPORTED_LENSES),
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("import_lens"),
    params:
        source=lens_source,
        code=stage_digest("import_lens"),
    shell:
        "onejump import-lens --unembedding {input.unembedding:q} --lens {wildcards.lens} --source {params.source:q}"
        " --out {output.lens:q} 2> {log:q}"


rule evaluate_lens:
    input:
        **patterns("unembedding", "positions", "lens"),
        shards=shards("test"),
    output:
        evaluation=LAYOUT.pattern("lens_evaluation"),
    log:
        f"{LOGS}/evaluate_lens/{{model}}.seed-{{seed}}.{{lens}}.{{target}}.{{rows}}.log",
    benchmark:
        f"{BENCHMARKS}/evaluate_lens/{{model}}.seed-{{seed}}.{{lens}}.{{target}}.{{rows}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("evaluate_lens"),
        gpu=1,
    params:
        positions=lambda wildcards: ROWS[wildcards.rows]["positions"],
        shards=options("--shard", "shards"),
        again=again("evaluation"),
        code=stage_digest("evaluate_lens"),
    shell:
        "onejump evaluate-lens --unembedding {input.unembedding:q} --positions-file {input.positions:q} {params.shards}"
        " --lens {input.lens:q} --positions {params.positions} --threads {threads}"
        " --out {output.evaluation:q} 2> {log:q}"
