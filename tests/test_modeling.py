import pytest
import torch
from tiny import randomized, tiny_config
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from simclr_hub import (
    Embedder,
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRImageProcessor,
    SimCLRModel,
)


def test_outputs_have_the_contracts_shapes(tiny_model):
    out = tiny_model(torch.rand(2, 3, 64, 64), output_projections=True, output_hidden_states=True)
    assert out.last_hidden_state.shape == (2, 256, 2, 2)
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state.mean((2, 3)))
    assert [z.shape for z in out.projections] == [(2, 256), (2, 128)]
    assert [m.shape[1:] for m in out.hidden_states] == [
        (8, 16, 16),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
    ]
    plain = tiny_model(torch.rand(2, 3, 64, 64))
    assert plain.projections is None and plain.hidden_states is None
    assert isinstance(tiny_model(torch.rand(2, 3, 64, 64), return_dict=False), tuple)


def test_the_width_of_g_apart_from_hs(tmp_path):
    config = tiny_config(projection_layers=3, projection_hidden_dim=24, projection_dim=8, classifier_layer=2)
    out = SimCLRModel(config).eval()(torch.rand(2, 3, 64, 64), output_projections=True)
    assert [z.shape[1] for z in out.projections] == config.projection_sizes == [24, 24, 8]
    classifier = SimCLRForImageClassification(config)
    assert classifier.classifier.in_features == 24
    classifier.save_pretrained(tmp_path)
    loaded = SimCLRModel.from_pretrained(tmp_path)
    assert loaded.config.projection_hidden_dim == 24
    assert [Embedder(loaded, layer=layer).dim for layer in ("h", "g1", "z")] == [256, 24, 8]
    assert tiny_config(projection_layers=3).projection_sizes == [256, 256, 128]
    assert tiny_config(projection_layers=0).projection_sizes == []


def test_training_starts_as_the_official_code_does():
    torch.manual_seed(0)
    model = SimCLRModel(SimCLRConfig.v2(50, width_multiplier=0.25, selective_kernel=True))
    for name, p in model.named_parameters():
        if name.endswith("convolution.weight"):
            sigma = p[0].numel() ** -0.5
            assert p.std().item() == pytest.approx(sigma, rel=0.1), name
            assert p.abs().max() <= 2 * sigma / 0.8796 + 1e-6, name
        elif name.endswith("dense.weight"):
            assert p.std().item() == pytest.approx(0.01, rel=0.05), name
    block = model.encoder.stages[0][1]
    assert (block.layers[-1].normalization.weight == 0).all()
    assert (block.layers[0].normalization.weight == 1).all()
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(block(x), x.relu())  # a new block is its shortcut


def test_last_layer_of_g_has_no_beta(tiny_model):
    first, last = tiny_model.projection.layers
    assert first.normalization.bias is not None and last.normalization.bias is None


def test_stems():
    x = torch.rand(1, 3, 32, 32)
    for stem, side in (("imagenet", 8), ("cifar", 32), ("small", 16)):
        model = SimCLRModel(tiny_config(stem_type=stem)).eval()
        assert model(x, output_hidden_states=True).hidden_states[0].shape == (1, 8, side, side), stem


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_classifier_sits_on_the_layer_that_the_config_names(layer):
    model = randomized(SimCLRForImageClassification(tiny_config(num_labels=5, classifier_layer=layer)))
    x = torch.rand(3, 3, 64, 64)
    features = model.simclr(x, output_projections=True)
    below = [features.pooler_output, *features.projections][layer]
    expected = below @ model.classifier.weight.T + model.classifier.bias
    out = model(x, labels=torch.tensor([0, 4, 2]))
    torch.testing.assert_close(out.logits, expected)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 4, 2])))


def test_backbone_gives_the_chosen_maps(tiny_dir):
    backbone = SimCLRBackbone.from_pretrained(tiny_dir, out_features=["stage2", "stage4"])
    maps = backbone(torch.rand(1, 3, 64, 64)).feature_maps
    assert [m.shape for m in maps] == [(1, 64, 8, 8), (1, 256, 2, 2)]
    assert backbone.channels == [64, 256]


def test_parts_load_from_each_others_checkpoints(tiny_model, tiny_dir, tmp_path):
    x = torch.rand(2, 3, 64, 64)
    h = tiny_model(x).pooler_output
    classifier = SimCLRForImageClassification.from_pretrained(tiny_dir, num_labels=3).eval()
    torch.testing.assert_close(classifier.simclr(x).pooler_output, h, rtol=0, atol=0)
    classifier.save_pretrained(tmp_path)
    torch.testing.assert_close(SimCLRModel.from_pretrained(tmp_path).eval()(x).pooler_output, h, rtol=0, atol=0)
    backbone = SimCLRBackbone.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(backbone(x).feature_maps[-1].mean((2, 3)), h, rtol=0, atol=0)
    headless = SimCLRModel.from_pretrained(tiny_dir, projection_layers=0).eval()
    torch.testing.assert_close(headless(x).pooler_output, h, rtol=0, atol=0)


def test_auto_classes(tiny_dir, tiny_model):
    assert isinstance(AutoConfig.from_pretrained(tiny_dir), SimCLRConfig)
    assert isinstance(AutoModel.from_pretrained(tiny_dir), SimCLRModel)
    assert isinstance(AutoImageProcessor.from_pretrained(tiny_dir), SimCLRImageProcessor)
    assert isinstance(AutoModelForImageClassification.from_pretrained(tiny_dir), SimCLRForImageClassification)
    assert isinstance(AutoBackbone.from_config(tiny_model.config), SimCLRBackbone)


def test_saving_over_the_loaded_file_keeps_the_weights(tiny_model, tiny_dir, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    SimCLRModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    again = SimCLRModel.from_pretrained(tmp_path).state_dict()
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(again[key], value), key


def test_half_precision_on_disk_loads_as_the_config_says(tiny_model, tmp_path):
    SimCLRModel(tiny_model.config).half().save_pretrained(tmp_path)
    assert SimCLRModel.from_pretrained(tmp_path).dtype == torch.float16
    assert SimCLRModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
