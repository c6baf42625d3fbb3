"""The masked autoencoder: sizes, masking, missing parcels, embeddings."""

from __future__ import annotations

import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import small_model

from brainlm.config import PresetName, Pretrain
from brainlm.errors import BrainLMError
from brainlm.model import BrainLM, BrainLMConfig, preset
from brainlm.model.masking import Masking
from brainlm.model.presets import PATCH, PRESETS
from brainlm.shards import Scaling
from brainlm.training.schedule import make_optimizers

POINTS = np.random.default_rng(0).uniform(-60, 60, (24, 3))


def small(name="tiny", *, family="parcel", **options):
    torch.manual_seed(0)
    options = {"num_parcels": 24, "window": 40, "patch": 10, "coordinates": POINTS} | options
    return (
        small_model("image", **options) if family == "image" else preset(name, **options)
    ).eval()


def signal(batch=3):
    return torch.randn(batch, 24, 40, generator=torch.Generator().manual_seed(1))


def by_hand(c, patch_values):
    """Parameters from the definition, written out."""

    def stack(depth, d, ffn):
        return depth * (4 * d * d + 4 * d + 2 * d * ffn + d + ffn + 4 * d)

    d, e = c.width, c.decoder_width
    total = patch_values * d + d + d + stack(c.depth, d, c.ffn) + 2 * d  # project, CLS, norm
    total += d * e + e + e + stack(c.decoder_depth, e, c.decoder_ffn) + 2 * e  # embed, mask token
    if c.family == "image":
        return total + e * patch_values + patch_values
    total += (e * (e // 2) + e // 2) + (e // 2 * patch_values + patch_values)
    return total + c.num_parcels * (d + e) + 4 * (d // 2) + 4 * (e // 2)  # places of parcels


@pytest.mark.parametrize(("name", "grid", "parameters"), [
    ("tiny", (424, 10), 196_596), ("13m", (424, 10), 13_465_876),
    ("111m", (27, 13), 110_999_808), ("650m", (27, 13), 656_018_688),
    # upstream's counts, less an unused projection, or two of three equal image channels
    ("old_13M", (424, 10), 13_429_292 - 768 * (512 + 1)),
    ("vitmae_111M", (27, 27), 111_655_680 - 2 * 16**2 * (768 + 512 + 1)),
    ("vitmae_650M", (31, 31), 656_613_964 - 2 * 14**2 * (1280 + 512 + 1)),
])  # fmt: skip
def test_preset_sizes(name, grid, parameters):
    assert set(PRESETS) == set(typing.get_args(PresetName))
    points = torch.zeros(424, 3)
    with torch.device("meta"):
        model = BrainLM(preset_config(name, points), points)
    assert model.num_tokens == grid[0] * grid[1]
    assert sum(p.numel() for p in model.parameters()) == parameters
    if name in ("tiny", "13m", "111m", "650m"):
        assert by_hand(model.config, model.grid.values) == parameters


def preset_config(name, points):
    settings = {"patch": PATCH[PRESETS[name]["family"]], **PRESETS[name]}
    return BrainLMConfig(
        num_parcels=424, window=200, preset=name, has_coordinates=True, **settings
    )


def test_published_forms_need_coordinates_and_a_window_that_fits():
    with pytest.raises(BrainLMError, match="coordinates alone"):
        small("old_13M", coordinates=None)
    with pytest.raises(BrainLMError, match="432 × 432"):
        preset("vitmae_111M", num_parcels=500, window=200)


@pytest.mark.parametrize("asked", [None, "visible", "all"])
def test_the_decoders_context_can_be_asked_for(asked):
    model, x = small(decoder_context=asked), signal()
    assert model.config.decoder_context == (asked or "visible")
    noise = torch.rand(3, model.num_tokens)
    seen = []
    model.decoder.blocks[0].register_forward_hook(lambda m, inputs, out: seen.append(inputs[1:]))
    model(x, noise=noise)
    assert seen == [() if asked == "all" else (1 + model.num_tokens // 4,)]


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_shapes_and_fields(family):
    model, x = small(family=family), signal()
    out = model(x, mask_ratio=0.5)
    assert out.prediction.shape == x.shape
    assert out.pixel_mask.shape == x.shape
    assert out.pixel_mask.dtype == torch.bool
    hidden = int(model.num_tokens * 0.5)
    assert (out.mask.sum(1) == model.num_tokens - hidden).all()
    assert out.latent.shape == (3, 1 + hidden, model.config.width)
    error = ((out.prediction - x) / out.unit)[out.pixel_mask].square().mean()
    assert torch.allclose(out.loss, error, rtol=1e-5)


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_cut_and_paste_are_inverse(family):
    grid, x = small(family=family).grid, signal()
    patches, known, missing = grid.cut(x)
    assert torch.equal(grid.paste(patches), x)
    assert not missing.any()
    assert grid.paste(known).all()


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_hidden_values_are_not_seen(family):
    model, x = small(family=family), signal()
    noise = torch.rand(3, model.num_tokens)
    first = model(x, noise=noise)
    changed = x.clone()
    changed[first.pixel_mask] = 100.0
    second = model(changed, noise=noise)
    assert torch.equal(first.prediction, second.prediction)


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_missing_parcels_neither_seen_nor_judged(family):
    model, x = small(family=family), signal()
    x[1, :5] = torch.nan
    out = model(x, generator=torch.Generator().manual_seed(0))
    assert not out.pixel_mask[1, :5].any()
    assert out.loss.isfinite()
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if family == "parcel":  # whole tokens are missing: none reaches the encoder
        tokens = out.mask.view(3, 24, 4)
        assert tokens[1, :5].all()


def test_embedding_does_not_depend_on_the_batch():
    model, x = small(), signal()
    x[1, :5] = torch.nan
    together = model.embed(x)
    alone = torch.cat([model.embed(x[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(together, model.train().embed(x))  # evaluation mode, deterministic
    assert model.training
    assert model.embed(x, pool="mean").shape == (3, 64)


def test_pooling_by_connectivity_is_the_correlation_of_the_parcels_tokens():
    model, x = small(), signal()
    x[1, :5] = torch.nan
    z = model.embed(x, pool="connectivity")
    assert z.shape == (3, 24 * 23 // 2)
    latent = model(x[:1], mask_ratio=0.0, noise=torch.arange(96.0)[None]).latent[0, 1:]
    mine = latent.detach().reshape(24, -1).double().numpy()
    r = np.corrcoef(mine - mine.mean(0))[np.triu_indices(24, 1)]
    np.testing.assert_allclose(z[0].numpy(), np.arctanh(r.clip(-0.999, 0.999)), atol=1e-4)
    alone = torch.cat([model.embed(x[i : i + 1], pool="connectivity") for i in range(3)])
    torch.testing.assert_close(z, alone, equal_nan=True)
    first, second = np.triu_indices(24, 1)
    assert np.array_equal(z[1].isnan().numpy(), (first < 5) | (second < 5))
    assert not z[[0, 2]].isnan().any()
    x[1, :5] = 1.0
    x[1, :5, 20:] = torch.nan  # a parcel of which half is missing cannot be compared either
    half = model.embed(x, pool="connectivity")
    assert torch.equal(half.isnan(), z.isnan())
    torch.testing.assert_close(half[[0, 2]], z[[0, 2]])


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_tokens_are_all_that_is_known_in_raster_order(family):
    model, x = small(family=family), signal()
    whole = model.train().tokens(x)
    assert model.training
    N, D = model.num_tokens, model.config.width
    assert whole.values.shape == (3, N, D) and whole.known.all()
    raster = torch.arange(float(N)).expand(3, -1)
    latent = model.eval()(x, mask_ratio=0.0, noise=raster).latent
    torch.testing.assert_close(torch.cat([whole.cls[:, None], whole.values], 1), latent)
    hole = x.clone()
    hole[1, :16], hole[2, :, 30:], hole[0, 20] = torch.nan, torch.nan, torch.nan
    tokens = model.tokens(hole)
    if family == "parcel":
        assert tokens.known.sum(1).tolist() == [N - 4, N - 16 * 4, N - 24]
    assert (tokens.values[~tokens.known] == 0).all()
    filled = hole.nan_to_num(99.0)  # a token of the parcel family is wholly there or not at all
    for i in range(3):
        alone = model.tokens(hole[i : i + 1])
        torch.testing.assert_close(alone.values[0], tokens.values[i])
        if family == "parcel":
            masking = Masking.show(tokens.known[i : i + 1], int(tokens.known[i].sum()))
            latent = model(filled[i : i + 1], masking).latent[0]
            torch.testing.assert_close(latent[1:], tokens.values[i][tokens.known[i]])
            torch.testing.assert_close(latent[0], tokens.cls[i])
    mean = torch.stack([v[k].mean(0) for v, k in zip(tokens.values, tokens.known, strict=True)])
    torch.testing.assert_close(model.embed(hole, pool="mean"), mean)


def test_the_end_of_a_clip_that_is_too_short_is_missing_for_all_parcels_alike():
    model, x = small(), signal()
    x[0, :, 20:] = torch.nan
    z = model.embed(x, pool="connectivity")
    assert not z.isnan().any()
    values = model.tokens(x).values[0].view(24, 4, -1)[:, :2].flatten(1).double().numpy()
    r = np.corrcoef(values - values.mean(0))[np.triu_indices(24, 1)]
    np.testing.assert_allclose(z[0], np.arctanh(r.clip(-0.999, 0.999)), atol=1e-4)


def test_a_window_without_any_data_has_no_summary():
    model, x = small(), signal()
    x[1] = torch.nan
    assert model.embed(x, pool="mean").isnan().all(1).tolist() == [False, True, False]
    assert model.embed(x, pool="connectivity").isnan().all(1).tolist() == [False, True, False]


def test_components_tell_of_connectivity_what_its_leading_patterns_can():
    config = replace(small().config, components=6)
    torch.manual_seed(1)
    model, whole = (BrainLM(replace(config, components=k), POINTS).eval() for k in (6, 24))
    whole.load_state_dict(model.state_dict() | {"components": whole.components})
    mix = torch.randn(24, 30)
    for each in (model, whole):
        each.start_parcels(mix @ mix.T)
    basis = torch.linalg.eigh(mix @ mix.T).eigenvectors.flip(1)
    torch.testing.assert_close((model.components.T @ basis[:, :6]).abs(), torch.eye(6),
                               atol=1e-3, rtol=0)  # fmt: skip
    x = signal()
    rows, columns = torch.triu_indices(24, 24, 1)
    matrix = torch.eye(24).repeat(len(x), 1, 1)
    matrix[:, rows, columns] = model.embed(x, pool="connectivity").tanh()
    matrix[:, columns, rows] = matrix[:, rows, columns]
    told = model.components.T @ matrix @ model.components
    made = model.embed(x, pool="components")
    assert made.shape == (len(x), 21)
    up = torch.triu_indices(6, 6)
    scale = torch.where(up[0] == up[1], 1.0, 2**0.5)
    torch.testing.assert_close(made, told[:, up[0], up[1]] * scale, atol=1e-4, rtol=1e-4)
    every = whole.embed(x, pool="components")  # as many patterns as parcels: nothing is lost
    torch.testing.assert_close((every[0] - every[1]).norm(), (matrix[0] - matrix[1]).norm(),
                               atol=1e-3, rtol=1e-3)  # fmt: skip
    x[0, 3] = torch.nan  # left out
    holed, kept = model.embed(x, pool="components"), torch.arange(24) != 3
    z = model.embed(x, pool="connectivity")[0]
    matrix[0, rows, columns] = z.tanh()
    matrix[0, columns, rows] = matrix[0, rows, columns]
    part, axes = matrix[0][kept][:, kept], model.components[kept]
    torch.testing.assert_close(holed[0], (axes.T @ part @ axes)[up[0], up[1]] * scale,
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    x[1] = torch.nan
    assert model.embed(x, pool="components").isnan().all(1).tolist()[:2] == [False, True]


def test_a_model_without_components_says_so():
    with pytest.raises(BrainLMError, match="carries no spatial components"):
        BrainLM(replace(small().config, components=0), POINTS).embed(signal(), pool="components")


def test_pooling_by_connectivity_leaves_out_whole_time_steps():
    """What is left out is left out in all parcels: as if the window had not had it."""
    model, x = small(), signal()
    noise = torch.rand(3, 96, generator=torch.Generator().manual_seed(2))
    half = model.summarise(x, "connectivity", noise, mask_ratio=0.5)
    gone = noise[:, :4].argsort(1)[:, 2:]
    for i in range(3):
        for step in gone[i]:
            x[i, :, 10 * step : 10 * step + 10] = 77.0
    torch.testing.assert_close(model.summarise(x, "connectivity", noise, mask_ratio=0.5), half)


def test_pooling_by_connectivity_needs_a_token_per_parcel():
    with pytest.raises(BrainLMError, match="pool: mean or cls"):
        small(family="image").embed(signal(), pool="connectivity")


def of_places(**options):
    """A model that knows parcels by their coordinates alone, and a scaling for each atlas."""
    model = small(learned_parcels=False, coordinates=POINTS, **options).eval()
    return model, lambda n: Scaling(np.zeros(n), np.ones(n), f"of{n}", "b" * 64, 1.0, 3)


def test_another_atlas_is_other_places():
    """Parcels in another order are the same; those that an atlas lacks are missing ones."""
    (model, scaling), x = of_places(), signal()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    turned = model.on_atlas(POINTS[order], scaling(24))
    values = model.tokens(x).values.unflatten(1, (24, 4))
    torch.testing.assert_close(turned.tokens(x[:, order]).values.unflatten(1, (24, 4)),
                               values[:, order], atol=1e-5, rtol=1e-4)  # fmt: skip
    few = model.on_atlas(POINTS[:7], scaling(7))
    assert few.config.num_parcels == 7 and few.scaling.atlas == "of7"
    lacking = x.clone()
    lacking[:, 7:] = torch.nan
    torch.testing.assert_close(few.embed(x[:, :7]), model.embed(lacking), atol=1e-5, rtol=1e-4)
    many = model.on_atlas(np.concatenate([POINTS, POINTS + 3]), scaling(48))
    assert many(torch.randn(2, 48, 40)).prediction.shape == (2, 48, 40)


@pytest.mark.parametrize("options", [{}, {"family": "image"}])
def test_a_model_that_knows_more_than_places_takes_no_other_atlas(options):
    _, scaling = of_places()
    model = small(**{"coordinates": POINTS, **options})
    with pytest.raises(BrainLMError, match="learned_parcels: false"):
        model.on_atlas(POINTS[:7], scaling(7))


def test_places_alone_need_coordinates():
    with pytest.raises(BrainLMError, match="this atlas has none"):
        preset("tiny", num_parcels=6, window=40, patch=10, learned_parcels=False)
    with pytest.raises(BrainLMError, match="presets with a token per parcel"):
        preset("111m", num_parcels=6, window=40, learned_parcels=False)
    model, scaling = of_places()
    model.scaling = replace(scaling(24), sample_period_s=2.0)
    with pytest.raises(BrainLMError, match="every 1 s, the model of 2 s"):
        model.on_atlas(POINTS[:7], scaling(7))


def test_nothing_masked_is_loss_zero():
    assert small()(signal(), mask_ratio=0.0).loss.item() == 0


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_future_mask_hides_the_last_points(family):
    out = small(family=family)(signal(), mask="future", mask_ratio=0.25)
    assert out.pixel_mask[..., -10:].all()
    assert not out.pixel_mask[..., :-10].any()


def test_training_decodes_a_share_and_evaluation_all():
    model, x = small(), signal()
    every = model(x).count
    some = model.train()(x).count
    assert some == every * 0.25 // 10 * 10 or abs(some / every - 0.25) < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.data())
def test_masking_restores(tokens, data):
    visible = data.draw(st.integers(1, tokens))
    noise = torch.rand(2, tokens)
    masking = Masking.draw(noise, visible)
    assert (masking.mask.sum(1) == tokens - visible).all()
    x = torch.arange(tokens, dtype=torch.float32).expand(2, -1)[..., None]
    kept = masking.keep(x)[..., 0].long()
    assert torch.equal(masking.mask.gather(1, kept), torch.zeros(2, visible, dtype=torch.bool))
    limit = noise.sort(1).values[:, visible - 1 : visible]
    assert torch.equal(masking.mask, noise > limit)


def test_errors_say_what_to_do():
    with pytest.raises(BrainLMError, match="multiple of patch"):
        small(window=41)
    with pytest.raises(BrainLMError, match="tiny, 13m, 111m, 650m"):
        small("large")
    with pytest.raises(BrainLMError, match=r"\(24, 3\)"):
        small(coordinates=POINTS[:5])
    with pytest.raises(BrainLMError, match="random, future"):
        small()(signal(), mask="past")
    with pytest.raises(BrainLMError, match="no head"):
        small().predict(signal())
    with pytest.raises(BrainLMError, match="cls, mean"):
        small().embed(signal(), pool="max")


def test_same_as_vitmae_of_transformers():
    """Image family against an independent implementation, same weights, same grid."""
    transformers = pytest.importorskip("transformers")
    from brainlm.model.mae import BrainLMConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64}  # fmt: skip
    config = transformers.ViTMAEConfig(image_size=32, patch_size=8, num_channels=1,
                                       layer_norm_eps=1e-6, **size)  # fmt: skip
    peer = transformers.ViTMAEForPreTraining(config).eval()
    ours = BrainLM(BrainLMConfig(
        family="image", num_parcels=32, window=32, patch=8, patch_parcels=8, width=32, depth=2,
        heads=4, ffn=64, decoder_width=32, decoder_depth=1, decoder_heads=4, decoder_ffn=64,
    )).eval()  # fmt: skip
    from brainlm.model.published import rename

    weights = rename(_published_names(peer.state_dict()), "image")
    ours.load_state_dict({**weights, "coordinates": ours.coordinates})
    table = torch.cat([torch.zeros(1, 32), ours.positions.table[0]])[None]
    with torch.no_grad():  # transformers 5 leaves its tables at zero until weights are loaded
        peer.vit.embeddings.position_embeddings.copy_(table)
        peer.decoder.decoder_pos_embed.copy_(table)
    x, noise = torch.randn(2, 32, 32), torch.rand(2, 16)
    expected = peer(x[:, None], noise=noise)
    found = ours(x, noise=noise)
    assert torch.allclose(found.loss, expected.loss, atol=1e-5)


def _published_names(weights):
    """Names of transformers 5 to those of the published files (transformers 4)."""
    pairs = [("vit.layers.", "vit.encoder.layer."), ("decoder.layers.", "decoder.decoder_layers."),
             ("decoder.blocks.", "decoder.decoder_layers."),
             ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
             ("mlp.fc2", "output.dense")]  # fmt: skip
    pairs += [(f"attention.{x[0]}_proj", f"attention.attention.{x}")
              for x in ("query", "key", "value")]  # fmt: skip
    out = {}
    for key, value in weights.items():
        for new, old in pairs:
            key = key.replace(new, old)
        out[key] = value
    return out


def test_head_standardises_by_its_training_set():
    from brainlm.model import PredictionHead

    torch.manual_seed(0)
    head, summaries = PredictionHead(8, 4).eval(), 5 + 0.01 * torch.randn(50, 8)
    before = head(summaries)
    head.fit_scale(summaries)
    plain = torch.nn.Sequential(*head)
    inner = plain((summaries - summaries.mean(0)) / summaries.std(0, correction=0))
    assert torch.allclose(head(summaries), inner, atol=1e-3)
    assert head(summaries).std() > before.std()
    gaps = summaries.clone()
    gaps[::2, 3] = torch.nan  # a value that is missing counts as the mean of those that are not
    head.fit_scale(gaps)
    filled = torch.where(gaps.isnan(), gaps[1::2, 3].mean(), gaps)
    assert torch.allclose(head(gaps), head(filled), atol=1e-4)
    head.fit_scale(torch.ones(3, 8))  # no spread at all is no division by zero
    assert head(torch.ones(1, 8)).isfinite().all()
    wide = PredictionHead(20_000, 32)
    assert wide(torch.randn(9, 20_000)).abs().mean() < 1  # however wide the summary is


@pytest.mark.parametrize(("name", "grid"), [("13m", (424, 10)), ("111m", (27, 13))])
def test_patches_by_default(name, grid):
    from brainlm.model import preset

    with torch.device("meta"):
        model = preset(name, num_parcels=424, window=200)
    assert model.num_tokens == grid[0] * grid[1]


@pytest.mark.parametrize("family", ["parcel", "image"])
def test_with_gain_the_unit_of_the_signal_does_not_matter(family):
    model = small(family=family)
    x = signal()
    x[1, 5] = torch.nan
    options = {"mask_ratio": 0.5, "noise": torch.rand(3, model.num_tokens)}
    one, other = model(x, **options), model(7 * x, **options)
    torch.testing.assert_close(other.prediction, 7 * one.prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.error_sum, one.error_sum, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.embed(7 * x), model.embed(x), rtol=1e-4, atol=1e-5)
    seen = torch.where(one.pixel_mask | x.isnan(), 0.0, x)
    if family == "parcel":  # of the values that the encoder sees, nothing hidden
        count = (~one.pixel_mask & ~x.isnan()).sum((1, 2))
        rms = (seen.square().sum((1, 2)) / count).sqrt()
        torch.testing.assert_close(one.unit.flatten(), rms)
    hidden = torch.where(one.pixel_mask, 100 * x, x)
    torch.testing.assert_close(model(hidden, **options).prediction, one.prediction)


def test_a_window_without_any_visible_signal_stays_finite():
    out = small()(torch.zeros(2, 24, 40), mask_ratio=0.5)
    assert torch.isfinite(out.prediction).all() and torch.isfinite(out.loss)


def test_muon_learns_the_matrices_of_the_blocks_and_adamw_all_else():
    model = small()
    muon, adamw = make_optimizers(model, Pretrain().of_preset("tiny"))
    names = {id(p): name for name, p in model.named_parameters()}
    learnt = [names[id(p)] for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert sorted(learnt) == sorted(names.values())
    of_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert of_muon == {name for name, p in model.named_parameters()
                       if p.ndim == 2 and ".weight" in name
                       and name.startswith(("encoder.", "decoder.blocks."))}  # fmt: skip
    assert len(make_optimizers(model, Pretrain(optimizer="adamw").of_preset("tiny"))) == 1


@pytest.mark.parametrize("coordinates", [False, True])
def test_parcels_start_where_their_inner_products_are_their_correlations(coordinates):
    random = torch.Generator().manual_seed(3)
    mix = torch.randn(24, 8, generator=random)  # eight components: fewer than the width
    covariance = torch.outer(torch.arange(1.0, 25), torch.arange(1.0, 25)) * (mix @ mix.T)
    points = 60 * torch.randn(24, 3, generator=random) if coordinates else None
    model = preset("tiny", num_parcels=24, window=40, patch=10, coordinates=points)
    model.start_parcels(covariance)
    size = covariance.diagonal().sqrt()
    for positions in (model.positions, model.decoder.positions):
        products = positions.parcel @ positions.parcel.T
        torch.testing.assert_close(products / products[0, 0], covariance / size / size[:, None],
                                   atol=1e-4, rtol=1e-4)  # fmt: skip
    image = small("111m", family="image")
    before = {name: value.clone() for name, value in image.state_dict().items()}
    image.start_parcels(covariance)  # knows no parcels: nothing to begin with
    assert all(torch.equal(before[name], value) for name, value in image.state_dict().items())
