"""The embedded study's real model and real text, out of their wheels, to the end on a few dozen sentences."""

import pandas as pd
import pytest
import torch
import yaml
from reference import TOLERANCE, compare
from studies import ROOT, Study

from onejump.activations import Activations
from onejump.artifacts import read_table
from onejump.models import Head, ModelSource

pytestmark = pytest.mark.xdist_group("embedded")

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Study:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["corpus"] |= {"train": 48, "test": 16}
    config |= {"study": "embedded", "variants": {"exact": {"fit": "exact"}}, "evaluation": {"transfer_sentences": 4}}
    study = Study(tmp_path_factory.mktemp("embedded"), config)
    study.snakemake()
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
    differences = compare(embedded.results(), MODEL, 0, "exact", fits=3)
    assert set(differences) >= {"D_m", "precision", "surprisal", "exact predictions"}
    assert max(differences.values()) <= TOLERANCE, differences


def test_saved_states_through_the_saved_head_give_the_models_own_logits(embedded):
    head = Head.load(embedded.results(MODEL, "head.safetensors"))
    branch = embedded.results(MODEL, "seed-0")
    shards = [branch / "activations" / "test" / "shard-00.safetensors"]
    activations = Activations(shards, branch / "positions.parquet", head, "test")
    logits = head.logits(activations.level(activations.n_blocks))

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


def _by_sentence(path) -> pd.DataFrame:
    return read_table(path).to_pandas().set_index("sentence_id")


def test_the_sentences_are_prose_of_one_split_each(embedded):
    table = read_table(embedded.results("corpus", "seed-0", "sentences.parquet")).to_pandas()
    assert table["split"].value_counts().to_dict() == {"train": 48, "test": 16}
    assert table["text"].is_unique
    assert set(table.loc[table["split"] == "train", "document"]).isdisjoint(
        table.loc[table["split"] == "test", "document"]
    )
    assert table["text"].str.match(r'^["“(A-Z0-9].*[.!?]["”)]?$').all()
