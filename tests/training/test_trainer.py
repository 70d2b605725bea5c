from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed

from simclr_hub import SimCLRConfig, SimCLRModel, _files
from simclr_hub.errors import RecipeError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.data import ImageArray
from simclr_hub.training.losses import nt_xent_loss
from simclr_hub.training.trainer import SimCLRTrainer, SimCLRTrainingArguments

CONFIG = SimCLRConfig(
    depths=(1, 1), layer_type="basic", width_multiplier=0.125, stem_type="small", projection_dim=16, image_size=16
)


def trainer(output: Path, **changes: Any) -> SimCLRTrainer:
    """A trainer of 6 steps over 40 random images: 2 an epoch, so that a resume at step 3 is in the middle of one."""
    settings = dict(
        output_dir=str(output),
        per_device_train_batch_size=16,
        max_steps=6,
        learning_rate=0.5,
        lr_scheduler_type="cosine",
        ema_decay=0.9,
        max_grad_norm=0,
        save_strategy="steps",
        save_steps=3,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    set_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    args = SimCLRTrainingArguments(**{**settings, **changes})
    return SimCLRTrainer(SimCLRModel(CONFIG), args, Views(16, area=(0.5, 1.0)), train_dataset=ImageArray(images, None))


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's and the average's, from the files."""
    model = load_file(checkpoint / "model.safetensors")
    average = load_file(checkpoint / "ema" / "model.safetensors")
    return {**model, **{f"ema.{key}": value for key, value in average.items()}}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert not [key for key in left if not torch.equal(left[key], right[key])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after 6 steps without interruption."""
    output = tmp_path_factory.mktemp("whole")
    trainer(output).train()
    return weights(output / "checkpoint-6")


def test_the_loss_falls_and_the_average_follows(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=40, save_strategy="no", learning_rate=1.0)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    losses = [float(entry["loss"]) for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert run.average is not None and not run.average.model.training
    now, average = run.model.state_dict(), run.average.model.state_dict()
    key = "encoder.stem.layers.0.convolution.weight"
    assert not torch.equal(now[key], before[key])
    assert (average[key] - now[key]).norm() < (before[key] - now[key]).norm()


def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    class StopAt3(TrainerCallback):  # as a kill, but with the same schedule
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    first = trainer(tmp_path)
    first.add_callback(StopAt3())
    first.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]
    second = trainer(tmp_path)
    second.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    assert second.state.global_step == 6
    assert_equal(weights(tmp_path / "checkpoint-6"), whole)
    assert not all(torch.equal(whole[key], value) for key, value in weights(tmp_path / "checkpoint-3").items())


def test_a_kill_before_the_rename_leaves_only_whole_checkpoints(
    tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = _files.os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint-6" and Path(source).parent == tmp_path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "replace", killed)
        patch.setattr(_files.shutil, "rmtree", lambda *args, **kwargs: None)  # nobody cleans up after a kill
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path).train()
    unfinished = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(unfinished) == 1
    newest = get_last_checkpoint(str(tmp_path))
    assert newest is not None and Path(newest).name == "checkpoint-3"
    weights(Path(newest))
    trainer(tmp_path).train(resume_from_checkpoint=newest)
    assert_equal(weights(tmp_path / "checkpoint-6"), whole)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    run = trainer(tmp_path)
    assert run.average is not None
    monkeypatch.setattr(run.average.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert list(tmp_path.iterdir()) == []


def test_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    trainer(tmp_path, save_steps=1, max_steps=4, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_without_averaging_a_checkpoint_has_no_ema_and_cannot_resume_with_it(tmp_path: Path) -> None:
    trainer(tmp_path, ema_decay=0, max_steps=3).train()
    assert not (tmp_path / "checkpoint-3" / "ema").exists()
    with pytest.raises(RecipeError, match=r"checkpoint-3 has no averaged weights.*ema_decay=0"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_model_without_head_trains_on_h(tmp_path: Path) -> None:
    config = SimCLRConfig(**{**CONFIG.to_diff_dict(), "projection_layers": 0})
    run = trainer(tmp_path, temperature=0.5)
    model = SimCLRModel(config).eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    torch.manual_seed(0)
    loss = run.compute_loss(model, {"images": images})
    torch.manual_seed(0)
    h = model(torch.cat([run.views(images), run.views(images)])).pooler_output
    torch.testing.assert_close(loss, nt_xent_loss(h[:4], h[4:], 0.5))


def test_accumulation_is_the_mean_of_its_batches(tmp_path: Path) -> None:
    run = trainer(tmp_path, gradient_accumulation_steps=2, save_strategy="no", max_steps=1, learning_rate=0.0)
    seen: list[float] = []
    compute = run.compute_loss

    def record(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        seen.append(loss.item())
        return loss

    run.compute_loss = record  # type: ignore[method-assign]
    run.train()
    assert len(seen) == 2
    logged = next(float(entry["loss"]) for entry in run.state.log_history if "loss" in entry)
    assert logged == pytest.approx(np.mean(seen), rel=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"ema_decay": 1.0}, {"ema_decay": -1.0}]
)
def test_arguments_out_of_range_are_named(wrong: dict[str, float], tmp_path: Path) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(RecipeError, match=f"{name}={value} must be"):
        SimCLRTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


def test_several_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCLRTrainingArguments, "world_size", 2)
    with pytest.raises(RecipeError, match="2 devices"):
        SimCLRTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
