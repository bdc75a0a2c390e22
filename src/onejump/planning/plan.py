"""The plan of a study: the jobs of each stage for each model, what they take, and what a model runs into."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onejump.files.atomic import OnejumpError
from onejump.jumps.settings import VALIDATION_SHARE
from onejump.models.architecture import find_architecture
from onejump.planning.machines import GB, TWO_CORES, Machine
from onejump.planning.work import MARGIN, STAGES, Sizes, Work, work_of
from onejump.study.layout import Layout
from onejump.study.lenses import stage_of_lens
from onejump.study.variants import joint_of, jumps_of, rows_of


def sizes_of(name: str, config: Mapping) -> Sizes:
    """A model's sizes in a study whose config is complete; `split`, `fit` and `rank` of a job are to be replaced."""
    model, corpus = config["models"][name], config["corpus"]
    architecture = replace(find_architecture(name, model), n_blocks=model["blocks"])
    transfer = min(config["evaluation"]["transfer_sentences"], corpus["test"])
    held = {"load": model["load"], "gpus": model["gpus"]}
    if "generated" not in corpus:
        return Sizes(architecture, model["dtype"], corpus["train"], corpus["test"], model["shards"], transfer, **held)
    # Each sentence is there twice, and its continuation is read in the middle, on average, after all of the sentence.
    written = corpus["generated"]["tokens"]
    tokens = (3 * Sizes.tokens + written / 2) / 2
    rows = 2 * corpus["train"], 2 * corpus["test"]
    written = {"written": written, "tokens": tokens}
    return Sizes(architecture, model["dtype"], *rows, model["shards"], transfer, **written, **held)


def fitted_by(chosen: Mapping) -> dict:
    """What the work of a variant's jobs depends on, of its choices: fields of `Sizes`."""
    return {"fit": chosen["fit"], "rank": chosen["rank"], "gated": chosen["gate"] != "none"}


def plan_study(config: Mapping) -> list[tuple[str, str, int, Work]]:
    """All jobs of a study whose config is complete: model, stage, how many that are alike, and the work of each."""
    variants, sizes = config["variants"], {name: sizes_of(name, config) for name in config["models"]}
    jobs: dict[tuple, tuple] = {}  # by what tells them apart: variants share some

    def add(stage: str, model: str, *owner: object, number: int = 1, **choices: object) -> None:
        work = work_of(stage, replace(sizes[model], **choices))
        jobs.setdefault((stage, model, *owner), (model, stage, number, work))

    layout = Layout(config)
    for model, seed, variant in (branch.values() for branch in layout.branches()):
        chosen, architecture = variants[variant], sizes[model].architecture
        if (chosen["rank"] or 0) > architecture.hidden_size and not architecture.name.endswith("assumed"):
            most = f"expected at most H of {model} = {architecture.hidden_size}"
            raise OnejumpError(f"config: variants.{variant}.rank is {chosen['rank']}, {most}")
        fitted = fitted_by(chosen)
        add("extract_unembedding", model)
        if layout.generates:
            add("generate_text", model, seed)
        add("choose_positions", model, seed)
        for split, number in sizes[model].shards.items():
            at_once = number if sizes[model].by_blocks else 1
            add("dump_activations", model, seed, split, number=number // at_once, split=split, at_once=at_once)
        add("fit_joint_jump", model, seed, joint_of(variant, variants), **fitted)
        add("evaluate_references", model, seed, rows_of(chosen))
        add("evaluate_held_out", model, seed, variant, **fitted)
        if not layout.has_all_jumps(variant):
            add("evaluate_joint_jump", model, seed, variant, **fitted)
            if layout.has_shortlist(variant):
                add("evaluate_shortlist", model, seed, variant, **fitted)
            continue
        jumps = jumps_of(variant, variants)
        add("fit_jump", model, seed, jumps, number=architecture.n_blocks, **fitted)
        add("score_jumps", model, seed, jumps, **fitted)
        curve = ["evaluate_ranks"] if "ranks" in layout.figures(variant) else []
        for stage in ("select_jump", "evaluate_oracle", "evaluate_jumps", "assess_claims", *curve):
            add(stage, model, seed, variant, **fitted)
        for lens, path in layout.lenses("lens", model, seed, variant).items():
            stage = stage_of_lens(lens)
            add(stage, model, seed, rows_of(chosen) if stage == "fit_jacobian_lens" else path)  # one job for all three
            add("evaluate_lens", model, path)
    return list(jobs.values())


def mean_seconds(config: Mapping, gpu: Machine) -> dict[str, float]:
    """Seconds of the average job of each stage, on `gpu` if this host has one, else on two cores; "": of any other."""
    machine = gpu if any(Path("/dev").glob("nvidia[0-9]*")) else TWO_CORES
    number, seconds = Counter(), Counter()
    for _, stage, n, work in plan_study(config):
        number[stage] += n
        seconds[stage] += n * work.seconds(machine)
    return {"": machine.start_seconds} | {stage: seconds[stage] / n for stage, n in number.items()}


def limits(s: Sizes, gpu: Machine, gpus: int, lenses: Iterable[str] = ("jtc",)) -> list[str]:
    """Where a model's study goes beyond one GPU or beyond what the design is made for, in words."""
    found, H, room = [], s.architecture.hidden_size, gpu.device_bytes or math.inf
    at_once = s.shards[s.split] if s.by_blocks else 1
    works = {stage: work_of(stage, replace(s, fit="adam", at_once=at_once)) for stage in STAGES}
    dump, generation = (works.pop(stage).device_bytes(gpu) for stage in ("dump_activations", "generate_text"))
    for stage in {"fit_kl_lens", "fit_jacobian_lens", "import_lens"} - {stage_of_lens(lens) for lens in lenses}:
        works.pop(stage)
    needed = (generation if s.written else dump) * MARGIN
    if needed > gpus * room:
        several = math.ceil(max(needed, s.weights * MARGIN) / room)  # which hold the whole model
        advice = f"gpus: {several}{', more than a common node has' * (several > 8)}"
        found.append(f"needs {needed / GB:,.0f} GB of GPU memory to run: set {advice}")
    for stage, work in works.items():
        if work.device_bytes(gpu) > room:
            found.append(f"{stage} needs {work.device_bytes(gpu) / GB:,.0f} GB on one GPU, more than {gpu.name} has")
        if work.host > 200 * GB:
            found.append(f"{stage} needs {work.host / GB:,.0f} GB of host memory")
    if s.train * (1 - VALIDATION_SHARE) <= H:
        few = f"{s.train:,} training sentences do not span H = {H:,} dimensions: exact fits depend on their ridge"
        found.append(f"{few}, and gaps are to an optimum that has fitted noise; use {2 * H:,} or more")
    return found


def render(config: Mapping, gpu: Machine) -> str:
    """The plan of a study as text: a table for each model, its sums, and what it runs into."""
    jobs, text = plan_study(config), []
    for name, model in config["models"].items():
        s, own = sizes_of(name, config), [one[1:] for one in jobs if one[0] == name]
        a, (K, H, V, r, *_) = s.architecture, s.dims
        text += [
            f"{name}: {a.name}, K={K} H={H} r={r} V={V}, {a.parameters / 1e9:.2f}e9 weights, {s.dtype}"
            f"{', a block at a time' * s.by_blocks}; {s.kept(K + 1, s.train + s.test, H) / GB:,.2f} GB of activations",
            "  rule                  jobs      PFLOP   read GB  written GB  host GB   GPU GB    hours",
            *(_row(stage, [one for one in own if one[0] == stage], gpu) for stage in {one[0]: 0 for one in own}),
            f"{_row('in all', own, gpu)} on {gpu.name}",
            _times("dump_activations", own, gpu),
        ]
        if a.name.endswith("assumed"):
            text.append("  this model's config.json is not here: hf download ID config.json, or set architecture:\n")
        else:
            text += [
                *(f"  limit: {limit}" for limit in limits(s, gpu, model["gpus"], config["evaluation"]["lenses"])),
                "",
            ]
    return "\n".join([*text, "Jobs that fetch, sample, summarise, plot and report are short, and not in the plan.\n"])


def _row(title: str, jobs: Sequence[tuple[str, int, Work]], gpu: Machine) -> str:
    """A line of the plan: sums over jobs, and the largest memory among them."""
    n, works = sum(n for _, n, _ in jobs), [work for *_, work in jobs]
    done = sum((n * work for _, n, work in jobs), Work()).amounts
    flops = sum(done.get(kind, 0) for kind in ("float64", "float32", "bfloat16", "float16")) / 1e15
    read, written = (done.get(kind, 0) / GB for kind in ("read", "written"))
    host, device = max(work.host_bytes(gpu) for work in works) / GB, max(work.device_bytes(gpu) for work in works) / GB
    hours = sum(n * work.seconds(gpu) for _, n, work in jobs) / 3600
    on_gpu = "" if gpu.device_bytes is None else f"{device:.2f}"
    return f"  {title:<20}{n:>6}{flops:>11.3f}{read:>10.2f}{written:>12.3f}{host:>9.2f}{on_gpu:>9}{hours:>9.2f}"


def _times(stage: str, jobs: Sequence[tuple[str, int, Work]], gpu: Machine) -> str:
    """Where the time of a stage's jobs goes, as a line of the plan."""
    spent = Counter()
    for _, n, work in (one for one in jobs if one[0] == stage):
        spent.update({kind: n * seconds for kind, seconds in work.times(gpu).items()})
    seconds = {
        "disk": spent.pop("read") + spent.pop("written"),
        "bus": spent.pop("moved", 0) + spent.pop("offloaded", 0),
        "arithmetic": spent.total(),
    }
    total = sum(seconds.values())
    return f"  time of {stage}: {', '.join(f'{part} {amount / total:.0%}' for part, amount in seconds.items())}"
