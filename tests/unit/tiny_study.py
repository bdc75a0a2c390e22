"""A whole study of a tiny model, made by the stages' functions, for the tests of the summary."""

from pathlib import Path

import pyarrow as pa
import torch

from onejump.activations.reading import Activations
from onejump.analysis.claims import claims_table
from onejump.analysis.grids import EvaluationGrids
from onejump.analysis.oracle import evaluate_oracle
from onejump.analysis.ranks import evaluate_ranks
from onejump.analysis.scores import save_scores, score_jumps
from onejump.analysis.selection import read_selection, select_jump
from onejump.exits.evaluation import JumpExits, evaluate_jumps, evaluate_references
from onejump.files.atomic import write_json
from onejump.files.tables import write_table
from onejump.jumps.fitting import fit_jump
from onejump.jumps.jtc import fit_jtc, open_jtc
from onejump.jumps.jump import load_folded_jumps, load_joint_jump
from onejump.models.unembedding import Unembedding
from onejump.stages import summarise

torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
CPU = torch.device("cpu")
K, N_TRAIN, N_TEST, TRANSFER = 3, 80, 25, 12
VARIANTS = {
    "paper": {"fit": "adam", "target": "pre_norm", "positions": "all", "score_levels": "1..K", "rank": 2},
    "exact": {"fit": "exact", "target": "post_norm", "positions": "not_first", "score_levels": "0..K-1", "rank": 3},
}
VARIANTS = {name: choices | {"joint_batches": "mixed"} for name, choices in VARIANTS.items()}
CONFIG = {
    "study": "study",
    "models": {"tiny": {"blocks": K}},
    "seeds": [0, 1],
    "variants": VARIANTS,
    "evaluation": {"transfer_sentences": TRANSFER},
}


def run_variant(branch: Path, dump, seed: int, variant: str) -> None:
    """All stages of a variant on dumped activations, as the workflow runs them."""
    choices, unembedding, folder = VARIANTS[variant], Unembedding.load(dump.unembedding), branch / variant
    target, positions = choices["target"], choices["positions"]
    train = Activations(dump.train, dump.positions, unembedding, "train", positions)
    test = Activations(dump.test, dump.positions, unembedding, "test", positions)
    jtc = branch / "jtc" / f"{target}.{positions}.safetensors"
    fit_jtc(train, unembedding, jtc, target, CPU)
    paths = [folder / "jumps" / f"level-{level:02d}.safetensors" for level in range(K)]
    for level, path in [*enumerate(paths), (None, folder / "jumps" / "joint.safetensors")]:
        fit_jump(train, unembedding, level, path, choices["fit"], target, choices["rank"], "mixed", seed, CPU)
    jumps = load_folded_jumps(paths, unembedding, target)
    cosines = score_jumps(train, unembedding, jumps, target, CPU)
    save_scores(cosines, train, target, unembedding, folder / "scores.parquet", folder / "cosines.safetensors")
    select_jump(folder / "cosines.safetensors", choices["score_levels"], seed, folder / "selection.json")
    joint = load_joint_jump(folder / "jumps" / "joint.safetensors", unembedding, target)
    ojfa = read_selection(folder / "selection.json", K)["ojfa"]
    evaluation, transfer = evaluate_jumps(test, unembedding, JumpExits(jumps, ojfa, joint), target, TRANSFER, CPU)
    write_table(folder / "evaluation.parquet", evaluation)
    write_table(folder / "transfer.parquet", transfer)
    references = evaluate_references(test, unembedding, open_jtc(jtc, unembedding, target), target, CPU)
    arguments = (folder / "cosines.safetensors", choices["score_levels"], target, CPU)
    oracle = evaluate_oracle(train, unembedding, jumps, joint, *arguments)
    write_table(folder / "oracle.parquet", oracle)
    shared = branch / "references" / f"{target}.{positions}.parquet"
    write_table(shared, references)
    parameters = {"ojfa": 1, "n_njtc": K}
    if choices["fit"] == "exact":
        arguments = (target, choices["score_levels"], TRANSFER, CPU)
        ranks = evaluate_ranks(train, test, unembedding, paths, folder / "jumps" / "joint.safetensors", *arguments)
        write_table(folder / "ranks.parquet", pa.Table.from_pandas(ranks, preserve_index=False))
    claims = claims_table(EvaluationGrids(shared, folder / "evaluation.parquet", K), ojfa, parameters, seed)
    write_table(folder / "claims.parquet", pa.Table.from_pandas(claims, preserve_index=False))


def write_summary_of(results: Path, config: dict, folder: Path) -> None:
    """The stage `summarise` with a config of these contents."""
    write_json(folder.parent / "config.json", config)
    summarise(results, folder.parent / "config.json", folder)
