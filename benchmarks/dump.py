"""The dump of activations, compared with simpler ways to get the same hidden states and with the bare model.

- ours: `gather_levels`, as the stage `dump-activations` calls it, on sentences cut after their positions;
- one sentence at a time: whole sentences, with all hidden states and all logits;
- unsorted batches of 32: the same, padded, with an attention mask;
- bare model: exactly our batches through the blocks, keeping nothing;
- limit: our tokens, without padding, multiplied by every matrix of the blocks.

Batching by length needs many sentences to choose from, so the sentences are a whole shard of the embedded study, and
each turn runs an equal share of its batches. The two simpler ways run every tenth and every third sentence of a turn,
and their times are scaled up. They must give the same hidden states as ours, to 1e-3 of the largest value in a level.

    python benchmarks/dump.py
    python benchmarks/dump.py --model MODEL_FOLDER --sentences SENTENCES_PARQUET

By default it uses the model and the sentences of the embedded study, so `make demo` has to run first.
"""

from argparse import Namespace
from collections.abc import Callable

import measure
import torch
from torch import Tensor

from onejump.activations.dump import TOKEN_BUDGETS, gather_levels, length_sorted_batches
from onejump.activations.positions import choose_positions
from onejump.files.tables import read_table
from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.devices import by_device, resolve_device
from onejump.models.sources import ModelSource

ONE_BY_ONE, UNSORTED, BARE = "one sentence at a time", "unsorted batches of 32", "bare model, same batches"
STEPS = {ONE_BY_ONE: 10, UNSORTED: 3}  # a simpler way runs every tenth or every third sentence
Sentence = list[int]


def padded(model, sentences: list[Sentence]) -> Tensor:
    """Token ids [n, longest] on the model's device, zeros on the right."""
    longest = max(map(len, sentences))
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in sentences], device=model.device)


def plain(model, sentences: list[Sentence], last: list[int], batch_size: int) -> Tensor:
    """Compute all hidden states and logits of whole sentences, in the order given; keep the states at `last`.

    Returns:
        [K+1, n, H]. As is usual in Transformers, the last level is after the final norm.
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


def bare_model(anatomy: Anatomy, batches: list[list[Sentence]]) -> None:
    """Run the dump's batches through the blocks alone."""
    for batch in batches:
        anatomy.run(padded(anatomy.model, batch), lambda level, h: None)


def block_products(anatomy: Anatomy, batches: list[list[Sentence]]) -> None:
    """Multiply the batches' tokens by each matrix of each block."""
    matrices = [parameter for parameter in anatomy.blocks.parameters() if parameter.ndim == 2]
    numbers = [sum(map(len, batch)) for batch in batches]
    widest = max(matrix.shape[1] for matrix in matrices)
    model = anatomy.model
    x = torch.ones(max(numbers), widest, dtype=model.dtype, device=model.device)
    for n in numbers:
        for matrix in matrices:
            x[:n, : matrix.shape[1]] @ matrix.T


def compare(model, whole: list[Sentence], positions: list[int], token_budget: int, rounds: int) -> list[measure.Row]:
    """Rows of the table.

    Args:
        model: in evaluation mode.
        whole: token ids of each sentence.
        positions: position chosen in each sentence.
        token_budget: tokens in a batch of the dump.
        rounds: turns, each of which takes an equal share of the sentences.

    Raises:
        OnejumpError: the hidden states differ.
    """
    cut = [ids[: position + 1] for ids, position in zip(whole, positions, strict=True)]
    sorted_rows = length_sorted_batches([len(ids) for ids in cut], token_budget)
    # Dividing a turn's share of the sentences into batches gives the same batches again.
    batches = [[[cut[row] for row in rows] for rows in sorted_rows[turn::rounds]] for turn in range(rounds)]
    anatomy = find_anatomy(model)
    unsorted = [slice(turn * len(cut) // rounds, (turn + 1) * len(cut) // rounds) for turn in range(rounds)]

    def ours(turn: int) -> Tensor:
        return gather_levels(anatomy, [ids for batch in batches[turn] for ids in batch], token_budget)[0]

    def plainly(name: str, batch_size: int) -> Callable[[int], Tensor]:
        step = STEPS[name]
        return lambda turn: plain(model, whole[unsorted[turn]][::step], positions[unsorted[turn]][::step], batch_size)

    with torch.inference_mode():
        block_products(anatomy, batches[0])  # the first read of the weights is slow
        turns = measure.take_turns(
            {
                measure.OURS: ours,
                ONE_BY_ONE: plainly(ONE_BY_ONE, 1),
                UNSORTED: plainly(UNSORTED, 32),
                BARE: lambda turn: bare_model(anatomy, batches[turn]),
                measure.LIMIT: lambda turn: block_products(anatomy, batches[turn]),
            },
            rounds,
            parts=STEPS,
        )
        for name, step in STEPS.items():
            found, _ = gather_levels(anatomy, cut[unsorted[-1]][::step], token_budget)
            final = anatomy.norm(found[-1].to(model.device)).cpu()
            for level, h in enumerate([*found[:-1], final]):
                measure.require_close(f"{name}, level {level}", h, turns.results[name][level], 1e-3)
    dtype = str(model.dtype).removeprefix("torch.")
    size, limit = f"{len(cut)} sentences, {dtype}", f"{dtype} products of the blocks"
    return measure.rows_of(turns, size, limit, model.device)


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for the model and the sentences that the options name."""
    device, source = resolve_device(given.device), ModelSource(given.model)
    model, tokenizer = source.load_model(device=device), source.load_tokenizer()
    table = read_table(given.sentences, ["sentence_id", "split", "text"]).slice(0, given.number)
    positions = choose_positions(table, tokenizer, None, {}, seed=0)["position"].to_pylist()
    whole = tokenizer(table["text"].to_pylist())["input_ids"]
    return {"dump": compare(model, whole, positions, by_device(TOKEN_BUDGETS, device), given.rounds)}


if __name__ == "__main__":
    sizes = {"number": (1500, "sentences to run"), "rounds": (5, "rounds")}
    device = ("cpu", "device, as for the stages")
    measure.run(__doc__, tables, **measure.model_and_sentences(), **sizes, device=device)
