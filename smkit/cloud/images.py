"""The PyTorch training images of AWS: which there are, where they lie, and on which GPUs they still run.

The SDKs of SageMaker carry such a table, and are behind it. Sources: versions, tags, Python, CUDA and the end of patch
from aws/deep-learning-containers at e0eceded (2026-08-21), `docs/src/data/{pytorch-training,pytorch}/*.yml`; accounts
from there (`region_availability.md`) and from `image_uri_config/pytorch.json` of sagemaker-core 2.27.0; which builds of
PyTorch hold kernels for which GPU from the release notes and build matrix of PyTorch (its issues 157517, 164471,
172352). The images themselves were not run on each of these GPUs: a script's own check at start is what decides.

This room asks nobody; the date of today is given to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from smkit.cloud.instances import accelerators, has_arm_processors


@dataclass(frozen=True)
class Release:
    """One version of the images.

    Args:
        version: Of PyTorch.
        repository: In the registry of each region.
        python: Its version.
        cuda: Its version.
        gpu_tag: The tag of the image with CUDA.
        cpu_tag: The tag of the image without.
        end_of_patch: The last day on which AWS mends it.
        oldest: The oldest compute capability that it has kernels for: 70 for sm_70.
        newest: The newest one.
        disputed: A capability of which the sources disagree.
    """

    version: str
    repository: str
    python: str
    cuda: str
    gpu_tag: str
    cpu_tag: str
    end_of_patch: date
    oldest: int = 75
    newest: int = 129
    disputed: int | None = None

    def runs_on(self, capability: int | None) -> bool:
        """Whether it surely has kernels for a GPU; None is a CPU, or a GPU of which nothing is known."""
        return capability is None or self.oldest <= capability <= self.newest


RELEASES = (
    Release(
        "2.6.0", "pytorch-training", "3.12", "12.6", "2.6.0-gpu-py312", "2.6.0-cpu-py312", date(2026, 1, 29), 50, 99
    ),
    Release("2.7.1", "pytorch-training", "3.12", "12.8", "2.7.1-gpu-py312", "2.7.1-cpu-py312", date(2026, 4, 23)),
    Release(
        *("2.8.0", "pytorch-training", "3.12", "12.9", "2.8.0-gpu-py312", "2.8.0-cpu-py312", date(2026, 8, 6)),
        disputed=70,
    ),
    Release("2.9.0", "pytorch-training", "3.12", "13.0", "2.9.0-gpu-py312", "2.9.0-cpu-py312", date(2026, 10, 15)),
    Release("2.10.0", "pytorch-training", "3.13", "13.0", "2.10.0-gpu-py313", "2.10.0-cpu-py313", date(2027, 1, 21)),
    Release(
        *("2.11.0", "pytorch", "3.12", "13.0", "2.11-cu130-amzn2023-sagemaker", "2.11-cpu-amzn2023-sagemaker"),
        date(2027, 4, 30),
    ),
    Release(
        *("2.12.1", "pytorch", "3.12", "13.0", "2.12-cu130-amzn2023-sagemaker", "2.12-cpu-amzn2023-sagemaker"),
        date(2027, 7, 2),
    ),
    Release(
        *("2.13.0", "pytorch", "3.12", "13.3", "2.13-cu133-amzn2023-sagemaker", "2.13-cpu-amzn2023-sagemaker"),
        date(2027, 7, 20),
    ),
)
"""Oldest first."""

_COMMON_ACCOUNT = "763104351884"
_COMMON_REGIONS = (
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
    *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
)
_ACCOUNTS = {
    **dict.fromkeys(_COMMON_REGIONS, _COMMON_ACCOUNT),
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
}


@dataclass(frozen=True)
class Image:
    """A training image that this table knows.

    Args:
        uri: What the request carries.
        release: Its version and all that follows from it.
        has_cuda: Whether it is the image for GPUs.
        origin: Where the choice comes from, for the plan.
    """

    uri: str
    release: Release
    has_cuda: bool
    origin: str


def find_image(
    framework_version: str | None, py_version: str | None, *, region: str, instance_types: Sequence[str]
) -> tuple[Image | None, list[str]]:
    """Return the image that was asked for, or the newest that runs on all instance types; and the problems.

    Args:
        framework_version: As `2.8` or `2.8.0`; None: the newest one that has kernels for the GPUs.
        py_version: As `py312` or `3.12`; None: whichever the image has.
        region: Where the job runs.
        instance_types: Of the job, all that it may get.
    """
    release, problems = _release(framework_version, py_version, instance_types)
    account = _ACCOUNTS.get(region)
    if account is None:
        problems.append(
            f"region '{region}': it is not known where AWS keeps its training images there; give image_uri"
            f"{_near(region, list(_ACCOUNTS))}"
        )
    if release is None or account is None:
        return None, problems
    has_cuda = any(accelerators(instance_type).kind == "GPU" for instance_type in instance_types)
    suffix = ".cn" if region.startswith("cn-") else ""
    tag = release.gpu_tag if has_cuda else release.cpu_tag
    uri = f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}/{release.repository}:{tag}"
    on = " and ".join(dict.fromkeys(instance_types))
    return Image(uri, release, has_cuda, "framework_version" if framework_version else f"the newest for {on}"), []


def image_repositories(region: str, partition: str) -> list[str]:
    """Return the ARNs of the repositories that `find_image` chooses from; none where AWS's account is not known."""
    account = _ACCOUNTS.get(region)
    names = sorted({release.repository for release in RELEASES})
    return [f"arn:{partition}:ecr:{region}:{account}:repository/{name}" for name in names] if account else []


_TAG = re.compile(
    r"(?P<version>\d+\.\d+)(\.\d+)?-(?P<build>gpu|cpu|cu\d+)(-py\d+)?(-(?P<cuda>cu\d+))?"
    r"(-(ubuntu|amzn)[\d.]+)?(-sagemaker)?(-v[\d.-]+)?"
)


def read_image(uri: str) -> Image | None:
    """Return what is known of an image that the user named, in whichever registry; None for one of another kind."""
    repository, _, tag = uri.rpartition("/")[2].partition(":")
    found = _TAG.fullmatch(tag.partition("@")[0])
    if not found:
        return None
    cuda = {found["cuda"] or "", found["build"]}
    for release in RELEASES:
        same = repository == release.repository and release.version.startswith(found["version"] + ".")
        builds = {"", "gpu", "cpu", "cu" + release.cuda.replace(".", "")}
        if same and cuda <= builds:
            return Image(uri, release, found["build"] != "cpu", "image_uri")
    return None


def image_problems(image: Image, instance_types: Sequence[str]) -> list[str]:
    """Say on which of the instance types an image cannot compute, and which image can."""
    problems = []
    for instance_type in instance_types:
        chip = accelerators(instance_type)
        release = image.release
        if chip.kind == "Neuron":
            problems.append(
                f"instance_type '{instance_type}': has Neuron chips, and {image.uri} is for GPUs and CPUs; "
                "give an image_uri of Neuron's"
            )
        elif has_arm_processors(instance_type):
            problems.append(
                f"instance_type '{instance_type}': has Arm processors, and {image.uri} is built for x86-64; "
                "give an image_uri of one for Arm"
            )
        elif chip.kind == "GPU" and not image.has_cuda:
            problems.append(f"instance_type '{instance_type}': has GPUs, and {image.uri} is the image for CPUs")
        elif chip.kind == "GPU" and not release.runs_on(chip.capability) and chip.capability != release.disputed:
            problems.append(
                f"instance_type '{instance_type}': the image of PyTorch {release.version} (CUDA {release.cuda}) has no "
                f"kernels for its {chip}; {_remedy(chip.capability)}"
            )
    return problems


def image_warnings(image: Image, instance_types: Sequence[str], today: date) -> list[str]:
    """Say what is doubtful of an image: kernels of which the sources disagree, the end of its patches."""
    release = image.release
    doubtful = [name for name in instance_types if accelerators(name).capability == release.disputed is not None]
    warnings = [
        f"instance_type '{name}': sources disagree whether the image of PyTorch {release.version} has kernels for its "
        f"{accelerators(name)}; {_remedy(release.disputed)}"
        for name in doubtful
    ]
    if today > release.end_of_patch:
        newest = _newest(instance_types)
        patched = newest is not None and newest.end_of_patch >= today
        better = f"framework_version '{newest.version}' is" if newest and patched else "no image that runs here is"
        warnings.append(
            f"image of PyTorch {release.version}: AWS has not mended it since {release.end_of_patch}; {better} patched"
        )
    return warnings


def as_rows() -> list[tuple[str, ...]]:
    """Return the table for a person, newest first, under a head."""
    head = ("PyTorch", "Python", "CUDA", "end of patch", "runs on p3", "GPU image", "CPU image")
    rows = [
        (
            *(release.version, release.python, release.cuda, str(release.end_of_patch)),
            "yes" if release.runs_on(70) else "disputed" if release.disputed == 70 else "no",
            *(f"{release.repository}:{tag}" for tag in (release.gpu_tag, release.cpu_tag)),
        )
        for release in reversed(RELEASES)
    ]
    return [head, *rows]


def _release(
    framework_version: str | None, py_version: str | None, instance_types: Sequence[str]
) -> tuple[Release | None, list[str]]:
    candidates = [r for r in reversed(RELEASES) if framework_version in (None, r.version, r.version.rpartition(".")[0])]
    if not candidates:
        text = str(framework_version)
        minor = [r.version for r in RELEASES if r.version.split(".")[:2] == text.split(".")[:2]]
        meant = f"did you mean '{minor[0]}'?" if minor else f"the newest is '{RELEASES[-1].version}'"
        return None, [
            f"framework_version '{text}': not in the table of images (`smkit images` shows it, and image_uri takes any "
            f"other); {meant}"
        ]
    python = re.sub(r"py(\d)(\d+)", r"\1.\2", py_version or "")
    fitting = [release for release in candidates if python in ("", release.python)]
    if not fitting:
        pythons = " or ".join(sorted({f"'py{release.python.replace('.', '')}'" for release in candidates}))
        of = f"the image of PyTorch {candidates[0].version} has" if framework_version else "the images have"
        return None, [f"py_version '{py_version}': {of} {pythons}; leave py_version out"]
    if framework_version is not None:
        return fitting[0], []
    newest = _newest(instance_types, fitting)
    if newest is None and _newest(instance_types) is not None:
        return None, [f"py_version '{py_version}': no image of it runs on {_listed(instance_types)}; leave it out"]
    return newest, [] if newest else [_nothing_runs_on(instance_types)]


def _newest(instance_types: Sequence[str], among: Sequence[Release] = RELEASES[::-1]) -> Release | None:
    """Return the newest release that surely has kernels for all of the instance types."""
    capabilities = [accelerators(instance_type).capability for instance_type in instance_types]
    return next((release for release in among if all(map(release.runs_on, capabilities))), None)


def _nothing_runs_on(instance_types: Sequence[str]) -> str:
    for instance_type in instance_types:
        if _newest([instance_type]) is None:
            chip = accelerators(instance_type)
            return (
                f"instance_type '{instance_type}': no image has kernels for its {chip}; take 'ml.g4dn.xlarge' or newer"
            )
    return f"instance_type: no image surely runs on all of {_listed(instance_types)}; give types of like GPUs"


def _listed(instance_types: Sequence[str]) -> str:
    return ", ".join(f"'{name}' with {accelerators(name)}" for name in dict.fromkeys(instance_types))


def _remedy(capability: int | None) -> str:
    having = [release for release in RELEASES if release.runs_on(capability)]
    if not having:
        return "nor has any other; take 'ml.g4dn.xlarge' or newer"
    return f"the newest that surely has them is framework_version '{having[-1].version}'"


def _near(word: str, choices: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, choices, n=1)
    return f", or did you mean '{found[0]}'?" if found else ""
