# Tables, figures, and the report.

TABLES = (
    "models",
    "levels",
    "methods",
    "single_jumps",
    "transfer",
    "jumps",
    "curves",
    "scores",
    "claims",
    "oracle",
    "shared_jumps",
    "dynamic_exit",
    "ranks",
    "verdicts",
    "spread",
    "chosen",
)
FIGURES = ("scores", "single_jumps", "methods", "transfer", "fits", "dynamic_exit")


localrules:
    write_config,


rule write_config:
    output:
        config=f"{RESULTS}/config.json",
    log:
        f"{LOGS}/write_config.log",
    benchmark:
        f"{BENCHMARKS}/write_config.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(500),
        runtime=grow(5),
    params:
        config=json.dumps(config),
    shell:
        "onejump write-config --config {params.config:q} --out {output.config:q} 2> {log:q}"


rule summarise:
    input:
        config=f"{RESULTS}/config.json",
        heads=expand(f"{RESULTS}/{{model}}/unembedding.safetensors", model=config["models"]),
        positions=branches(f"{BRANCH}/positions.parquet"),
        jumps=branches(f"{BRANCH}/{{jumps}}/jumps/level-{{level}}.safetensors"),
        joint=branches(f"{BRANCH}/{{joint}}/jumps/joint.safetensors"),
        jtc=branches(f"{BRANCH}/jtc/{{target}}.{{positions}}.safetensors"),
        selections=branches(f"{VARIANT}/selection.json"),
        references=branches(f"{BRANCH}/references/{{target}}.{{positions}}.parquet"),
        evaluations=branches(f"{VARIANT}/evaluation.parquet"),
        transfer=branches(f"{VARIANT}/transfer.parquet"),
        claims=branches(f"{VARIANT}/claims.parquet"),
        oracles=branches(f"{VARIANT}/oracle.parquet"),
        ranks=branches(f"{VARIANT}/ranks.parquet", fits=("exact",)),
    output:
        **{
            table: report(
                f"{RESULTS}/summary/{table}.csv",
                caption="../report/tables.rst",
                category="3 Tables",
                labels={"table": table},
            )
            for table in TABLES
        },
    log:
        f"{LOGS}/summarise.log",
    benchmark:
        f"{BENCHMARKS}/summarise.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(4000),
        runtime=grow(60),
    params:
        results=lambda wildcards, input: str(Path(input.config).parent),
        summary=lambda wildcards, output: str(Path(output[0]).parent),
        code=code("analysis.summary"),
    shell:
        "onejump summarise --results {params.results:q} --config {input.config:q} --out {params.summary:q} 2> {log:q}"


rule plot_figures:
    input:
        tables=expand(f"{RESULTS}/summary/{{table}}.csv", table=TABLES),
    output:
        **figure_files(FIGURES),
    log:
        f"{LOGS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with(exact=False),
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        exact="",
        code=code("report.figures"),
    shell:
        "onejump plot-figures --summary {params.summary:q} --model {wildcards.model} --seed {wildcards.seed}"
        " --variant {wildcards.variant} {params.exact} --out {params.figures:q} 2> {log:q}"


# Exact fits have one figure more.
use rule plot_figures as plot_exact_figures with:
    output:
        **figure_files((*FIGURES, "ranks")),
    log:
        f"{LOGS}/plot_exact_figures/{{model}}.seed-{{seed}}.{{variant}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_exact_figures/{{model}}.seed-{{seed}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=variants_with(exact=True),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        exact="--exact",
        code=code("report.figures"),


rule plot_model_figures:
    input:
        tables=expand(f"{RESULTS}/summary/{{table}}.csv", table=TABLES),
    output:
        sensitivity=report(
            f"{RESULTS}/figures/{{model}}.sensitivity.svg",
            caption="../report/sensitivity.rst",
            category="2 {model}",
            subcategory="all variants",
            labels={"seed": "all", "figure": "sensitivity"},
        ),
        sensitivity_pdf=f"{RESULTS}/figures/{{model}}.sensitivity.pdf",
    log:
        f"{LOGS}/plot_model_figures/{{model}}.log",
    benchmark:
        f"{BENCHMARKS}/plot_model_figures/{{model}}.tsv"
    conda:
        "../../envs/study.yaml"
    threads: 1
    resources:
        mem_mb=grow(2000),
        runtime=grow(30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, output: str(Path(output[0]).parent),
        code=code("report.figures"),
    shell:
        "onejump plot-figures --summary {params.summary:q} --model {wildcards.model} --out {params.figures:q} 2> {log:q}"


rule render_report:
    input:
        config=f"{RESULTS}/config.json",
        tables=expand(f"{RESULTS}/summary/{{table}}.csv", table=TABLES),
        figures=branches(f"{FIGURE}.{{kind}}.svg", kind=FIGURES),
        exact=branches(f"{FIGURE}.{{kind}}.svg", fits=("exact",), kind=["ranks"]),
        models=expand(
            f"{RESULTS}/figures/{{model}}.sensitivity.svg", model=config["models"]
        ),
    output:
        report=report(
            f"reports/{STUDY}.html",
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
        mem_mb=grow(2000),
        runtime=grow(30),
    params:
        summary=lambda wildcards, input: str(Path(input.tables[0]).parent),
        figures=lambda wildcards, input: str(Path(input.figures[0]).parent),
        benchmarks=lambda wildcards, input: str(
            Path(input.config).parent / "benchmarks"
        ),
        logs=lambda wildcards, input: str(Path(input.config).parent / "logs"),
        code=code("report.page"),
        template=template(),
    shell:
        "onejump render-report --config {input.config:q} --summary {params.summary:q} --figures {params.figures:q}"
        " --benchmarks {params.benchmarks:q} --logs {params.logs:q} --out {output.report:q} 2> {log:q}"
