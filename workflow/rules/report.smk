# Tables, figures, and the report.
from onejump.files.sealed import write_sealed_json
from onejump.study.layout import FIGURES, JOINT_FIGURES, MODEL_FIGURES, NESTED_FIGURES

SUMMARISED = (
    *("unembedding", "positions", "jump", "lens", "selection", "references", "lens_evaluation", "evaluation"),
    *("held_out", "references_held_out", "shortlist", "shortlist_held_out", "shortlist_evaluation"),
    *("transfer", "claims", "oracle", "ranks", LAYOUT.texts, "norms"),
)


rule write_config:
    output:
        config=LAYOUT.pattern("config"),
    log:
        f"{LOGS}/write_config.log",
    localrule: True
    resources:
        **doubling(mem_mb=500, runtime=5),
    params:
        config=config,
    run:
        # Not by a command: a config may be longer than a command line.
        write_sealed_json(output.config, params.config)


rule summarise:
    input:
        config=LAYOUT.pattern("config"),
        results=[file for name in SUMMARISED for file in LAYOUT.every(name)],
    output:
        **{
            f"{table}_csv": report(
                LAYOUT.path("csv", table=table),
                caption="../report/tables.rst",
                category="3 Tables",
                labels={"table": table},
            )
            for table in LAYOUT.tables
        },
        **{table: LAYOUT.path("table", table=table) for table in LAYOUT.tables},
    log:
        f"{LOGS}/summarise.log",
    benchmark:
        f"{BENCHMARKS}/summarise.tsv"
    conda:
        "../../envs/study.yaml"
    resources:
        **doubling(mem_mb=4000, runtime=60),
    params:
        results=lambda wildcards, input: str(Path(input.config).parent),
        summary=lambda wildcards, output: str(Path(output[0]).parent),
        code=stage_digest("summarise"),
    shell:
        "onejump summarise --results {params.results:q} --config {input.config:q} --out {params.summary:q} 2> {log:q}"


rule plot_figures:
    input:
        tables=[LAYOUT.path("table", table=table) for table in LAYOUT.tables],
    output:
        **figure_files(FIGURES),
    log:
        f"{LOGS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with_figures(FIGURES),
    conda:
        "../../envs/study.yaml"
    resources:
        **doubling(mem_mb=2000, runtime=30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        options=figure_options,
        code=stage_digest("plot_figures"),
    shell:
        "onejump plot-figures --summary {params.summary:q} {params.options} --out {params.figures:q} 2> {log:q}"


# Nested fits have one figure more.
use rule plot_figures as plot_nested_figures with:
    output:
        **figure_files(NESTED_FIGURES),
    log:
        f"{LOGS}/plot_nested_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_nested_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with_figures(NESTED_FIGURES),


# The joint jump alone has fewer.
use rule plot_figures as plot_joint_figures with:
    output:
        **figure_files(JOINT_FIGURES),
    log:
        f"{LOGS}/plot_joint_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_joint_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with_figures(JOINT_FIGURES),


use rule plot_figures as plot_model_figures with:
    output:
        **figure_files(MODEL_FIGURES, "model_figure", variant="all variants", seed="all"),
    log:
        f"{LOGS}/plot_model_figures/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_model_figures/{{model}}.tsv"


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
    localrule: True
    conda:
        "../../envs/study.yaml"
    resources:
        **doubling(mem_mb=1000, runtime=10),
    params:
        benchmarks=lambda wildcards, input: str(Path(input.config).parent / "benchmarks"),
        logs=lambda wildcards, input: str(Path(input.config).parent / "logs"),
    script:
        "../scripts/collect_timings.py"


rule render_report:
    input:
        config=LAYOUT.pattern("config"),
        tables=[LAYOUT.path("table", table=table) for table in LAYOUT.tables],
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
    resources:
        **doubling(mem_mb=2000, runtime=30),
    params:
        results=lambda wildcards, input: str(Path(input.config).parent),
        code=stage_digest("render_report", data="report/templates/*"),
    shell:
        "onejump render-report --results {params.results:q} --config {input.config:q} --timings {input.timings:q}"
        " --hardware {input.hardware:q} --out {output.report:q} 2> {log:q}"
