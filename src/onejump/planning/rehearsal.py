"""A study at a model's full dimensions without its weights: what fails or does not fit shows before a GPU is paid.

The architecture is the true one, built from a config; the weights are random numbers in one memory that all matrices
share. Everything else is real: each stage runs as its own process of the command line, on the files of the stages
before it, and its time, memory and disk are set beside what `onejump.planning` predicts. About the model itself the
results say nothing.
"""

import dataclasses
import os
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from onejump.activations.dump import TOKEN_BUDGETS, length_sorted_batches
from onejump.files.atomic import OnejumpError, read_json, write_json
from onejump.files.tables import read_table, write_table
from onejump.jumps.storage import load_jump, save_jump
from onejump.models.devices import DTYPES
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding
from onejump.planning.architecture import architecture_file, load_architecture
from onejump.planning.cost import Cost, ModelPlan
from onejump.planning.machines import MB, TWO_CORES, Machine, read_machine

PREFIX = "random:"


# Prime, so that no two rows of a matrix are alike when the numbers are repeated.
POOL = 4_194_301


# From one matrix's first number to the next one's: a whole number of cache lines, and no multiple of a usual width.
STEP = 64 * 67


# More than any rank, since level 0 has no more different rows than there are words.
WORDS = [f"word{number}" for number in range(2000)]


@dataclass(frozen=True)
class RandomSource(ModelSource):
    """A model of random weights, named `random:NAME`, where NAME is as `planning.load_architecture` takes it."""

    @property
    def _config(self) -> dict:
        return read_json(architecture_file(self.location.removeprefix(PREFIX)))

    def load_model(self, dtype: str = "float32", device: torch.device | str = "cpu") -> nn.Module:
        """The model; all its matrices are parts of one memory, which is as large as the largest of them needs."""
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**self._config)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
        _fill(model, device)
        model.tie_weights()
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        return model.eval()

    def load_tokenizer(self) -> Callable:
        """Words to token ids, by their checksums."""
        size = load_architecture(self.location.removeprefix(PREFIX)).vocabulary
        return lambda texts: {"input_ids": [[zlib.crc32(word.encode()) % size for word in t.split()] for t in texts]}

    def load_max_positions(self) -> int | None:
        """As the config says."""
        return self._config.get("n_positions") or self._config.get("max_position_embeddings")

    def identity(self, model: nn.Module) -> tuple[str, str]:
        """The config's name, and that the weights are random."""
        return self.location.removeprefix(PREFIX), "random weights"


def _fill(model: nn.Module, device: torch.device | str, std: float = 0.02) -> None:
    """Random matrices, norms of 1 and biases of 0, for a model whose parameters have no memory yet.

    Each matrix is a window of one long row of normal numbers, and begins STEP after the one before it.
    """
    places = [
        (owner, name, parameter)
        for owner in model.modules()
        for name, parameter in owner.named_parameters(recurse=False)
    ]
    sizes = [parameter.numel() for _, _, parameter in places if parameter.ndim > 1]
    length = max(sizes) + STEP * len(sizes)
    pool = (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * std).to(places[0][2].dtype)
    numbers = pool.repeat(-(-length // POOL)).to(device)
    start = 0
    for owner, name, parameter in places:
        shape, dtype = parameter.shape, parameter.dtype
        if parameter.ndim > 1:
            tensor, start = numbers[start : start + parameter.numel()].view(shape), start + STEP
        else:
            tensor = torch.full(shape, float("bias" not in name), dtype=dtype, device=device)
        setattr(owner, name, nn.Parameter(tensor, requires_grad=False))


def measure_machine(threads: int) -> Machine:
    """This machine's rates, each the best of a few short runs."""
    torch.set_num_threads(threads)

    def best(action: Callable[[], object], times: int = 3) -> float:
        action()
        found = []
        for _ in range(times):
            started = time.perf_counter()
            action()
            found.append(time.perf_counter() - started)
        return min(found)

    flops = {}
    for name, dtype in (DTYPES | {"float64": torch.float64}).items():
        a, b = torch.randn(512, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        flops[name] = 2 * 512 * 2048**2 / best(lambda a=a, b=b: a @ b)
    square = torch.randn(1024, 1024, dtype=torch.float64)
    symmetric = square @ square.T
    flops["eigen"] = 1024**3 / best(lambda: torch.linalg.eigh(symmetric), 2)
    block = torch.randn(25_000_000)
    imports = [sys.executable, "-c", "import onejump.jumps.fitting, onejump.exits.evaluation"]
    return dataclasses.replace(
        TWO_CORES,
        name="this machine",
        flops=flops,
        memory=2 * 4 * len(block) / best(lambda: block.add_(1)),
        start_seconds=best(lambda: subprocess.run(imports, check=True), 2),
    )


@dataclass(frozen=True)
class Measured:
    """What one stage took, beside what was predicted.

    Attributes:
        stage: its name.
        cost: predicted.
        predicted_seconds: wall time.
        seconds, cpu_seconds: wall and processor time.
        peak_bytes: largest resident memory.
        disk_bytes: of the files written.
    """

    stage: str
    cost: Cost
    predicted_seconds: float
    predicted_bytes: float
    seconds: float
    cpu_seconds: float
    peak_bytes: float
    disk_bytes: float

    def row(self) -> str:
        """One line of the table: predicted beside measured."""
        pairs = (
            (self.predicted_seconds, self.seconds, 1, "8.1f"),
            (self.predicted_bytes, self.peak_bytes, MB, "8.0f"),
            (self.cost.written, self.disk_bytes, MB, "8.1f"),
        )
        numbers = [f"{a / unit:{form}} {b / unit:{form}}" for a, b, unit, form in pairs]
        return f"{self.cost.rule:<18}{'  '.join(numbers)}  {self.cpu_seconds:8.1f}"


class Rehearsal:
    """One model's stages, in order, in a folder.

    Args:
        name: of the config, see `planning.load_architecture`.
        folder: for all files.
        dtype: of the model and its activations.
        train, test: sentences.
        levels: exit levels whose jumps are fitted; the other jumps are copies of these.
        threads: of each stage.
        machine: by which times are predicted; None measures this one.
    """

    def __init__(
        self, name: str, folder: Path, dtype: str, train: int, test: int, levels: int, threads: int, longest: int
    ) -> None:
        self.name, self.folder, self.threads, self.longest = name, folder, threads, longest
        architecture = load_architecture(name)
        K = architecture.n_blocks
        self.levels = sorted({round(i * (K - 1) / max(1, levels - 1)) for i in range(levels)})
        shards = {"train": 2, "test": 1}
        self.plan = ModelPlan(architecture, dtype, train, test, shards, min(test, 16), 1.0, rehearsed=True)
        self.machine = self._machine()
        self.measured: list[Measured] = []

    def _machine(self) -> Machine:
        file = self.folder.parent / "machine.json"
        rates = measure_machine(self.threads)
        return dataclasses.replace(rates, efficiency=read_machine(file).efficiency) if file.is_file() else rates

    def run(self, report: Callable[[Measured], None]) -> None:
        """Run every stage; `report` is told of each when it ends.

        Raises:
            OnejumpError: a stage failed; its own message is on stderr.
        """
        f, model = self.folder, [*("--model", f"{PREFIX}{self.name}")]
        head, positions = f / "unembedding.safetensors", f / "positions.parquet"
        write_table(f / "sentences.parquet", self._sentences())
        self._stage(
            "choose-positions",
            self.plan.choose_positions(),
            [positions],
            *model,
            *("--sentences", f / "sentences.parquet", "--out", positions, "--train-shards", 2),
            report=report,
        )
        plan = self.plan = dataclasses.replace(self.plan, tokens=_padded_tokens(positions))
        dtype = ["--dtype", plan.dtype]
        self._stage(
            "extract-unembedding", plan.extract_unembedding(), [head], *model, *dtype, "--blocks", plan.architecture.n_blocks,
            "--out", head, report=report,
        )  # fmt: skip
        threads = ["--threads", self.threads]
        shards: dict[str, list[Path]] = {}
        for split, count in plan.shards.items():
            shards[split] = [f / "activations" / split / f"shard-{i:02d}.safetensors" for i in range(count)]
            for i, path in enumerate(shards[split]):
                self._stage(
                    "dump-activations", plan.dump_activations(split), [path], *model, *dtype, *threads, "--unembedding", head,
                    "--positions-file", positions, "--split", split, "--shard", i, "--out", path, report=report,
                )  # fmt: skip

        def read(split: str) -> list:
            return ["--unembedding", head, "--positions-file", positions, *repeated("--shard", shards[split]), *threads]

        jumps = {fit: f / "jumps" / fit for fit in ("exact", "adam")}
        for fit, place in jumps.items():
            for level in self.levels:
                path = place / f"level-{level:02d}.safetensors"
                self._stage(
                    "fit-jump", plan.fit_jump(fit), [path], *read("train"), "--level", level, "--fit", fit,
                    "--out", path, report=report,
                )  # fmt: skip
        joint = f / "jumps" / "joint.safetensors"
        self._stage(
            "fit-jump", plan.fit_joint_jump("exact"), [joint], *read("train"), "--level", "joint", "--fit", "exact",
            "--out", joint, report=report,
        )  # fmt: skip
        every = repeated("--jump", self._fill_up(jumps["exact"], Unembedding.load(head)))
        scores, cosines, selection = f / "scores.parquet", f / "cosines.safetensors", f / "selection.json"
        self._stage(
            "score-jumps", plan.score_jumps(), [scores, cosines], *read("train"), *every, "--scores", scores,
            "--cosines", cosines, report=report,
        )  # fmt: skip
        self._stage(
            "select-jump", plan.select_jump(), [selection], "--cosines", cosines, "--out", selection, report=report
        )
        evaluation, transfer = f / "evaluation.parquet", f / "transfer.parquet"
        self._stage(
            "evaluate-jumps", plan.evaluate_jumps(), [evaluation, transfer], *read("test"), *every, "--joint", joint,
            "--selection", selection, "--transfer-sentences", plan.transfer, "--evaluation", evaluation,
            "--transfer", transfer, report=report,
        )  # fmt: skip
        self._save()

    def heading(self) -> str:
        """Title and column heads of the table."""
        a = self.plan.architecture
        facts = f"K={a.n_blocks} H={a.hidden_size} r={a.rank} V={a.vocabulary}, {a.parameters / 1e9:.2f}e9 weights"
        title = f"\n{self.name}: {facts}, {self.plan.dtype}, {self.plan.train} / {self.plan.test} sentences"
        columns = (
            f"{'wall s, pred':>12} {'meas':>4}  {'peak MB, pred':>12} {'meas':>3}  {'disk MB, pred':>12} {'meas':>3}"
        )
        return f"{title}\n{'rule':<18}{columns}  {'cpu s':>8}"

    def footing(self) -> str:
        """The whole rehearsal: time, largest memory, and disk."""

        def total(key: str, of=sum) -> float:
            return of(getattr(one, key) for one in self.measured)

        disk = sum(one.cost.written for one in self.measured)
        pairs = (
            (total("predicted_seconds"), total("seconds"), 1, "8.1f"),
            (total("predicted_bytes", max), total("peak_bytes", max), MB, "8.0f"),
            (disk, total("disk_bytes"), MB, "8.1f"),
        )
        numbers = [f"{a / unit:{form}} {b / unit:{form}}" for a, b, unit, form in pairs]
        return f"{'sum, or largest':<18}{'  '.join(numbers)}  {total('cpu_seconds'):8.1f}"

    def _sentences(self) -> pa.Table:
        """Sentences of random words: 1 to `longest` of them."""
        generator = np.random.default_rng(0)
        n = self.plan.train + self.plan.test
        texts = [" ".join(generator.choice(WORDS, generator.integers(1, self.longest + 1))) for _ in range(n)]
        split = ["train"] * self.plan.train + ["test"] * self.plan.test
        ids = pa.array(range(n), pa.int32())
        return pa.table({"sentence_id": ids, "split": split, "document": ["random"] * n, "text": texts})

    def _fill_up(self, folder: Path, head: Unembedding) -> list[Path]:
        """Files of all K jumps: each level that was not fitted gets a copy of the nearest one that was."""
        for level in range(self.plan.architecture.n_blocks):
            path = folder / f"level-{level:02d}.safetensors"
            if level not in self.levels:
                nearest = min(self.levels, key=lambda fitted, level=level: abs(fitted - level))
                jump, file = load_jump(folder / f"level-{nearest:02d}.safetensors", head)
                target = file.metadata["target"]
                facts = {
                    "level": str(level),
                    "target": target,
                    "unembedding_sha256": file.metadata["unembedding_sha256"],
                }
                save_jump(path, jump, facts | {"stand_in_for": nearest})
        return [folder / f"level-{level:02d}.safetensors" for level in range(self.plan.architecture.n_blocks)]

    def _stage(
        self, stage: str, cost: Cost, files: list[Path], *args: object, report: Callable[[Measured], None]
    ) -> None:
        command = [sys.executable, "-m", "onejump.cli", stage, *map(str, args)]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        status, usage, peak = watch(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise OnejumpError(
                f"rehearsal of {self.name}: {stage} failed (exit status {process.returncode}); see above"
            )
        found = Measured(
            stage=stage,
            cost=cost,
            predicted_seconds=cost.seconds(self.machine),
            predicted_bytes=cost.host_bytes(self.machine),
            seconds=time.perf_counter() - started,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=peak,
            disk_bytes=sum(file.stat().st_size for file in files),
        )
        self.measured.append(found)
        report(found)

    def _save(self) -> None:
        """rehearsal.json, and the machine with what each rule reached of its rates, for the next prediction."""
        write_json(self.folder / "rehearsal.json", [dataclasses.asdict(one) for one in self.measured])
        bare = dataclasses.replace(self.machine, efficiency={}, start_seconds=0.0)
        efficiency = dict(self.machine.efficiency)
        for rule in {one.cost.rule for one in self.measured}:
            same = [one for one in self.measured if one.cost.rule == rule]
            started = sum(one.cost.starts for one in same) * self.machine.start_seconds
            took = max(sum(one.seconds for one in same) - started, 0.1 * len(same))
            efficiency[rule] = min(1.0, sum(one.cost.seconds(bare) for one in same) / took)
        machine = dataclasses.replace(self.machine, efficiency=efficiency)
        write_json(self.folder.parent / "machine.json", dataclasses.asdict(machine))


def _padded_tokens(positions: Path) -> float:
    """Tokens of a sentence that a dump runs, on average: up to its position, and padding."""
    table = read_table(positions, ["split", "shard", "input_ids"])
    shards: dict[tuple, list[int]] = {}
    for split, shard, ids in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        shards.setdefault((split, shard), []).append(len(ids))
    batches = (
        np.array(lengths)[rows]
        for lengths in shards.values()
        for rows in length_sorted_batches(lengths, TOKEN_BUDGETS["cpu"])
    )
    return sum(len(lengths) * int(lengths.max()) for lengths in batches) / len(table)


def watch(pid: int) -> tuple[int, resource.struct_rusage, float]:
    """Wait for a process: its status, what it used, and its largest resident memory in bytes.

    On Linux the usage's own figure starts from the memory of the process that forked, so the kernel's is read instead.
    """
    peak, ended = 0.0, 0
    while not ended:
        with suppress(OSError):  # it ends between two looks, or there is no /proc
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peak = next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM")), peak)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        time.sleep(0.02)
    return status, usage, peak or float(usage.ru_maxrss)


def repeated(option: str, files: Sequence[Path]) -> list:
    """An option of the command line, once for each file."""
    return [part for file in files for part in (option, file)]
