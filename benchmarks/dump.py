"""How fast the dump of activations is, beside a plain loop and beside the bare model, in one run.

- plain loop: unsorted padded batches of 32 full sentences, `output_hidden_states=True`, full logits;
- bare model: the very batches of the dump through the backbone, nothing kept;
- dump: `gather_levels`, as the stage `dump-activations` calls it.

Batches of similar length need sentences to choose from: their number is a shard's, as in the embedded study. The three
take turns over shares of their batches, so that a drift of the machine's speed falls on all alike.

    python benchmarks/dump.py --model MODEL_FOLDER --sentences SENTENCES_PARQUET
"""

import argparse
import time

import torch

from onejump.activations import TOKEN_BUDGETS, choose_positions, gather_levels, length_sorted_batches
from onejump.artifacts import read_table
from onejump.models import ModelSource, find_anatomy, resolve_device


def plain_loop(model, sentences, batch_size=32):
    """Every hidden state and all logits of full sentences, in the order given."""
    for first in range(0, len(sentences), batch_size):
        batch = sentences[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch], device=model.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=model.device)
        model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)


def bare_model(model, sentences, token_budget):
    """The dump's batches through the backbone alone."""
    backbone = find_anatomy(model).backbone
    for rows in length_sorted_batches([len(ids) for ids in sentences], token_budget):
        width = max(len(sentences[row]) for row in rows)
        ids = torch.tensor([sentences[row] + [0] * (width - len(sentences[row])) for row in rows], device=model.device)
        backbone(input_ids=ids, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder in Transformers' format, or hub id")
    parser.add_argument("--sentences", required=True, help="sentences.parquet")
    parser.add_argument("--number", type=int, default=1500, help="sentences to run")
    parser.add_argument("--rounds", type=int, default=10, help="turns that the three ways take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, as many as the rule dump_activations has")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    device = resolve_device(args.device)
    source = ModelSource(args.model)
    model, tokenizer = source.load_model(device=device), source.load_tokenizer()
    budget = TOKEN_BUDGETS[device.type]
    table = read_table(args.sentences, ["sentence_id", "split", "text"]).slice(0, args.number)
    full = tokenizer(table["text"].to_pylist())["input_ids"]
    cut = choose_positions(table, tokenizer, None, {}, seed=0)["input_ids"].to_pylist()

    batches = length_sorted_batches([len(ids) for ids in cut], budget)

    def sorted_share(turn: int) -> list[list[int]]:
        """The sentences of every tenth batch or so, which fall into the same batches again."""
        return [cut[row] for rows in batches[turn :: args.rounds] for row in rows]

    def unsorted_share(turn: int) -> list[list[int]]:
        return full[turn * len(full) // args.rounds : (turn + 1) * len(full) // args.rounds]

    ways = {
        "plain loop": lambda turn: plain_loop(model, unsorted_share(turn)),
        "bare model": lambda turn: bare_model(model, sorted_share(turn), budget),
        "dump": lambda turn: gather_levels(model, sorted_share(turn), budget),
    }
    seconds = dict.fromkeys(ways, 0.0)
    with torch.inference_mode():
        bare_model(model, cut[:64], budget)  # warm up
        for turn in range(args.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way(turn)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name] += time.perf_counter() - began
    for name, value in seconds.items():
        print(f"{name:10}  {value:7.2f} s  {len(full) / value:7.1f} sentences/s")
    print(f"plain loop / dump  {seconds['plain loop'] / seconds['dump']:.2f} (at least 5 wanted)")
    print(f"dump / bare model  {seconds['dump'] / seconds['bare model']:.3f} (at most 1.1 wanted)")


if __name__ == "__main__":
    main()
