"""The embedded study's real model and real text, out of their wheels, to the end on a few dozen sentences."""

import re

import nbformat
import pandas as pd
import pytest
import run_tutorial
import torch
import yaml
from reference import TOLERANCE, compare
from studies import ROOT, Study
from tiny_models import dump_shard, save_unembedding
from transformers import AutoModelForCausalLM

import onejump
from onejump.activations.reading import Activations
from onejump.analysis.reading import read_selection
from onejump.analysis.scores import score_jumps, signed_square
from onejump.exits.columns import METRICS
from onejump.exits.evaluation import JumpExits, metrics_by_method
from onejump.files.tables import read_table
from onejump.jumps.fitting import fit_jump
from onejump.jumps.storage import load_folded_jumps, save_jump
from onejump.models.sources import ModelSource
from onejump.models.unembedding import Unembedding

pytestmark = pytest.mark.xdist_group("embedded")

MODEL = "smollm2-135m"
CPU = torch.device("cpu")
N_TRAIN, N_TEST = 80, 40


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Study:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["corpus"] |= {"train": N_TRAIN, "test": N_TEST}
    config |= {"study": "embedded", "variants": {"exact": {"fit": "exact"}}, "evaluation": {"transfer_sentences": 4}}
    study = Study(tmp_path_factory.mktemp("embedded"), config)
    study.snakemake("--set-scatter", "levels=4")
    return study


def test_the_study_of_the_embedded_model_ends_with_a_report(embedded):
    page = (embedded.folder / "reports" / "embedded.html").read_text()
    models = pd.read_csv(embedded.results("summary", "models.csv"))
    assert models["name"].tolist() == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert models["name"][0] in page
    methods = pd.read_csv(embedded.results("summary", "methods.csv")).set_index("method")
    assert methods.loc["ojfa", "parameters"] == 2 * 576 * 5 + 4 * 576
    assert methods.loc["n_njtc", "parameters"] == 30 * methods.loc["ojfa", "parameters"]
    assert methods["precision"].between(0, 1).all()
    # Whatever the few sentences say of the rest, the full-rank jump of the last level is close to the model.
    levels = pd.read_csv(embedded.results("summary", "levels.csv")).set_index(["method", "level"])
    assert levels.loc[("identity", 29), "precision"] > levels.loc[("identity", 0), "precision"]


def test_the_embedded_study_agrees_with_its_naive_float64_reference(embedded):
    differences = compare(embedded.results(), MODEL, 0, "exact", fits=3, sentences=20)
    assert set(differences) >= {"D_m", "precision", "surprisal", "exact predictions"}
    assert max(differences.values()) <= TOLERANCE, differences


def test_saved_states_through_the_saved_head_give_the_models_own_logits(embedded):
    unembedding = Unembedding.load(embedded.results(MODEL, "unembedding.safetensors"))
    branch = embedded.results(MODEL, "seed-0")
    shards = [branch / "activations" / "test" / "shard-00.safetensors"]
    activations = Activations(shards, branch / "positions.parquet", unembedding, "test")
    logits = unembedding.logits(activations.level(activations.n_blocks))

    source = ModelSource(str(next((embedded.folder / "resources" / "models").iterdir())))
    model, tokenizer = source.load_model(), source.load_tokenizer()
    sentences = (
        read_table(embedded.results("corpus", "seed-0", "sentences.parquet")).to_pandas().set_index("sentence_id")
    )
    positions = read_table(branch / "positions.parquet").to_pandas().set_index("sentence_id")
    for row, sentence in enumerate(activations.sentence_ids.tolist()):
        ids = torch.tensor([tokenizer(sentences["text"][sentence])["input_ids"]])
        with torch.inference_mode():
            expected = model(input_ids=ids).logits[0, positions["position"][sentence]]
        torch.testing.assert_close(logits[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "of_score", "of_precision"), [("bfloat16", 0.04, 0.02), ("float16", 0.002, 0.005)])
def test_half_precision_moves_scores_choice_and_precision_little(embedded, tmp_path, dtype, of_score, of_precision):
    """The float32 study against the same sentences dumped in half precision and fitted, scored and evaluated anew."""
    branch, K = embedded.results(MODEL, "seed-0"), 30
    source = ModelSource(str(next((embedded.folder / "resources" / "models").iterdir())))
    save_unembedding(source, dtype, tmp_path / "unembedding.safetensors", K)
    unembedding, activations = Unembedding.load(tmp_path / "unembedding.safetensors"), {}
    for split in ("train", "test"):
        count = embedded.config["models"][MODEL]["shards"][split]
        shards = [tmp_path / f"{split}-{i}.safetensors" for i in range(count)]
        for i, shard in enumerate(shards):
            facts = (
                branch / "positions.parquet",
                tmp_path / "unembedding.safetensors",
                split,
                i,
                shard,
                dtype,
                CPU,
                512,
            )
            dump_shard(source, *facts)
        activations[split] = Activations(shards, branch / "positions.parquet", unembedding, split)
    paths = [tmp_path / f"jump-{level}.safetensors" for level in range(K)]
    for level, path in enumerate(paths):
        save_jump(path, *fit_jump(activations["train"], unembedding, level, "exact", "pre_norm", None, "mixed", 0, CPU))
    jumps = load_folded_jumps(paths, unembedding, "pre_norm")
    scores = (
        signed_square(score_jumps(activations["train"], unembedding, jumps, "pre_norm", CPU))[:, 1:]
        .double()
        .mean((1, 2))
    )
    selection = read_selection(branch / "exact" / "selection.json", K)
    expected = torch.tensor(selection["scores"])
    moved = float((scores - expected).abs().max())
    assert moved < of_score
    # The choice is the same, or was as good as tied.
    assert float(expected.max() - expected[scores.argmax()]) <= 2 * moved

    exits = JumpExits(jumps, selection["ojfa"], jumps[0])
    found = metrics_by_method(activations["test"], unembedding, exits, "pre_norm", CPU)
    methods = pd.read_csv(embedded.results("summary", "methods.csv")).set_index("method")["precision"]
    differences = {
        method: abs(float(found[method][:, METRICS.index("correct")].mean()) - methods[method])
        for method in ("n_njtc", "ojfa")
    }
    print(f"{dtype}: D_m moves by up to {moved:.5f}; precision by {differences}")
    assert max(differences.values()) < of_precision


@pytest.mark.parametrize("by", ["folder", "gguf_file"])
def test_the_ready_jump_is_for_the_file_in_the_wheel(embedded, by):
    kind = "models" if by == "folder" else "gguf"
    (folder,) = (embedded.folder / "resources" / kind).iterdir()
    options = {} if by == "folder" else {"gguf_file": next(folder.glob("*.gguf")).name}
    jump = onejump.Jump.from_pretrained(MODEL).attach(AutoModelForCausalLM.from_pretrained(folder, **options).eval())
    assert jump.logits(torch.zeros(576), 0).shape == (49152,)


def test_the_tutorial_has_kept_what_the_ready_jump_gives(embedded):
    """Its cells that read with a jump, which is the ready one; numbers may differ in their last digit."""
    notebook = nbformat.read(run_tutorial.PAGE, as_version=4)
    (base,) = (embedded.folder / "resources" / "models").iterdir()
    given = {"base": str(base), "folder": MODEL}
    printed = run_tutorial.run(notebook, embedded.folder, given, tag="reading")
    kept = {cell.id: "".join(output.text for output in cell.outputs) for cell in notebook.cells if "outputs" in cell}
    assert sum(map(bool, printed.values())) == 6
    for cell, text in printed.items():
        (found, numbers), (expected, expected_numbers) = map(_numbers_apart, (text, kept[cell]))
        assert found == expected
        assert numbers == pytest.approx(expected_numbers, abs=0.02)


def _numbers_apart(text: str) -> tuple[str, list[float]]:
    """A text with a mark for each decimal fraction, and these."""
    return re.sub(r" *\d+\.\d+", " #", text), [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_the_sentences_are_prose_of_one_split_each(embedded):
    table = read_table(embedded.results("corpus", "seed-0", "sentences.parquet")).to_pandas()
    assert table["split"].value_counts().to_dict() == {"train": N_TRAIN, "test": N_TEST}
    assert table["text"].is_unique
    assert set(table.loc[table["split"] == "train", "document"]).isdisjoint(
        table.loc[table["split"] == "test", "document"]
    )
    assert table["text"].str.match(r'^["“(A-Z0-9].*[.!?]["”)]?$').all()
