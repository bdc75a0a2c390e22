"""What a study will need before anything runs: FLOPs, bytes, memory and hours of each rule, from dimensions alone.

Nothing here loads a model: K, H, V and the like come from its config. The same formulas give the `mem_mb`, `runtime`
and `disk_mb` that the workflow asks Slurm for, `onejump plan`, and what `onejump rehearse` compares.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onejump.jumps.settings import (
    BATCH_SIZE,
    EPOCHS,
    KL_BATCH_SIZE,
    KL_STEPS,
    KL_VALIDATE_EVERY,
    OVERSAMPLING,
    RIDGES,
    VALIDATION_SHARE,
)
from onejump.planning.architecture import ARCHITECTURES, ASSUMED, UNKNOWN, Architecture, load_architecture
from onejump.planning.machines import GB, TWO_CORES, Machine
from onejump.study.variants import joint_of, jumps_of, seeds_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


DOUBLE = 8


# Tokens of a Wikipedia sentence up to a position chosen uniformly in it, on average (SmolLM2's tokenizer: 16.1).
TOKENS = 16.0


# The library's own numbers, which cannot be imported without PyTorch or pandas. A test compares them.
CLAIM_RESAMPLES, LARGEST_RANK, RANK_POINTS = 10_000, 8, 6


# Block products until the largest eigenvalues stand still: for the first ridge, and for each further one.
BLOCKS_FIRST, BLOCKS_MORE = 15, 3


# Reads and writes of what stands inside an MLP, beside its products: up to ten small operations.
ACTIVATION_PASSES = 20


# Reads and writes of H x H sums that one more shard of a level makes.
SUM_PASSES = 8


# Of the resources asked for above those planned.
MARGIN = 4 / 3


# Of a process that has imported Transformers and a model's code, beyond the bare base.
MODEL_CODE = 0.16 * GB


@dataclass(frozen=True)
class Cost:
    """What one job of a rule needs.

    Attributes:
        rule: its name.
        flops: precision, or `eigen`, -> operations.
        moved: bytes that pass between memory and arithmetic where that, not arithmetic, takes the time.
        read, written: bytes of files; `written` stays on disk.
        host: bytes in the host's memory whatever the device.
        device: bytes on the device, or in the host's memory where there is none.
        shared: those of `device` that `host` has too, and that a host without a device holds only once.
        starts: how many times as long as others' its start takes; 2 where it imports a model's code.
    """

    rule: str
    flops: Mapping[str, float] = field(default_factory=dict)
    moved: float = 0.0
    read: float = 0.0
    written: float = 0.0
    host: float = 0.0
    device: float = 0.0
    shared: float = 0.0
    starts: float = 1.0

    def repeated(self, times: int) -> "Cost":
        """The same work several times, in one job."""
        work = {key: times * getattr(self, key) for key in ("moved", "read", "written")}
        return dataclasses.replace(self, flops={kind: times * n for kind, n in self.flops.items()}, **work)

    def seconds(self, machine: Machine) -> float:
        """Wall time of the job on a machine."""
        arithmetic = sum(n / machine.flops[kind] for kind, n in self.flops.items())
        files = (self.read + self.written) / machine.disk
        work = (arithmetic + self.moved / machine.memory) / machine.efficiency.get(self.rule, machine.assumed)
        return self.starts * machine.start_seconds + work + files

    def mem_mb(self, attempt: int = 1) -> int:
        """Memory to ask for, MiB: a third above the plan for a host without a GPU, doubled at each attempt."""
        return max(1000, math.ceil(self.host_bytes(TWO_CORES) * MARGIN / 2**20)) * 2 ** (attempt - 1)

    def runtime(self, machine: Machine, attempt: int = 1) -> int:
        """Minutes to ask for: three times the plan and at least half an hour, doubled at each attempt."""
        return max(30, math.ceil(3 * self.seconds(machine) / 60)) * 2 ** (attempt - 1)

    def disk_mb(self, attempt: int = 1) -> int:
        """Disk to ask for, MiB."""
        return max(100, math.ceil(self.written * MARGIN / 2**20)) * attempt

    def host_bytes(self, machine: Machine) -> float:
        """Peak memory of the host."""
        return machine.base_bytes + self.host + (self.device - self.shared if machine.device_bytes is None else 0.0)


@dataclass(frozen=True)
class ModelPlan:
    """One model in one study: the cost of each rule's jobs.

    Attributes:
        architecture: of the model.
        dtype: in which it runs and its activations are kept.
        train, test: sentences.
        shards: split -> shards.
        transfer: test sentences of the K x K grid.
        tokens: of a sentence up to its position, on average.
        rehearsed: whether all matrices share the memory of the largest, the output embedding, as in a rehearsal.
    """

    architecture: Architecture
    dtype: str
    train: int
    test: int
    shards: Mapping[str, int]
    transfer: int
    tokens: float = TOKENS
    rehearsed: bool = False

    @property
    def _width(self) -> int:
        return self.architecture.hidden_size

    def _rows(self, split: str) -> int:
        """Rows of the largest shard."""
        return math.ceil((self.train if split == "train" else self.test) / self.shards[split])

    def _level(self, rows: int) -> float:
        """Bytes of one level of some rows on disk."""
        return rows * self._width * BYTES[self.dtype]

    @property
    def _weights(self) -> float:
        return self.architecture.parameters * BYTES[self.dtype]

    @property
    def _resident(self) -> float:
        a = self.architecture
        return a.vocabulary * a.hidden_size * BYTES[self.dtype] if self.rehearsed else self._weights

    @property
    def activation_bytes(self) -> float:
        """Disk that the activations of both splits take."""
        return self._level(self.train + self.test) * (self.architecture.n_blocks + 1)

    def extract_unembedding(self) -> Cost:
        """Loads the model, runs it three times over eight tokens, and saves the head."""
        a = self.architecture
        head = a.vocabulary * a.hidden_size
        flops = {self.dtype: 3 * 2 * 8 * a.parameters}
        # On the CPU. To be checked against the model, the head becomes float32.
        memory = self._resident + head * (0 if self.dtype == "float32" else BYTES["float32"])
        written = head * BYTES[self.dtype]
        return Cost(
            "extract_unembedding", flops, 3 * self._weights, self._read_weights, written, MODEL_CODE + memory, starts=2
        )  # fmt: skip

    @property
    def _read_weights(self) -> float:
        return 0.0 if self.rehearsed else self._weights

    def choose_positions(self) -> Cost:
        """Tokenises the sentences."""
        n = self.train + self.test
        code = 0 if self.rehearsed else MODEL_CODE  # a rehearsal's tokenizer is not Transformers'
        return Cost("choose_positions", moved=n * 1e5, written=n * self.tokens * 4, host=code + n * 4e3)

    def dump_activations(self, split: str) -> Cost:
        """Runs the model over one shard and writes every level."""
        a, rows = self.architecture, self._rows(split)
        levels = self._level(rows) * (a.n_blocks + 1)
        finite = rows * (a.n_blocks + 1) * a.hidden_size
        head = a.vocabulary * a.hidden_size * BYTES[self.dtype]  # its file is opened to be compared
        flops = {self.dtype: 2 * rows * self.tokens * a.n_blocks * a.block_parameters}
        host = MODEL_CODE + levels + finite + head
        moved = rows * self.tokens * a.n_blocks * a.intermediate_size * BYTES[self.dtype] * ACTIVATION_PASSES
        read = self._read_weights + head
        return Cost("dump_activations", flops, moved, read, levels, host, self._resident, starts=2)

    def _moments(self, levels: int) -> tuple[float, float, float]:
        """FLOPs, bytes read, and memory of the moments of some levels: four sums, and one shard of two levels."""
        H, rows = self._width, self._rows("train")
        memory = 4 * DOUBLE * H * H + rows * H * (2 * BYTES[self.dtype] + 2 * 4 + 4 * DOUBLE)
        return 13 / 4 * levels * self.train * H * H, 2 * levels * self._level(self.train), memory

    def _singular(self, levels: int) -> bool:
        return levels * self.train * (1 - VALIDATION_SHARE) <= self._width

    def fit_jump(self, fit: str, rank: int | None = None, levels: int = 1) -> Cost:
        """One jump: the exact fit, or another and the optimum it is measured by. `levels` above 1: the joint jump."""
        H, V, r = self._width, self.architecture.vocabulary, rank or self.architecture.rank
        moments, read, memory = self._moments(levels)
        singular = self._singular(levels)
        ridges = len(RIDGES) if fit == "exact" else 1
        products = (BLOCKS_FIRST + BLOCKS_MORE * (ridges - 1)) * 2 * 4 * H * H * (r + OVERSAMPLING)
        solve = 0 if singular else ridges * H**3 / 3
        flops = {"float64": moments + solve + products, "eigen": H**3 if singular else 0}
        memory += DOUBLE * H * H * (8 if singular else 6.5)
        moved = levels * (self.shards["train"] + 1) * SUM_PASSES * DOUBLE * H * H
        if fit == "adam":
            rows = levels * self.train
            moved += EPOCHS * rows * H * 4 * 30 + EPOCHS * rows / BATCH_SIZE * H * r * 4 * 30
            flops["float32"] = EPOCHS * rows * 3 * 4 * H * r
            memory = max(memory, (2 * levels + 2) * self.train * H * 4 + 40 * BATCH_SIZE * levels * H * 4)
        elif fit == "exact_logits":  # once more, for weighed targets, at every ridge
            weighed = self.fit_jump("exact", rank, levels).flops["float64"]
            flops["float64"] += weighed + 2 * V * H * H + 2 * levels * self.train * H * H
            read, memory = 2 * read, memory + 3 * DOUBLE * H * H
        elif fit == "kl":
            validations = 1 + KL_STEPS // KL_VALIDATE_EVERY
            sentences = KL_STEPS * KL_BATCH_SIZE + validations * self.train * VALIDATION_SHARE
            flops["float32"] = sentences * (2 * H * V + levels * 6 * r * V) + KL_STEPS * 6 * r * H * V
            moved += sentences * (levels + 1) * V * 4 * 10
            rows = (2 * levels + 2) * self.train * H * 4
            memory = max(memory, rows + H * V * 4 + 8 * KL_BATCH_SIZE * V * 4)
        rule = "fit_joint_jump" if levels > 1 else "fit_jump"
        return Cost(rule, flops, moved, read, self._jump_bytes(r), host=self._head_file, device=memory)

    @property
    def _head_file(self) -> float:
        return self.architecture.vocabulary * self._width * BYTES[self.dtype]

    @property
    def _shared_head(self) -> float:
        return self._head_file if self.dtype == "float32" else 0.0  # else it becomes float32 in memory of its own

    def _jump_bytes(self, rank: int) -> float:
        return 4 * (2 * self._width * rank + 4 * self._width)

    def fit_joint_jump(self, fit: str, rank: int | None = None) -> Cost:
        """The joint jump, from the rows of all exit levels."""
        return self.fit_jump(fit, rank, levels=self.architecture.n_blocks)

    def fit_jtc(self) -> Cost:
        """The full-rank jumps of all levels, from one eigendecomposition each."""
        H, K = self._width, self.architecture.n_blocks
        moments, read, memory = self._moments(1)
        flops = {"float64": K * (moments + 12 * 2 * H**3), "eigen": K * H**3}
        written = K * H * H * 4
        return Cost(
            "fit_jtc", flops, 0, K * read, written, self._head_file + 2 * written, memory + 12 * DOUBLE * H * H
        )  # fmt: skip

    def score_jumps(self, rank: int | None = None) -> Cost:
        """The cosines of all jumps at all levels."""
        H, K, r, rows = self._width, self.architecture.n_blocks, rank or self.architecture.rank, self._rows("train")
        flops = {"float32": (K + 2) * self.train * 2 * K * r * H}
        moved = (K + 1) * self.train * (K * r * 4 * 5 + H * 4 * 8)
        cosines = 4 * K * (K + 1) * self.train
        jumps = K * self._jump_bytes(r) * 2 + K * r * H * 4 * 4
        shard = rows * (H * 5 * 4 + K * r * 4 * 5)
        read = 2 * (K + 1) * self._level(self.train) + K * self._jump_bytes(r)
        head = self.architecture.vocabulary * H * 4
        host, device = 3 * cosines + self._head_file, jumps + shard + head
        return Cost("score_jumps", flops, moved, read, cosines, host, device, self._shared_head)

    def select_jump(self) -> Cost:
        """D_m, and its bootstrap over sentences."""
        K = self.architecture.n_blocks
        cosines = 4 * K * (K + 1) * self.train
        return Cost("select_jump", moved=2000 * self.train * K * 8, read=cosines, written=1e5, host=5 * cosines)

    def _exits(self) -> int:
        """Predictions of the evaluation of one variant: three methods, and the K x K grid."""
        K = self.architecture.n_blocks
        return K * (3 * self.test + K * self.transfer)

    def evaluate_jumps(self, rank: int | None = None) -> Cost:
        """Every way of exiting by a variant's jumps, by fused heads."""
        a, r = self.architecture, rank or self.architecture.rank
        H, K, V = a.hidden_size, a.n_blocks, a.vocabulary
        flops = {"float32": self.test * 2 * H * V + 2 * K * r * H * V + self._exits() * 2 * r * (V + H)}
        moved = self._exits() * V * 4 * 8
        head = H * V * 4
        fused = 2 * (K + 1) * r * V * 4
        chunk = min(256, self.test) * V * 4 * 8
        test = self.test * H * 4 * 3  # the final level, and another one as it is read
        results = self._exits() * 6 * 4 * 4
        read = self._level(self.test) * (K + 1) + K * self._jump_bytes(r)
        return Cost(
            "evaluate_jumps", flops, moved, read, self._exits() * 12, self._head_file + results + test,
            head + fused + chunk, self._shared_head,
        )  # fmt: skip

    def evaluate_ranks(self) -> Cost:
        """Exact fits of all levels at H / 8, their D_m, and three methods evaluated at each rank of the curve."""
        a, n = self.architecture, min(self.transfer, self.test)
        H, K, V, R = a.hidden_size, a.n_blocks, a.vocabulary, max(a.rank, a.hidden_size // LARGEST_RANK)
        moments, read, memory = self._moments(1)
        solve = H**3 / 3 + BLOCKS_FIRST * 2 * 4 * H * H * (R + OVERSAMPLING)
        scores = (K + 1) * self.train * 2 * K * R * 2 * H
        # Ranks are spaced evenly in their logarithm: together less than twice the largest.
        exits = RANK_POINTS * 3 * K * n
        flops = {
            "float64": (K + 1) * solve + K * moments,
            "float32": scores + 2 * V * (RANK_POINTS * n * H + 2 * R * K * (H + n) + 3 * K * n * 2 * R),
        }
        moved = exits * V * 4 * 5 + (K + 1) * self.train * K * R * 4 * 8
        jumps, fused = (K + 1) * 2 * H * R * 4, 3 * (K + 1) * R * V * 4
        device = H * V * 4 + jumps + max(memory + 9 * DOUBLE * H * H, fused + min(256, n) * V * 4 * 8)
        read = K * read + (K + 1) * (2 * self._level(self.train) + RANK_POINTS * self._level(self.test))
        host = self._head_file + self.test * H * 4 * 3
        return Cost("evaluate_ranks", flops, moved, read, 1e4, host, device, self._shared_head)

    def evaluate_oracle(self, rank: int | None = None) -> Cost:
        """The K x K grid on the validation slice, and each jump's squared error."""
        a, r, n = self.architecture, rank or self.architecture.rank, math.ceil(self.train * VALIDATION_SHARE)
        H, K, V = a.hidden_size, a.n_blocks, a.vocabulary
        exits, cosines = K * K * n, 4 * K * (K + 1) * self.train
        flops = 2 * V * (n * H + K * r * H + exits * r) + K * self.train * 2 * K * r * 2 * H
        moved = exits * V * 4 * 2
        read = 3 * K * self._level(self.train) + cosines
        shard = self._rows("train") * H * 4 * 6
        device = H * V * 4 + 3 * K * r * V * 4 + min(256, n) * V * 4 * 8
        host = self._head_file + 5 * cosines + shard
        return Cost("evaluate_oracle", {"float32": flops}, moved, read, 1e4, host, device, self._shared_head)

    def assess_claims(self) -> Cost:
        """The bootstrap of all claims over the test sentences."""
        K = self.architecture.n_blocks
        columns = self.test * (K + 3) * 6 + K * min(self.transfer, self.test)
        tables = self._exits() * 12
        return Cost(
            "assess_claims", moved=CLAIM_RESAMPLES * columns * DOUBLE, read=tables, written=2e4, host=8 * tables
        )

    def evaluate_references(self) -> Cost:
        """Identity and JTC at every exit level, by the full head."""
        a = self.architecture
        H, K, V = a.hidden_size, a.n_blocks, a.vocabulary
        exits = 2 * K * self.test
        flops = {"float32": (exits + self.test) * 2 * H * V + K * self.test * 2 * H * H}
        chunks = math.ceil(self.test / 256)
        read = self._level(self.test) * (K + 1) + chunks * K * H * H * 4
        host = self._head_file + self.test * H * 4 * 3 + exits * 6 * 4 * 4
        device = H * V * 4 + min(256, self.test) * V * 4 * 8 + 3 * H * H * 4
        return Cost("evaluate_references", flops, exits * V * 4 * 5, read, exits * 12, host, device, self._shared_head)

    def job(self, rule: str, split: str | None = None, variant: Mapping | None = None) -> Cost:
        """One job of a rule: of a split where activations are dumped, of a variant where it fits or uses jumps."""
        if rule == "dump_activations":
            return self.dump_activations(split)
        if rule in ("fit_jump", "fit_joint_jump"):
            return getattr(self, rule)(variant["fit"], variant["rank"])
        if rule in ("score_jumps", "evaluate_oracle", "evaluate_jumps"):
            return getattr(self, rule)(variant["rank"])
        return getattr(self, rule)()


@dataclass(frozen=True)
class Line:
    """All jobs of one rule for one model, and the largest of them."""

    model: str
    jobs: int
    cost: Cost


def with_defaults(value: object, schema: Mapping, root: Mapping) -> object:
    """A config with the defaults of its JSON schema filled in, as far as properties and nested defaults go."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(value, dict):
        return value
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
    filled = {key: inner["default"] for key, inner in properties.items() if "default" in inner} | value
    return {
        key: with_defaults(inner, properties.get(key, rest if isinstance(rest, dict) else {}), root)
        for key, inner in filled.items()
    }


def plan_model(model: Mapping, name: str, config: Mapping) -> ModelPlan:
    """A model of a study's config, complete with defaults.

    Its dimensions are those of the `architecture` that the config names, of the model's config.json where that is here
    already, or of the config of the model's name that comes with the project; failing all, those of ASSUMED.

    Raises:
        OnejumpError: the named architecture does not exist.
    """
    corpus, evaluation = config["corpus"], config["evaluation"]
    architecture = dataclasses.replace(_find_architecture(model, name), n_blocks=model["blocks"])
    return ModelPlan(
        architecture=architecture,
        dtype=model["dtype"],
        train=corpus["train"],
        test=corpus["test"],
        shards=model["shards"],
        transfer=evaluation["transfer_sentences"],
    )


def _find_architecture(model: Mapping, name: str) -> Architecture:
    source = model["source"]
    if "architecture" in model:
        return load_architecture(model["architecture"])
    if "path" in source and (Path(source["path"]) / "config.json").is_file():
        return load_architecture(Path(source["path"]) / "config.json")
    if "gguf" in source and (file := Path("resources/models") / source["gguf"]["sha256"] / "config.json").is_file():
        return load_architecture(file)
    if "hub" in source:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(source["hub"]["id"], "config.json", revision=source["hub"]["revision"])
        if isinstance(file, str):
            return load_architecture(file)
    if (ARCHITECTURES / f"{name}.json").is_file():
        return load_architecture(name)
    return dataclasses.replace(load_architecture(ASSUMED), name=f"{ASSUMED}{UNKNOWN}")


def plan_study(config: Mapping) -> list[Line]:
    """Every rule's jobs for every model of a study whose config is complete with defaults.

    Raises:
        OnejumpError: a model's dimensions are not to be had.
    """
    lines = []
    seeds, variants = len(config["seeds"]), config["variants"]
    of_variant = {variant: len(seeds_of(variant, config)) for variant in variants}
    shared = {}  # the references' jobs: as many as the most seeds of a variant that uses them
    for variant, choices in variants.items():
        key = (choices["target"], choices["positions"])
        shared[key] = max(shared.get(key, 0), of_variant[variant])
    for name, model in config["models"].items():
        plan = plan_model(model, name, config)

        def add(jobs: int, rule: str, name=name, plan=plan, **which) -> None:
            lines.append(Line(name, jobs, plan.job(rule, **which)))

        add(1, "extract_unembedding")
        add(seeds, "choose_positions")
        for split, shards in plan.shards.items():
            add(seeds * shards, "dump_activations", split=split)
        for variant, choices in variants.items():
            if jumps_of(variant, variants) == variant:
                add(of_variant[variant] * plan.architecture.n_blocks, "fit_jump", variant=choices)
                add(of_variant[variant], "score_jumps", variant=choices)
            if joint_of(variant, variants) == variant:
                add(of_variant[variant], "fit_joint_jump", variant=choices)
            for rule in ("select_jump", "evaluate_oracle", "evaluate_jumps", "assess_claims"):
                add(of_variant[variant], rule, variant=choices)
            if choices["fit"] == "exact":
                add(of_variant[variant], "evaluate_ranks", variant=choices)
        for rule in ("fit_jtc", "evaluate_references"):
            add(sum(shared.values()), rule)
    return _merged(lines)


def mean_seconds(config: Mapping, gpu: Machine) -> dict[str, float]:
    """Seconds of the average job of each rule in the plan, on `gpu` if this host has one and else on two cores; under
    "", those of any other rule.
    """
    machine = gpu if any(Path("/dev").glob("nvidia[0-9]*")) else TWO_CORES
    jobs, seconds = Counter(), Counter()
    for line in plan_study(config):
        jobs[line.cost.rule] += line.jobs
        seconds[line.cost.rule] += line.jobs * line.cost.seconds(machine)
    return {"": machine.start_seconds, **{rule: seconds[rule] / n for rule, n in jobs.items() if n}}


def _merged(lines: Iterable[Line]) -> list[Line]:
    """One line for each rule of a model: all its jobs, their mean work, and the largest memory among them."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.model, line.cost.rule), []).append(line)
    merged = []
    for (model, rule), same in found.items():
        jobs = sum(line.jobs for line in same)
        kinds = {kind for line in same for kind in line.cost.flops}
        mean = {
            key: sum(line.jobs * getattr(line.cost, key) for line in same) / jobs
            for key in ("moved", "read", "written")
        }
        largest = {key: max(getattr(line.cost, key) for line in same) for key in ("host", "device", "shared", "starts")}
        flops = {kind: sum(line.jobs * line.cost.flops.get(kind, 0) for line in same) / jobs for kind in kinds}
        merged.append(Line(model, jobs, Cost(rule, flops, **mean, **largest)))
    return merged


def limits(plan: ModelPlan, gpu: Machine, gpus: int) -> list[str]:
    """Where a model's study goes beyond one GPU or beyond what the design is made for, in words."""
    found, H, K = [], plan.architecture.hidden_size, plan.architecture.n_blocks
    needed = plan.dump_activations("train").device * MARGIN
    if gpu.device_bytes is not None and needed > gpus * gpu.device_bytes:
        count = math.ceil(needed / gpu.device_bytes)
        found.append(f"needs {needed / GB:,.0f} GB of GPU memory to run: set gpus: {count}, on one node of {gpu.name}")
        if count > 8:
            found.append(
                "no common node has so many GPUs: blocks would wait in host memory, which this plan does not time"
            )
    costs = [plan.fit_jtc(), plan.evaluate_references(), plan.fit_joint_jump("adam")]
    largest = max(costs, key=lambda cost: cost.device)
    if gpu.device_bytes is not None and largest.device > gpu.device_bytes:
        found.append(f"{largest.rule} needs {largest.device / GB:,.0f} GB on one GPU, more than {gpu.name} has")
    if plan.fit_jtc().host > 200 * GB:
        found.append(
            f"fit_jtc keeps K maps of H x H in host memory, {K * H * H * 4 / GB:,.0f} GB; it would take a file a level"
        )
    if plan.train * (1 - VALIDATION_SHARE) <= H:
        found.append(
            f"{plan.train:,} training sentences do not span H = {H:,} dimensions: exact fits live by their ridge, "
            f"and gaps are to an optimum that has learned noise; take {2 * H:,} or more"
        )
    return found


def render(config: Mapping, gpu: Machine) -> str:
    """The plan of a study as text: a table for each model, its sums, and what it runs into.

    Raises:
        OnejumpError: as `plan_study`.
    """
    lines, text = plan_study(config), []
    for name, model in config["models"].items():
        plan = plan_model(model, name, config)
        a = plan.architecture
        text += [
            f"{name}: {a.name}, K={a.n_blocks} H={a.hidden_size} r={a.rank} V={a.vocabulary}, "
            f"{a.parameters / 1e9:.2f}e9 weights, {plan.dtype}; {plan.activation_bytes / GB:,.2f} GB of activations",
            f"  {'rule':<20}{'jobs':>6}{'PFLOP':>11}{'read GB':>10}{'written GB':>12}{'host GB':>9}{'GPU GB':>9}"
            f"{'hours':>9}",
        ]
        own = [line for line in lines if line.model == name]
        for line in own:
            cost = line.cost
            flops = sum(n for kind, n in cost.flops.items() if kind != "eigen") * line.jobs / 1e15
            host = cost.host_bytes(gpu) / GB
            device = "" if gpu.device_bytes is None else f"{cost.device / GB:9.2f}"
            hours = line.jobs * cost.seconds(gpu) / 3600
            text.append(
                f"  {cost.rule:<20}{line.jobs:>6}{flops:>11.3f}{line.jobs * cost.read / GB:>10.2f}"
                f"{line.jobs * cost.written / GB:>12.3f}{host:>9.2f}{device:>9}{hours:>9.2f}"
            )
        hours = sum(line.jobs * line.cost.seconds(gpu) for line in own) / 3600
        disk = sum(line.jobs * line.cost.written for line in own) / GB
        text.append(f"  in all{sum(line.jobs for line in own):>20}{disk:>33.3f}{hours:>27.2f} hours on {gpu.name}")
        if a.name.endswith(UNKNOWN):
            text.append(
                "  no config.json of this model is here: fetch it (hf download ID config.json), or set architecture:"
            )
        else:
            text += [f"  limit: {limit}" for limit in limits(plan, gpu, model["gpus"])]
        text.append("")
    text.append("Jobs that fetch, sample, summarise, draw and report are short, and not in the plan.\n")
    return "\n".join(text)
