"""The stages of a whole study, one function each, as in stages.py: tables, figures, report, what is for others."""

import os
from pathlib import Path
from typing import Annotated, Literal

from onejump.files.atomic import OnejumpError
from onejump.parameters import Compute, ConfigFile, Dtype, Model, Option, Out, OutFolder, Results, Seed, UnembeddingFile


def summarise(results: Results, config: ConfigFile, out: OutFolder) -> None:
    """Make the tidy summary tables of a study."""
    from onejump.analysis.summary import study_tables
    from onejump.files.atomic import atomic_path
    from onejump.files.sealed import read_sealed_json
    from onejump.files.tables import write_frame
    from onejump.study.layout import Layout

    for name, table in study_tables(Layout(read_sealed_json(config), results.parent)).items():
        write_frame(out / f"{name}.parquet", table)
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


def plot_figures(
    summary: Annotated[Path, Option("Folder of the summary tables.", folder=True)],
    model: Annotated[str, Option("Model, as named in the config.")],
    kinds: Annotated[list[str], Option("Figure to plot, such as methods; may be repeated.")],
    out: OutFolder,
    seed: Annotated[int | None, Option("With --variant; without both, figures of the whole model.")] = None,
    variant: Annotated[str | None, Option("Variant, as named in the config.")] = None,
) -> None:
    """Plot figures of one model, seed and variant, or of a model, from the summary tables."""
    from onejump.report.figures import plot_figure
    from onejump.study.layout import FILES

    if (seed is None) != (variant is None):
        raise OnejumpError("give --seed and --variant, or neither")
    pattern = FILES["model_figure" if seed is None else "figure"]
    for kind in kinds:
        name = Path(pattern.format(model=model, seed=seed, variant=variant, kind=kind)).name
        plot_figure(kind, summary, model, seed, variant, out / name)


def render_report(
    results: Results,
    config: ConfigFile,
    timings: Annotated[Path, Option("Table with rule, jobs, seconds_total, seconds_max, max_rss_mb.")],
    hardware: Annotated[Path, Option("Table with device, jobs.")],
    out: Out,
) -> None:
    """Render the study's report: one self-contained HTML file."""
    from onejump.files.atomic import write_text
    from onejump.files.sealed import read_sealed_json
    from onejump.files.tables import read_table
    from onejump.report.page import package_versions, render_report
    from onejump.study.layout import Layout

    jobs = read_table(timings, ["rule", "jobs", "seconds_total", "seconds_max", "max_rss_mb"]).to_pandas()
    devices = read_table(hardware, ["device", "jobs"]).to_pandas()
    links = {name: os.path.relpath(results / name, out.parent) for name in ("summary", "figures")}
    layout = Layout(read_sealed_json(config), results.parent)
    write_text(out, render_report(layout, package_versions(), jobs, devices, links))


def publish(
    results: Results,
    config: ConfigFile,
    model: Annotated[str, Option("Model, as named in the config.")],
    variant: Annotated[str, Option("Variant, as named in the config.")],
    base: Annotated[str, Option("The same model: folder in Transformers' format, or hub id 'owner/name'.")],
    out: OutFolder,
    jump: Annotated[Literal["joint", "ojfa", "all"], Option("The joint jump, OJFA, or one for each level.")] = "joint",
    seed: Seed = 0,
    base_id: Annotated[str | None, Option("Hub id of the model for the card, where --base is a folder.")] = None,
    licence: Annotated[str | None, Option("Licence of the jump, as the hub names it, such as apache-2.0.")] = None,
    text_licence: Annotated[str | None, Option("Licence of the text that it was fitted on.")] = None,
    push: Annotated[str | None, Option("Repository on the hub to upload the folder to, 'owner/name'.")] = None,
) -> None:
    """Publish a jump of a finished study: a folder that `onejump.Jump.from_pretrained` loads, with a model card."""
    from onejump.files.sealed import read_sealed_json
    from onejump.report.figures import draw_svg
    from onejump.sharing import hub
    from onejump.sharing.publishing import publish
    from onejump.study.layout import Layout

    layout = Layout(read_sealed_json(config), results.parent)
    branch = {"model": model, "seed": seed, "variant": variant}
    licences = {"base_id": base_id, "jump": licence, "text": text_licence}
    publish(layout, branch, jump, base, licences, out, draw_svg, push)
    if push is not None:
        print(hub.push(out, push))


def export_lens(
    unembedding: UnembeddingFile,
    lens: Annotated[Path, Option("A lens of the study, before the final norm.")],
    form: Annotated[
        Literal["tuned_lens", "jacobian_lens"],
        Option("Whose form to write: a tuned lens holds any lens, a Jacobian lens one without bias, but not level 0."),
    ],
    out: OutFolder,
) -> None:
    """Write a lens of the study as safetensors, in the form that another tool knows."""
    from onejump.jumps.lens_formats import WRITERS
    from onejump.models.unembedding import Unembedding

    WRITERS[form](out, lens, Unembedding.load(unembedding))


def lens(
    text: Annotated[str, Option("The text.", positional=True)],
    jump: Annotated[str, Option("A published jump of the model: folder, short name, or hub id 'owner/name'.")],
    model: Model,
    compute: Compute,
    out: Annotated[Path, Option("File to write: .html, .svg, .pdf, .png, .csv or .parquet.")],
    beside: Annotated[str | None, Option("A second jump of the model, such as one with a jump for each level.")] = None,
    measure: Annotated[
        Literal["probability", "kl", "entropy"], Option("What a figure shades cells by.")
    ] = "probability",
    dtype: Dtype = "float32",
) -> None:
    """Show what the model would predict at every level after each token of TEXT, by a jump and by identity.

    The suffix of --out says how: as a page, as a figure for papers, which has room for some 16 tokens, or as a table.
    """
    suffixes = (".html", ".svg", ".pdf", ".png", ".csv", ".parquet")
    if out.suffix not in suffixes:
        raise OnejumpError(f"--out {out}: ends in {out.suffix or 'no suffix'}, expected one of {', '.join(suffixes)}")
    device = compute.start()
    from onejump.files.atomic import atomic_path, write_text
    from onejump.files.tables import write_frame
    from onejump.report.lens import method_names, render_lens
    from onejump.sharing.published import PublishedJump

    source = model.source()
    jumps = [PublishedJump.from_pretrained(name) for name in (jump, beside) if name is not None]
    loaded = source.load_model(dtype, device)
    first, *others = (one.attach(loaded) for one in jumps)
    table = first.trajectory(text, source.load_tokenizer(), *others)
    names = method_names(*(one.config for one in jumps))
    if out.suffix == ".html":
        write_text(out, render_lens(table, names, first.config["base_model"]["model"]))
    elif out.suffix == ".parquet":
        write_frame(out, table)
    else:
        with atomic_path(out) as temporary:
            if out.suffix == ".csv":
                table.to_csv(temporary, index=False)
            else:
                from onejump.report.plots.trajectory import plot_trajectory

                plot_trajectory(table, measure, names).savefig(temporary)
