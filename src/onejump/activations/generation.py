"""Text that the model writes: continuations of sentences, on whose tokens jumps are used when a model generates."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError
from onejump.files.checkpoints import Checkpoint
from onejump.files.progress import progress_bar
from onejump.models.devices import by_device, float64_device
from onejump.models.sources import first_sentence

ROWS = {"cpu": 64, "cuda": 256, "mps": 64}  # prompts continued at once, by device


def cut_prompts(sentences: Sequence[list[int]], n_tokens: int, max_tokens: int | None) -> list[list[int]]:
    """The sentences' tokens, cut so that `n_tokens` more fit into the model's longest input, if it has one.

    Raises:
        OnejumpError: The continuation alone does not fit, or a sentence has no tokens.
    """
    if max_tokens is not None and n_tokens >= max_tokens:
        most = f"expected less than its longest input, {max_tokens} tokens"
        raise OnejumpError(f"corpus.generated.tokens is {n_tokens} for a model, {most}")
    if empty := sum(not ids for ids in sentences):
        raise OnejumpError(f"{empty} sentences have no tokens to continue; use the model's own tokenizer")
    return [ids if max_tokens is None else ids[: max_tokens - n_tokens] for ids in sentences]


def continue_prompts(
    model, prompts: Sequence[list[int]], n_tokens: int, temperature: float, seed: int, checkpoint: Checkpoint | None
) -> Tensor:
    """Continue each prompt by tokens drawn from the model's own distribution, or by the most probable ones.

    A token is where the cumulative distribution passes a uniform number that belongs to the prompt and the step: but
    for rounding, it does not depend on what else is in the batch. Prompts of one length share a batch, without padding.
    The model's end-of-text tokens are left out, and so are the sampling rules of its generation_config.

    Args:
        model: In evaluation mode; its generation_config is replaced.
        prompts: N lists of token ids, none empty.
        n_tokens: Length T of each continuation.
        temperature: 1 for the model's distribution, 0 for the most probable token.
        seed: Of the uniform numbers.
        checkpoint: Where an interrupted run resumes, with the same result; or None.

    Returns:
        [N, T] int64 on the CPU.

    Raises:
        OnejumpError: The model cannot generate.
    """
    from transformers import GenerationConfig

    if not getattr(model, "can_generate", bool)():
        raise OnejumpError(f"model {type(model).__name__} cannot generate text; remove corpus.generated, or the model")
    ends = model.generation_config.eos_token_id
    barred = torch.tensor([ends] if isinstance(ends, int) else ends or [], dtype=torch.long)
    model.generation_config = GenerationConfig()
    # Not the stream that positions are drawn from.
    uniform = torch.from_numpy(np.random.default_rng([seed, 1]).random((len(prompts), n_tokens)))
    written, n_done = torch.zeros(len(prompts), n_tokens, dtype=torch.long), 0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        written, n_done = saved["written"], saved["n_done"]
    batches = _batches_of_one_length(prompts, by_device(ROWS, model.device))
    done = sum(map(len, batches[:n_done]))
    left = batches[n_done:]
    with progress_bar(None, "generate text", "sentence", total=len(prompts), done=done) as bar:
        for number, rows in enumerate(left, n_done + 1):
            given = [prompts[row] for row in rows], uniform[rows], temperature, barred
            written[rows] = _continue_in_parts(model, *given)
            bar.update(len(rows))
            if checkpoint is not None and checkpoint.due:
                checkpoint.save({"written": written, "n_done": number})
    return written


def _batches_of_one_length(prompts: Sequence[list[int]], most: int) -> list[np.ndarray]:
    """Rows of prompts of the same length, at most so many together; the longest first, which need most memory."""
    lengths = np.array([len(ids) for ids in prompts])
    alike = [np.flatnonzero(lengths == length) for length in np.unique(lengths)[::-1]]
    return [rows[first : first + most] for rows in alike for first in range(0, len(rows), most)]


def _continue_in_parts(model, prompts: list[list[int]], uniform: Tensor, *rules) -> Tensor:
    """As `_continue`, by halves where all prompts do not fit in the device's memory at once."""
    try:
        return _continue(model, prompts, uniform, *rules)
    except torch.OutOfMemoryError as error:
        if len(prompts) == 1:
            raise OnejumpError(
                f"one prompt of {len(prompts[0])} tokens does not fit on the device beside the model; spread it over "
                "more GPUs (gpus), or use a smaller dtype"
            ) from error
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        # What `generate` raises for a model whose own code does not do what it asks for; --debug shows where.
        raise OnejumpError(f"model {type(model).__name__} cannot generate ({first_sentence(error)})") from error
    half = len(prompts) // 2
    parts = (slice(half), slice(half, None))
    return torch.cat([_continue_in_parts(model, prompts[part], uniform[part], *rules) for part in parts])


def _continue(model, prompts: list[list[int]], uniform: Tensor, temperature: float, barred: Tensor) -> Tensor:
    """[n, T] for prompts of one length and uniform numbers [n, T]; the barred tokens are never chosen."""
    from transformers import GenerationConfig

    ids = torch.tensor(prompts, device=model.device)

    def leave_one(seen: Tensor, scores: Tensor) -> Tensor:
        """Logits [n, V] of which all but the chosen token's are -inf."""
        scores = scores.to(float64_device(scores.device), torch.float64)
        scores[:, barred] = -torch.inf
        if temperature == 0:
            chosen = scores.argmax(1, keepdim=True)
        else:
            mass = torch.softmax(scores / temperature, 1).cumsum(1)
            u = uniform[:, seen.shape[1] - ids.shape[1], None].to(mass.device)
            chosen = torch.searchsorted(mass, u * mass[:, -1:], right=True)
        left = torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0)
        return left.to(seen.device, torch.float32)

    rules = GenerationConfig(do_sample=False, max_new_tokens=uniform.shape[1])
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=rules, logits_processor=[leave_one]
        )
    return whole[:, ids.shape[1] :].cpu()


def texts_table(
    sentences: pa.Table, tokens: list[list[int]], prompts: list[list[int]], written: Tensor, tokenizer
) -> pa.Table:
    """The sentences and, right behind each, its continuation: any slice of the rows has both, of the same documents.

    Args:
        sentences: Table with sentence_id, split, document and text.
        tokens: Token ids of each sentence.
        prompts: What of them was continued.
        written: [N, T], by what.
        tokenizer: Turns the prompt and its continuation into text, for people to read.

    Returns:
        Table with sentence_id int32, split, document and text; origin, `corpus` or `generated`; n_prompt int32, the
        tokens before the first that the model wrote, 0 in sentences of the corpus; input_ids list<int32>.
    """
    given = {name: sentences[name].to_pylist() for name in ("sentence_id", "split", "document", "text")}
    whole = [[*prompt, *more] for prompt, more in zip(prompts, written.tolist(), strict=True)]
    own = given | {"origin": ["corpus"] * len(tokens), "n_prompt": [0] * len(tokens), "input_ids": tokens}
    first = max(given["sentence_id"]) + 1
    more = given | {
        "sentence_id": [first + number for number in range(len(whole))],
        "text": tokenizer.batch_decode(whole),
        "origin": ["generated"] * len(whole),
        "n_prompt": [len(prompt) for prompt in prompts],
        "input_ids": whole,
    }
    types = {"sentence_id": pa.int32(), "n_prompt": pa.int32(), "input_ids": pa.list_(pa.int32())}
    columns = {name: [one for pair in zip(own[name], more[name], strict=True) for one in pair] for name in own}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
