import pytest
from huggingface_hub.errors import StrictDataclassError

from simclr_hub import SimCLRConfig
from simclr_hub.configuration_simclr import DEPTHS


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_named_depth_has_the_papers_width(depth):
    config = SimCLRConfig.v1(depth, width_multiplier=2)
    assert config.hidden_size == (2048 if depth >= 50 else 512) * 2
    assert config.projection_layers == 2


def test_v2_has_three_layers_and_selective_kernels_on_request():
    config = SimCLRConfig.v2(152, width_multiplier=3, selective_kernel=True)
    assert (config.sk_ratio, config.projection_layers, config.hidden_size) == (0.0625, 3, 6144)
    assert SimCLRConfig.v2().sk_ratio == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"depht": 50}, "depht"),
        ({"layer_type": "wide"}, "wide"),
        ({"layer_type": "basic", "sk_ratio": 0.0625}, "basic"),
        ({"width_multiplier": 0.3}, "0.3"),
        ({"width_multiplier": 1 / 64, "sk_ratio": 0.0625}, "multiple of 2"),
        ({"stem_type": "vgg"}, "vgg"),
        ({"projection_type": "linear", "projection_layers": 2}, "linear"),
        ({"projection_layers": -1}, "-1"),
        ({"classifier_layer": 3}, "3"),
        ({"depths": ()}, "depths"),
        ({"depths": (3, 0)}, "depths"),
        ({"se_ratio": 2.0}, "se_ratio"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"projection_hidden_dim": 0}, "projection_hidden_dim=0"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(wrong, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        SimCLRConfig(**wrong)


def test_unknown_depth_says_which_there_are():
    with pytest.raises(ValueError, match="18, 34, 50"):
        SimCLRConfig.v1(51)


def test_round_trip(tmp_path):
    config = SimCLRConfig.v2(101, width_multiplier=0.5, classifier_layer=1, num_labels=7, out_features=["stage2"])
    config.save_pretrained(tmp_path)
    again = SimCLRConfig.from_pretrained(tmp_path)
    assert {k: v for k, v in again.to_dict().items() if k != "transformers_version"} == {
        k: v for k, v in config.to_dict().items() if k != "transformers_version"
    }
    assert again.num_labels == 7


def test_a_stored_config_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "simclr", "selective_kernels": true}')
    with pytest.raises(ValueError, match="selective_kernels"):
        SimCLRConfig.from_pretrained(tmp_path)
