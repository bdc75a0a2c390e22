"""The parts of a causal language model, found in its module structure."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from onejump.files.atomic import OnejumpError

FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that this project needs.

    Attributes:
        backbone: the module that owns blocks and final norm; called with token ids, it runs all but the output head.
        blocks: the K transformer blocks.
        final_norm: the norm between the last block and the output head.
        output_head: the linear map to the vocabulary.
    """

    backbone: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    output_head: nn.Module

    @contextmanager
    def capture(self, take) -> Iterator[None]:
        """While the context lasts, each forward pass calls `take(k, h)` with h^k [B, T, H] for k = 0..K.

        h^k is what enters block k, and h^K what enters the final norm: Transformers' own `hidden_states[-1]` is
        taken after that norm.
        """

        def hook_for(level: int):
            def hook(module, args, kwargs):
                take(level, args[0] if args else kwargs["hidden_states"])

            return hook

        modules = [*self.blocks, self.final_norm]
        handles = [m.register_forward_pre_hook(hook_for(k), with_kwargs=True) for k, m in enumerate(modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find blocks, final norm and output head from the module structure.

    Raises:
        OnejumpError: the structure is not the expected one; the message names the class and what was looked for.
    """
    name = type(model).__name__
    n_blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    owners = [
        (owner, child)
        for owner in model.modules()
        for child in owner.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_blocks
    ]
    if len(owners) != 1:
        raise OnejumpError(
            f"{name} is not supported: looked for one torch.nn.ModuleList with num_hidden_layers = {n_blocks} blocks, "
            f"found {len(owners)}"
        )
    backbone, blocks = owners[0]
    norms = [
        getattr(backbone, norm) for norm in FINAL_NORM_NAMES if isinstance(getattr(backbone, norm, None), nn.Module)
    ]
    if len(norms) != 1:
        raise OnejumpError(
            f"{name} is not supported: looked for one final norm beside the blocks, named "
            f"{' or '.join(FINAL_NORM_NAMES)}, found {len(norms)}"
        )
    output_head = model.get_output_embeddings()
    if not isinstance(output_head, nn.Linear):
        raise OnejumpError(
            f"{name} is not supported: looked for a torch.nn.Linear as output head, found {type(output_head).__name__}"
        )
    return Anatomy(backbone, blocks, norms[0], output_head)
