"""What is chosen for each device, and one training step in each precision."""

from __future__ import annotations

import sys
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from smkit.device import Placement, check_kernels, choose_precision
from smkit.errors import ConfigurationError

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
V100, T4, A100, H100, P100, B200 = (7, 0), (7, 5), (8, 0), (9, 0), (6, 0), (10, 0)

# What torch.cuda.get_arch_list() says in the wheels of pytorch.org.
CU124_2_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU126_2_9 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128_2_7 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CU130_2_9 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


# -- decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        (None, "fp32"),
        (P100, "fp32"),
        (V100, "fp16"),
        ((7, 2), "fp16"),
        (T4, "fp16"),
        (A100, "bf16"),
        ((8, 9), "bf16"),
        (H100, "bf16"),
        (B200, "bf16"),
    ],
)
def test_auto_is_the_fastest_precision_that_the_device_has_natively(capability, chosen):
    assert choose_precision("auto", capability) == chosen
    assert choose_precision("fp32", capability) == "fp32"
    assert choose_precision(chosen, capability) == chosen


def test_bf16_on_a_cpu_and_fp16_on_any_gpu_are_there_for_who_asks():
    assert choose_precision("bf16", None) == "bf16"
    assert {choose_precision("fp16", capability) for capability in (P100, V100, A100, H100)} == {"fp16"}


@pytest.mark.parametrize("capability", [P100, V100, T4])
def test_bf16_is_refused_where_it_is_emulated(capability):
    with pytest.raises(ConfigurationError, match=r"(?s)only emulates bf16, slower than fp32.*choose 'auto'") as caught:
        choose_precision("bf16", capability)
    assert f"sm_{capability[0]}{capability[1]}" in caught.value.what
    assert choose_precision("auto", capability) in caught.value.fix


def test_fp16_on_a_cpu_and_an_unknown_precision_are_refused_with_the_choices():
    with pytest.raises(ConfigurationError, match=r"(?s)fp16 is for GPUs.*where: precision.*'auto'.*'bf16'"):
        choose_precision("fp16", None)
    with pytest.raises(ConfigurationError, match=r"(?s)'float16' is not a precision.*'auto', 'fp32', 'bf16' or 'fp16'"):
        choose_precision("float16", A100)


def kernels(capability, arch_list, name="a GPU", version="2.9.1"):
    check_kernels(capability, arch_list, device_name=name, torch_version=version, cuda_version="13.0")


@pytest.mark.parametrize("arch_list", [CU124_2_6, CU126_2_9])
@pytest.mark.parametrize("capability", [V100, T4, A100, (8, 9), H100])
def test_a_wheel_for_cuda_12_6_runs_on_a_v100_and_what_came_after(capability, arch_list):
    kernels(capability, arch_list)


@pytest.mark.parametrize("arch_list", [CU128_2_7, CU130_2_9])
def test_a_v100_is_refused_by_a_newer_wheel_with_the_image_and_the_wheel_that_work(arch_list):
    for capability in (T4, A100, (8, 9), H100, B200, (12, 1)):
        kernels(capability, arch_list)
    with pytest.raises(ConfigurationError) as caught:
        kernels(V100, arch_list, "Tesla V100-SXM2-16GB")
    assert str(caught.value) == (
        "PyTorch 2.9.1 (CUDA 13.0) has no kernels for the Tesla V100-SXM2-16GB, which is sm_70; "
        "it has sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, compute_120\n"
        "  where: the GPU of this machine\n"
        "  fix:   use the PyTorch 2.6 training image (CUDA 12.6), or a wheel for CUDA 12.6: "
        "pip install torch --index-url https://download.pytorch.org/whl/cu126"
    )


def test_a_gpu_newer_than_the_wheel_needs_a_newer_image_unless_there_is_ptx():
    with pytest.raises(ConfigurationError, match="a newer PyTorch training image"):
        kernels(B200, CU124_2_6)
    kernels(B200, [*CU124_2_6, "compute_90"])
    with pytest.raises(ConfigurationError):
        kernels(V100, ["compute_75"])
    with pytest.raises(ConfigurationError):
        kernels((8, 0), ["sm_86"])


def test_machine_code_for_one_chip_or_one_family_runs_on_no_other():
    kernels(H100, ["sm_90a"])
    kernels((10, 3), ["sm_100f"])
    for arch in ("sm_90a", "compute_90a", "sm_100f", "compute_100f"):
        with pytest.raises(ConfigurationError):
            kernels((12, 0), [arch])


def test_a_build_for_other_makers_gpus_is_not_judged():
    kernels((9, 4), ["gfx90a", "gfx942"])
    kernels((9, 4), [])


@given(st.tuples(st.integers(3, 12), st.integers(0, 9)))
def test_a_gpu_that_has_its_own_kernels_is_never_refused(capability):
    kernels(capability, [f"sm_{capability[0]}{capability[1]}"])


# -- the choice on a machine -------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Make torch see GPUs of a name, a capability and a wheel; return which one it was told to use."""

    def see(name, capability, arch_list, count=1):
        used = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arch_list)
        monkeypatch.setattr(torch.cuda, "set_device", used.append)
        return used

    return see


def test_a_v100_computes_in_fp16_with_gradient_scaling(machine):
    used = machine("Tesla V100", V100, CU124_2_6, count=8)
    placement = Placement.choose(local_rank=3)
    assert used == [3]
    assert placement.device == torch.device("cuda", 3)
    assert placement.scaler is not None
    assert placement.describe() == "Tesla V100 (sm_70), fp16 with gradient scaling"


def test_an_a100_computes_in_bf16_without_scaling(machine):
    machine("NVIDIA A100", A100, CU128_2_7)
    placement = Placement.choose()
    assert placement.scaler is None
    assert placement.describe() == "NVIDIA A100 (sm_80), bf16"


def test_a_gpu_without_kernels_is_refused_before_it_is_used(machine):
    used = machine("Tesla V100", V100, CU130_2_9)
    with pytest.raises(ConfigurationError, match="has no kernels for the Tesla V100"):
        Placement.choose()
    assert used == []


def test_more_processes_than_gpus_are_refused(machine):
    machine("Tesla V100", V100, CU124_2_6, count=2)
    with pytest.raises(
        ConfigurationError, match=r"(?s)local rank 2 has no GPU of its own: 2 can be seen.*CUDA_VISIBLE"
    ):
        Placement.choose(local_rank=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_computes_in_fp32():
    placement = Placement.choose(local_rank=1)
    assert placement.device == CPU
    threads = torch.get_num_threads()
    assert placement.describe() == f"cpu, fp32, {threads} thread{'s' if threads > 1 else ''}"
    assert Placement.choose("bf16").precision == "bf16"


# -- moving ------------------------------------------------------------------------------------------------------------


def test_a_batch_on_the_cpu_is_returned_untouched():
    batch = {"x": [torch.zeros(2)], "y": ("text", 3)}
    assert Placement(CPU, "fp32").move(batch) is batch


def test_tensors_are_moved_wherever_they_are_in_a_batch():
    Pair = namedtuple("Pair", "x y")

    class Own:
        def to(self, device):
            return ("moved to", device)

    meta = torch.device("meta")
    here = torch.zeros(2)
    batch = OrderedDict(pair=Pair(here, [here, "text"]), plain=(here, 3), own=Own(), nothing=None)
    moved = Placement(meta, "fp32").move(batch)
    assert type(moved) is OrderedDict
    assert type(moved["pair"]) is Pair
    assert [tensor.device.type for tensor in (moved["pair"].x, moved["pair"].y[0], moved["plain"][0])] == ["meta"] * 3
    assert (moved["pair"].y[1], moved["plain"][1], moved["own"], moved["nothing"]) == (
        "text",
        3,
        ("moved to", meta),
        None,
    )
    assert batch["pair"].x is here
    assert isinstance(batch["own"], Own)
    assert Placement(meta, "fp32").move(here).is_meta


# -- a step ------------------------------------------------------------------------------------------------------------


def weights(placement, steps, *, scale_loss=1.0, max_grad_norm=None):
    """Train a small model for some steps; return its weights and what each step returned."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        with placement.autocast():
            loss = (model(torch.ones(2, 4)).float() ** 2).mean() * scale_loss
        placement.backward(loss)
        norms.append(placement.step(optimizer, model.parameters(), max_grad_norm))
    return model.weight.detach().clone(), norms


def test_a_step_in_fp32_is_the_plain_one():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.ones(2, 4)) ** 2).mean().backward()
        optimizer.step()
    placement = Placement(CPU, "fp32")
    trained, norms = weights(placement, 3)
    assert trained.equal(model.weight)
    assert norms == [None] * 3
    assert not placement.skipped
    assert placement.state_dict() == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_clipped_to_the_norm_asked_for_and_their_own_is_returned(precision):
    def placement():
        return Placement(CPU, precision, torch.amp.GradScaler("cpu", init_scale=256.0))

    start, _ = weights(placement(), 0)
    free, [norm] = weights(placement(), 1, max_grad_norm=1e6)
    clipped, [same] = weights(placement(), 1, max_grad_norm=norm.item() / 2)
    assert norm == same
    # The four gradients of the weight equal that of the bias, for the inputs are ones.
    assert norm.item() == pytest.approx((free - start).norm().item() / 0.1 * (5 / 4) ** 0.5, rel=1e-2)
    torch.testing.assert_close(clipped - start, (free - start) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_lowers_what_the_precision_says(precision, dtype):
    placement = Placement(CPU, precision)
    with placement.autocast(), placement.autocast():
        assert nn.Linear(4, 1)(torch.ones(2, 4)).dtype == dtype
    assert nn.Linear(4, 1)(torch.ones(2, 4)).dtype == torch.float32


def test_scaling_keeps_gradients_that_fp16_would_lose():
    _, [exact] = weights(Placement(CPU, "fp32"), 1, scale_loss=1e-9, max_grad_norm=1.0)
    _, [scaled] = weights(Placement(CPU, "fp16"), 1, scale_loss=1e-9, max_grad_norm=1.0)
    assert scaled.item() == pytest.approx(exact.item(), rel=1e-2)


def step_with_gradient(placement, optimizer, parameter, gradient, max_grad_norm):
    optimizer.zero_grad()
    placement.backward((parameter * gradient).sum())
    return placement.step(optimizer, [parameter], max_grad_norm)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_changes_nothing_says_so_and_lowers_the_scale(fused, max_grad_norm):
    placement = Placement(CPU, "fp16", torch.amp.GradScaler("cpu", init_scale=1024.0))
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.5, fused=fused)
    norm = step_with_gradient(placement, optimizer, parameter, float("inf"), max_grad_norm)
    assert placement.skipped
    assert parameter.tolist() == [1, 1, 1]
    assert placement.scaler.get_scale() == 512
    assert norm is None if max_grad_norm is None else not norm.isfinite()
    step_with_gradient(placement, optimizer, parameter, 1.0, max_grad_norm)
    assert not placement.skipped
    assert parameter.tolist() == pytest.approx([0.5] * 3 if max_grad_norm is None else [1 - 0.5 / 3**0.5] * 3)
    assert placement.scaler.get_scale() == 512


@pytest.mark.parametrize("max_grad_norm", [None, 10.0])
def test_a_fused_momentum_begins_with_nothing_where_the_first_steps_are_skipped(max_grad_norm):
    def trained(*, fused):
        # What memory that nobody writes is made of.
        spoilt = [torch.full((64,), float("nan")) for _ in range(50)]
        parameter = nn.Parameter(torch.ones(64))
        placement = Placement(CPU, "fp16", torch.amp.GradScaler("cpu", init_scale=1024.0))
        optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=fused)
        del spoilt
        for gradient in (float("inf"), float("inf"), 1.0, 2.0, 3.0):
            step_with_gradient(placement, optimizer, parameter, gradient, max_grad_norm)
        return parameter

    assert trained(fused=True).equal(trained(fused=False))


def test_a_fused_momentum_that_cannot_begin_with_nothing_is_refused():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, dampening=0.5, fused=True)
    with pytest.raises(ConfigurationError, match=r"(?s)dampening.*leave out fused=True"):
        step_with_gradient(Placement(CPU, "fp16"), optimizer, parameter, 1.0, None)
    step_with_gradient(Placement(CPU, "fp32"), optimizer, parameter, 1.0, None)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_whether_a_step_was_skipped_costs_no_read_from_the_device_beyond_torchs_own():
    def reads(step):
        with torch.profiler.profile() as profile:
            step()
        return sum(event.name == "aten::_local_scalar_dense" for event in profile.events())

    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    placement = Placement(CPU, "fp16")

    def ours():
        step_with_gradient(placement, optimizer, parameter, 1.0, 1.0)
        assert not placement.skipped

    def bare():
        scaler = placement.scaler
        scaler.scale((parameter * 1.0).sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([parameter], 1.0)
        scaler.step(optimizer)
        scaler.update()

    ours()
    assert reads(ours) == reads(bare) > 0


def test_the_scale_goes_on_after_a_resume():
    def scaled():
        return Placement(CPU, "fp16", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3))

    def train(placement, steps):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        for _ in range(steps):
            step_with_gradient(placement, optimizer, parameter, 1.0, None)

    whole, before, after = scaled(), scaled(), Placement(CPU, "fp16")
    train(whole, 4)
    train(before, 2)
    after.load_state_dict(before.state_dict())
    train(after, 2)
    assert after.state_dict() == whole.state_dict()
    assert after.state_dict()["scale"] == 2048
    assert all(type(value) in (int, float) for value in after.state_dict().values())


def test_the_state_of_another_precision_is_left_aside():
    fp16, fp32 = Placement(CPU, "fp16"), Placement(CPU, "fp32")
    fp32.load_state_dict(fp16.state_dict())
    fp16.load_state_dict(fp32.state_dict())
    assert (fp32.state_dict(), fp16.state_dict()["scale"]) == ({}, 65536)


def test_a_step_on_the_cpu_costs_at_most_five_python_calls_above_the_bare_one():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    placement = Placement(CPU, "fp32")
    batch = torch.ones(2, 4)
    parameters = list(model.parameters())

    def bare():
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()

    def placed():
        moved = placement.move(batch)
        with placement.autocast():
            loss = model(moved).mean()
        placement.backward(loss)
        placement.step(optimizer, parameters, None)

    def calls(step):
        count = 0

        def profile(frame, event, argument):
            nonlocal count
            count += event == "call"

        step()
        sys.setprofile(profile)
        try:
            step()
        finally:
            sys.setprofile(None)
        return count

    assert calls(placed) - calls(bare) <= 5
