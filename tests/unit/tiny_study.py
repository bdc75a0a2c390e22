"""A whole study of a tiny model, made by the stages, for the tests of the summary."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from onejump import exit_stages, stages, study_stages
from onejump.files.sealed import write_sealed_json
from onejump.parameters import Compute, Dump, Model
from onejump.study.lenses import target_of_lens
from onejump.study.variants import is_nested

K, N_TRAIN, N_TEST, TRANSFER = 3, 80, 25, 12
VARIANTS = {
    "paper": {"fit": "adam", "target": "pre_norm", "positions": "all", "score_levels": "1..K", "rank": 2},
    "exact": {"fit": "exact", "target": "post_norm", "positions": "not_first", "score_levels": "0..K-1", "rank": 3},
}
for choices in VARIANTS.values():
    choices |= {"gate": "none", "scales": "none"}
VARIANTS["gated"] = VARIANTS["paper"] | {"fit": "exact", "target": "post_norm", "gate": "level"}
VARIANTS = {
    name: {**choices, "joint_batches": "mixed", "inputs": "states", "jumps": "all", "fit_seed": 0, "train_on": "corpus"}
    for name, choices in VARIANTS.items()
}
VARIANTS["alone"] = VARIANTS["gated"] | {"rank": 3, "jumps": "joint"}
# One of each form: whole, and at one seed alone of low rank, the same at all levels, and what others have fitted.
LENSES = {"jtc": {"seeds": None}, "lora_lens": {"seeds": [0]}, "jacobian_lens_mean": {"seeds": [0]}}
LENSES["imported_jacobian_lens"] = {"seeds": [0], "sources": {"tiny": "theirs.pt"}}
CONFIG = {
    "study": "study",
    "corpus": {},
    "models": {"tiny": {"blocks": K}},
    "seeds": [0, 1],
    "variants": VARIANTS,
    "evaluation": {"transfer_sentences": TRANSFER, "lenses": LENSES},
}


def run_variant(branch: Path, dump, sentences: Path, seed: int, variant: str) -> None:
    """All stages of a variant on dumped activations, as the workflow runs them."""
    choices, folder, cpu = VARIANTS[variant], branch / variant, Compute("cpu")
    target, positions, levels = (choices[key] for key in ("target", "positions", "score_levels"))
    train, test = (Dump(dump.unembedding, dump.positions, shards, positions) for shards in (dump.train, dump.test))
    references = branch / "references" / f"{positions}.parquet"
    names = ("scores.parquet", "cosines.safetensors", "selection.json", "evaluation.parquet", "transfer.parquet")
    scores, cosines, selection, evaluation, transfer = (folder / name for name in names)
    jumps = [folder / "jumps" / f"level-{level:02d}.safetensors" for level in range(K)]
    joint = folder / "jumps" / "joint.safetensors"
    given = (choices["fit"], target, choices["rank"], choices["gate"], choices["scales"])
    if choices["jumps"] == "joint":
        stages.fit_jump(train, cpu, ["joint"], [joint], *given, seed=seed)
        exit_stages.evaluate_joint_jump(test, cpu, joint, evaluation, target)
        exit_stages.evaluate_held_out(train, cpu, joint, folder / "held_out.parquet", target=target)
        names = ("shortlist", "shortlist_held_out", "shortlist_evaluation")
        out = *(folder / f"{name}.parquet" for name in names), folder / "preview.safetensors"
        exit_stages.evaluate_shortlist(train, cpu, dump.test, joint, *out, target)
        return
    fitted = [*map(str, range(K)), "joint"]
    stages.fit_jump(train, cpu, fitted, [*jumps, joint], *given, seed=seed)
    stages.score_jumps(train, cpu, jumps, scores, cosines, target)
    stages.select_jump(cosines, sentences, selection, levels, seed)
    exit_stages.evaluate_jumps(test, cpu, jumps, joint, selection, TRANSFER, evaluation, transfer, target)
    exit_stages.evaluate_held_out(train, cpu, joint, folder / "held_out.parquet", jumps, selection, target)
    others = (references.with_suffix(f".{name}.parquet") for name in ("norms", "held_out"))
    exit_stages.evaluate_references(train, cpu, dump.test, *others, references)
    run_lenses(branch / "lenses", dump, train, test, seed, choices)
    exit_stages.evaluate_oracle(train, cpu, jumps, joint, cosines, folder / "oracle.parquet", levels, target)
    if is_nested(choices):
        ranks = sentences, TRANSFER, folder / "ranks.parquet"
        exit_stages.evaluate_ranks(train, cpu, dump.test, jumps, joint, *ranks, levels, target)
    known = selection, sentences, dump.positions
    exit_stages.assess_claims(evaluation, references, jumps, *known, folder / "claims.parquet", seed)


def run_lenses(folder: Path, dump, train: Dump, test: Dump, seed: int, choices: dict) -> None:
    """The lenses of a variant, as the workflow makes them."""
    target, positions, cpu = choices["target"], choices["positions"], Compute("cpu")
    files = {lens: folder / f"{lens}.{target_of_lens(lens, target)}.{positions}.safetensors" for lens in LENSES}
    stages.fit_jtc(train, cpu, files["jtc"], target)
    if seed == 0:
        stages.fit_kl_lens(train, cpu, "lora_lens", files["lora_lens"])
        mean = "jacobian_lens_mean"
        source = Model(dump.source.location), cpu, dump.unembedding, dump.positions
        stages.fit_jacobian_lens(*source, [mean], [files[mean]], prompts=3)
        study_stages.export_lens(dump.unembedding, files[mean], "jacobian_lens", folder / "mean")
        exported = load_file(folder / "mean" / "lens.safetensors")
        J = {layer: exported[str(layer)] for layer in range(len(exported))}
        about = {"n_prompts": 3, "source_layers": sorted(J), "d_model": len(J[0])}
        torch.save({"J": J} | about, folder / "theirs.pt")
        imported = "imported_jacobian_lens"
        stages.import_lens(dump.unembedding, imported, str(folder / "theirs.pt"), files[imported])
    for lens, file in files.items():
        if seed in (LENSES[lens]["seeds"] or [seed]):
            exit_stages.evaluate_lens(test, cpu, file, file.with_suffix(".parquet"))


def write_summary_of(results: Path, config: dict, folder: Path) -> None:
    """The stage `summarise` with a config of these contents."""
    write_sealed_json(folder.parent / "config.json", config)
    study_stages.summarise(results, folder.parent / "config.json", folder)
