"""From a finished study to a published jump."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePath

from torch import Tensor

from onejump.activations.reading import Activations
from onejump.analysis.reading import read_selection
from onejump.exits.shortlist import read_preview
from onejump.files.atomic import OnejumpError
from onejump.files.tables import read_table
from onejump.jumps.jump import FoldedJump
from onejump.jumps.storage import load_folded_jumps, load_joint_jump
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding
from onejump.sharing.base_model import config_facts, unembedding_facts
from onejump.sharing.card import render_card, render_generate
from onejump.sharing.folder import Content, write_published
from onejump.study.layout import Layout

# What can be published -> its method in the summary tables.
METHODS = {"joint": "joint", "ojfa": "ojfa", "all": "n_njtc"}
METRICS = ("precision", "precision_low", "precision_high", "precision_at_5", "surprisal", "kl", "confidence")
LEVELS = "level k in 0..K-1 is what enters block k, counted from 0: hidden_states[k] of Transformers"
PROBE_TOKENS = 8  # at least; no more of a text than the model is recognised by is published
PACKAGES = ("onejump", "torch", "transformers")


def publish(
    layout: Layout,
    branch: Mapping,
    jump: str,
    location: str,
    licences: Mapping[str, str | None],
    folder: Path,
    draw: Callable[..., bytes],
    repository: str | None = None,
) -> None:
    """Publish a jump of a finished study as a folder.

    Args:
        layout: of the study.
        branch: its model, seed and variant.
        jump: a key of METHODS.
        location: the base model: a folder, or an id on the hub.
        licences: hub id of the base model (`base_id`), for the card, and licences of the `jump` and of the `text`.
        folder: where to.
        draw: from a kind of figure, the folder of the summary tables and the branch to the SVG file.
        repository: on the hub, that the folder is to become.

    Raises:
        OnejumpError: the study has no such branch or jump, a file of it is missing or damaged, or the base model is
            another one.
    """
    _require_branch(layout, branch, jump)
    unembedding = Unembedding.load(layout.path("unembedding", model=branch["model"]))
    facts, choices = unembedding.metadata, layout.config["variants"][branch["variant"]]
    base = _base_model(layout, branch, location, unembedding)
    jumps, own_level = _jumps(layout, branch, jump, unembedding)
    ids, probe = _probe(layout, branch, unembedding)
    preview = shortlist = None
    if layout.has_shortlist(branch["variant"]):
        preview, shortlist = read_preview(layout.path("preview", **branch), unembedding)
    config = {
        "jump": jump,
        "own_level": own_level,
        "levels": facts["n_blocks"],
        "level_convention": LEVELS,
        "target": choices["target"],
        "rank": jumps[0].B.shape[0],
        "gated": bool(jumps[0].gates),
        "shortlist": shortlist,
        "base_model": base | {"hub_id": licences["base_id"] or base["hub_id"]},
        "probe": {"input_ids": ids},
        "fitted_on": {
            "study": layout.config["study"],
            **branch,
            "choices": choices,
            "corpus": _without_folders(layout.config["corpus"]),
            "licence_of_the_text": licences["text"],
        },
        "licence": licences["jump"],
        "metrics": _metrics(layout, branch, METHODS[jump]),
        "published_with": {name: version(name) for name in PACKAGES},
    }
    kind = "methods" if layout.has_all_jumps(branch["variant"]) else "joint_jump"
    figure = _shortened(draw(kind, layout.path("table", table="levels").parent, **branch))
    content = Content(jumps, probe, preview)
    write_published(folder, config, content, render_card(config), figure, render_generate(repository))


def _require_branch(layout: Layout, branch: Mapping, jump: str) -> None:
    config = layout.config
    for key in ("model", "variant"):
        if branch[key] not in (known := config[f"{key}s"]):
            raise OnejumpError(f"study {config['study']}: has no {key} {branch[key]!r}, only {', '.join(known)}")
    if branch not in layout.branches():
        seeds = sorted(b["seed"] for b in layout.branches() if b | {"seed": branch["seed"]} == branch)
        raise OnejumpError(f"study {config['study']}: {branch['variant']} has seeds {seeds}, not {branch['seed']}")
    if jump != "joint" and not layout.has_all_jumps(branch["variant"]):
        raise OnejumpError(f"variant {branch['variant']}: has the joint jump alone, not {jump}; publish joint")


def _base_model(layout: Layout, branch: Mapping, location: str, unembedding: Unembedding) -> dict:
    """What `jump_config.json` says of the base model."""
    facts = unembedding.metadata
    model = layout.config["models"][branch["model"]]
    on_hub = not Path(location).is_dir()
    source = ModelSource(location, facts["revision"] if on_hub else None, model["trust_remote_code"])
    config = source.load_config()
    found = source.identity()
    if found != (facts["model"], facts["revision"]):
        raise OnejumpError(
            f"--base {location}: is {' '.join(found)}, but the study's model is {facts['model']} {facts['revision']}; "
            "name that model"
        )
    known = {name: facts[name] for name in ("model", "revision", "dtype", "anatomy")}
    vocabulary, hidden_size = unembedding.weight.shape
    sizes = {"hidden_size": hidden_size, "vocabulary": vocabulary}
    return known | {
        "hub_id": facts["model"] if on_hub else None,
        "source": _without_folders(model["source"]),
        **sizes,
        "unembedding": unembedding_facts(unembedding),
        "config": config_facts(config),
    }


def _jumps(layout: Layout, branch: Mapping, jump: str, unembedding: Unembedding) -> tuple[list[FoldedJump], int | None]:
    """The jumps to publish, and the level of OJFA."""
    target = layout.config["variants"][branch["variant"]]["target"]
    if jump == "joint":
        return [load_joint_jump(layout.joint(**branch), unembedding, target)], None
    jumps = load_folded_jumps(layout.jumps(**branch), unembedding, target)
    if jump == "all":
        return jumps, None
    ojfa = read_selection(layout.path("selection", **branch), len(jumps))["ojfa"]
    return [jumps[ojfa]], ojfa


def _probe(layout: Layout, branch: Mapping, unembedding: Unembedding) -> tuple[list[int], Tensor]:
    """Beginning of a test sentence, and the normalised final state [H] of its last token."""
    model, seed = branch["model"], branch["seed"]
    positions = layout.path("positions", model=model, seed=seed)
    test = Activations(layout.shards(model, seed, "test"), positions, unembedding, "test")
    enough = [position for position in test.positions.tolist() if position >= PROBE_TOKENS - 1]
    row = test.positions.tolist().index(min(enough, default=int(test.positions.max())))
    table = read_table(positions, ["sentence_id", "input_ids"])
    ids = table["input_ids"][table["sentence_id"].to_pylist().index(int(test.sentence_ids[row]))].as_py()
    return ids, unembedding.normalise(test.rows(row, row + 1).level(test.n_blocks)[0])


def _metrics(layout: Layout, branch: Mapping, method: str) -> dict:
    """Means over the test sentences at each level, of the jump and of identity."""
    path = layout.path("table", table="levels")
    table = read_table(path, ["model", "seed", "variant", "method", "level", "n", *METRICS]).to_pandas()
    rows = table[(table[list(branch)] == list(branch.values())).all(axis=1)].sort_values("level")
    found = {name: rows[rows["method"] == which] for name, which in (("jump", method), ("identity", "identity"))}
    if any(part.empty for part in found.values()):
        raise OnejumpError(f"{path}: has no rows of {' '.join(map(str, branch.values()))}; run the study to its end")
    means = {name: {metric: part[metric].round(6).tolist() for metric in METRICS} for name, part in found.items()}
    return {"sentences": int(rows["n"].iloc[0]), **means}


def _shortened(svg: bytes) -> bytes:
    """An SVG figure without line breaks, with coordinates to a thousandth of themselves, and each style said once."""

    def rounded(attribute: re.Match) -> bytes:
        return re.sub(rb"\d+\.\d+", lambda number: b"%.4g" % float(number[0]), attribute[0])

    styles: dict[bytes, int] = {}

    def named(attribute: re.Match) -> bytes:
        return b' class="s%d"' % styles.setdefault(attribute[1], len(styles))

    svg = re.sub(rb"\s+", b" ", re.sub(rb'\s(d|x|y|transform)="[^"]*"', rounded, svg))
    svg = re.sub(rb' style="([^"]*)"', named, svg)
    sheet = b"".join(b".s%d{%s}" % (number, style) for style, number in styles.items())
    return svg.replace(b"</style>", sheet + b"</style>", 1)


def _without_folders(value: object) -> object:
    """A part of the study's config with the names of files, but not where they lie."""
    if isinstance(value, Mapping):
        files = {key: value[key] for key in ("path", "paths") if key in value}
        return {key: _without_folders(inner) for key, inner in value.items()} | {k: _names(v) for k, v in files.items()}
    return value


def _names(paths: str | list[str]) -> str | list[str]:
    return PurePath(paths).name if isinstance(paths, str) else [PurePath(path).name for path in paths]
