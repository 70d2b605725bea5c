import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint, set_seed

from simclr_hub import SimCLRConfig, SimCLRModel, _files
from simclr_hub.errors import RecipeError, TrainingError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.data import ImageArray
from simclr_hub.training.losses import multi_view_loss, nt_xent_loss
from simclr_hub.training.trainer import SimCLRTrainer, SimCLRTrainingArguments

CONFIG = SimCLRConfig(
    depths=(1, 1), layer_type="basic", width_multiplier=0.125, stem_type="small", projection_dim=16, image_size=16
)


def trainer(output: Path, views: dict[str, Any] | None = None, **changes: Any) -> SimCLRTrainer:
    """A trainer of 6 steps over 40 images of random squares: 2 an epoch, so step 3 is in the middle of one."""
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
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    args = SimCLRTrainingArguments(**{**settings, **changes})
    return SimCLRTrainer(
        SimCLRModel(CONFIG),
        args,
        Views(**{**dict(size=16, area=(0.5, 1.0), jitter=(0, 0, 0), greyscale_p=0, blur_p=0), **(views or {})}),
        train_dataset=ImageArray(images, None),
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 8])
def test_several_views_and_a_schedule_resume_bit_for_bit(tmp_path: Path, memory: int) -> None:
    views = {"count": 3, "sizes": [{"from": 0.5, "size": 8}, {"from": 0.8, "area": (0.2, 0.4)}]}
    settings = {"views": views, "loss": "dcl", "memory": memory}
    sides: list[int] = []

    class Watched(SimCLRTrainer):
        def _loss(self, z: Tensor, pieces: Sequence[Tensor]) -> Tensor:
            assert z.shape == (48, 16)
            sides.append(pieces[0].shape[-1])
            return super()._loss(z, pieces)

    class StopAt4(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = control.should_save = state.global_step == 4

    def run(output: Path, *callbacks: TrainerCallback) -> None:
        one = trainer(output, **settings)
        one.__class__ = Watched
        for callback in callbacks:
            one.add_callback(callback)
        one.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.exists() else None)

    run(tmp_path / "whole")
    assert sides == [16, 16, 16, 8, 8, 8]
    run(tmp_path / "parts", StopAt4())
    run(tmp_path / "parts")
    assert sides[6:] == [16, 16, 16, 8, 8, 8]
    assert_equal(weights(tmp_path / "parts" / "checkpoint-6"), weights(tmp_path / "whole" / "checkpoint-6"))


def test_the_loss_of_a_step_is_that_of_its_views(tmp_path: Path) -> None:
    for loss in ("nt_xent", "dcl"):
        one = trainer(tmp_path / loss, views={"count": 4}, loss=loss, temperature=0.3)
        z = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
        expected = multi_view_loss(z, 0.3, decoupled=loss == "dcl")
        assert torch.equal(one._loss(z.flatten(0, 1), ()), expected)
    with pytest.raises(RecipeError, match="loss=triplet is not one of nt_xent, dcl"):
        trainer(tmp_path, loss="triplet")


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


def labelled(output: Path, **changes: Any) -> SimCLRTrainer:
    """As `trainer`, with labels that colour tells, and the same images to evaluate on."""
    run = trainer(output, **changes)
    labels = np.arange(40) % 2
    images = run.train_dataset.images // 2 + (labels[:, None, None, None] * 120).astype(np.uint8)
    data = ImageArray(images, labels)
    run.args.eval_strategy = IntervalStrategy.STEPS
    run.args.eval_steps = 3
    return SimCLRTrainer(run.model, run.args, run.views, train_dataset=data, eval_dataset=data)


def test_the_log_tells_how_it_goes_and_labels_change_no_weight(tmp_path: Path) -> None:
    run = labelled(tmp_path / "a")
    run.train()
    training = [entry for entry in run.state.log_history if "loss" in entry]
    assert {"contrastive_top1", "z_spread", "images_per_second", "data_wait", "probe_top1"} <= training[-1].keys()
    accuracies = [entry["eval_knn"] for entry in run.state.log_history if "eval_knn" in entry]
    assert len(accuracies) >= 2 and min(accuracies) > 60
    plain = labelled(tmp_path / "b")
    plain.probe = None
    plain.train()
    assert_equal(weights(tmp_path / "a" / "checkpoint-6"), weights(tmp_path / "b" / "checkpoint-6"))


@pytest.mark.slow
def test_the_probe_resumes(tmp_path: Path) -> None:
    whole, second = labelled(tmp_path / "whole"), labelled(tmp_path / "half")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    second.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))
    probes = [load_file(tmp_path / run / "checkpoint-6" / "probe.safetensors") for run in ("whole", "half")]
    assert_equal(*probes)


def test_an_update_that_breaks_the_weights_is_not_saved(tmp_path: Path) -> None:
    """The loss of step 3, where a checkpoint is due, is still a number."""

    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                next(kwargs["model"].parameters()).data.fill_(float("inf"))

    run = trainer(tmp_path)
    run.add_callback(Break())
    with pytest.raises(TrainingError, match="weights are not finite after step 3"):
        run.train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_cached_batch_trains_as_its_pieces_do(tmp_path: Path) -> None:
    """One piece is the whole batch: the same run. Two pieces: another BatchNorm, the same negatives."""
    with pytest.raises(RecipeError, match="gradient_cache=1 leaves BatchNorm a single view"):
        trainer(tmp_path, gradient_cache=1)
    trainer(tmp_path / "uneven", gradient_cache=31, max_steps=1).train()  # 16 + 16: no piece is a single view
    for name, cache in (("none", 0), ("whole", 32), ("halves", 16)):
        trainer(tmp_path / name, gradient_cache=cache).train()
    plain, whole, halves = (weights(tmp_path / name / "checkpoint-6") for name in ("none", "whole", "halves"))
    for key, value in plain.items():
        torch.testing.assert_close(whole[key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert not torch.allclose(
        plain["encoder.stem.layers.0.convolution.weight"], halves["encoder.stem.layers.0.convolution.weight"]
    )


@pytest.mark.slow
def test_a_memory_gives_negatives_and_resumes(tmp_path: Path) -> None:
    run = trainer(tmp_path / "whole", memory=48, memory_momentum=0.5)
    run.train()
    assert run.memory is not None and len(run.memory.module.negatives) == 48
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    second = trainer(tmp_path / "half", memory=48, memory_momentum=0.5)
    second.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))
    assert_equal(weights(tmp_path / "half" / "checkpoint-6"), weights(tmp_path / "whole" / "checkpoint-6"))
    memories = [load_file(tmp_path / name / "checkpoint-6" / "memory.safetensors") for name in ("whole", "half")]
    assert_equal(*memories)
    trainer(tmp_path / "plain", max_steps=3).train()
    with pytest.raises(RecipeError, match="checkpoint-3 has no memory to go on from"):
        trainer(tmp_path / "plain", memory=48).train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))


def test_the_official_schedule_and_scaling(tmp_path: Path) -> None:
    """40 images, batch 16: 2 steps an epoch, 3 epochs; peak 0.5 x 16 / 256; warm-up round(1 x 40 // 16) = 2 steps."""
    run = trainer(tmp_path, max_steps=-1, num_train_epochs=3, warmup_epochs=1, lr_scaling="linear", save_strategy="no")
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    run.add_callback(Watch())
    run.train()
    cosine = [0.5 * (1 + math.cos(math.pi * (step - 2) / (7 - 2))) for step in range(2, 6)]
    assert rates == pytest.approx([0.5 * 16 / 256 * factor for factor in (0, 0.5, *cosine)])


def test_a_loss_that_is_no_number_stops_with_the_step_and_saves_nothing(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                next(kwargs["model"].parameters()).data.fill_(float("nan"))

    run = trainer(tmp_path, logging_steps=100)
    run.add_callback(Break())
    with pytest.raises(TrainingError, match="not finite at step 5"):
        run.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


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


def test_several_gpus_in_one_process_are_refused_and_processes_share_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(RecipeError, match="2 GPUs in one process .*torchrun"):
        patch.setattr(SimCLRTrainingArguments, "n_gpu", 2)
        SimCLRTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(SimCLRTrainingArguments, "world_size", 2)
    with pytest.raises(RecipeError, match="batch_size=9 is not a multiple of the 2 processes"):
        SimCLRTrainingArguments(output_dir=str(tmp_path), use_cpu=True, batch_size=9)
    assert SimCLRTrainingArguments(output_dir=str(tmp_path), use_cpu=True, batch_size=8).global_batch == 8
