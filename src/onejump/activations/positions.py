"""One token position in each sentence."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from onejump.files.atomic import OnejumpError


def tokenise(texts: Sequence[str], tokenizer, max_tokens: int | None, bos: str = "tokenizer") -> list[list[int]]:
    """Token ids of each text, cut to the model's longest input; `bos` as in `choose_positions`.

    Raises:
        OnejumpError: There is no BOS token.
    """
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos == "always" and bos_id is None:
        raise OnejumpError("bos: always, but the tokenizer has no BOS token; use bos: tokenizer")
    tokens = tokenizer(texts)["input_ids"]
    if bos != "tokenizer":
        without = [ids[1:] if ids[:1] == [bos_id] else ids for ids in tokens]
        tokens = [[bos_id, *ids] for ids in without] if bos == "always" else without
    return [ids[:max_tokens] for ids in tokens]


def choose_positions(
    sentences: pa.Table, tokenizer, max_tokens: int | None, shards: dict[str, int], seed: int, bos: str = "tokenizer"
) -> pa.Table:
    """Tokenise each sentence and choose one position in it uniformly, as Din et al. do.

    Args:
        sentences: Table with sentence_id, split and text; or the table of `texts_table`, where the position in a
            continuation is one of the tokens that the model wrote.
        tokenizer: A tokenizer of Transformers.
        max_tokens: The model's longest input, or None; longer sentences are cut.
        shards: Split -> number of shards; sentences are assigned to shards in order, in near-equal numbers.
        seed: Seed of the choice.
        bos: Whether a sentence begins with the BOS token: `always`, `never`, or as the `tokenizer` does it.

    Returns:
        Table with sentence_id int32, split, shard int32, n_tokens int32, position int32 (0-based), token_id int32 (the
        token at the position), starts_with_bos (whether the first token is the tokenizer's BOS), input_ids list<int32>
        (cut after the position: a causal model cannot see further); with continuations, origin.

    Raises:
        OnejumpError: A sentence has no tokens, a split has fewer sentences than shards, or there is no BOS token.
    """
    generated = "origin" in sentences.column_names
    if generated:
        tokens, first = sentences["input_ids"].to_pylist(), sentences["n_prompt"].to_numpy()
    else:
        tokens, first = tokenise(sentences["text"].to_pylist(), tokenizer, max_tokens, bos), 0
    n_tokens = np.array([len(ids) for ids in tokens], dtype=np.int32)
    ids, split = sentences["sentence_id"].to_numpy(), np.array(sentences["split"].to_pylist())
    if (n_tokens == 0).any():
        row = int(np.argmax(n_tokens == 0))
        raise OnejumpError(
            f"sentence {ids[row]} ({sentences['text'][row].as_py()!r}) has no tokens; remove it from the corpus or "
            "use the model's own tokenizer"
        )
    # By its id, a sentence has the same draw whether or not continuations stand between.
    drawn = np.random.default_rng(seed).random(len(ids))[ids.argsort().argsort()]
    position = first + (drawn * (n_tokens - first)).astype(np.int32)
    shard = np.zeros(len(ids), dtype=np.int32)
    for name, count in shards.items():
        rows = np.flatnonzero(split == name)
        if len(rows) < count:
            raise OnejumpError(f"split {name} has {len(rows)} sentences for {count} shards; ask for fewer shards")
        shard[rows] = np.arange(len(rows)) * count // len(rows)
    bos_id = getattr(tokenizer, "bos_token_id", None)
    seen = [sentence[: p + 1] for sentence, p in zip(tokens, position, strict=True)]
    columns = {"sentence_id": pa.array(ids, pa.int32()), "split": split.tolist(), "shard": shard}
    columns |= {"n_tokens": n_tokens, "position": position}
    columns["token_id"] = pa.array([sentence[-1] for sentence in seen], pa.int32())
    columns["starts_with_bos"] = pa.array([sentence[0] == bos_id for sentence in tokens], pa.bool_())
    if generated:
        columns["origin"] = sentences["origin"]
    columns["input_ids"] = pa.array(seen, pa.list_(pa.int32()))
    return pa.table(columns)


def rows_digest(sentence_ids: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> str:
    """SHA-256 of a shard's sentence ids, positions, and tokens there: two texts may have the same ids and positions."""
    rows = list(zip(sentence_ids.tolist(), positions.tolist(), token_ids.tolist(), strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def tokens_digest(sentences: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the token ids of some sentences."""
    return hashlib.sha256(json.dumps(sentences).encode()).hexdigest()
