"""Each number of a trajectory, against distributions in float64 from Transformers' own hidden states."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from refusals import error_of, files_under
from tiny_models import WORDS, tiny_tokenizer

import onejump
from onejump.cli import cli
from onejump.exits.metrics import Prediction
from onejump.files.tables import read_table
from onejump.report.lens import MEASURES, method_names, render_lens, visible
from onejump.sharing import trajectory

IDS = [5, 23, 42, 8, 77]
NORMS = {"gpt2": "transformer.ln_f", "phi": "model.final_layernorm"}
COLUMNS = ["position", "token", "level", "method", "predicted", "predicted_id", "probability", "kl", "entropy"]


@pytest.fixture(scope="module")
def attached(study_of, tmp_path_factory):
    """A function from family, variant and kind to an attached jump and its model."""

    def load(family: str, variant: str = "alone", kind: str = "joint"):
        study = study_of(family)
        model = study.load_model()
        folder = study.publish(tmp_path_factory.mktemp("jump") / "jump", variant, kind)
        return onejump.Jump.from_pretrained(folder).attach(model), model

    return load


def naive_readings(logits: torch.Tensor, full: torch.Tensor) -> tuple[int, float, float, float]:
    p, q = (np.exp(x) / np.exp(x).sum() for x in (logits.double().numpy(), full.double().numpy()))
    return int(p.argmax()), p.max(), (q * np.log(q / p)).sum(), -(p * np.log(p)).sum()


@pytest.mark.parametrize(
    ("family", "variant", "kind"),
    [("llama", "alone", "joint"), ("gpt2", "gated", "all"), ("phi", "alone", "joint"), ("gemma2", "paper", "ojfa")],
)
def test_every_number_is_by_definition(attached, family, variant, kind):
    jump, model = attached(family, variant, kind)
    table = jump.trajectory(IDS).set_index(["position", "level", "method"])
    with torch.no_grad():
        found = model(torch.tensor([IDS]), output_hidden_states=True)
        head = model.get_output_embeddings()
        norm = model.get_submodule(NORMS.get(family, "model.norm"))
        cap = getattr(model.config, "final_logit_softcapping", None)
        for position in range(len(IDS)):
            full = found.logits[0, position]
            exits = {(3, "model"): full}
            for level in range(3):
                h = found.hidden_states[level][0, position]
                identity = head(norm(h))
                exits[level, "identity"] = identity if cap is None else cap * torch.tanh(identity / cap)
                exits[level, "jump"] = jump.logits(h, level)
            for (level, method), logits in exits.items():
                token, *numbers = naive_readings(logits, full)
                row = table.loc[(position, level, method)]
                assert (row["predicted_id"], row["predicted"], row["token"]) == (token, str(token), str(IDS[position]))
                assert row[["probability", "kl", "entropy"]].tolist() == pytest.approx(numbers, rel=1e-4, abs=1e-5)
    assert len(table) == len(IDS) * (2 * 3 + 1)


def test_columns_and_order(attached):
    table = attached("llama")[0].trajectory(IDS)
    assert list(table.columns) == COLUMNS
    assert table["position"].is_monotonic_increasing
    assert table.query("position == 2")["level"].tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_a_text_is_its_tokens(attached):
    jump, _ = attached("llama")
    tokenizer = tiny_tokenizer(bos=True)
    ids = tokenizer("bab dek")["input_ids"]
    table, by_id = jump.trajectory("bab dek", tokenizer), jump.trajectory(ids)
    assert table.drop(columns=["token", "predicted"]).equals(by_id.drop(columns=["token", "predicted"]))
    tokens = table.drop_duplicates("position")["token"].tolist()
    assert tokens == [tokenizer.decode([i]) for i in ids] and tokens[0] == "<s>"
    assert table["predicted"].tolist() == [tokenizer.decode([i]) for i in table["predicted_id"]]


def test_sums_over_a_large_vocabulary_are_exact():
    generator = torch.Generator().manual_seed(0)
    logits, full = (torch.randn(4, 49152, generator=generator) for _ in range(2))
    logits[:, 0] += 12
    full[:, 0] += 12
    found = trajectory._readings(Prediction.of(logits), Prediction.of(full), 0, 0, "jump")
    expected = [naive_readings(*rows) for rows in zip(logits, full, strict=True)]
    for name, column in (("probability", 1), ("kl", 2), ("entropy", 3)):
        np.testing.assert_allclose(found[name], [numbers[column] for numbers in expected], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("ids", [torch.tensor(IDS), torch.tensor([IDS]), np.array(IDS), tuple(IDS)])
def test_ids_may_come_in_any_form(attached, ids):
    jump, _ = attached("llama")
    assert jump.trajectory(ids).equals(jump.trajectory(IDS))


def test_long_texts_are_read_in_parts(attached, monkeypatch):
    jump, _ = attached("llama")
    whole = jump.trajectory(IDS)
    monkeypatch.setattr(trajectory, "CHUNK", 2 * 97)
    parts = jump.trajectory(IDS)
    numbers = COLUMNS[-3:]
    assert parts.drop(columns=numbers).equals(whole.drop(columns=numbers))
    np.testing.assert_allclose(parts[numbers], whole[numbers], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("bab", "a text needs a tokenizer; give that of the base model, or token ids"),
        ([], "the text has no token; give one with at least one"),
        ([[1, 2], [3, 4]], "token ids are [2, 2], expected those of one text, [T] or [1, T]"),
        ([1, 97], "token 97 is not one of the model's 0..96; use its own tokenizer"),
        ([-1], "token -1 is not one of the model's 0..96; use its own tokenizer"),
    ],
)
def test_what_is_no_text_of_the_model_is_refused(attached, given, said):
    jump, _ = attached("llama")
    assert error_of(lambda: jump.trajectory(given)) == said


def test_without_a_model_there_is_no_trajectory(folder):
    jump = onejump.Jump.from_pretrained(folder)
    assert error_of(lambda: jump.trajectory(IDS)).startswith("the jump has no model; ")


def test_a_second_jump_stands_beside_the_first(attached, study, tmp_path):
    """Here one for all levels and one for each; each has the rows that it has alone."""
    jump, model = attached("llama")
    other = onejump.Jump.from_pretrained(study.publish(tmp_path / "all", "gated", "all")).attach(model)
    table = jump.trajectory(IDS, beside=other)
    assert table.query("position == 2 and level == 1")["method"].tolist() == ["jump", "beside", "identity"]
    alone = table[table["method"] != "beside"].reset_index(drop=True)
    assert alone.equals(jump.trajectory(IDS))
    (found, expected) = (
        rows[rows["method"] == method].drop(columns="method").reset_index(drop=True)
        for rows, method in ((table, "beside"), (other.trajectory(IDS), "jump"))
    )
    assert found.equals(expected) and len(found) == 3 * len(IDS)


def test_a_jump_beside_on_another_model_is_refused(attached, study, folder):
    jump, _ = attached("llama")
    other = onejump.Jump.from_pretrained(folder)
    assert error_of(lambda: jump.trajectory(IDS, beside=other)).startswith("the jump has no model; ")
    other.attach(study.load_model())
    assert error_of(lambda: jump.trajectory(IDS, beside=other)) == (
        "the jump beside is attached to another model; call attach with the same one for both"
    )


TEXT = " ".join(WORDS[:6])


@pytest.fixture(scope="module")
def per_level(study, tmp_path_factory):
    """A published jump for each level."""
    return study.publish(tmp_path_factory.mktemp("published") / "all", "paper", "all")


@pytest.fixture(scope="module")
def table(study, folder, per_level):
    """What the command must show of TEXT, with the jump for each level beside the one jump."""
    model = study.load_model()
    jump, other = (onejump.Jump.from_pretrained(one).attach(model) for one in (folder, per_level))
    return jump.trajectory(TEXT, tiny_tokenizer(), other)


@pytest.fixture
def run_lens(study, folder, per_level, tmp_path):
    """A function from the name of a file and more options to the path that the command wrote."""

    def run(name: str, *options: str):
        given = ["--jump", folder, "--beside", per_level, "--model", study.dump.source.location, "--device", "cpu"]
        arguments = ["lens", TEXT, *map(str, given), "--out", str(tmp_path / "out" / name), *options]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return tmp_path / "out" / name

    return run


def test_the_command_writes_the_page(run_lens, table, folder, per_level):
    names = method_names(*(onejump.Jump.from_pretrained(one).config for one in (folder, per_level)))
    assert list(names) == ["jump", "beside", "identity"]
    assert run_lens("page.html").read_text() == render_lens(table, names, "model")


def test_two_jumps_of_one_kind_have_names_of_their_own():
    config = {"jump": "joint", "rank": 5, "gated": True}
    name = "One jump for all levels, rank 5, with gates"
    assert list(method_names(config, config).values())[:2] == [f"{name} (the first)", f"{name} (the second)"]
    assert method_names(config, config | {"rank": 4})["jump"] == name


def test_the_command_writes_tables(run_lens, table):
    pd.testing.assert_frame_equal(read_table(run_lens("table.parquet")).to_pandas(), table, check_dtype=False)
    found = pd.read_csv(run_lens("table.csv"), keep_default_na=False, dtype={"token": str, "predicted": str})
    pd.testing.assert_frame_equal(found, table, check_dtype=False)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_command_draws_figures(run_lens, table, measure):
    root = ElementTree.parse(run_lens("lens.svg", "--measure", measure)).getroot()
    found = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"One jump for all levels, rank 3, with gates", "A jump for each level, rank 2"} <= set(found)
    assert sum(text.startswith(MEASURES[measure]) for text in found) == 1
    assert found.count(visible(table["token"].iloc[0])) >= 3  # above each panel


@pytest.mark.parametrize(("name", "magic"), [("lens.png", b"\x89PNG"), ("lens.pdf", b"%PDF")])
def test_the_command_draws_for_papers(run_lens, name, magic):
    assert run_lens(name).read_bytes().startswith(magic)


@pytest.mark.parametrize(("name", "found"), [("page.jpg", ".jpg"), ("page", "no suffix"), ("page.HTM", ".HTM")])
def test_another_suffix_is_refused_before_anything_is_loaded(tmp_path, name, found):
    arguments = ["lens", "bab", "--jump", "none", "--model", "none", "--out", str(tmp_path / name)]
    said = error_of(lambda: CliRunner().invoke(cli, arguments, catch_exceptions=False))
    expected = ".html, .svg, .pdf, .png, .csv, .parquet"
    assert said == f"--out {tmp_path / name}: ends in {found}, expected one of {expected}"
    assert files_under(tmp_path) == []


def test_the_command_refuses_another_model(study_of, folder, tmp_path):
    options = ["--jump", str(folder), "--model", study_of("gpt2").dump.source.location]
    options += ["--out", str(tmp_path / "page.html")]
    said = error_of(lambda: CliRunner().invoke(cli, ["lens", "bab", *options], catch_exceptions=False))
    assert ", which this jump was fitted for: in its config, " in said
    assert files_under(tmp_path) == []


def test_the_command_refuses_a_second_jump_of_another_model(run_lens, study_of, tmp_path):
    other = study_of("gpt2").publish(tmp_path / "other")
    said = error_of(lambda: run_lens("page.html", "--beside", str(other)))
    assert ", which this jump was fitted for: in its config, " in said
    assert not (tmp_path / "out").exists()
