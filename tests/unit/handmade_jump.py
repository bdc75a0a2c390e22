"""Published jumps without a study: identity with noise, so that they are right at some tokens."""

import torch

from onejump.jumps.jump import FoldedJump
from onejump.models.unembedding import extract_unembedding
from onejump.sharing.base_model import config_facts, unembedding_facts
from onejump.sharing.folder import Content
from onejump.sharing.published import PublishedJump

PROBE = [5, 23, 42, 8]


def handmade_jump(model: torch.nn.Module, rank: int = 2, noise: float = 0.1) -> PublishedJump:
    """A gated joint jump that is attached to a model."""
    unembedding, anatomy = extract_unembedding(model)
    unembedding.metadata, states = {"anatomy": anatomy.paths}, {}
    K, H = len(anatomy.blocks), anatomy.hidden_size
    with torch.no_grad():
        anatomy.run(torch.tensor([PROBE]), states.__setitem__)
        probe = unembedding.normalise(states[K][0, -1])
    generator = torch.Generator().manual_seed(0)
    P, B = (noise * torch.randn(shape, generator=generator) for shape in ((H, rank), (rank, H)))
    base = {"model": "tiny", "revision": "by hand", "dtype": "float32", "anatomy": anatomy.paths}
    base |= {"config": config_facts(model.config), "unembedding": unembedding_facts(unembedding)}
    config = {"jump": "joint", "levels": K, "target": "post_norm", "rank": rank, "gated": True, "base_model": base}
    config |= {"probe": {"input_ids": PROBE}, "published_with": {"transformers": "any"}}
    content = Content([FoldedJump(P, torch.zeros(rank), B, (1.0,) * K)], probe, None)
    return PublishedJump(config, content).attach(model)
