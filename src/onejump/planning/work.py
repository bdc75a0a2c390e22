"""What one job of each stage needs, from shapes alone: operations, bytes that move, and memory.

STAGES has one entry for each stage. A stage without one is planned from its inputs, so that a new one works at once.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from onejump.jumps import settings
from onejump.models.architecture import Architecture, by_blocks
from onejump.planning.machines import TWO_CORES, Machine

PROMPTS = 64  # that generation continues at once on a CPU; a test compares
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
RATES = {"offloaded": "moved"}  # a kind of work -> the one at whose rate it is done
MARGIN = 4 / 3  # of the resources asked for over those planned
# Of exits and ranks, which need PyTorch to be imported; a test compares.
CHUNK, LARGEST_RANK, RANK_POINTS, PREVIEWS = 256, 8, 6, 4


@dataclass(frozen=True)
class Work:
    """What one job needs.

    Attributes:
        amounts: kind -> how much: operations in `float32` etc.; H^3 of a decomposition into `eigen`values; bytes of
            arrays `touched` element by element, each array once; bytes of files `read` and `written`; bytes `moved` to
            a device, and those `offloaded` from it and back where states wait in the host's memory.
        host: bytes in the host's memory whatever the device; device: on the device, or on the host where there is none.
        unembedding: 1 where its file is read into the host's memory, 2 where it is in float32 on the device too.
        states: bytes of `device` that wait in the host's memory where they leave too little room for themselves.
        shared: bytes of `device` that are also in `host`, and that a host without a device holds only once.
        loads_model: whether the model's code is imported; kind: the stage or fit, by which passes are measured.
    """

    amounts: Mapping[str, float] = field(default_factory=dict)
    host: float = 0.0
    device: float = 0.0
    states: float = 0.0
    unembedding: int = 0
    shared: float = 0.0
    loads_model: bool = False
    kind: str = ""

    def __add__(self, other: "Work") -> "Work":
        """This and then the other in one job, in the same memory."""
        names = ("host", "device", "states", "unembedding")
        peak = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, amounts=Counter(self.amounts) + Counter(other.amounts), **peak)

    def __rmul__(self, n: float) -> "Work":
        """The same n times in one job, in the same memory."""
        return replace(self, amounts={kind: n * amount for kind, amount in self.amounts.items()})

    def seconds(self, machine: Machine) -> float:
        """Wall time: the start, products of matrices at full speed, files, and passes over arrays."""
        start = machine.start_seconds + self.loads_model * machine.model_seconds
        return start + sum(self.times(machine).values())

    def times(self, machine: Machine) -> dict[str, float]:
        """Seconds of each kind of work."""
        absent = {"offloaded": not self._offloaded(machine), "moved": machine.device_bytes is None}
        amounts = {kind: amount for kind, amount in self.amounts.items() if not absent.get(kind)}
        passes = {"touched": machine.passes_of(self.kind)}
        return {
            kind: passes.get(kind, 1) * amount / machine.rates[RATES.get(kind, kind)] / machine.share
            for kind, amount in amounts.items()
        }

    def _offloaded(self, machine: Machine) -> float:
        """Bytes of states that wait in the host's memory."""
        room = math.inf if machine.device_bytes is None else machine.device_bytes - (self.device - self.states)
        return self.states * (self.states > room / 2)

    def device_bytes(self, machine: Machine) -> float:
        """Peak memory of a machine's device."""
        return self.device - self._offloaded(machine)

    def host_bytes(self, machine: Machine = TWO_CORES) -> float:
        """Peak memory of the host."""
        code = machine.base_bytes + self.loads_model * machine.model_bytes
        own = self.device - self.shared if machine.device_bytes is None else self._offloaded(machine)
        return code + self.host + own

    def resources(self, machine: Machine, attempt: int = 1) -> dict[str, int]:
        """What a job asks its scheduler for, more at each attempt: mem_mb, runtime in minutes, disk_mb.

        Memory, as on a host without a GPU, and disk are a third above the plan; minutes are three times those planned
        for `machine`, and at least 30, since a job cut off is a whole job lost.
        """
        memory, disk = (math.ceil(n * MARGIN / 2**20) for n in (self.host_bytes(), self.amounts.get("written", 0)))
        minutes, growth = math.ceil(self.seconds(machine) / 20), 2 ** (attempt - 1)
        return {"mem_mb": max(1000, memory) * growth, "runtime": max(30, minutes) * growth, "disk_mb": max(100, disk)}


@dataclass(frozen=True)
class Sizes:
    """The numbers that a job's work follows from.

    Attributes:
        architecture: of the model; dtype: in which it runs and its activations are kept.
        train, test: sentences; shards: split -> shards; transfer: test sentences of the K x K grid.
        rank: r, or None for floor(H / 100); fit: of the jumps; gated: whether they have gates; split: of the
            activations that are dumped.
        written: tokens that the model writes after each prompt, 0 for none.
        tokens: of a sentence up to a position chosen uniformly in it, on average; 16 is Wikipedia's.
        load, gpus: how the model is held, and on how many GPUs.
        at_once: shards that one job dumps.
    """

    architecture: Architecture
    dtype: str
    train: int
    test: int
    shards: Mapping[str, int]
    transfer: int
    rank: int | None = None
    fit: str = "exact"
    gated: bool = False
    split: str = "train"
    written: int = 0
    tokens: float = 16.0
    load: str = "auto"
    gpus: int = 1
    at_once: int = 1

    @property
    def dims(self) -> tuple[int, int, int, int, int, int, int]:
        """K, H, V, r, n (rows of the split's largest shard), N (training sentences) and T (test sentences)."""
        a, n = self.architecture, math.ceil(getattr(self, self.split) / self.shards[self.split])
        r = self.rank or settings.default_rank(a.hidden_size)
        return a.n_blocks, a.hidden_size, a.vocabulary, r, n, self.train, self.test

    @property
    def weights(self) -> float:
        """Bytes of the model in memory."""
        return self.kept(self.architecture.parameters)

    @property
    def by_blocks(self) -> bool:
        """Whether one block at a time is in memory where the model's unembedding and activations are taken."""
        return by_blocks(self.load, self.weights, self.gpus)

    @property
    def held(self) -> float:
        """Bytes of weights in memory there: of the whole model, or of a block and what is outside the blocks."""
        a = self.architecture
        return self.kept(a.other_parameters + a.block_parameters) if self.by_blocks else self.weights

    @property
    def ahead(self) -> float:
        """Bytes of the block that is read meanwhile, in the host's memory."""
        return self.kept(self.architecture.block_parameters) * self.by_blocks

    def kept(self, *shape: float) -> float:
        """Bytes of an array in the model's dtype."""
        return math.prod(shape) * BYTES[self.dtype]


def _f32(*shape: float) -> float:
    return 4 * math.prod(shape)


def _f64(*shape: float) -> float:
    return 8 * math.prod(shape)


def _optimum(s: Sizes, H: int, r: int, n: int, rows: int, ridges: int = 1) -> Work:
    """Moments of rows in shards of n, and the optimum: a factor a ridge, or eigenvalues where rows are too few."""
    singular = rows * (1 - settings.VALIDATION_SHARE) <= H
    products = (12 + 3 * ridges) * 8 * H * H * (r + settings.OVERSAMPLING)  # until eigenvalues stand still
    solved = {"eigen": H**3} if singular else {"float64": ridges * H**3 / 3}
    passed = {"touched": _f64(rows / n, H, H) + _f64(rows, H), "read": s.kept(2, rows, H)}
    return Work(
        Counter(solved) + Counter({"float64": 13 / 4 * rows * H * H + products, **passed}),
        device=_f64(12 if singular else 10.5, H, H) + s.kept(2, n, H) + _f64(5, n, H),
        unembedding=1,
    )


def _exits(s: Sizes, rows: float, exits: float, fused: int | None = None, rank: int | None = None) -> Work:
    """The full model's predictions for some rows, and exits' by K + 1 fused heads, or so many; 0: by the full one."""
    K, H, V, r, *_ = s.dims
    heads, width = (0, H) if fused == 0 else (fused or K + 1, rank or r)
    own = K * rows * H * (heads > 0 and s.gated)  # what gates let through, at each level
    flops = 2 * V * (rows * H + own + heads * width * H + exits * width)
    return Work(
        {"float32": flops, "touched": _f32(exits, V), "read": s.kept(K + 1, rows, H)},
        host=_f32(6, exits) + _f32(3, rows, H),
        device=_f32(2 * heads * width, V) + _f32(8, min(CHUNK, rows), V) + _f32(0 if heads else 3, H, H),
        unembedding=2,
    )


def _kl(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, levels: int) -> Work:
    steps, batch = settings.KL_STEPS // 2, settings.KL_BATCH_ROWS
    checked = (1 + steps // settings.KL_VALIDATE_EVERY) * min(settings.KL_VALIDATION_LEVELS, levels)
    rows = steps * batch + checked * N * settings.VALIDATION_SHARE
    flops = rows * (2 * H * V * s.gated + 6 * r * V) + steps * 6 * r * H * V + 4 * N * H * V
    memory = _f32(1 + s.gated, (levels + 1) * N, H) + _f32(3, batch, V)
    return Work({"float32": flops, "touched": _f32(2 * rows + 3 * N, V)}, device=memory, unembedding=2)


def _adam(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, levels: int) -> Work:
    batch, rows = settings.BATCH_SIZE, levels * N
    epoch = {"float32": rows * 12 * H * r, "touched": _f32(rows, H) * (1 + r / batch)}
    return settings.EPOCHS * Work(epoch, device=_f32(rows + 3 * N, H) + _f32(40, batch, levels, H))


# Fit -> its work beside the optimum that it is measured by. One that is not here is planned as KL, which needs most.
FITS: Mapping[str, Callable[..., Work]] = {"exact": lambda *_: Work(), "adam": _adam, "kl": _kl}


def _fit(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, T: int, levels: int = 1) -> Work:
    optimum = _optimum(s, H, r, n, levels * N, len(settings.RIDGES) if s.fit == "exact" else 1)
    if s.gated and s.fit == "exact":
        # One pass over the rows keeps a matrix for each gate; a round of jump and gates is little beside it.
        passed = Work({"float64": 2 * levels * N * H * H})
        optimum = replace(optimum + passed, device=optimum.device + _f64(levels, H, H))
    return optimum + FITS.get(s.fit, _kl)(s, K, H, V, r, n, N, levels) + Work({"written": _f32(2 * r + 4, H)})


def _generate(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, T: int) -> Work:
    """Half of the rows are continuations of the others, and each token that is written is a pass over the weights."""
    prompts = (N + T) / 2
    # A prompt is a whole sentence, of a length that follows from the mean position in both kinds of text.
    length = (4 * s.tokens - s.written) / 3 + s.written
    passed = prompts / PROMPTS * s.written * s.weights + _f64(2, prompts * s.written, V)
    return Work(
        {s.dtype: 2 * prompts * length * (K * s.architecture.block_parameters + H * V), "touched": passed}
        | {"read": s.weights, "written": _f32(2, prompts, length)},
        host=4e3 * (N + T),
        device=s.weights + _f64(4, PROMPTS, V) + s.kept(2, K, PROMPTS, 3 * length, H),  # sentences of three times that
        loads_model=True,
    )


def _extract(s: Sizes, K: int, H: int, V: int, *_: int) -> Work:
    """A pass over sixteen tokens, on the CPU, and then a check of the unembedding in float32."""
    single = _f32(V, H) * (s.dtype != "float32")
    kept = s.kept(s.architecture.other_parameters) if s.by_blocks else s.held
    return Work(
        {s.dtype: 32 * s.architecture.parameters, "touched": s.kept(s.architecture.parameters)}
        | {"read": s.weights, "written": s.kept(V, H)},
        host=max(s.held + s.ahead, kept + single),
        loads_model=True,
    )


def _dump(s: Sizes, K: int, H: int, rows: int) -> Work:
    """A token multiplies each weight of a block once, and H of these products make one number that it computes."""
    states = s.kept(2 * s.by_blocks, rows, s.tokens, H)
    V, others = s.architecture.vocabulary, s.architecture.other_parameters
    unused = s.kept(V, H) * (s.by_blocks and others >= 2 * V * H)  # an output head that is not the embedding
    return Work(
        {s.dtype: 2 * rows * s.tokens * K * s.architecture.block_parameters}
        | {"touched": s.kept(rows, s.tokens, K, s.architecture.block_parameters / H)}
        | {"read": s.weights, "written": s.kept(K + 1, rows, H), "moved": s.weights, "offloaded": 2 * K * states},
        host=s.kept(K + 1, rows, H) + (K + 1) * rows / s.at_once * H + s.ahead,  # a byte a number: is it finite?
        # Of sentences under way, what enters the first block is kept beside what enters the next one.
        device=s.held - unused + states,
        states=states,
        loads_model=True,
    )


def _kl_lens(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, T: int) -> Work:
    """A fit of full rank a level, planned as if each took half of the steps there are, and the means under p once."""
    steps, held_out = settings.KL_STEPS // 2, N * settings.VALIDATION_SHARE
    trained, validated = K * steps * settings.KL_BATCH_ROWS, K * (1 + steps // settings.KL_VALIDATE_EVERY) * held_out
    flops = 4 * N * H * V + trained * (4 * H * V + 6 * H * H) + validated * 2 * H * (V + H)
    return Work(
        {"float32": flops, "touched": _f32(2 * (trained + validated) + 3 * N, V) + _f32(10 * K * steps, H, H)}
        | {"read": s.kept(K + 1, N, H), "written": _f32(K, H, H)},
        host=_f32(2 * K, H, H),
        device=_f32(5, N, H) + _f32(3, settings.KL_BATCH_ROWS, V) + _f32(8, H, H),
        unembedding=2,
    )


def _jacobian_lens(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, T: int) -> Work:
    """A forward and H backward passes for each token; a pass of many components keeps their gradients at all levels."""
    tokens = min(settings.JACOBIAN_PROMPTS, N) * s.tokens
    kept = _f32(2 * K, settings.JACOBIAN_ELEMENTS)
    return Work(
        {s.dtype: 2 * tokens * (1 + H) * K * s.architecture.block_parameters, "eigen": 2 * K * H**3}
        | {"touched": _f32(tokens, H, K, s.architecture.block_parameters / H)}
        | {"read": s.weights, "written": _f32(K + 1, H, H)},
        host=_f64(2 * K, H, H) + _f32(2 * K, H, H),
        device=s.weights + kept + s.kept(60, settings.JACOBIAN_ELEMENTS),
        loads_model=True,
    )


def _shortlist(s: Sizes, K: int, H: int, V: int, r: int, n: int, N: int, T: int) -> Work:
    """Previews of the validation slice, whose components need all hidden states and the output embedding; and exits."""
    s, held_out = replace(s, gated=True), N * settings.VALIDATION_SHARE
    products = {"float64": 2 * (K * N + 2 * V) * H * H, "eigen": 2 * H**3, "read": s.kept(K, N, H)}
    chosen = Work(products | {"written": 12 * K * (T + held_out)}, device=_f64(8, H, H) + _f64(2 * n, H))
    return (
        chosen
        + _exits(s, held_out, PREVIEWS * K * held_out, fused=1)
        + _exits(s, T + held_out, K * (T + held_out), fused=1)
    )


STAGES: Mapping[str, Callable[..., Work]] = {
    "extract_unembedding": _extract,
    "generate_text": _generate,
    "choose_positions": lambda s, K, H, V, r, n, N, T: Work(
        {"touched": _f32(N + T, s.tokens), "written": _f32(N + T, s.tokens)},
        host=4e3 * (N + T),
        loads_model=True,
    ),
    "dump_activations": lambda s, K, H, V, r, n, N, T: _dump(s, K, H, s.at_once * n),
    "fit_jump": _fit,
    "fit_joint_jump": lambda s, K, *dims: _fit(s, K, *dims, levels=K),
    # Full-rank fits: all eigenvalues instead of a search for the largest.
    "fit_jtc": lambda s, K, H, V, r, n, N, T: (
        K * _optimum(s, H, 0, n, N)
        + Work(
            {"float64": 24 * K * H**3, "eigen": K * H**3, "touched": _f64(12 * K, H, H), "written": _f32(K, H, H)},
            host=_f32(2, K, H, H),
            device=_f64(15, H, H) + _f64(6, n, H),
        )
    ),
    "fit_kl_lens": _kl_lens,
    "fit_jacobian_lens": _jacobian_lens,
    "import_lens": lambda s, K, H, V, r, n, N, T: Work(
        {"read": _f32(K, H, H), "touched": _f32(4 * K, H, H), "written": _f32(K, H, H)},
        host=_f32(3 * K, H, H),
        unembedding=1,
    ),
    "score_jumps": lambda s, K, H, V, r, n, N, T: Work(
        {"float32": (K + 2) * N * 2 * K * r * H, "touched": _f32(K + 1, N, K * r + H)}
        | {"read": s.kept(2 * K + 2, N, H), "written": _f32(K, K + 1, N)},
        host=_f32(3 * K, K + 1, N),
        device=_f32(8, K * r, H) + _f32(5, n, H + K * r),
        unembedding=2,
    ),
    "select_jump": lambda s, K, H, V, r, n, N, T: Work(
        {"touched": _f64(N, K), "read": _f32(K, K + 1, N)}, host=_f32(5 * K, K + 1, N)
    ),
    # The K x K grid on the validation slice, and each jump's squared error.
    "evaluate_oracle": lambda s, K, H, V, r, n, N, T: (
        _exits(s, N * settings.VALIDATION_SHARE, K * K * N * settings.VALIDATION_SHARE)
        + Work(
            {"float32": 4 * K * N * K * r * H, "read": s.kept(2 * K, N, H)},
            host=_f32(5 * K, K + 1, N) + _f32(6, n, H),
        )
    ),
    "evaluate_jumps": lambda s, K, H, V, r, n, N, T: (
        _exits(s, T, K * (4 * T + K * s.transfer)) + Work({"written": 12 * K * (4 * T + K * s.transfer)})
    ),
    "evaluate_joint_jump": lambda s, K, H, V, r, n, N, T: _exits(s, T, K * T, fused=1) + Work({"written": 12 * K * T}),
    "evaluate_held_out": lambda s, K, H, V, r, n, N, T: (
        _exits(s, N * settings.VALIDATION_SHARE, 4 * K * N * settings.VALIDATION_SHARE)
        + Work({"written": 12 * 4 * K * N * settings.VALIDATION_SHARE})
    ),
    "evaluate_shortlist": _shortlist,
    # The floor needs the full model's predictions for the training sentences, twice; of each level of them one pass.
    "evaluate_references": lambda s, K, H, V, r, n, N, T: (
        _exits(s, 2 * N + 3 * T, 2 * K * T, fused=0)
        + _exits(s, N * settings.VALIDATION_SHARE, K * N * settings.VALIDATION_SHARE, fused=0)
        + Work(
            {"written": 12 * K * (5 * T + N * settings.VALIDATION_SHARE), "read": s.kept(K + 2, N, H)}
            | {"touched": _f32(K + 2, N, H)},
            host=_f32(3 * N + T, H),
        )
    ),
    "evaluate_lens": lambda s, K, H, V, r, n, N, T: (
        _exits(s, T, K * T, fused=0) + Work({"read": _f32(T / CHUNK, K, H, H), "written": 12 * K * T})
    ),
    # Exact fits at the largest rank R, and three methods at each rank of the curve, planned as if each were R.
    "evaluate_ranks": lambda s, K, H, V, r, n, N, T: (
        (K + 1) * _optimum(s, H, H // LARGEST_RANK, n, N)
        + _exits(s, RANK_POINTS * s.transfer, 3 * RANK_POINTS * K * s.transfer, rank=H // LARGEST_RANK)
    ),
    "assess_claims": lambda s, K, H, V, r, n, N, T: Work(
        {"touched": _f64(6 * (K + 3) * T + K * s.transfer), "read": 12 * K * (10 * T + K * s.transfer)},
        host=96 * K * (10 * T + K * s.transfer),
    ),
}


def work_of(stage: str, sizes: Sizes) -> Work:
    """What one job of a stage needs. One without an entry passes over all levels, one of both splits at a time."""
    K, H, V, _, _, N, T = sizes.dims
    inputs = {"touched": _f32(K + 1, N + T, H), "read": sizes.kept(K + 1, N + T, H)}
    undescribed = Work(inputs, device=_f32(2, N + T, H), unembedding=2)
    work = STAGES[stage](sizes, *sizes.dims) if stage in STAGES else undescribed
    host, single = sizes.kept(V, H) * (work.unembedding > 0), _f32(V, H) * (work.unembedding > 1)
    shared = single * (sizes.dtype == "float32")  # else it is a copy
    kind = sizes.fit if stage in ("fit_jump", "fit_joint_jump") else stage
    return replace(work, host=work.host + host, device=work.device + single, shared=shared, kind=kind)
