"""The stages that evaluate exits of one model, seed and variant, one function each, as in stages.py."""

from pathlib import Path
from typing import Annotated

from onejump.files.atomic import OnejumpError, errors_name
from onejump.parameters import (
    Compute,
    Cosines,
    Dump,
    Evaluation,
    JointJump,
    Jumps,
    Option,
    Out,
    PositionsFile,
    ScoreLevels,
    Seed,
    SelectionFile,
    SentencesFile,
    Target,
    TestShards,
)


def evaluate_oracle(
    dump: Dump,
    compute: Compute,
    jumps: Jumps,
    joint: JointJump,
    cosines: Cosines,
    out: Out,
    score_levels: ScoreLevels = "1..K",
    target: Target = "pre_norm",
) -> None:
    """Check whether D_m finds the best jump: scores beside precision on training sentences that no fit has seen."""
    device = compute.start()
    from onejump.analysis.oracle import evaluate_oracle
    from onejump.analysis.reading import read_cosines
    from onejump.files.tables import write_table
    from onejump.jumps.storage import load_folded_jumps, load_joint_jump

    unembedding, activations = dump.open("train")
    folded = [jump.to(device) for jump in load_folded_jumps(jumps, unembedding, target)]
    shared, (values, _) = load_joint_jump(joint, unembedding, target).to(device), read_cosines(cosines)
    given = (activations, unembedding.to(device), folded, shared, values)
    write_table(out, evaluate_oracle(*given, score_levels, target, device))


def evaluate_jumps(
    dump: Dump,
    compute: Compute,
    jumps: Jumps,
    joint: JointJump,
    selection: SelectionFile,
    transfer_sentences: Annotated[int, Option("Sentences for the K x K grid.", minimum=1)],
    evaluation: Evaluation,
    transfer: Annotated[Path, Option("transfer.parquet to write.")],
    target: Target = "pre_norm",
) -> None:
    """Evaluate every way of exiting by jumps at every exit level, on the test sentences."""
    device = compute.start()
    from onejump.analysis.reading import read_selection
    from onejump.exits.evaluation import JumpExits, evaluate_jumps
    from onejump.files.tables import write_table
    from onejump.jumps.storage import load_folded_jumps, load_joint_jump

    unembedding, activations = dump.open("test")
    folded = [jump.to(device) for jump in load_folded_jumps(jumps, unembedding, target)]
    ojfa = read_selection(selection, len(folded))["ojfa"]
    exits = JumpExits(folded, ojfa, load_joint_jump(joint, unembedding, target).to(device))
    table, grid = evaluate_jumps(activations, unembedding.to(device), exits, target, transfer_sentences, device)
    write_table(transfer, grid)
    write_table(evaluation, table)


def evaluate_joint_jump(
    dump: Dump, compute: Compute, joint: JointJump, evaluation: Evaluation, target: Target = "pre_norm"
) -> None:
    """Evaluate the joint jump alone at every exit level, on the test sentences."""
    device = compute.start()
    from onejump.exits.evaluation import JumpExits, evaluate_jumps
    from onejump.files.tables import write_table
    from onejump.jumps.storage import load_joint_jump

    unembedding, activations = dump.open("test")
    exits = JumpExits((), None, load_joint_jump(joint, unembedding, target).to(device))
    write_table(evaluation, evaluate_jumps(activations, unembedding.to(device), exits, target, 0, device)[0])


def evaluate_held_out(
    dump: Dump,
    compute: Compute,
    joint: JointJump,
    out: Out,
    jumps: Annotated[list[Path], Option("Jumps 0..K-1, in order; none of a variant with the joint jump alone.")] = (),
    selection: Annotated[Path | None, Option("selection.json of select-jump, with --jump.")] = None,
    target: Target = "pre_norm",
) -> None:
    """Evaluate jumps on the validation slice, where thresholds of dynamic exit are chosen."""
    if bool(jumps) != (selection is not None):
        raise OnejumpError("give --jump for each level and --selection, or neither")
    device = compute.start()
    from onejump.analysis.reading import read_selection
    from onejump.exits.evaluation import JumpExits, evaluate_held_out
    from onejump.files.tables import write_table
    from onejump.jumps.storage import load_folded_jumps, load_joint_jump

    unembedding, train = dump.open("train")
    folded = [jump.to(device) for jump in load_folded_jumps(jumps, unembedding, target)] if jumps else []
    ojfa = read_selection(selection, len(folded))["ojfa"] if jumps else None
    exits = JumpExits(folded, ojfa, load_joint_jump(joint, unembedding, target).to(device))
    write_table(out, evaluate_held_out(train, unembedding.to(device), exits, target, device))


def evaluate_shortlist(
    dump: Dump,
    compute: Compute,
    test_shards: TestShards,
    joint: JointJump,
    grid: Annotated[Path, Option("shortlist.parquet to write: each check that was tried, and which is chosen.")],
    held_out: Annotated[Path, Option("shortlist_held_out.parquet to write: the evaluation of training sentences.")],
    evaluation: Evaluation,
    preview: Annotated[Path, Option("preview.safetensors to write: what stands for the output head in the check.")],
    target: Target = "post_norm",
) -> None:
    """Choose a check of a gated joint jump with a shortlist, and evaluate it; --shard gives the training split."""
    device = compute.start()
    from onejump.exits.shortlist import evaluate_shortlist, save_preview
    from onejump.files.tables import write_frame, write_table
    from onejump.jumps.storage import load_joint_jump

    unembedding, train, test = dump.open_both(test_shards)
    jump = load_joint_jump(joint, unembedding, target).to(device)
    with errors_name(joint):
        tried, before, table, found = evaluate_shortlist(train, test, unembedding.to(device), jump, target, device)
    (chosen,) = tried[tried["chosen"]].to_dict("records")
    save_preview(preview, found, unembedding, chosen)
    write_frame(grid, tried)
    write_table(held_out, before)
    write_table(evaluation, table)


def evaluate_references(
    dump: Dump,
    compute: Compute,
    test_shards: TestShards,
    norms: Annotated[Path, Option("Table of the training split's largest rows to write.")],
    held_out: Annotated[Path, Option("Table of identity and token table on the validation slice to write.")],
    out: Out,
) -> None:
    """Evaluate the floor and identity at every exit level; --shard gives the training split."""
    device = compute.start()
    from onejump.exits.norms import largest_rows
    from onejump.exits.references import evaluate_references, evaluate_references_held_out
    from onejump.files.tables import write_table

    unembedding, train, test = dump.open_both(test_shards)
    unembedding = unembedding.to(device)
    write_table(norms, largest_rows(train, unembedding, device))
    write_table(held_out, evaluate_references_held_out(train, unembedding, device))
    write_table(out, evaluate_references(train, test, unembedding, device))


def evaluate_lens(
    dump: Dump, compute: Compute, lens: Annotated[Path, Option("A lens, such as fit-jtc writes.")], out: Out
) -> None:
    """Evaluate a lens at every exit level, on the test sentences."""
    device = compute.start()
    from onejump.exits.references import evaluate_lens
    from onejump.files.tables import write_table
    from onejump.jumps.lenses import LensFile

    unembedding, test = dump.open("test")
    file = LensFile(lens, unembedding)
    write_table(out, evaluate_lens(test, unembedding.to(device), file, device))


def evaluate_ranks(
    dump: Dump,
    compute: Compute,
    test_shards: TestShards,
    jumps: Jumps,
    joint: JointJump,
    sentences_file: SentencesFile,
    sentences: Annotated[int, Option("Test sentences to evaluate.", minimum=1)],
    out: Out,
    score_levels: ScoreLevels = "1..K",
    target: Target = "pre_norm",
) -> None:
    """Evaluate exact fits at other ranks, from 1 to H / 8; --shard gives the training split."""
    device = compute.start()
    from onejump.analysis.ranks import evaluate_ranks, read_ridges
    from onejump.analysis.reading import read_documents
    from onejump.files.tables import write_frame

    unembedding, train, test = dump.open_both(test_shards)
    given = (train, test, unembedding.to(device), *read_ridges([*jumps, joint]))
    documents = read_documents(sentences_file, test.sentence_ids[:sentences].numpy())
    write_frame(out, evaluate_ranks(*given, target, score_levels, documents, device))


def assess_claims(
    evaluation: Annotated[Path, Option("evaluation.parquet of evaluate-jumps.")],
    references: Annotated[Path, Option("The table of evaluate-references.")],
    jumps: Jumps,
    selection: SelectionFile,
    sentences_file: SentencesFile,
    positions_file: PositionsFile,
    out: Out,
    seed: Seed = 0,
) -> None:
    """Assess the paper's claims C1-C6 by a paired bootstrap over the documents of the test sentences."""
    from onejump.analysis.claims import claims_table, n_parameters
    from onejump.analysis.reading import EvaluationGrids, read_selection
    from onejump.exits.columns import JUMP_METHODS, REFERENCE_METHODS
    from onejump.files.tables import write_frame
    from onejump.files.tensors import TensorFile

    sizes = [n_parameters(TensorFile(file)) for file in jumps]
    selected = read_selection(selection, len(sizes))
    methods = {references: REFERENCE_METHODS, evaluation: (*JUMP_METHODS, "arbitrary")}
    grids = EvaluationGrids(methods, sentences_file, positions_file, len(sizes))
    write_frame(out, claims_table(grids, selected, {"ojfa": sizes[selected["ojfa"]], "n_njtc": sum(sizes)}, seed))
