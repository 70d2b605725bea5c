import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simclr_hub.errors import RecipeError
from simclr_hub.training.distributed import (
    gather,
    gather_views,
    global_nt_xent_loss,
    synchronize_batch_norm,
    use_biased_moving_variance,
)
from simclr_hub.training.equality import EqualityReport, check_equality
from simclr_hub.training.large_batch import MomentumMemory
from simclr_hub.training.losses import multi_view_loss, nt_xent_loss

sys.path.insert(0, str(Path(__file__).parent))
import distributed_worker as worker

WORLD = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found; warnings are errors there too."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simclr_hub.training.equality"])  # imported once, which takes the most time
    processes = [context.Process(target=worker.run, args=(rank, WORLD, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
    assert [process.exitcode for process in processes] == [0] * WORLD
    with torch.serialization.safe_globals([EqualityReport]):
        return [torch.load(folder / f"{rank}", weights_only=True) for rank in range(WORLD)]


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


def whole_batch(step: int) -> Tensor:
    return worker.views(step, WORLD).flatten(0, 1)


@pytest.mark.slow
def test_two_processes_are_found_equal_to_one(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        report = rank["equality"]
        assert report.equal and (report.processes, report.backend, report.device) == (2, "gloo", "cpu")
        assert max(report.loss_error, report.gradient_error, report.statistics_error) < 1e-12


@pytest.mark.slow
def test_gather_keeps_the_order_of_ranks_and_sums_gradients(ranks: list[dict[str, Any]]) -> None:
    for i, rank in enumerate(ranks):
        assert torch.equal(rank["gathered"], torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 3))
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[i][:, None].expand(2, 3)
        assert torch.equal(rank["gather_gradient"], 11 * rows)  # 1 from rank 0 and 10 from rank 1


@pytest.mark.slow
def test_three_steps_on_two_processes_are_those_of_one(ranks: list[dict[str, Any]]) -> None:
    model = worker.model()
    use_biased_moving_variance(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        loss = nt_xent_loss(*worker.embed(model, whole_batch(step)).chunk(2), 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert sum(rank["losses"][step] for rank in ranks) / WORLD == pytest.approx(loss.item(), rel=1e-12)
        assert ranks[0]["losses"][step] != ranks[1]["losses"][step]  # each is the mean over its own rows
    h = model.eval()(worker.views(9, 1)[0]).pooler_output.detach()
    for rank in ranks:
        assert_close(rank["trained"], model.state_dict())
        torch.testing.assert_close(rank["h"], h, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_several_views_on_two_processes_are_those_of_one(ranks: list[dict[str, Any]]) -> None:
    z = worker.several_views().requires_grad_()
    loss = multi_view_loss(z, 0.3, decoupled=True)
    loss.backward()
    assert sum(rank["several_loss"] for rank in ranks) / WORLD == pytest.approx(loss.item(), rel=1e-12)
    assert z.grad is not None
    torch.testing.assert_close(torch.cat([rank["several"] for rank in ranks], 1) / WORLD, z.grad)


@pytest.mark.slow
def test_a_gradient_cache_on_two_processes_gives_the_gradient_of_one(ranks: list[dict[str, Any]]) -> None:
    model = worker.model().eval()
    loss = nt_xent_loss(*worker.embed(model, whole_batch(0)).chunk(2), 0.5)
    loss.backward()
    assert sum(rank["cached_loss"] for rank in ranks) / WORLD == pytest.approx(loss.item(), rel=1e-12)
    for rank in ranks:
        assert_close(rank["cached"], {name: p.grad for name, p in model.named_parameters()})
        assert (rank["unsynced"], rank["averaged"]) == (2, 1)  # of 3 pieces only the last averages, in one bucket


@pytest.mark.slow
def test_the_memory_of_two_processes_is_that_of_one(ranks: list[dict[str, Any]]) -> None:
    model = worker.model()
    memory = MomentumMemory(model, size=40, momentum=0.9).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        loss = memory.loss(worker.embed(model, whole_batch(step)), memory.embed(whole_batch(step)), 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.update(model)
        assert sum(rank["memory_losses"][step] for rank in ranks) / WORLD == pytest.approx(loss.item(), rel=1e-12)
    for rank in ranks:
        assert_close(rank["memory"], memory.state_dict())


def test_one_process_needs_no_torch_distributed() -> None:
    z_a, z_b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind()
    assert gather(z_a) is z_a
    z = torch.stack([z_a, z_b])
    keys, offset = gather_views(z)
    assert keys is z and offset == 0
    assert torch.equal(global_nt_xent_loss(z_a, z_b, 0.2), nt_xent_loss(z_a, z_b, 0.2))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = torch.rand(2, 3, 4, 4)
    expected = model(x)
    torch.testing.assert_close(synchronize_batch_norm(model, torch.device("cpu"))(x), expected)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_the_moving_variance_is_the_biased_one(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    norm = kind(3, momentum=0.1)
    use_biased_moving_variance(norm)
    use_biased_moving_variance(norm)  # a second time changes nothing
    expected = torch.ones(3)
    for _ in range(3):
        x = torch.randn(5, 3) if kind is nn.BatchNorm1d else torch.randn(2, 3, 2, 2)
        norm(x)
        dims = [d for d in range(x.ndim) if d != 1]
        expected = 0.9 * expected + 0.1 * x.var(dims, correction=0)
    torch.testing.assert_close(norm.running_var, expected)
    norm.eval()(x)
    torch.testing.assert_close(norm.running_var, expected)
    with pytest.raises(ValueError, match="momentum=None"):
        use_biased_moving_variance(kind(3, momentum=None))


def test_the_check_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RecipeError, match="torchrun .* simclr-hub doctor --distributed"):
        check_equality()


@pytest.mark.slow
def test_doctor_under_torchrun() -> None:
    binaries = Path(sys.executable).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    executable = shutil.which("simclr-hub", path=str(binaries))
    assert executable is not None
    result = subprocess.run(
        [*command, executable, "doctor", "--distributed", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()  # one process speaks
    found = json.loads(line)
    assert found["equal"] is True and found["processes"] == 2 and found["gradient_error"] < 1e-12
