"""A wrong config, a missing file, a wrong model: one clear line, a non-zero exit, and nothing half-written."""

import shutil
from copy import deepcopy

import pytest

pytestmark = pytest.mark.xdist_group("study")  # one worker, one finished study


def config_error(study, change) -> str:
    study.config = deepcopy(study.config)
    change(study.config)
    done = study.snakemake("-n", check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("config: ")]
    assert len(lines) == 1, done.stdout
    return lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["corpus"].update(trian=5), "config: corpus: unknown key 'trian'; did you mean 'train'?"),
        (
            lambda c: c["evaluation"].update(transfer_sentences=21),
            "config: evaluation.transfer_sentences is 21, expected at",
        ),
    ],
    ids=["schema", "rule"],
)
def test_a_wrong_config_is_refused_in_one_line(tiny_study, change, message):
    assert config_error(tiny_study, change).startswith(message)


def failing_log(study, target: str) -> str:
    """The failed job's log, which Snakemake shows; it must be one line."""
    done = study.snakemake("--show-failed-logs", "--", target, check=False)
    assert done.returncode != 0
    assert not (study.folder / target).exists()
    assert list(study.folder.rglob(".*.tmp")) == []
    lines = [line for line in done.stdout.splitlines() if line.startswith("onejump: error: ")]
    assert len(lines) == 1, done.stdout[-3000:]
    return lines[0]


def test_more_sentences_than_there_are_states_both_numbers(tiny_study):
    tiny_study.config["corpus"] |= {"train": 900, "test": 100}
    message = failing_log(tiny_study, "results/test/corpus/seed-0/sentences.parquet")
    assert "1000 sentences requested" in message and "found in 8 documents" in message


def test_a_missing_text_file_is_named(tiny_study):
    tiny_study.config["corpus"]["source"]["files"]["paths"].append("texts/absent.txt")
    done = tiny_study.snakemake("-n", check=False)
    assert done.returncode != 0 and "texts/absent.txt" in done.stdout


def test_a_missing_model_is_named(tiny_study):
    tiny_study.config["models"]["tiny-gpt2"]["source"]["path"] = "./models/absent"
    message = failing_log(tiny_study, "results/test/tiny-gpt2/unembedding.safetensors")
    assert message == (
        "onejump: error: model ./models/absent: no such folder; correct the path, or give a hub id as 'owner/name'"
    )


def test_a_wrong_number_of_blocks_is_named(tiny_study):
    tiny_study.config["models"]["tiny-gpt2"]["blocks"] = 4
    message = failing_log(tiny_study, "results/test/tiny-gpt2/unembedding.safetensors")
    assert message.endswith("has 3 blocks, the config says 4; set blocks: 3")


def test_a_wrong_checksum_of_the_dump_is_named(tiny_study):
    dump = tiny_study.folder / "dump.xml"
    dump.write_text("<mediawiki></mediawiki>")
    tiny_study.config["corpus"]["source"] = {"mediawiki_dump": {"path": "dump.xml", "sha256": "0" * 64}}
    message = failing_log(tiny_study, "results/test/corpus/seed-0/sentences.parquet")
    assert "dump.xml: its sha256 is " in message and "expected " + "0" * 64 in message


def test_a_damaged_shard_is_named_and_made_again_when_removed(finished_study, tmp_path):
    study = deepcopy(finished_study)
    study.folder = tmp_path / "copy"
    shutil.copytree(finished_study.folder, study.folder)
    shard = study.results("tiny-llama", "seed-0", "activations", "train", "shard-00.safetensors")
    whole = shard.read_bytes()
    place = 8 + int.from_bytes(whole[:8], "little") + 5  # in the data of level 0, which comes first and is read
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    target = "results/test/tiny-llama/seed-0/exact/jumps/level-00.safetensors"
    (study.folder / target).unlink()
    assert f"{shard.relative_to(study.folder)}: damaged (" in failing_log(study, target)
    shard.unlink()
    study.snakemake("--", target)
    assert shard.read_bytes() == whole
