"""Attention rollout against answers by hand, on nets that attend as they are told; and the small transformer itself."""

import pytest
import torch
from conftest import random_data, tiny_study
from torch import nn

from roarlib.engine import estimators, models, rank, train
from roarlib.engine.transformers import places, rollout
from roarlib.study.params import InputError

FIRST = [[0.5, 0.2, 0.1, 0.1, 0.1], [0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2], [1, 0, 0, 0, 0]]
SECOND = [[0.2, 0.4, 0, 0.4, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0.5, 0, 0, 0.5, 0]]


class Told(nn.MultiheadAttention):
    """Two heads that attend as told: their mean is the given matrix, whatever the input."""

    def __init__(self, weights):
        super().__init__(4, 2, batch_first=True)
        self.told = torch.tensor(weights)

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, average_attn_weights=False):
        assert need_weights and average_attn_weights and self.told.shape == 2 * query.shape[1:2]
        return query, self.told.expand(len(query), -1, -1)


class Attending(nn.Module):
    """A net of such layers, called as torchvision calls them: without weights, by keyword or by position."""

    def __init__(self, *layers, tokens=5, pooled=lambda tokens: tokens[:, 0]):
        super().__init__()
        self.pooled = pooled
        self.layers, self.tokens = nn.ModuleList(Told(weights) for weights in layers), tokens

    def forward(self, x):
        tokens = x.mean((1, 2, 3))[:, None, None].expand(-1, self.tokens, 4)
        for i, layer in enumerate(self.layers):
            out = layer(tokens, tokens, tokens, None, False) if i else layer(tokens, tokens, tokens, need_weights=False)
            tokens = out[0]
        return self.pooled(tokens)


class Pooling(Attending):
    """Its last layer asks for the class token alone."""

    def __init__(self):
        super().__init__(FIRST)
        self.last = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        super().forward(x)
        return self.last(x.new_zeros(len(x), 1, 4), *[x.new_zeros(len(x), 5, 4)] * 2)[0]


def rolled(model, size=(2, 2)):
    return rollout(model, torch.randn(3, 3, *size), torch.zeros(3, dtype=torch.int64))


def test_two_layers_by_hand():
    """The class token's row: half of SECOND's first, (.6, .2, 0, .2, 0), through half of FIRST and half of nothing."""
    found = rolled(Attending(FIRST, SECOND))
    assert found.shape == (3, 1, 2, 2)
    # patch 1: (.6 x .2 + .2 x 1 + .2 x .2 + .2) / 2, patch 2: (.6 x .1 + .2 x .2) / 2 ..
    by_hand = torch.tensor([[0.28, 0.05], [0.15, 0.05]])
    torch.testing.assert_close(found, by_hand.expand(3, 1, 2, 2))


def test_without_a_class_token_the_mean_row_counts():
    weights = [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0.5, 0.5, 0]]
    found = rolled(Attending(weights, tokens=4, pooled=lambda tokens: tokens.mean(1)))
    by_hand = torch.tensor([[1.1 + 1, 0.7 + 1], [0.8 + 1, 1.4 + 1]]) / 8  # columns' sums, and the residual path
    torch.testing.assert_close(found, by_hand.expand(3, 1, 2, 2))


def test_patches_are_placed_row_by_row_and_interpolated():
    """One layer, images of 4 x 8 px: two patches, the second of which gets three times as much."""
    weights = [[0.0, 0.25, 0.75], [0, 1, 0], [0, 0, 1]]
    found = rolled(Attending(weights, tokens=3), (4, 8))
    row = torch.tensor([0.125, 0.125, 0.15625, 0.21875, 0.28125, 0.34375, 0.375, 0.375])
    torch.testing.assert_close(found, row.expand(3, 1, 4, 8))


def test_what_the_logits_read_is_where_rollout_begins():
    """A class token behind the patches; one in front that is not read, patches are; and what cannot be placed.

    Also where logits sum to a constant, and where a patch happens not to be read.
    """
    weights = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0.5, 0.2, 0.1, 0.1, 0.1]]
    for pooled in (lambda tokens: tokens[:, -1], lambda tokens: tokens[:, -1] * torch.tensor([1.0, 1, -1, -1])):
        found = rolled(Attending(weights, pooled=pooled))
        torch.testing.assert_close(found, torch.tensor([[0.25, 0.1], [0.05, 0.05]]).expand(3, 1, 2, 2))
    for pooled in (lambda tokens: tokens[:, 1:].mean(1), lambda tokens: tokens[:, [1, 2, 4]].mean(1)):
        found = rolled(Attending(FIRST, pooled=pooled))
        by_hand = torch.tensor([[1 + 1 + 0.5 + 0.2, 0.5 + 1 + 0.2], [0.2 + 1, 0.2 + 1]]) / 8  # columns, but the token's
        torch.testing.assert_close(found, by_hand.expand(3, 1, 2, 2))
    for pooled in (lambda tokens: tokens.mean(1), lambda tokens: tokens[:, 2]):
        with pytest.raises(InputError, match="rollout needs logits that read a class token"):
            rolled(Attending(FIRST, pooled=pooled))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_rollout_of_a_frozen_backbone_and_of_batches_second(batch_first, frozen):
    """Where no gradient tells what is read, it is taken for a class token in front; else the last token counts here."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self.patches(x).flatten(2).transpose(1, 2)
                x = torch.cat([x.mean(1, keepdim=True), x], 1)
                x = x if batch_first else x.transpose(0, 1)
                x = self.attention(x, x, x, need_weights=False)[0]
            return self.head((x if batch_first else x.transpose(0, 1))[:, 0 if frozen else -1])

    model, images = Net().eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        x = model.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x if batch_first else x.transpose(0, 1)
        attention = model.attention(x, x, x)[1] / 2
        row = attention[:, 0, 1:] if frozen else attention[:, -1, :-1]
    wanted = nn.functional.interpolate(row.reshape(3, 1, 2, 2), (8, 8), mode="bilinear")
    torch.testing.assert_close(rollout(model, images, None), wanted)


def explicit(model, images):
    """Rollout of vit-tiny by the definition: attention from queries and keys, whole matrices, in float64."""
    x = model.patches(images)
    x = (x + places(x)).flatten(2).transpose(1, 2)
    x = torch.cat([model.token.expand(len(x), 1, -1), x], 1)
    total = torch.eye(x.shape[1], dtype=x.dtype)
    for layer in model.layers:
        query, key, _ = layer.self_attn.in_proj_weight.chunk(3)
        q_bias, k_bias, _ = layer.self_attn.in_proj_bias.chunk(3)
        normed = layer.norm1(x)
        q, k = ((normed @ w.T + b).unflatten(2, (4, 16)).transpose(1, 2) for w, b in ((query, q_bias), (key, k_bias)))
        attention = (q @ k.transpose(2, 3) / 4).softmax(3).mean(1)
        total = (0.5 * attention + 0.5 * torch.eye(x.shape[1], dtype=x.dtype)) @ total
        x = layer(x)
    return total[:, 0, 1:].unflatten(1, (-1, images.shape[3] // 4))


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_rollout_of_vit_tiny_by_the_definition(size):
    torch.manual_seed(0)
    model, images = models.build("vit-tiny", 5, (3, *size)).double().eval(), torch.randn(2, 3, *size).double()
    found = rollout(model, images, torch.tensor([0, 1]))
    wanted = nn.functional.interpolate(explicit(model, images)[:, None], size, mode="bilinear")
    torch.testing.assert_close(found, wanted)
    assert found.std((2, 3)).min() > 0 and found.dtype == torch.float64


def test_rollout_of_torchvisions_and_under_autocast():
    model = models.build("vit_b_32", 4, (3, 64, 64)).eval()
    found = rollout(model, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        half = rollout(model, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert found.shape == half.shape == (2, 1, 64, 64) and found.dtype == half.dtype == torch.float32
    assert 0 < found.min() and half.isfinite().all()


def hooks_of(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_hooks_are_gone_whatever_happens():
    model = models.build("vit-tiny", 4, (3, 8, 8)).eval()
    before = model(torch.ones(1, 3, 8, 8))
    rolled(model, (8, 8))
    assert not hooks_of(model) and torch.equal(model(torch.ones(1, 3, 8, 8)), before)
    with pytest.raises(RuntimeError):
        rollout(model, torch.zeros(2, 7, 8, 8), None)
    assert not hooks_of(model)


@pytest.mark.parametrize("name", ["swin_t", "resnet-tiny"])
def test_networks_without_such_attention_are_refused(name):
    model = models.build(name, 4, (3, 32, 32)).eval()
    with pytest.raises(InputError, match=f"rollout found no nn.MultiheadAttention in {type(model).__name__}"):
        rolled(model, (32, 32))


def test_timms_fused_attention_is_refused():
    pytest.importorskip("timm", reason="TRANSFORMERS OF TIMM NOT TESTED: the package timm is missing")
    with pytest.raises(InputError, match="not Swin, timm's transformers"):
        rolled(models.build("timm:vit_tiny_patch16_224", 4, (3, 32, 32)).eval(), (32, 32))


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(InputError, match="rollout cannot place 5 tokens on images of 4 x 8 px"):
        rolled(Attending(FIRST), (4, 8))
    with pytest.raises(InputError, match="attention of the same tokens in all layers"):
        rolled(Pooling())


def test_places_differ_and_rows_are_told_from_columns():
    found = places(torch.zeros(1, 64, 8, 16))
    flat = found.flatten(1).T
    assert found.shape == (64, 8, 16) and (torch.cdist(flat, flat) + torch.eye(128)).min() > 0.1
    torch.testing.assert_close(found[:16, 3, 0], (3 * 100 ** -torch.linspace(0, 1, 16)).sin())
    assert (found[:32, :, 5] == found[:32, :, 0]).all() and (found[32:, 5] == found[32:, 0]).all()


class Biased(nn.Module):
    """As Swin V2: GELU on the way, and a ReLU that makes positions out of weights alone."""

    def __init__(self):
        super().__init__()
        self.bias, self.conv = nn.Parameter(torch.ones(4)), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (nn.functional.gelu(self.conv(x)).mean((2, 3)) + 1) * torch.relu(self.bias)


def test_gb_counts_relus_between_images_and_logits_only():
    with pytest.raises(InputError, match="gb found no ReLU to guide in Biased"):
        estimators.gb(Biased(), torch.randn(1, 3, 8, 8), torch.tensor([0]))


def test_vit_tiny_is_trained_stored_and_explained(outputs):
    study, data = tiny_study(model="vit-tiny", optimiser="adamw", learning_rate=1e-3, batch_size=5), random_data()
    train.save_base(study, data, train.train(study, data, 0))
    model, predictions = train.load_base(study, data)
    explainer = rank.Explainer(study, data, model, predictions)
    found = explainer.scores("test", slice(0, 3), ["grad", "ig"])
    x = explainer._images("test", slice(0, 3)).requires_grad_()
    logits = model(x).gather(1, torch.from_numpy(predictions["test"][:3, None]))
    torch.testing.assert_close(found["grad"], torch.autograd.grad(logits.sum(), x)[0], rtol=1e-4, atol=1e-6)
    assert found["ig"].abs().sum() > 0
