"""The dimensions of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onejump.files.atomic import OnejumpError, read_json

ASSUMED = "llama-2-7b"


UNKNOWN = ", assumed"  # after the name of dimensions that are not known to be the model's


ARCHITECTURES = Path(__file__).parent / "architectures"


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a causal language model, from its config.json.

    Attributes:
        name: of the config.
        n_blocks: K; hidden_size: H; intermediate_size; vocabulary: V.
        attention_size: width of all query heads; key_size: width of all key heads.
        gated: whether the MLP has three matrices rather than two.
        tied: whether input and output embedding are one.
        n_positions: learned positions; 0 for rotary ones.
    """

    name: str
    n_blocks: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    attention_size: int
    key_size: int
    gated: bool
    tied: bool
    n_positions: int

    @classmethod
    def of(cls, config: Mapping, name: str) -> "Architecture":
        """From a config of Transformers.

        Raises:
            OnejumpError: it lacks a dimension.
        """
        config = config.get("text_config", config)
        kind = config.get("model_type", "")

        def first(*keys: str, default: int | None = None) -> int:
            found = next((config[key] for key in keys if config.get(key) is not None), default)
            if found is None:
                raise OnejumpError(f"config of {name}: has none of {', '.join(keys)}; give a model's whole config.json")
            return found

        H, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
        head = config.get("head_dim") or H // heads
        return cls(
            name=name,
            n_blocks=first("num_hidden_layers", "n_layer"),
            hidden_size=H,
            intermediate_size=first("intermediate_size", "n_inner", "ffn_dim", default=4 * H),
            vocabulary=first("vocab_size"),
            attention_size=heads * head,
            key_size=first("num_key_value_heads", default=heads) * head,
            gated=kind not in ("gpt2", "gptj", "gpt_neox", "opt", "phi"),
            # Transformers leaves out of a config what is its default, which for these families is to tie.
            tied=config.get("tie_word_embeddings", kind in ("gpt2", "opt") or kind.startswith("gemma")),
            n_positions=first("n_positions", "max_position_embeddings") if kind in ("gpt2", "opt") else 0,
        )

    @property
    def block_parameters(self) -> int:
        """Weights of one block's matrices; norms and biases are a thousandth of them."""
        attention = 2 * self.hidden_size * (self.attention_size + self.key_size)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.intermediate_size

    @property
    def embedding_parameters(self) -> int:
        """Weights outside the blocks."""
        tables = (1 if self.tied else 2) * self.vocabulary + self.n_positions
        return tables * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights, to a thousandth."""
        return self.n_blocks * self.block_parameters + self.embedding_parameters

    @property
    def rank(self) -> int:
        """floor(H / 100), the paper's rank."""
        return max(1, self.hidden_size // 100)


def load_architecture(name: str | Path) -> Architecture:
    """The dimensions by the name of a config that comes with the project, or from a config.json.

    Raises:
        OnejumpError: there is no such config, or it lacks a dimension.
    """
    return Architecture.of(read_json(architecture_file(name)), str(name))


def architecture_file(name: str | Path) -> Path:
    """The config file of a name, as `load_architecture` takes it.

    Raises:
        OnejumpError: there is none.
    """
    path = ARCHITECTURES / f"{name}.json"
    if path.is_file():
        return path
    if not Path(name).is_file():
        known = ", ".join(sorted(file.stem for file in ARCHITECTURES.glob("*.json")))
        raise OnejumpError(f"architecture {name}: no such config; name one of {known}, or a config.json")
    return Path(name)
