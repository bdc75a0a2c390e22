"""Forward passes that stand still before each block, so that one block at a time has to be in memory.

A pass runs the model's own `forward` in a greenlet. A hook before each block switches back to whoever asked for the
next hidden state; masks, rotary tables and all else that the model keeps meanwhile stay in its own Python frames. So
there is no code for each architecture, and states are those of a plain pass, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from greenlet import getcurrent, greenlet
from torch import Tensor, nn


class Pass(greenlet):
    """A forward pass, as an iterator over h^0 .. h^K [B, T, H]: what enters each part of the model, in order.

    Attributes:
        level: of the states given last: the pass stands before this part; -1 before the first ones.
        arguments: args and kwargs of that part.
        given: what the block before has given, as it was: a tensor, or a tuple with one.
    """

    def __init__(self, model: nn.Module, parts: Sequence[nn.Module], input_ids: Tensor, **inputs) -> None:
        """Prepare a pass of `model`, by default without a cache; it begins when its first state is asked for."""
        super().__init__(lambda: model(input_ids=input_ids, **({"use_cache": False} | inputs)))
        self.level, self.arguments, self.given, self._parts = -1, None, None, parts

    def __iter__(self) -> "Pass":
        """The pass itself."""
        return self

    def __next__(self) -> Tensor:
        """Go on to the next part, and return what enters it; at the end the rest of the model is left out."""
        if self.level + 1 == len(self._parts):
            self.throw()  # unwinds the model's frames
            raise StopIteration
        return self.switch()

    def skip_to(self, level: int, given: object) -> None:
        """From the start, stand before a part as if each block before it had given this, without running them."""
        skipped = [(block, vars(block).get("forward")) for block in self._parts[:level]]
        try:
            for block, _ in skipped:
                block.forward = lambda *_, **__: given
            while self.level < level:
                next(self)
        finally:
            for block, own in skipped:  # accelerate gives each block of a model on several devices a forward of its own
                vars(block).pop("forward", None)
                if own is not None:
                    block.forward = own

    def finish(self) -> object:
        """From before the last part, go on to the end; what the model returns."""
        return self.switch()

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Stand still, if it is the next part's turn: NanoChat's final norm also comes before its blocks."""
        if module is self._parts[self.level + 1]:
            self.level, self.arguments = self.level + 1, (args, kwargs)
            self.parent.switch(first_tensor(args, kwargs))


@contextmanager
def passes(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[Callable[..., Pass]]:
    """Give a function that begins a pass on token ids [B, T]; at the end all passes are over, whatever happens.

    Further inputs of the model may be given to it by name.

    Args:
        model: in evaluation mode.
        parts: the blocks and what comes after them, in the order in which they are called.
    """
    begun: list[Pass] = []

    def enter(module, args, kwargs) -> None:
        if isinstance(current := getcurrent(), Pass):
            current.enter(module, args, kwargs)

    def leave(module, args, output) -> None:
        if isinstance(current := getcurrent(), Pass):
            current.given = output

    def begin(input_ids: Tensor, **inputs) -> Pass:
        begun[:] = [one for one in begun if not one.dead]
        begun.append(Pass(model, parts, input_ids, **inputs))
        return begun[-1]

    hooks = [part.register_forward_pre_hook(enter, with_kwargs=True) for part in parts]
    hooks += [block.register_forward_hook(leave) for block in parts[:-1]]
    with removed(hooks):
        try:
            yield begin
        finally:
            for one in begun:
                one.throw()


def first_tensor(values, named: Mapping | None = None) -> Tensor | None:
    """The hidden states among a module's arguments or in its output."""
    if isinstance(values, Tensor):
        return values
    named = named or {}
    values = values.values() if isinstance(values, Mapping) else values
    return next((v for v in (*values, named.get("hidden_states"), *named.values()) if isinstance(v, Tensor)), None)


@contextmanager
def removed(hooks: Iterable) -> Iterator[None]:
    """Remove the hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
