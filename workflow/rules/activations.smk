# Models to heads, tokens, and sharded activations.
# A rule with `cache` takes all that its output depends on from inputs and params: the cache's key holds no wildcards.


rule convert_gguf:
    input:
        gguf=gguf_file,
    output:
        folder=directory("resources/models/{sha}"),
    log:
        f"{LOGS}/convert_gguf/{{sha}}.log",
    benchmark:
        f"{BENCHMARKS}/convert_gguf/{{sha}}.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **doubling(mem_mb=6000, runtime=30),
    params:
        code=stage_digest("convert_gguf"),
    shell:
        "onejump convert-gguf --gguf {input.gguf:q} --sha256 {wildcards.sha} --out {output.folder:q} 2> {log:q}"


rule extract_unembedding:
    input:
        model=model_files,
    output:
        unembedding=LAYOUT.pattern("unembedding"),
    log:
        f"{LOGS}/extract_unembedding/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/extract_unembedding/{{model}}.tsv"
    cache: CACHING
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("extract_unembedding"),
        load=model_choice("load"),  # no parameter, since it changes no result
    params:
        model=model_args,
        dtype=model_choice("dtype"),
        blocks=model_choice("blocks"),
        code=stage_digest("extract_unembedding"),
    shell:
        "onejump extract-unembedding {params.model} --dtype {params.dtype} --blocks {params.blocks} --load {resources.load} --out {output.unembedding:q} 2> {log:q}"


# Of studies with `corpus.generated`: the text is the model's own, so each model and seed has one.
rule generate_text:
    input:
        model=model_files,
        sentences=LAYOUT.pattern("sentences"),
    output:
        texts=LAYOUT.pattern("texts"),
    log:
        f"{LOGS}/generate_text/{{model}}.seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/generate_text/{{model}}.seed-{{seed}}.tsv"
    cache: CACHING
    priority: AWAITED
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("generate_text"),
        gpu=model_choice("gpus"),
    params:
        model=model_args,
        dtype=model_choice("dtype"),
        bos=model_choice("bos"),
        seed=lambda wildcards: int(wildcards.seed),
        text=" ".join(f"--{key} {value}" for key, value in CORPUS.get("generated", {}).items()),
        code=stage_digest("generate_text"),
    shell:
        "onejump generate-text {params.model} --dtype {params.dtype} --bos {params.bos} --sentences-file {input.sentences:q}"
        " {params.text} --seed {params.seed} --gpus {resources.gpu} --threads {threads} --out {output.texts:q} 2> {log:q}"


rule choose_positions:
    input:
        model=model_files,
        sentences=LAYOUT.pattern(LAYOUT.texts),
    output:
        positions=LAYOUT.pattern("positions"),
    log:
        f"{LOGS}/choose_positions/{{model}}.seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/choose_positions/{{model}}.seed-{{seed}}.tsv"
    cache: CACHING
    conda:
        "../../envs/study.yaml"
    resources:
        **planned("choose_positions"),
    params:
        model=model_args,
        train=lambda wildcards: config["models"][wildcards.model]["shards"]["train"],
        test=lambda wildcards: config["models"][wildcards.model]["shards"]["test"],
        bos=model_choice("bos"),
        generated="--generated" if LAYOUT.generates else "",
        seed=lambda wildcards: int(wildcards.seed),
        code=stage_digest("choose_positions"),
    shell:
        "onejump choose-positions {params.model} --sentences {input.sentences:q} --train-shards {params.train}"
        " --test-shards {params.test} --bos {params.bos} {params.generated} --seed {params.seed} --out {output.positions:q} 2> {log:q}"


# A split in one job where the model's blocks are loaded one at a time; `--set-scatter dumps=4` makes four.
scattergather:
    dumps=1,


for (splits, end), (numbers, models) in dumping_jobs(len(gather.dumps("{scatteritem}"))).items():
    name = "dump_activations" if end == "{shard}" else re.sub(r"\W", "_", f"dump_activations_{splits}_{end}")
    WORK.setdefault(name, len(numbers) * WORK["dump_activations"])

    rule:
        name:
            name
        input:
            **patterns("unembedding", "positions"),
            model=model_files,
        output:
            **{f"shard_{number.strip('{}')}": LAYOUT.pattern("shard").replace("{shard}", number) for number in numbers},
        log:
            f"{LOGS}/dump_activations/{{model}}.seed-{{seed}}.{{split}}-{end}.log",
        benchmark:
            f"{BENCHMARKS}/dump_activations/{{model}}.seed-{{seed}}.{{split}}-{end}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, models)),
            split=splits,
        cache: CACHING
        conda:
            "../../envs/study.yaml"
        threads: 1  # on CPUs two shards at once are faster than one on two cores
        resources:
            **planned("dump_activations", at_once=len(numbers)),
            gpu=model_choice("gpus"),
            load=model_choice("load"),
        params:
            model=model_args,
            dtype=model_choice("dtype"),
            split=lambda wildcards: wildcards.split,
            # Told by the output, so that Snakemake takes a shard for the same whatever job dumps it; without the paths,
            # which the key of a cache must not hold.
            shards=shard_options,
            again=again("activations"),
            code=stage_digest("dump_activations"),
        shell:
            "onejump dump-activations {params.model} --dtype {params.dtype} --unembedding {input.unembedding:q}"
            " --positions-file {input.positions:q} --split {params.split} {params.shards}"
            " $(printf -- '--out %s ' {output})"
            " --gpus {resources.gpu} --load {resources.load} --threads {threads} 2> {log:q}"
