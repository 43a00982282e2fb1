"""The table of training images, and what each instance type computes with."""

import re
from datetime import date
from pathlib import Path

import pytest

from smkit.cloud.images import RELEASES, Image, as_rows, find_image, image_problems, image_warnings, read_image
from smkit.cloud.instances import accelerators
from smkit.cloud.service_model import ServiceModel

pytestmark = pytest.mark.aws

GOLDEN = Path(__file__).parent / "golden"
TODAY = date(2026, 11, 25)
V100 = "ml.p3.2xlarge"
VOLTA = "pytorch-training:2.6.0-gpu-py312"


def found(version: str | None = None, *types: str, region: str = "eu-west-1") -> Image:
    image, problems = find_image(version, None, region=region, instance_types=types or ["ml.g5.xlarge"])
    assert image is not None, problems
    return image


@pytest.mark.parametrize(
    ("types", "region", "host", "image"),
    [
        (["ml.g5.xlarge"], "eu-west-1", "763104351884.dkr.ecr.eu-west-1.amazonaws.com", "pytorch:2.13-cu133-amzn2023"),
        (["ml.m5.large"], "eu-west-1", "763104351884.dkr.ecr.eu-west-1.amazonaws.com", "pytorch:2.13-cpu-amzn2023"),
        ([V100], "us-gov-west-1", "442386744353.dkr.ecr.us-gov-west-1.amazonaws.com", VOLTA),
        ([V100], "cn-north-1", "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn", VOLTA),
        # Of several types the job gets one, so the image has to run on each.
        (["ml.g5.xlarge", V100], "eu-west-1", "763104351884.dkr.ecr.eu-west-1.amazonaws.com", VOLTA),
    ],
)
def test_the_default_is_the_newest_image_that_runs_on_every_instance_type(
    types: list[str], region: str, host: str, image: str
) -> None:
    assert found(None, *types, region=region).uri.removesuffix("-sagemaker") == f"{host}/{image}"


def test_a_version_is_named_in_full_or_without_its_last_number() -> None:
    assert found("2.8").uri == found("2.8.0").uri
    image, _ = find_image(None, "py313", region="eu-west-1", instance_types=["ml.g5.xlarge"])
    assert image is not None
    assert image.release.version == "2.10.0"
    assert find_image("2.8", "3.12", region="eu-west-1", instance_types=[])[1] == []


def test_what_cannot_be_found_is_said_in_one_sentence() -> None:
    texts = []
    for version, python, region, types in [
        ("2.7.0", None, "eu-west-1", [V100]),
        ("3", None, "eu-west-1", [V100]),
        ("2.8", "py310", "eu-west-1", [V100]),
        (None, "py39", "eu-west-1", [V100]),
        (None, "py313", "eu-west-1", [V100]),
        (None, None, "eu-wst-1", [V100]),
        (None, None, "eu-west-1", ["ml.p2.xlarge"]),
        (None, None, "eu-west-1", [V100, "ml.p6-b200.48xlarge"]),
        ("2.5", None, "mars", []),
    ]:
        image, problems = find_image(version, python, region=region, instance_types=types)
        assert image is None
        texts += problems
    assert "\n".join(texts) + "\n" == (GOLDEN / "no-image.txt").read_text(encoding="utf-8")


def test_volta_needs_an_image_that_has_its_kernels() -> None:
    refused = {release.version for release in RELEASES if image_problems(found(release.version), [V100])}
    warned = {r.version for r in RELEASES if "disagree" in "".join(image_warnings(found(r.version), [V100], TODAY))}
    assert refused == {"2.7.1", "2.9.0", "2.10.0", "2.11.0", "2.12.1", "2.13.0"}
    assert warned == {"2.8.0"}
    assert image_problems(found("2.9"), [V100]) == [
        "instance_type 'ml.p3.2xlarge': the image of PyTorch 2.9.0 (CUDA 13.0) has no kernels for its V100 (sm_70); "
        "the newest that surely has them is framework_version '2.6.0'"
    ]


def test_no_image_runs_on_kepler_and_the_oldest_does_not_run_on_blackwell() -> None:
    assert all(image_problems(found(release.version), ["ml.p2.xlarge"]) for release in RELEASES)
    assert [r.version for r in RELEASES if image_problems(found(r.version), ["ml.g7e.2xlarge"])] == ["2.6.0"]
    assert "Neuron" in image_problems(found(), ["ml.trn1.2xlarge"])[0]
    assert "has Arm processors" in image_problems(found(), ["ml.p6e-gb200.36xlarge"])[0]
    assert "the image for CPUs" in image_problems(found(None, "ml.m5.large"), ["ml.g5.xlarge"])[0]
    assert not image_problems(found(), ["ml.m5.large", "ml.g7.2xlarge", "ml.g5.nonsense", ""])


def test_the_end_of_patch_is_a_warning_from_the_day_after() -> None:
    image = found("2.8")
    assert image_warnings(image, ["ml.g5.xlarge"], date(2026, 8, 6)) == []
    assert image_warnings(image, ["ml.g5.xlarge"], date(2026, 8, 7)) == [
        "image of PyTorch 2.8.0: AWS has not mended it since 2026-08-06; framework_version '2.13.0' is patched"
    ]
    assert image_warnings(found("2.6"), [V100], TODAY) == [
        "image of PyTorch 2.6.0: AWS has not mended it since 2026-01-29; no image that runs here is patched"
    ]


@pytest.mark.parametrize("has_cuda", [True, False])
@pytest.mark.parametrize("release", RELEASES)
def test_an_image_of_the_table_is_known_by_its_uri(release: object, has_cuda: bool) -> None:
    image = found(getattr(release, "version", ""), "ml.g5.xlarge" if has_cuda else "ml.m5.large")
    again = read_image(image.uri.replace("763104351884", "123456789012"))
    assert again is not None
    assert (again.release, again.has_cuda) == (release, has_cuda)


@pytest.mark.parametrize(
    ("uri", "version"),
    [
        ("1.dkr.ecr.x.amazonaws.com/pytorch-training:2.6.0-gpu-py312-cu126-ubuntu22.04-sagemaker-v1.2", "2.6.0"),
        ("public.ecr.aws/deep-learning-containers/pytorch-training:2.7-gpu-py312", "2.7.1"),
        ("host/pytorch:2.13-cu133-amzn2023-sagemaker@sha256:00", "2.13.0"),
        # An image of somebody's own may well have kernels that ours have not.
        ("host/pytorch-training:2.9.0-gpu-py312-cu126", None),
        ("host/pytorch-training:2.9.0-gpu-py312-with-volta", None),
        ("host/pytorch:2.13-cu126-amzn2023-sagemaker", None),
        ("host/team-pytorch:2.13-cu133-amzn2023-sagemaker", None),
        ("host/pytorch-training:2.2.0-gpu-py310", None),
        ("host/pytorch", None),
        ("", None),
    ],
)
def test_only_an_image_that_is_surely_of_the_table_is_taken_for_it(uri: str, version: str | None) -> None:
    image = read_image(uri)
    assert (image and image.release.version) == version


def test_every_gpu_type_of_the_service_is_known_or_said_not_to_be() -> None:
    types = ServiceModel.load().enum("ResourceConfig.InstanceType")
    gpus = [name for name in types if re.match(r"ml\.(p|g)\d", name)]
    unknown = {name.split(".")[1] for name in gpus if accelerators(name).count is None}
    assert len(gpus) > 50
    assert all(accelerators(name).kind == "GPU" for name in gpus)
    # A new family in botocore lands here: look its GPUs up, or leave it unknown.
    assert unknown <= {"g7"}
    assert {accelerators(name).kind for name in types if name.startswith(("ml.trn", "ml.inf"))} == {"Neuron"}
    others = [name for name in types if not name.startswith(("ml.p", "ml.g", "ml.trn", "ml.inf"))]
    assert {accelerators(name).count for name in others} == {0}


@pytest.mark.parametrize(
    ("instance_type", "count"),
    [("ml.p3.8xlarge", 4), ("ml.p3dn.24xlarge", 8), ("ml.g5.12xlarge", 4), ("ml.g5.16xlarge", 1), ("ml.p5.4xlarge", 1)],
)
def test_gpus_are_counted_per_host(instance_type: str, count: int) -> None:
    assert accelerators(instance_type).count == count


def test_a_table_for_a_person() -> None:
    head, *rows = as_rows()
    assert head[:5] == ("PyTorch", "Python", "CUDA", "end of patch", "runs on p3")
    assert rows[0] == (
        *("2.13.0", "3.12", "13.3", "2027-07-20", "no"),
        *("pytorch:2.13-cu133-amzn2023-sagemaker", "pytorch:2.13-cpu-amzn2023-sagemaker"),
    )
    assert [row[4] for row in rows] == [*["no"] * 5, "disputed", "no", "yes"]
