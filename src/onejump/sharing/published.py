"""A published jump in use: `onejump.Jump`."""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.models.anatomy import Anatomy
from onejump.models.fused import FusedUnembedding, fuse
from onejump.models.unembedding import Unembedding
from onejump.sharing.base_model import require_base_model
from onejump.sharing.folder import Content, read_published
from onejump.sharing.hub import folder_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from onejump.exits.shortlist import ShortlistedJump


class PublishedJump:
    """What a language model would predict if it stopped at a level: a jump, and the base model that it was fitted for.

    Level k is the output of the model's first k blocks: `hidden_states[k]` of Transformers, for k in 0..K-1.

    Attributes:
        config: what `jump_config.json` says: base model, target, rank, what the jump was fitted on, metrics.
        levels: the levels that the jump can be used at, 0..K-1.
    """

    def __init__(self, config: dict, content: Content) -> None:
        """Of what `read_published` returns; users call `from_pretrained`."""
        self.config, self.levels = config, range(config["levels"])
        self._jumps, self._content = content.jumps, content
        self._shortlisted: ShortlistedJump | None = None
        self._fused: list[FusedUnembedding] = []
        self._unembedding: Unembedding | None = None
        self._anatomy: Anatomy | None = None
        self._resumable = False

    @classmethod
    def from_pretrained(cls, folder_or_id: str | PathLike, revision: str | None = None) -> "PublishedJump":
        """Load a published jump. Nothing of it is run as code.

        Args:
            folder_or_id: a folder that `onejump publish` made, the short name of a jump that comes with onejump, or a
                repository on the hub, `owner/name`.
            revision: a commit, tag or branch on the hub.

        Raises:
            OnejumpError: there is no such jump, or it is damaged or of another format.
        """
        return cls(*read_published(folder_of(str(folder_or_id), revision)))

    def attach(self, model: nn.Module) -> "PublishedJump":
        """Take final norm and output head from the base model, after a proof that it is the base model.

        The jump then computes on the device of the model's output head. It holds a float32 copy of the output embedding
        if the model has another dtype; the model is left as it is.

        Args:
            model: a causal language model of Transformers, on any device or several, in any dtype, in evaluation mode.

        Returns:
            The jump itself.

        Raises:
            OnejumpError: it is another model, or its config or its weights are not those that the jump was fitted for.
        """
        facts = self.config
        given = (facts["base_model"], facts["probe"]["input_ids"], self._content.probe, facts["published_with"])
        unembedding, anatomy = require_base_model(model, *given)
        device = unembedding.weight.device
        unembedding = unembedding.to(device)
        jumps = [jump.to(device) for jump in self._jumps]
        self._fused = fuse(unembedding, [jump.B for jump in jumps], facts["target"])
        self._jumps, self._unembedding, self._anatomy = jumps, unembedding, anatomy
        self._resumable, self._shortlisted = False, None
        return self

    def logits(self, h: Tensor, level: int, shortlist: bool = False) -> Tensor:
        """What the model is predicted to predict from hidden states of a level.

        Args:
            h: [..., H], of any float dtype, on any device.
            level: k in 0..K-1.
            shortlist: whether a cheap preview stands for the output head, except for the tokens that lead in it. A few
                hundredths of the work, and where the study chose it, the same prediction at 99 of 100 exits
                (`config["shortlist"]` has its facts); for few hidden states at a time.

        Returns:
            [..., V] float32, on the device of the model's output head.

        Raises:
            OnejumpError: no model is attached, the level or the width of h is not one of the base model's, or the jump
                was published without a shortlist.
        """
        unembedding = self._attached()
        if level not in self.levels:
            raise OnejumpError(f"level {level} is out of range; this jump has levels 0..{len(self.levels) - 1}")
        if h.ndim == 0 or h.shape[-1] != unembedding.hidden_size:
            found = list(h.shape)
            raise OnejumpError(f"hidden states are {found}, expected a last dimension of {unembedding.hidden_size}")
        x = h.to(unembedding.weight.device, torch.float32).reshape(-1, h.shape[-1])
        if shortlist:
            found = self._with_shortlist().logits(x, level)
        else:
            own = unembedding.linear(unembedding.normalise(x)) if self.config["gated"] else None
            found = self._exit(x, level, own)
        return found.reshape(*h.shape[:-1], len(unembedding.weight))

    def trajectory(
        self,
        text_or_ids: str | Sequence[int] | Tensor,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        beside: "PublishedJump | None" = None,
    ) -> "pd.DataFrame":
        """What the model would predict at each level after each token of a text, by the jump and by identity.

        Args:
            text_or_ids: a text, or the ids of its T tokens, [T] or [1, T].
            tokenizer: of the base model; needed for a text. With it, tokens have names.
            beside: a second jump that is attached to the same model, such as one that has a jump for each level.

        Returns:
            A row for each position 0..T-1, level and method: `jump`, `beside`, if given, and `identity` at levels
            0..K-1, `model`, the full model's own prediction, at level K. Columns: position, token, level, method,
            predicted and predicted_id (the most probable next token), probability (its own), kl (divergence from the
            full model's prediction, in nats), entropy (in nats).

        Raises:
            OnejumpError: no model is attached, or another one to `beside`, or this is no text of the base model.
        """
        from onejump.sharing.trajectory import token_ids, trajectory  # pandas takes half a second to import

        unembedding, jumps = self._attached(), {"jump": self}
        if beside is not None:
            beside._attached()
            if beside._anatomy.model is not self._anatomy.model:
                raise OnejumpError(
                    "the jump beside is attached to another model; call attach with the same one for both"
                )
            jumps["beside"] = beside
        ids = token_ids(text_or_ids, tokenizer, self._anatomy.model.get_input_embeddings().weight.shape[0])

        def exits(x: Tensor, level: int) -> dict[str, Tensor]:
            own = unembedding.linear(unembedding.normalise(x))
            identity = unembedding.finish(own if unembedding.bias is None else own + unembedding.bias)
            return {name: jump._exit(x, level, own) for name, jump in jumps.items()} | {"identity": identity}

        return trajectory(self._anatomy, unembedding, exits, ids, tokenizer)

    def generate(
        self,
        model: nn.Module,
        input_ids: Tensor,
        exit_levels: int | Sequence[int] = (),
        confidence: float | None = None,
        draft_tokens: int | None = None,
        shortlist: bool | None = None,
        **decoding,
    ):
        """Generate with early exits: for Transformers, `model.generate(..., custom_generate=jump.generate, ...)`.

        Each token is what the jump predicts at `exit_levels`, a level, or the first of several where its largest
        probability is at least `confidence`, or else what the full model predicts. With `draft_tokens`, the jump drafts
        up to so many tokens, as long as it has the `confidence`, if one is given, and the remaining blocks verify them
        all at once: the text is then the full model's own, whether greedy or sampled (Leviathan et al. 2023, arXiv
        2211.17192; Zhang et al. 2023, arXiv 2309.08168).

        Args:
            model: the one that is attached; Transformers gives it, as all that follows but the next four.
            input_ids: prompts [B, P].
            exit_levels: k in 0..K-1, one or several.
            confidence: a probability above 0.
            draft_tokens: at least 1; for one prompt.
            shortlist: whether the jump predicts by its shortlist (see `logits`); by default for drafts, if it has one.
            **decoding: what Transformers hands to a decoding method.

        Returns:
            As `model.generate`; with `return_dict_in_generate`, also `cost`, what was run.

        Raises:
            OnejumpError: another model, or something that does not work with early exits, by name.
        """
        from onejump.sharing.generation import generate_early, require_choices, require_resumable

        self._attached()
        if model is not self._anatomy.model:
            raise OnejumpError("the jump is attached to another model; call jump.attach(model) with this one first")
        levels = [exit_levels] if isinstance(exit_levels, int) else list(exit_levels)
        require_choices(levels, confidence, draft_tokens, self.levels)
        if not self._resumable:
            require_resumable(self._anatomy)
            self._resumable = True
        if shortlist is None:
            shortlist = draft_tokens is not None and self._content.preview is not None
        given = {"levels": levels, "confidence": confidence, "draft_tokens": draft_tokens}
        return generate_early(self._anatomy, partial(self.logits, shortlist=shortlist), input_ids, **given, **decoding)

    def _attached(self) -> Unembedding:
        """The unembedding of the base model."""
        if self._unembedding is None:
            raise OnejumpError("the jump has no model; call jump.attach(model) with its base model first")
        return self._unembedding

    def _with_shortlist(self) -> "ShortlistedJump":
        """The jump by its check with a shortlist, whose preview is made when it is first asked for."""
        if self._content.preview is None:
            raise OnejumpError(
                "the jump was published without a shortlist, which variants with jumps: joint and gate: level have; "
                "leave shortlist out"
            )
        if self._shortlisted is None:
            from onejump.exits.shortlist import Preview, ShortlistedJump  # imports pandas, half a second

            preview = Preview.from_components(self._content.preview, self._unembedding)
            parts = self._unembedding, self._jumps[0], self._fused[0], preview
            self._shortlisted = ShortlistedJump(*parts, self.config["shortlist"]["tokens"])
        return self._shortlisted

    def _exit(self, x: Tensor, level: int, own: Tensor | None) -> Tensor:
        """Logits [n, V] of hidden states x [n, H], of which `own` [n, V] is what an open gate lets through."""
        number = level if len(self._jumps) > 1 else 0
        jump, fused = self._jumps[number], self._fused[number]
        return fused.project(fused.normalise(jump(x, level)), jump.gate(level) * own if jump.gates else None)

    def __repr__(self) -> str:
        """The jump in a line."""
        kind, base = self.config["jump"], self.config["base_model"]["model"]
        return f"<onejump.Jump {kind} of {base}, levels 0..{len(self.levels) - 1}, rank {self.config['rank']}>"
