"""Flip random bits in each kind of file that a stage reads, and run the stage: what it notices, what it gives."""

import contextlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from onejump import exit_stages, stages, study_stages
from onejump.files.atomic import OnejumpError
from onejump.files.sealed import read_sealed_json
from onejump.parameters import Compute, Dump, Model
from onejump.report.figures import plot_figure
from onejump.report.inspection import describe
from onejump.study.layout import TABLES, Layout

PLOTTED = {"curves": "fits", "single_jumps": "single_jumps", "ranks": "ranks"}  # table -> the figure that reads it
FOR_PEOPLE = ("oracle", "spread", "chosen")  # tables that no stage reads


def readers(folder: Path, out: Path) -> dict[str, tuple[Path, str, Callable]]:
    """Kind of file -> one of that kind, the stage that reads it, and a call of that stage that writes into `out`."""
    (config,) = folder.glob("results/*/config.json")
    layout = Layout(read_sealed_json(config), folder / "results")
    model, compute = next(iter(layout.config["models"])), Compute("cpu", 1)
    branch = {"model": model, "seed": 0, "variant": "exact"}
    source = Model(str(folder / "models" / model))
    file = {
        name: layout.path(name, **branch, kind="fits") for name in ("unembedding", "positions", "cosines", "scores")
    }
    of_branch = ("sentences", "selection", "oracle", "evaluation", "held_out", "transfer", "ranks", "claims", "figure")
    file |= {name: layout.path(name, **branch, kind="fits") for name in of_branch}
    of_shortlist = ("shortlist", "shortlist_held_out", "shortlist_evaluation")
    file |= {name: layout.path(name, **branch | {"variant": "alone"}) for name in of_shortlist}
    file |= {"model_figure": layout.path("model_figure", model=model, kind="sensitivity"), "config": config}
    file |= {name: layout.of_rows(name, **branch) for name in ("references", "references_held_out", "norms")}
    file |= {name: layout.lenses(name, **branch)["jtc"] for name in ("lens", "lens_evaluation")}
    file |= {name: layout.path(name) for name in ("timings", "hardware")}
    jumps, file["joint"] = layout.jumps(**branch), layout.joint(**branch)
    train, test = (
        Dump(file["unembedding"], file["positions"], layout.shards(model, 0, split)) for split in ("train", "test")
    )
    file |= {"jump": jumps[1], "shard": train.shards[-1]}
    file |= {f"summary/{name}": layout.path("table", table=name) for name in TABLES}
    summary = file["summary/models"].parent

    def call(stage, *arguments):
        return lambda: stage(*arguments)

    calls = {
        "choose_positions": call(stages.choose_positions, source, file["sentences"], out / "positions.parquet", 2, 1),
        "dump_activations": call(
            *(stages.dump_activations, source, compute, file["unembedding"], file["positions"], "test", [0]),
            [out / "shard"],
        ),
        "fit_jtc": call(stages.fit_jtc, train, compute, out / "jtc"),
        "score_jumps": call(stages.score_jumps, train, compute, jumps, out / "scores", out / "cosines"),
        "select_jump": call(stages.select_jump, file["cosines"], file["sentences"], out / "selection.json"),
        "evaluate_oracle": call(
            exit_stages.evaluate_oracle, train, compute, jumps, file["joint"], file["cosines"], out / "oracle.parquet"
        ),
        "evaluate_references": call(
            exit_stages.evaluate_references,
            train,
            compute,
            test.shards,
            out / "norms.parquet",
            out / "held_out.parquet",
            out / "references.parquet",
        ),
        "evaluate_lens": call(exit_stages.evaluate_lens, test, compute, file["lens"], out / "jtc.parquet"),
        "assess_claims": call(
            exit_stages.assess_claims,
            *(file["evaluation"], file["references"], jumps),
            *(file["selection"], file["sentences"], file["positions"], out / "claims"),
        ),
        "summarise": call(study_stages.summarise, layout.root, config, out),
        "render_report": call(
            study_stages.render_report, layout.root, config, file["timings"], file["hardware"], out / "report.html"
        ),
    }
    stage_of = {"sentences": "choose_positions", "positions": "dump_activations", "shard": "fit_jtc"}
    stage_of |= {"jump": "score_jumps", "cosines": "select_jump", "joint": "evaluate_oracle"}
    stage_of |= {"unembedding": "evaluate_references", "lens": "evaluate_lens", "lens_evaluation": "summarise"}
    stage_of |= dict.fromkeys(("selection", "evaluation", "references"), "assess_claims")
    stage_of |= dict.fromkeys(("transfer", "oracle", "ranks", "norms", "claims", "config"), "summarise")
    stage_of |= dict.fromkeys(("held_out", "references_held_out", *of_shortlist), "summarise")
    found = {name: (file[name], stage, calls[stage]) for name, stage in stage_of.items()}
    for name in ("figure", "model_figure", "timings", "hardware", *(f"summary/{table}" for table in TABLES)):
        found[name] = file[name], "render_report", calls["render_report"]
    for table, kind in PLOTTED.items():
        plot = call(plot_figure, kind, summary, *branch.values(), out / "figure.svg")
        found[f"summary/{table}"] = file[f"summary/{table}"], "plot_figures", plot
    for name in ("scores", *(f"summary/{table}" for table in FOR_PEOPLE)):
        found[name] = file[name], "inspect", lambda path=file[name]: (out / "text").write_text(describe(path))
    return found


def output_of(action: Callable, out: Path) -> dict[str, bytes]:
    """The files that a call writes into the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with contextlib.redirect_stderr(io.StringIO()):
        action()
    return {file.name: file.read_bytes() for file in out.iterdir()}


def flip(
    path: Path, action: Callable, out: Path, expected: dict[str, bytes], flips: int, seed: int
) -> tuple[int, list[str]]:
    """Flip one random bit after another and run `action`, whose output is `expected` without.

    Returns:
        How many flips were refused, and what went wrong: another output, a trace, a refusal of more than a line.
    """
    rng, content, refused, wrong = random.Random(seed), path.read_bytes(), 0, []
    for _ in range(flips):
        position, bit = rng.randrange(len(content)), rng.randrange(8)
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        try:
            if output_of(action, out) != expected:
                wrong.append(f"byte {position}, bit {bit}: another output")
        except OnejumpError as error:
            refused += 1
            if "\n" in str(error):
                wrong.append(f"byte {position}, bit {bit}: {error}")
        except Exception as error:
            wrong.append(f"byte {position}, bit {bit}: {error!r}")
    path.write_bytes(content)
    return refused, wrong
