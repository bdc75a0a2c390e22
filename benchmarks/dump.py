"""The dump of activations, beside plain ways to the same hidden states and beside the bare model, on one shard.

- ours: `gather_levels`, as the stage `dump-activations` calls it, on sentences cut after their positions;
- one sentence at a time: whole sentences, with all hidden states and all logits;
- unsorted batches of 32: the same, padded, with an attention mask;
- bare model: our very batches through the backbone, nothing kept;
- limit: the products of our tokens, without padding, with all matrices of the blocks.

Batches of similar length need sentences to choose from: their number is a shard's, as in the embedded study, and each
turn runs a share of its batches. The two plain ways run one in ten and one in three of a turn's sentences, which count
as all. They must give the same hidden states as ours, to 1e-3 of a level's largest.

    python benchmarks/dump.py
    python benchmarks/dump.py --model MODEL_FOLDER --sentences SENTENCES_PARQUET

By default with the model and the sentences of the embedded study, which `make demo` leaves.
"""

from collections.abc import Callable

import measure
import torch
from torch import Tensor

from onejump.activations.dump import TOKEN_BUDGETS, gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.files.tables import read_table
from onejump.models.anatomy import find_anatomy
from onejump.models.devices import resolve_device
from onejump.models.sources import ModelSource

ONE_BY_ONE, UNSORTED, BARE = "one sentence at a time", "unsorted batches of 32", "bare model, same batches"
STEPS = {ONE_BY_ONE: 10, UNSORTED: 3}  # of how many sentences a plain way runs one
Sentence = list[int]


def padded(model, sentences: list[Sentence]) -> Tensor:
    """Token ids [n, longest] on the model's device, zeros on the right."""
    longest = max(map(len, sentences))
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in sentences], device=model.device)


def plain(model, sentences: list[Sentence], last: list[int], batch_size: int) -> Tensor:
    """Every hidden state and all logits of whole sentences, in the order given; of them kept: [K+1, n, H] at `last`.

    As Transformers has it, the last level is after the final norm.
    """
    kept = []
    for first in range(0, len(sentences), batch_size):
        batch = sentences[first : first + batch_size]
        ids = padded(model, batch)
        mask = torch.arange(ids.shape[1], device=model.device) < torch.tensor([[len(s)] for s in batch]).to(ids)
        found = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
        rows = torch.arange(len(batch)), last[first : first + batch_size]
        kept.append(torch.stack([h[rows] for h in found.hidden_states]).cpu())
    return torch.cat(kept, 1)


def bare_model(model, batches: list[list[Sentence]]) -> None:
    """The dump's batches through the backbone alone."""
    for batch in batches:
        find_anatomy(model).backbone(input_ids=padded(model, batch), use_cache=False)


def block_products(model, batches: list[list[Sentence]]) -> None:
    """The batches' tokens times each matrix of each block."""
    matrices = [parameter for parameter in find_anatomy(model).blocks.parameters() if parameter.ndim == 2]
    numbers = [sum(map(len, batch)) for batch in batches]
    widest = max(matrix.shape[1] for matrix in matrices)
    x = torch.ones(max(numbers), widest, dtype=model.dtype, device=model.device)
    for n in numbers:
        for matrix in matrices:
            x[:n, : matrix.shape[1]] @ matrix.T


def compare(model, whole: list[Sentence], positions: list[int], token_budget: int, rounds: int) -> list[measure.Row]:
    """Rows of the table.

    Args:
        model: in evaluation mode.
        whole: token ids of each sentence.
        positions: of each.
        token_budget: of the dump's batches.
        rounds: into which the sentences are shared out.

    Raises:
        OnejumpError: the hidden states differ.
    """
    cut = [ids[: position + 1] for ids, position in zip(whole, positions, strict=True)]
    sorted_rows = length_sorted_batches([len(ids) for ids in cut], token_budget)
    # A turn's share of our batches falls into the same batches again.
    batches = [[[cut[row] for row in rows] for rows in sorted_rows[turn::rounds]] for turn in range(rounds)]
    unsorted = [slice(turn * len(cut) // rounds, (turn + 1) * len(cut) // rounds) for turn in range(rounds)]

    def ours(turn: int) -> Tensor:
        return gather_levels(model, [ids for batch in batches[turn] for ids in batch], token_budget)

    def plainly(name: str, batch_size: int) -> Callable[[int], Tensor]:
        step = STEPS[name]
        return lambda turn: plain(model, whole[unsorted[turn]][::step], positions[unsorted[turn]][::step], batch_size)

    with torch.inference_mode():
        block_products(model, batches[0])  # a model's first touch of its weights is slow
        turns = measure.take_turns(
            {
                measure.OURS: ours,
                ONE_BY_ONE: plainly(ONE_BY_ONE, 1),
                UNSORTED: plainly(UNSORTED, 32),
                BARE: lambda turn: bare_model(model, batches[turn]),
                measure.LIMIT: lambda turn: block_products(model, batches[turn]),
            },
            rounds,
            parts=STEPS,
        )
        for name, step in STEPS.items():
            found = gather_levels(model, cut[unsorted[-1]][::step], token_budget)
            final = find_anatomy(model).final_norm(found[-1].to(model.device)).cpu()
            for level, h in enumerate([*found[:-1], final]):
                measure.require_close(f"{name}, level {level}", h, turns.results[name][level], 1e-3)
    dtype = str(model.dtype).removeprefix("torch.")
    return measure.rows_of(turns, f"{len(cut)} sentences, {dtype}", f"{dtype} products of the blocks")


def main() -> None:
    results, folder = measure.embedded_study()
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default=folder, help="folder in Transformers' format, or hub id")
    parser.add_argument(
        "--sentences", default=results / "corpus/seed-0/sentences.parquet", help="sentences.parquet of sample-sentences"
    )
    parser.add_argument("--number", type=int, default=1500, help="sentences to run")
    parser.add_argument("--rounds", type=int, default=5, help="turns that the ways take")
    parser.add_argument("--device", default="cpu", help="as the stages take it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    device, source = resolve_device(given.device), ModelSource(str(given.model))
    model, tokenizer = source.load_model(device=device), source.load_tokenizer()
    table = read_table(given.sentences, ["sentence_id", "split", "text"]).slice(0, given.number)
    positions = choose_positions(table, tokenizer, None, {}, seed=0)["position"].to_pylist()
    whole = tokenizer(table["text"].to_pylist())["input_ids"]
    measure.write("dump", compare(model, whole, positions, TOKEN_BUDGETS[device.type], given.rounds))


if __name__ == "__main__":
    measure.run(main)
