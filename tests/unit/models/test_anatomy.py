"""Level k is what enters block k, and a model whose parts are not found is refused by name."""

import pytest
import torch
import transformers
from levels_by_hand import random_ids, relative_error, run_with_hooks
from refusals import error_of
from tiny_architectures import tiny_architecture, tiny_config
from tiny_models import ALL_FAMILIES, HIDDEN_SIZE, N_BLOCKS, VOCABULARY, model_from, tiny_model
from torch import nn

from onejump.models.anatomy import Anatomy, find_anatomy
from onejump.models.unembedding import extract_unembedding


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_levels_are_what_enters_each_block_and_the_final_norm(family):
    model, ids, captured = tiny_model(family), random_ids((2, 9)), {}
    with torch.inference_mode():
        find_anatomy(model).run(ids, captured.__setitem__)
    entered, output = run_with_hooks(model, family, ids)
    assert captured.keys() == entered.keys() == set(range(N_BLOCKS + 1))
    assert all(torch.equal(captured[level], entered[level]) for level in entered)
    states = output.hidden_states
    assert len(states) == N_BLOCKS + 1
    assert all(torch.equal(captured[level], states[level]) for level in range(N_BLOCKS))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_transformers_last_hidden_state_is_the_norm_of_the_final_representation_and_not_it(family):
    model = tiny_model(family)
    unembedding, _ = extract_unembedding(model)
    entered, output = run_with_hooks(model, family, random_ids((2, 9)))
    final = entered[N_BLOCKS]
    assert relative_error(unembedding.normalise(final), output.hidden_states[-1]) < 1e-5
    assert relative_error(final, output.hidden_states[-1]) > 0.1


def test_level_0_is_the_embedding_with_what_the_architecture_adds_to_it():
    ids = random_ids((1, 7))
    llama, gpt2, gemma = (tiny_model(family) for family in ("llama", "gpt2", "gemma2"))
    with torch.inference_mode():
        expected = {
            "llama": llama.model.embed_tokens.weight[ids],
            "gpt2": gpt2.transformer.wte.weight[ids] + gpt2.transformer.wpe.weight[:7],
            "gemma2": gemma.model.embed_tokens.weight[ids] * HIDDEN_SIZE**0.5,
        }
    for model, (_, level_0) in zip((llama, gpt2, gemma), expected.items(), strict=True):
        captured = {}
        with torch.inference_mode():
            find_anatomy(model).run(ids, captured.__setitem__)
        assert torch.allclose(captured[0], level_0, rtol=1e-6)


@pytest.mark.parametrize("config_class", ["MixtralConfig", "Qwen3MoeConfig", "DeepseekV3Config", "GptOssConfig"])
def test_weights_of_a_token_are_those_of_a_model_whose_experts_are_all_used(config_class):
    def of(n_experts):
        config = tiny_config(getattr(transformers, config_class))
        names = [name for name in ("num_local_experts", "n_routed_experts", "num_experts") if hasattr(config, name)]
        for name in names:
            setattr(config, name, n_experts)
        config.num_experts_per_tok, config.n_group, config.topk_group = 2, 1, 1
        return find_anatomy(model_from(config))

    many, two = of(4), of(2)
    routers = sum(  # a row, and a bias where there is one, for each expert that a token may be sent to
        p.numel() // 2 for name, p in many.blocks.named_parameters() if ".gate." in name or ".router." in name
    )
    assert many.token_weights == two.token_weights + routers
    assert two.token_weights == sum(p.numel() for p in two.blocks.parameters())
    assert many.token_weights < sum(p.numel() for p in many.blocks.parameters())


def test_hooks_are_gone_after_a_run_even_when_it_raises():
    model, taken = tiny_model("llama"), []
    anatomy = find_anatomy(model)
    with pytest.raises(ZeroDivisionError):
        anatomy.run(random_ids((1, 4)), lambda level, h: taken.append(1 / level))
    model(input_ids=random_ids((1, 4)))
    assert taken == []


def test_parts_are_found_again_by_their_paths():
    model = tiny_model("opt")
    found = find_anatomy(model)
    again = Anatomy(model, **found.paths)
    assert found.paths == {
        "blocks": "model.decoder.layers", "norm": "model.decoder.final_layer_norm", "head": ["lm_head"]
    }  # fmt: skip
    assert again.blocks is model.model.decoder.layers
    assert again.norm is model.model.decoder.final_layer_norm


def test_parts_that_no_forward_pass_uses_do_not_matter():
    model = tiny_model("llama")
    paths = find_anatomy(model).paths
    model.model.more = nn.ModuleList([nn.Identity()] * N_BLOCKS)
    model.model.ln_f = nn.LayerNorm(HIDDEN_SIZE)
    model.config.num_hidden_layers = 7
    assert find_anatomy(model).paths == paths


def test_names_do_not_matter():
    model = tiny_model("llama")
    model.head_of_another_name = nn.Sequential(model.lm_head)
    model.model.norm_of_another_name = model.model.norm
    model.lm_head, model.model.norm = model.head_of_another_name, nn.Identity()
    model.model.register_forward_hook(
        lambda module, args, output: type(output)(module.norm_of_another_name(output.last_hidden_state))
    )
    anatomy = find_anatomy(model)
    assert anatomy.norm is model.model.norm_of_another_name
    assert anatomy.paths["head"] == ["lm_head.0"]


def refusal(model):
    message = error_of(lambda: find_anatomy(model))
    assert message.startswith(f"{type(model).__name__} is not supported: ")
    return message


def test_blocks_that_a_forward_pass_skips_are_refused_by_name():
    """Cross-attention blocks of a vision model are not run on text."""
    message = refusal(tiny_architecture("mllama"))
    assert message.endswith("but model.layers.3 is called 0 times in a forward pass, expected once")


def test_blocks_that_are_called_again_are_refused_by_name():
    assert ".layers.0 is called 6 times in a forward pass" in refusal(tiny_architecture("hrm_text"))


@pytest.mark.parametrize("model_type", ["gemma3n_text", "deepseek_v4", "hy_v4"])
def test_several_residual_streams_are_refused_by_name(model_type):
    assert ".layers.0 takes [" in refusal(tiny_architecture(model_type))


def test_a_change_between_two_blocks_is_refused_by_name():
    model = tiny_model("llama")
    model.model.layers[2].register_forward_pre_hook(lambda block, args: (2 * args[0],))
    assert refusal(model).endswith("but what model.layers.1 gives is not what model.layers.2 takes")


def test_a_model_with_several_stacks_of_blocks_is_refused_by_name():
    assert "found model.local_encoder.layers and model.global_transformer.layers" in refusal(tiny_architecture("blt"))


def test_a_final_norm_that_reads_earlier_states_is_refused_by_name():
    model, kept = tiny_model("llama"), []
    model.model.layers[0].register_forward_hook(lambda block, args, output: kept.append(output))
    model.model.norm.register_forward_pre_hook(lambda norm, args: (args[0] + kept[-1],))
    message = refusal(model)
    assert message.endswith("what its last block gives is not what model.norm takes, nor decides it")


def test_layers_between_the_last_block_and_the_final_norm_count_as_part_of_it():
    model, ids, captured, entered = tiny_architecture("roberta"), random_ids((1, 6)), {}, []
    anatomy = find_anatomy(model)
    assert anatomy.norm is model.lm_head.layer_norm
    anatomy.run(ids, captured.__setitem__)
    anatomy.norm.register_forward_pre_hook(lambda norm, args: entered.append(args[0]))
    model(input_ids=ids)
    assert torch.equal(captured[len(anatomy.blocks)], entered[0])


def test_an_output_head_that_is_not_linear_is_refused_by_name():
    model = tiny_model("llama")
    model.lm_head = nn.Bilinear(HIDDEN_SIZE, HIDDEN_SIZE, VOCABULARY)
    model.lm_head.forward = lambda h: h.repeat(1, 1, 4)[..., :VOCABULARY]
    assert refusal(model).endswith(
        "looked for a torch.nn.Linear as output head after the blocks, found LlamaRMSNorm, Bilinear"
    )


def test_a_model_that_wants_more_than_tokens_is_refused_by_name():
    model = tiny_model("llama")
    model.forward = lambda input_ids, pixel_values, use_cache: None
    assert "a forward pass on token ids alone fails (" in refusal(model)


def test_a_bidirectional_model_is_refused():
    config = tiny_config(transformers.BertConfig)
    config.is_decoder = False
    message = error_of(lambda: find_anatomy(model_from(config)))
    assert message == "BertLMHeadModel is not causal: its states depend on later tokens; use a causal model"


@pytest.mark.parametrize("model_type", ["bart", "marian"])
def test_a_decoders_blocks_are_its_own_whatever_its_encoder_has(model_type):
    config = tiny_config(transformers.CONFIG_MAPPING[model_type])
    config.decoder_layers, config.encoder_layers = 3, 5
    assert len(find_anatomy(model_from(config)).blocks) == 3
