"""Blocks, final norm and output head of a causal language model, found by watching a forward pass, not by name."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.models.passes import Pass, first_tensor, passes, removed

LENGTH, CUT = 8, 5  # tokens of the sentences that are watched, and of the part they share
# What configs call the number of routed experts that a token is sent to.
EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts")


class Anatomy:
    """The parts of a causal language model that this project needs.

    Attributes:
        model: the whole model.
        paths: the names in the model of the parts that follow, enough to find them again.
        blocks: its K blocks.
        norm: the final norm, or None where there is none.
        head: the linear maps from there to the logits: the output head and, in OPT-350m, a projection before it.
        hidden_size: H.
    """

    def __init__(self, model: nn.Module, blocks: str, norm: str | None, head: Sequence[str]) -> None:
        """Look the parts up by their names."""
        self.model, self.paths = model, {"blocks": blocks, "norm": norm, "head": list(head)}
        self.blocks: nn.ModuleList = model.get_submodule(blocks)
        self.norm = None if norm is None else model.get_submodule(norm)
        self.head: list[nn.Linear] = [model.get_submodule(path) for path in head]
        self.hidden_size = self.head[0].in_features

    @property
    def device(self) -> torch.device:
        """Where token ids go; blocks that are not loaded are nowhere."""
        return self.model.get_input_embeddings().weight.device

    @property
    def token_weights(self) -> int:
        """Weights in all blocks that one token meets: of routed experts, those of as many as it is sent to."""
        total = sum(parameter.numel() for parameter in self.blocks.parameters())
        config = self.model.config.get_text_config()
        sent = next((getattr(config, key) for key in EXPERTS_OF_A_TOKEN if hasattr(config, key)), None)
        for name, module in self.blocks.named_modules() if sent is not None else ():
            if name.rpartition(".")[2] == "experts":
                # A module each, or all in one whose weights have them in the first dimension.
                n_experts = len(module if isinstance(module, nn.ModuleList) else next(module.parameters()))
                size = sum(parameter.numel() for parameter in module.parameters())
                total -= size * (n_experts - sent) // n_experts
        return total

    def passes(self) -> AbstractContextManager[Callable[..., Pass]]:
        """Forward passes through the blocks but not the unembedding, as `passes` makes them; they give h^0 .. h^K.

        h^k is what enters block k, and h^K what enters the final norm: Transformers' own `hidden_states[-1]` is taken
        after that norm.
        """
        return passes(self.model, [*self.blocks, self.norm or self.head[0]])

    def run(self, input_ids: Tensor, take: Callable[[int, Tensor], None]) -> None:
        """One such pass on token ids [B, T]; calls `take(k, h)` with h^k [B, T, H] for k = 0..K."""
        with self.passes() as begin:
            for level, h in enumerate(begin(input_ids)):
                take(level, h)


class Probe(NamedTuple):
    """What one forward pass of a model on its probe ids shows.

    Attributes:
        anatomy: the model's parts, as proved on the pass.
        final: h^K [2, LENGTH, H] of the probe ids, on the CPU.
        logits: the model's own [2, LENGTH, V].
    """

    anatomy: Anatomy
    final: Tensor
    logits: Tensor


def find_anatomy(model: nn.Module) -> Anatomy:
    """The parts of a model alone; raises as `probe`."""
    return probe(model).anatomy


def probe(model: nn.Module) -> Probe:
    """Find a model's parts, and prove on a forward pass that hidden states go through them.

    Each block is called once, takes and gives [B, T, H], and takes what the one before gave; the final norm (or the
    output head, where there is none) takes what the last one gave. Layers that a model such as BERT has between the
    two count as part of its last block, and must depend on nothing but what it gives: a second pass shows it. No state
    may depend on later tokens.

    Raises:
        OnejumpError: one of these is not so; the message names the model's class and what was found.
    """
    name, ids = type(model).__name__, probe_ids(model)
    unsupported = f"{name} is not supported"
    seen = _watch(model, ids)
    path = _find_blocks(seen, name, ids.shape)
    given, calls = seen.given[model.get_submodule(path)[-1]], seen.after[path]
    if relative_difference(given[1, :CUT], given[0, :CUT]) > tolerance_of(model):
        raise OnejumpError(f"{name} is not causal: its states depend on later tokens; use a causal model")
    rest, head = list(calls), []
    while rest and isinstance(linear := rest[-1].module, nn.Linear):
        if head and linear.out_features != head[0].module.in_features:
            break
        head.insert(0, rest.pop())
    if not head:
        found = ", ".join(type(call.module).__name__ for call in calls) or "nothing"
        raise OnejumpError(
            f"{unsupported}: looked for a torch.nn.Linear as output head after the blocks, found {found}"
        )
    final = rest[-1] if rest else head[0]
    if not _same(final.taken, given) and not _decides(given, final, model, path, ids):
        raise OnejumpError(f"{unsupported}: what its last block gives is not what {final.path} takes, nor decides it")
    anatomy = Anatomy(model, path, final.path if rest else None, [call.path for call in head])
    return Probe(anatomy, final.taken, seen.logits)


def probe_ids(model: nn.Module) -> Tensor:
    """Two sentences [2, LENGTH] of token ids that share their first CUT; the second is padded as the dump pads."""
    n_tokens = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, n_tokens, (LENGTH,), generator=torch.Generator().manual_seed(0))
    device = model.get_input_embeddings().weight.device
    return torch.stack([ids, torch.where(torch.arange(LENGTH) < CUT, ids, 0)]).to(device)


def tolerance_of(model: nn.Module) -> float:
    """The relative difference up to which two computations in the model's dtype count as the same."""
    return 1e-3 if model.dtype == torch.float32 else 5e-2


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))


class _Call(NamedTuple):
    """A call of a module that has no modules inside, with the first tensor it took."""

    path: str
    module: nn.Module
    taken: Tensor


class _Seen(NamedTuple):
    """What a forward pass shows.

    Attributes:
        lists: path -> each list of modules that is not inside another.
        taken, given: module of a list -> the first tensors of its calls, and of its last output.
        after: path of a list -> the calls after its last module that change something, in order.
        logits: the model's.
    """

    lists: dict[str, nn.ModuleList]
    taken: dict[nn.Module, list[Tensor | None]]
    given: dict[nn.Module, Tensor | None]
    after: dict[str, list[_Call]]
    logits: Tensor


def _watch(model: nn.Module, ids: Tensor, change: Mapping[nn.Module, Callable] | None = None) -> _Seen:
    """Watch one forward pass.

    Args:
        model: the model.
        ids: [B, T] token ids.
        change: module -> what is applied to what it gives, before the model goes on with it; or None.

    Raises:
        OnejumpError: the model cannot run on token ids alone.
    """
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    lists = {path: m for path, m in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    taken, given, after, hooks, change = {}, {}, {}, [], change or {}

    def enter(block, args, kwargs) -> None:
        taken.setdefault(block, []).append(_copy(first_tensor(args, kwargs)))

    def leave_for(path: str) -> Callable:
        def leave(block, args, output):
            h = first_tensor(output)
            given[block], after[path] = _copy(h), []
            if block in change:
                return change[block](h) if output is h else (change[block](h), *output[1:])

        return leave

    def called_for(name: str) -> Callable:
        def called(module, args, kwargs, output) -> None:
            first = first_tensor(args, kwargs)
            if after and first is not None and not _same(first, first_tensor(output)):
                call = _Call(name, module, _copy(first))
                for calls in after.values():
                    calls.append(call)

        return called

    for block in {block for blocks in lists.values() for block in blocks}:
        hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
    for name, module in model.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(called_for(name), with_kwargs=True))
    for path, blocks in lists.items():  # after what is called inside, which is not after it
        for block in dict.fromkeys(blocks):
            hooks.append(block.register_forward_hook(leave_for(path)))
    with torch.inference_mode(), removed(hooks):
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        except (torch.OutOfMemoryError, OnejumpError):
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            name = type(model).__name__
            raise OnejumpError(
                f"{name} is not supported: a forward pass on token ids alone fails ({reason})"
            ) from error
    return _Seen(lists, taken, given, after, logits)


def _find_blocks(seen: _Seen, name: str, shape: torch.Size) -> str:
    """The path of the one list of modules that hidden states go through, each member once and in order."""
    faults = {
        path: _fault(path, blocks, seen.taken, seen.given, shape)
        for path, blocks in seen.lists.items()
        if any(block in seen.taken for block in blocks)
    }
    sound = [path for path, fault in faults.items() if fault is None]
    if len(sound) > 1:
        raise OnejumpError(f"{name} is not supported: looked for one list of blocks, found {' and '.join(sound)}")
    if not sound:
        longest = max(faults, key=lambda path: len(seen.lists[path]), default=None)
        raise OnejumpError(
            f"{name} is not supported: looked for a torch.nn.ModuleList of blocks, {faults.get(longest, 'found none')}"
        )
    return sound[0]


def _fault(path: str, blocks: nn.ModuleList, taken: Mapping, given: Mapping, shape: torch.Size) -> str | None:
    """Why hidden states [B, T, H] do not go through a list of modules from first to last; None if they do."""
    for k, block in enumerate(blocks):
        calls = len(taken.get(block, []))
        if calls != 1:
            return f"but {path}.{k} is called {calls} times in a forward pass, expected once"
        for tensor, verb in ((taken[block][0], "takes"), (given[block], "gives")):
            if tensor is None or tensor.ndim != 3 or tensor.shape[:2] != shape or not tensor.is_floating_point():
                found = "no tensor" if tensor is None else list(tensor.shape)
                return f"but {path}.{k} {verb} {found} for {list(shape)} tokens, expected one vector a token"
    for k, (before, block) in enumerate(itertools.pairwise(blocks)):
        if not _same(given[before], taken[block][0]):
            return f"but what {path}.{k} gives is not what {path}.{k + 1} takes"
    return None


def _decides(given: Tensor, final: _Call, model: nn.Module, path: str, ids: Tensor) -> bool:
    """Whether what the last block gives for a token is all that the call depends on there: both are turned round."""
    if final.taken.shape != given.shape:
        return False
    calls = _watch(model, ids, {model.get_submodule(path)[-1]: lambda h: h.flip(0, 1)}).after[path]
    turned = next((call.taken for call in calls if call.path == final.path), None)
    return turned is not None and relative_difference(turned.flip(0, 1), final.taken) <= tolerance_of(model)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors hold the same values, NaN included: what is not finite is refused by its place elsewhere."""
    if one is None or other is None or one.shape != other.shape:
        return one is other
    return torch.equal(one.cpu().nan_to_num(), other.cpu().nan_to_num())


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", copy=True)
