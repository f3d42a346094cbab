"""The Diffuser model against its equations in dense torch."""

from __future__ import annotations

import dataclasses
import math

import pytest
from conftest import PATTERNS

torch = pytest.importorskip("torch")

import hopweave
from hopweave.models.diffuser import (
    DiffuserConfig,
    DiffuserForMaskedLM,
    DiffuserForSequenceClassification,
    DiffuserModel,
    DiffusionSelfAttention,
)

SMALL = DiffuserConfig(
    vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=128, window=6, global_tokens=3, random_keys=4, num_labels=5,
)


def test_the_defaults_are_the_published_ones():
    published = hopweave.Spec.load(PATTERNS / "diffuser.yaml")
    ours = hopweave.Spec.from_yaml(DiffuserConfig().spec().to_yaml())
    assert (ours.heads, ours.head_dim, ours.hops) == (published.heads, published.head_dim, published.hops)
    assert (ours.mask(300) == published.mask(300)).all()
    config = DiffuserConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.alpha) == (12, 768, 0.1)
    assert config.attention_dropout > 0 and config.hop_dropout > 0


def dense(module: DiffusionSelfAttention, states, length):
    """The attention of one sequence by its equation, in f64."""
    n, width = states.shape
    q, k, v = (
        linear(states).view(n, module.heads, -1).transpose(0, 1).double()
        for linear in (module.query, module.key, module.value)
    )
    allowed = torch.from_numpy(module.spec.mask(n)) & (torch.arange(n) < length)
    v = v * (torch.arange(n) < length)[:, None]
    weights = torch.softmax((q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).masked_fill(~allowed, -torch.inf), -1)
    z = v
    for _ in range(SMALL.hops):
        z = (1 - SMALL.alpha) * (weights @ z) + SMALL.alpha * v
    return z.transpose(0, 1).reshape(n, width)


def test_attention_is_the_equation_and_has_its_gradients():
    torch.manual_seed(0)
    module = DiffusionSelfAttention(SMALL).eval()
    states = torch.randn(2, 50, 32)
    lengths = torch.tensor([50, 33])
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    mine = module(ours, lengths)
    other = torch.stack([dense(module, theirs[b], int(lengths[b])) for b in range(2)])
    torch.testing.assert_close(mine.double(), other, atol=1e-5, rtol=0)
    grad = torch.randn_like(mine)
    mine.backward(grad)
    other.backward(grad.double())
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=0)


def test_heads_have_their_shapes_and_padding_changes_no_token():
    torch.manual_seed(0)
    ids = torch.randint(2, 61, (2, 40))
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 30:] = 0
    for kind, shape in ((DiffuserForSequenceClassification, (2, 5)), (DiffuserForMaskedLM, (2, 40, 61))):
        model = kind(SMALL).eval()
        with torch.no_grad():
            out = model(ids, mask)
            other = model(torch.where(mask.bool(), ids, SMALL.pad_token_id), mask)
        assert out.shape == shape
        if len(shape) == 3:
            out, other = out[mask.bool()], other[mask.bool()]
        torch.testing.assert_close(out, other, atol=0, rtol=0)


def test_training_repeats_by_seed_and_learns():
    config = dataclasses.replace(SMALL, hidden_dropout=0.05)
    ids = torch.randint(2, 61, (8, 32), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 20] % 5

    def train(seed):
        torch.manual_seed(seed)
        model = DiffuserForSequenceClassification(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(model(ids), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = train(1)
    assert first == train(1) and first != train(2)
    assert sum(first[-5:]) < 0.6 * sum(first[:5])


def test_learned_hops_start_as_fixed_alpha_or_as_one_hop():
    torch.manual_seed(0)
    fixed = DiffuserModel(SMALL).eval()
    ids = torch.randint(2, 61, (2, 40))
    for config, like in (
        (dataclasses.replace(SMALL, diffusion="learned"), SMALL),
        (
            dataclasses.replace(SMALL, diffusion="learned", learned_start="one_hop"),
            dataclasses.replace(SMALL, hops=1, alpha=0.0),
        ),
    ):
        learned, same = DiffuserModel(config).eval(), DiffuserModel(like).eval()
        same.load_state_dict(fixed.state_dict())
        missing, unexpected = learned.load_state_dict(fixed.state_dict(), strict=False)
        assert missing == [f"layers.{i}.attention.theta" for i in range(2)] and not unexpected
        with torch.no_grad():
            torch.testing.assert_close(learned(ids), same(ids), atol=2e-5, rtol=0)


def test_learned_coefficients_train_and_models_load_back(tmp_path):
    config = dataclasses.replace(SMALL, diffusion=["fixed", "learned"], hops=3)
    ids = torch.randint(2, 61, (4, 24), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model = DiffuserForSequenceClassification(config).train()
    theta = model.encoder.layers[1].attention.theta
    before = theta.detach().clone()
    assert theta.shape == (2, 4) and not hasattr(model.encoder.layers[0].attention, "theta")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(ids), ids[:, 20] % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((theta - before).abs() > 1e-4).all()
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = DiffuserConfig.from_pretrained(tmp_path)
    assert again == config
    other = DiffuserForSequenceClassification(again).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    with torch.no_grad():
        torch.testing.assert_close(other(ids), model.eval()(ids), atol=0, rtol=0)


def test_hops_without_end_start_at_alpha():
    config = dataclasses.replace(SMALL, diffusion="all", pattern="causal")
    torch.manual_seed(0)
    module = DiffusionSelfAttention(config, "all").eval()
    states = torch.randn(2, 30, 32)
    out = module(states)
    q, k, v = (
        linear(states).view(2, 30, 2, 16).transpose(1, 2).double() for linear in (module.query, module.key, module.value)
    )
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(~torch.ones(30, 30).tril().bool(), -torch.inf)
    system = torch.eye(30) - (1 - config.alpha) * torch.softmax(scores, -1)
    expected = config.alpha * torch.linalg.solve(system, v)
    torch.testing.assert_close(out.double(), expected.transpose(1, 2).reshape(2, 30, 32), atol=1e-5, rtol=0)
    out.square().sum().backward()
    assert module.alpha_logit.shape == (2,) and (module.alpha_logit.grad.abs() > 0).all()


def test_wrong_configs_are_named():
    for values, message in (
        ({"diffusion": "some"}, "diffusion: 'some'; expected 'fixed', 'learned', 'all'"),
        ({"diffusion": ["fixed"]}, "diffusion: 1 of them; expected one, or 2, one a layer"),
        ({"learned_start": "zero"}, "learned_start: 'zero'; expected 'alpha' or 'one_hop'"),
        ({"diffusion": "all", "alpha": 0.0}, "alpha: 0.0; expected above 0.02 and below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **values)
    with pytest.raises(ValueError, match="hop: unknown; expected some of vocab_size"):
        DiffuserConfig.from_dict({"hop": 3})


def test_wrong_inputs_are_named():
    model = DiffuserModel(SMALL)
    ids = torch.zeros(2, 20, dtype=torch.long)
    left = torch.ones(2, 20)
    left[0, 0] = 0
    with pytest.raises(hopweave.ShapeError, match="attention_mask: padding before a token"):
        model(ids, left)
    with pytest.raises(hopweave.ShapeError, match=r"attention_mask: shape \[2, 19\]"):
        model(ids, left[:, 1:])
    with pytest.raises(hopweave.ShapeError, match="input_ids: 129 tokens; expected at most 128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="hidden_size"):
        DiffuserConfig(hidden_size=100)
