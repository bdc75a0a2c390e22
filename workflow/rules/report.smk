# Tables, figures, and the report.
from onejump.files.sealed import write_sealed_json
from onejump.study.layout import FIGURES, MODEL_FIGURES, NESTED_FIGURES, TABLES


localrules:
    write_config,
    collect_timings,


rule write_config:
    output:
        config=LAYOUT.pattern("config"),
    log:
        f"{LOGS}/write_config.log",
    threads: 1
    resources:
        mem_mb=more_each_attempt(500),
        runtime=more_each_attempt(5),
    params:
        config=config,
    run:
        # Not by a command: a config may be longer than a command line.
        write_sealed_json(output.config, params.config)


rule summarise:
    input:
        config=LAYOUT.pattern("config"),
        unembeddings=LAYOUT.every("unembedding"),
        positions=LAYOUT.every("positions"),
        jumps=LAYOUT.every("jump"),
        jtc=LAYOUT.every("jtc"),
        selections=LAYOUT.every("selection"),
        references=LAYOUT.every("references"),
        evaluations=LAYOUT.every("evaluation"),
        transfer=LAYOUT.every("transfer"),
        claims=LAYOUT.every("claims"),
        oracles=LAYOUT.every("oracle"),
        ranks=LAYOUT.every("ranks"),
    output:
        **{
            f"{table}_csv": report(
                LAYOUT.path("csv", table=table),
                caption="../report/tables.rst",
                category="3 Tables",
                labels={"table": table},
            )
            for table in TABLES
        },
        **{table: LAYOUT.path("table", table=table) for table in TABLES},
    log:
        f"{LOGS}/summarise.log",
    benchmark:
        f"{BENCHMARKS}/summarise.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(4000),
        runtime=more_each_attempt(60),
    params:
        results=lambda wildcards, input: str(Path(input.config).parent),
        summary=lambda wildcards, output: str(Path(output[0]).parent),
        code=stage_digest("summarise"),
    shell:
        "onejump summarise --results {params.results:q} --config {input.config:q} --out {params.summary:q} 2> {log:q}"


rule plot_figures:
    input:
        tables=[LAYOUT.path("table", table=table) for table in TABLES],
    output:
        **figure_files(FIGURES),
    log:
        f"{LOGS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with(nested=False),
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(2000),
        runtime=more_each_attempt(30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        exact="",
        code=stage_digest("plot_figures"),
    shell:
        "onejump plot-figures --summary {params.summary:q} --model {wildcards.model} --seed {wildcards.seed}"
        " --variant {wildcards.variant} {params.exact} --out {params.figures:q} 2> {log:q}"


# Nested fits have one figure more.
use rule plot_figures as plot_nested_figures with:
    output:
        **figure_files(FIGURES + NESTED_FIGURES),
    log:
        f"{LOGS}/plot_nested_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_nested_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with(nested=True),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        exact="--exact",
        code=stage_digest("plot_figures"),


rule plot_model_figures:
    input:
        tables=[LAYOUT.path("table", table=table) for table in TABLES],
    output:
        sensitivity=report(
            LAYOUT.pattern("model_figure").replace("{kind}", "sensitivity"),
            caption="../report/sensitivity.rst",
            category="2 {model}",
            subcategory="all variants",
            labels={"seed": "all", "figure": "sensitivity"},
        ),
        sensitivity_pdf=LAYOUT.pattern("model_figure")
        .replace("{kind}", "sensitivity")
        .replace(".svg", ".pdf"),
    log:
        f"{LOGS}/plot_model_figures/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_model_figures/{{model}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(2000),
        runtime=more_each_attempt(30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        code=stage_digest("plot_figures"),
    shell:
        "onejump plot-figures --summary {params.summary:q} --model {wildcards.model} --out {params.figures:q} 2> {log:q}"


# What all jobs before the report took: their benchmark files and logs are complete when the last figures are there.
rule collect_timings:
    input:
        config=LAYOUT.pattern("config"),
        figures=LAYOUT.every("figure"),
        model_figures=LAYOUT.every("model_figure"),
    output:
        timings=LAYOUT.path("timings"),
        hardware=LAYOUT.path("hardware"),
    log:
        f"{LOGS}/collect_timings.log",
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(1000),
        runtime=more_each_attempt(10),
    params:
        benchmarks=lambda wildcards, input: str(
            Path(input.config).parent / "benchmarks"
        ),
        logs=lambda wildcards, input: str(Path(input.config).parent / "logs"),
    script:
        "../scripts/collect_timings.py"


rule render_report:
    input:
        config=LAYOUT.pattern("config"),
        tables=[LAYOUT.path("table", table=table) for table in TABLES],
        figures=LAYOUT.every("figure"),
        model_figures=LAYOUT.every("model_figure"),
        timings=LAYOUT.path("timings"),
        hardware=LAYOUT.path("hardware"),
    output:
        report=report(
            REPORT,
            caption="../report/study.rst",
            category="1 Report",
            labels={"page": "the whole study"},
        ),
    log:
        f"{LOGS}/render_report.log",
    benchmark:
        f"{BENCHMARKS}/render_report.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=more_each_attempt(2000),
        runtime=more_each_attempt(30),
    params:
        results=lambda wildcards, input: str(Path(input.config).parent),
        code=stage_digest("render_report", data="report/templates/*"),
    shell:
        "onejump render-report --results {params.results:q} --config {input.config:q} --timings {input.timings:q}"
        " --hardware {input.hardware:q} --out {output.report:q} 2> {log:q}"
