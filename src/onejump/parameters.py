"""What stages take: the options that several of them share, and what each says on the command line."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from onejump.files.atomic import OnejumpError
from onejump.models.architecture import LOADS
from onejump.study.variants import TARGETS


@dataclass(frozen=True)
class Option:
    """What the command line says about a parameter, and the range of numbers it takes.

    A positional one has no name there, and is told of by the help of the whole command.
    """

    help: str
    minimum: int | None = None
    maximum: int | None = None
    folder: bool = False
    positional: bool = False


def pairs(first: str, firsts: list, second: str, seconds: list) -> list[tuple]:
    """The values of two options that are given together, one of the second for each of the first."""
    if len(firsts) != len(seconds):
        raise OnejumpError(f"{second}: {len(seconds)} given for {len(firsts)} {first}; give one for each")
    return list(zip(firsts, seconds, strict=True))


Out = Annotated[Path, Option("File to write.")]
OutFolder = Annotated[Path, Option("Folder to write.", folder=True)]
Seed = Annotated[int, Option("Seed of all random choices of this stage.", minimum=0, maximum=2**32 - 1)]
Target = Annotated[Literal[*TARGETS], Option("Jumps predict the state before or after the final norm.")]
ScoreLevels = Annotated[Literal["1..K", "0..K-1"], Option("Levels that D_m is averaged over; 1..K as Eq. 5 prints.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], Option("Precision in which the model runs.")]
Bos = Annotated[Literal["tokenizer", "always", "never"], Option("Whether sentences begin with BOS.")]
Gpus = Annotated[int, Option("GPUs to spread the model's blocks over.", minimum=1)]
Load = Annotated[
    Literal[*LOADS], Option("Hold the whole model, or a block at a time; auto for whole up to 4 GB, if memory allows.")
]
SentencesFile = Annotated[Path, Option("sentences.parquet of the corpus, or texts.parquet.")]
PositionsFile = Annotated[Path, Option("positions.parquet of the activations.")]
UnembeddingFile = Annotated[Path, Option("unembedding.safetensors of the model.")]
Jumps = Annotated[list[Path], Option("Jumps 0..K-1, in order.")]
JointJump = Annotated[Path, Option("The joint jump.")]
Cosines = Annotated[Path, Option("cosines.safetensors of score-jumps.")]
SelectionFile = Annotated[Path, Option("selection.json of select-jump.")]
Evaluation = Annotated[Path, Option("evaluation.parquet to write.")]
ConfigFile = Annotated[Path, Option("The study's config, complete, as JSON.")]
TestShards = Annotated[list[Path], Option("All shards of the test split, in order.")]
Results = Annotated[Path, Option("The study's folder, results/<study>.", folder=True)]


@dataclass(frozen=True)
class Texts:
    """Where texts come from: one of a dump, a data set of the hub, and files."""

    mediawiki_dump: Annotated[Path | None, Option("A dump: .xml, .bz2 or .gz.")] = None
    sha256: Annotated[str | None, Option("Expected digest of the dump.")] = None
    hub: Annotated[str | None, Option("Data set id on the hub.")] = None
    hub_name: Annotated[str | None, Option("Configuration of the data set.")] = None
    hub_revision: Annotated[str | None, Option("Commit, tag or branch of the data set.")] = None
    hub_split: Annotated[str, Option("Split of the data set that texts come from.")] = "train"
    files: Annotated[list[Path], Option("A .parquet, .jsonl or .txt file; may be repeated.")] = ()
    text_field: Annotated[str, Option("Column that holds the text.")] = "text"
    title_field: Annotated[str, Option("Column that holds the title, if there is one.")] = "title"

    def source(self):
        """The source of the corpus; an OnejumpError unless there is exactly one, and the dump has its digest."""
        from onejump.corpus.mediawiki import MediawikiDump
        from onejump.corpus.text_files import HubDataset, LocalFiles
        from onejump.files.digests import check_sha256

        if sum((self.mediawiki_dump is not None, self.hub is not None, bool(self.files))) != 1:
            raise OnejumpError("give exactly one source: --mediawiki-dump, --hub or --file")
        if self.mediawiki_dump is not None:
            if self.sha256 is not None:
                check_sha256(self.mediawiki_dump, self.sha256)
            return MediawikiDump(self.mediawiki_dump)
        fields = self.text_field, self.title_field
        if self.hub is not None:
            return HubDataset(self.hub, self.hub_name, self.hub_revision, self.hub_split, *fields)
        return LocalFiles(self.files, *fields)


@dataclass(frozen=True)
class Model:
    """A model to load."""

    model: Annotated[str, Option("Folder in Transformers' format, or hub id 'owner/name'.")]
    revision: Annotated[str | None, Option("Commit, tag or branch on the hub.")] = None
    trust_remote_code: Annotated[bool, Option("Let code that comes with the model run.")] = False

    def source(self, gpus: int = 1):
        """The model's source, its blocks to be spread over so many GPUs."""
        from onejump.models.sources import ModelSource

        return ModelSource(self.model, self.revision, self.trust_remote_code, gpus)


@dataclass(frozen=True)
class Compute:
    """What to compute on."""

    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    threads: Annotated[int | None, Option("CPU threads; all cores by default.", minimum=1)] = None

    def start(self):
        """The device, named on the first line of the job's log, where the report looks for it."""
        import torch

        from onejump.models.devices import DEVICE_LINE, describe_device, keep_freed_memory, resolve_device

        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = resolve_device(self.device)
        print(DEVICE_LINE + describe_device(device, torch.get_num_threads()), file=sys.stderr)
        return device


@dataclass(frozen=True)
class Dump:
    """The activations of a split, and what they were dumped with."""

    unembedding: UnembeddingFile
    positions_file: PositionsFile
    shards: Annotated[list[Path], Option("All shards of the split, in order.")]
    positions: Annotated[Literal["all", "not_first"], Option("Which rows to keep.")] = "all"
    train_on: Annotated[Literal["corpus", "generated", "both"], Option("Text of the train split to keep.")] = "both"

    def open(self, split: str):
        """The model's unembedding and the activations."""
        from onejump.models.unembedding import Unembedding

        unembedding = Unembedding.load(self.unembedding)
        return unembedding, self._activations(self.shards, unembedding, split)

    def open_both(self, test_shards: list[Path]):
        """The model's unembedding, the activations of the train split, which are these, and of the test split."""
        unembedding, train = self.open("train")
        return unembedding, train, self._activations(test_shards, unembedding, "test")

    def _activations(self, shards: list[Path], unembedding, split: str):
        from onejump.activations.reading import Activations

        origin = self.train_on if split == "train" else "both"
        return Activations(shards, self.positions_file, unembedding, split, self.positions, origin)
