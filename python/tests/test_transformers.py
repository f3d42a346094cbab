"""Models of transformers, made of random weights in code, against their eager attention."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import hopweave
import hopweave.transformers

hopweave.transformers.register()

COMMON = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
GROUPED = dict(COMMON, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)

DECODERS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, head_dim=12, sliding_window=7),
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=16, sliding_window=7, query_pre_attn_scalar=10, attn_logit_softcapping=2.0
    ),
}
ENCODERS = {
    "bert": lambda: transformers.BertConfig(**COMMON, **NO_DROPOUT, max_position_embeddings=256),
    "modernbert": lambda: transformers.ModernBertConfig(
        **COMMON, global_attn_every_n_layers=2, local_attention=10, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
}


def pair(config, kind):
    """The same model with both implementations."""
    torch.manual_seed(0)
    eager = kind.from_config(config, attn_implementation="eager").eval()
    ours = kind.from_config(copy.deepcopy(config), attn_implementation="hopweave").eval()
    ours.load_state_dict(eager.state_dict())
    assert ours.config._attn_implementation == "hopweave"
    return eager, ours


def tokens(batch=3, n=40, seed=0):
    return torch.randint(3, 97, (batch, n), generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_encoders(name, padding):
    eager, ours = pair(ENCODERS[name](), transformers.AutoModel)
    ids, mask = tokens(), torch.ones(3, 40, dtype=torch.long)
    if padding == "right":
        mask[1, 25:], mask[2, 3:] = 0, 0
    if padding == "left":
        mask[1, :25], mask[2, :3] = 0, 0
    with torch.no_grad():
        mine = ours(ids, attention_mask=mask).last_hidden_state
        theirs = eager(ids, attention_mask=mask).last_hidden_state
    close(mine[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_decoders(name, padding):
    eager, ours = pair(DECODERS[name](), transformers.AutoModelForCausalLM)
    ids, mask = tokens(), torch.ones(3, 40, dtype=torch.long)
    if padding == "right":
        mask[1, 25:] = 0
    if padding == "left":
        mask[1, :25] = 0
    with torch.no_grad():
        mine = ours(ids, attention_mask=mask).logits
        theirs = eager(ids, attention_mask=mask).logits
    close(mine[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoders_generate_with_a_cache(name, cache):
    eager, ours = pair(DECODERS[name](), transformers.AutoModelForCausalLM)
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    arguments = dict(
        attention_mask=mask, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_scores=True,
        cache_implementation=cache, disable_compile=True, eos_token_id=None,
    )
    mine, theirs = ours.generate(ids, **arguments), eager.generate(ids, **arguments)
    assert torch.equal(mine.sequences, theirs.sequences)
    close(torch.stack(mine.scores), torch.stack(theirs.scores))


def test_packed_sequences_do_not_see_each_other():
    eager, ours = pair(DECODERS["llama"](), transformers.AutoModelForCausalLM)
    ids, positions = tokens(1), torch.cat([torch.arange(17), torch.arange(23)])[None]
    with torch.no_grad():
        mine = ours(ids, position_ids=positions, use_cache=False).logits
        theirs = eager(ids, position_ids=positions, use_cache=False).logits
        alone = ours(ids[:, 17:], use_cache=False).logits
    close(mine, theirs)
    close(mine[:, 17:], alone)


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_training_has_the_gradients_of_eager(name):
    config = {**ENCODERS, **DECODERS}[name]()
    eager, ours = pair(config, transformers.AutoModel)
    ids, mask = tokens(2, 24), torch.ones(2, 24, dtype=torch.long)
    mask[1, 15:] = 0
    for model in (eager, ours):
        states = model(ids, attention_mask=mask).last_hidden_state
        (states * mask[..., None]).pow(3).sum().backward()
    theirs = dict(eager.named_parameters())
    compared = 0
    for name_of, mine in ours.named_parameters():
        if mine.grad is None:
            assert theirs[name_of].grad is None
            continue
        scale = float(theirs[name_of].grad.abs().max()) + 1e-3
        close(mine.grad / scale, theirs[name_of].grad / scale, 2e-4)
        compared += 1
    assert compared >= 14


def test_dropout_in_training_is_torchs_to_seed():
    config = ENCODERS["bert"]()
    config.attention_probs_dropout_prob = 0.3
    _, ours = pair(config, transformers.AutoModel)
    ours.train()
    ids = tokens(2, 24)

    def states(seed):
        torch.manual_seed(seed)
        return ours(ids).last_hidden_state

    assert torch.equal(states(1), states(1)) and not torch.equal(states(1), states(2))


def test_what_is_not_known_is_refused_by_name():
    _, ours = pair(ENCODERS["bert"](), transformers.AutoModel)
    ids, holes = tokens(2, 24), torch.ones(2, 24, dtype=torch.long)
    holes[1, 5] = 0
    with pytest.raises(hopweave.UnsupportedError, match="padding between the tokens of sequence 1"):
        ours(ids, attention_mask=holes)
    with pytest.raises(hopweave.UnsupportedError, match=r"attention_mask: shape \[2, 1, 24, 24\]"):
        ours(ids, attention_mask=torch.ones(2, 1, 24, 24))
    with pytest.raises(hopweave.ShapeError, match="expected float32, bfloat16 or float16"):
        ours.double()(ids)
    with pytest.raises(hopweave.UnsupportedError, match="mask made by"):
        hopweave.transformers._mask(1, 4, 4, mask_function=lambda b, h, q, k: q == k)
