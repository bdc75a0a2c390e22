"""Tiny causal language models with random weights, their tokenizers, and dumps made of them by the real stages."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from onejump import stages
from onejump.files.tables import write_table
from onejump.models.devices import DTYPES
from onejump.models.sources import ModelSource
from onejump.parameters import Compute, Model

torch.set_num_threads(1)  # threads only get in each other's way on matrices this small

N_BLOCKS, HIDDEN_SIZE, VOCABULARY, MAX_POSITIONS = 3, 32, 97, 64
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
WORDS = [f"{a}{b}" for a in "bcdfgklm" for b in ("ab", "ek", "il", "on", "ur", "ay", "em", "os", "ig", "ul")]

_SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_POSITIONS}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_PLAIN = {
    **_SIZES,
    **_TOKENS,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_positions=MAX_POSITIONS, n_embd=HIDDEN_SIZE, n_layer=N_BLOCKS, n_head=4, **_TOKENS
    ),
    "phi3": Phi3Config(**_GROUPED),
    "gpt_neox": GPTNeoXConfig(**_PLAIN),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": MistralConfig(**_GROUPED),
    "gemma2": Gemma2Config(**_GEMMA, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**_GEMMA, query_pre_attn_scalar=8, sliding_window=8),
    "opt": OPTConfig(
        **_SIZES,
        **_TOKENS,
        hidden_size=HIDDEN_SIZE,
        word_embed_proj_dim=HIDDEN_SIZE,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=4,
        ffn_dim=64,
    ),
}

# Heads that scale their logits or have a bias.
UNUSUAL: dict[str, PretrainedConfig] = {
    "cohere": CohereConfig(**_GROUPED, logit_scale=0.25),
    "granite": GraniteConfig(**_GROUPED, logits_scaling=4.0),
    "phi": PhiConfig(**_PLAIN),
    "gptj": GPTJConfig(
        vocab_size=VOCABULARY,
        n_positions=MAX_POSITIONS,
        n_embd=HIDDEN_SIZE,
        n_layer=N_BLOCKS,
        n_head=4,
        rotary_dim=4,
        **_TOKENS,
    ),
}
ALL_FAMILIES = FAMILIES | UNUSUAL


def perturbed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Add noise to every parameter, norms and biases too: at their initial 0 or 1 a mistake in them would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def model_from(config: PretrainedConfig, seed: int = 0, dtype: str = "float32") -> torch.nn.Module:
    """A model in evaluation mode, with random weights that the seed determines."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    return perturbed(model, seed).to(DTYPES[dtype]).eval()


def tiny_model(family: str, seed: int = 0, dtype: str = "float32") -> torch.nn.Module:
    """A model of one of ALL_FAMILIES; see `model_from`."""
    return model_from(ALL_FAMILIES[family], seed, dtype)


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE over WORDS, with a BOS token if asked for; bytes that are in no word make no token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def save_tiny_model(
    family: str, folder: str | Path, seed: int = 0, dtype: str = "float32", bos: bool = False
) -> ModelSource:
    """Save a tiny model and its tokenizer in Transformers' format."""
    tiny_model(family, seed, dtype).save_pretrained(folder)
    tiny_tokenizer(bos).save_pretrained(folder)
    return ModelSource(str(folder))


def random_text(rng: np.random.Generator, longest: int = 12) -> str:
    """1 to `longest` words."""
    return " ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1)))


def sentence_table(n_train: int, n_test: int, seed: int = 0) -> pa.Table:
    """sentences.parquet, with train and test rows mixed and ids that are not row numbers."""
    rng = np.random.default_rng(seed)
    split = rng.permutation(["train"] * n_train + ["test"] * n_test).tolist()
    documents = np.random.default_rng([seed, 1]).integers(10, size=len(split))
    return pa.table(
        {
            "sentence_id": pa.array(np.arange(len(split)) * 3 + 7, pa.int32()),
            "split": pa.array(split),
            "document": [f"{part} {number}" for part, number in zip(split, documents, strict=True)],
            "text": pa.array([random_text(rng) for _ in split]),
        }
    )


@dataclass(frozen=True)
class Dump:
    """What `make_dump` made.

    Attributes:
        head: unembedding.safetensors.
        positions: positions.parquet.
        train: the shards of the training split, in order.
        test: the shards of the test split, in order.
        source: the model.
        sentences: sentences.parquet.
    """

    unembedding: Path
    positions: Path
    train: list[Path]
    test: list[Path]
    source: ModelSource
    sentences: Path


def save_unembedding(source: ModelSource, dtype: str, path: Path, blocks: int | None = None) -> None:
    """The stage, for a source."""
    stages.extract_unembedding(Model(source.location), path, dtype, blocks)


def save_positions(source: ModelSource, sentences: Path, path: Path, shards: dict[str, int], seed: int) -> None:
    """The stage, for a source and shards by split."""
    stages.choose_positions(
        Model(source.location), sentences, path, shards.get("train", 1), shards.get("test", 1), seed=seed
    )


def dump_shard(
    source: ModelSource, positions: Path, unembedding: Path, split: str, shard: int, path: Path, dtype: str,
    device: torch.device | str = "cpu", token_budget: int | None = None,
) -> None:  # fmt: skip
    """The stage, for a source and a device."""
    stages.dump_activations(
        Model(source.location),
        Compute(str(device)),
        unembedding,
        positions,
        split,
        [shard],
        [path],
        dtype,
        token_budget,
    )


def make_dump(
    folder: str | Path,
    n_train: int,
    n_test: int,
    family: str = "llama",
    shards: dict[str, int] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    bos: bool = False,
    token_budget: int = 256,
) -> Dump:
    """Run the stages up to the dump on small random sentences."""
    folder = Path(folder)
    shards = shards or {"train": 2, "test": 1}
    source = save_tiny_model(family, folder / "model", seed, bos=bos)
    unembedding, positions, sentences = (
        folder / name for name in ("unembedding.safetensors", "positions.parquet", "s.parquet")
    )
    write_table(sentences, sentence_table(n_train, n_test, seed))
    save_unembedding(source, dtype, unembedding)
    save_positions(source, sentences, positions, shards, seed)
    made = {split: [folder / split / f"shard-{i:02d}.safetensors" for i in range(n)] for split, n in shards.items()}
    for split, paths in made.items():
        for shard, path in enumerate(paths):
            dump_shard(source, positions, unembedding, split, shard, path, dtype, token_budget=token_budget)
    return Dump(unembedding, positions, made["train"], made["test"], source, sentences)
