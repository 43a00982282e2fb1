"""Attack 7: bad input. Whatever a job, a user or a disk can hand to smkit is drawn at random, right and wrong.

A round is one example: files of a job, variables, a command line, a config file, arguments of `launch`, a channel with
files of a layout, a log, a manifest, rules of a `.gitignore`. It is read in a process with a clock and a bound on its
memory, and what comes out is compared with a reference written for this (`reference`, `facts`, `data_files`, `texts`).

* survived: the value is the one that the reference gives;
* refused: one SmkitError, of which a failure file of 1,024 characters keeps what, where and fix;
* silent: a value where there is none to be had, another one than the reference's, or a default in a bad value's place;
* lost: any other exception, no answer within 20 s, more than 1 GiB of memory, the end of the process; and the refusal
  of what is surely right.

The command lines are also read by argparse, Hugging Face's HfArgumentParser and pydantic-settings as they come.
"""

from __future__ import annotations

import torch

from torture.contract import data_files, examples, facts, launching, peers, settings_sources, texts
from torture.contract.examples import Kind
from torture.tally import Campaign

KINDS: dict[str, tuple[Kind, int]] = {
    "contract: hyperparameters.json": (settings_sources.hyperparameters, 20),
    "contract: command line": (settings_sources.command_line, 20),
    "contract: config files": (settings_sources.config_file, 12),
    "contract: the job's other files": (facts.jobs_files, 12),
    "contract: SM_* and torchrun's variables": (facts.variables, 12),
    "contract: arguments of launch": (launching.launch_arguments, 2),
    "data: CSV": (data_files.comma_separated, 12),
    "data: JSON lines": (data_files.json_lines, 10),
    "data: libsvm": (data_files.libsvm, 6),
    "data: npy and npz": (data_files.arrays, 10),
    "data: safetensors": (data_files.safetensors, 8),
    "data: Parquet and Arrow": (data_files.columnar, 10),
    "data: images": (data_files.images, 8),
    "data: tar shards": (data_files.shards, 8),
    "data: RecordIO": (data_files.record_io, 8),
    "data: pipes": (texts.pipes, 8),
    "texts: metric lines": (texts.metric_lines, 10),
    "texts: logs": (texts.log_lines, 10),
    "texts: manifests": (texts.manifests, 8),
    "texts: ignore rules, as git": (texts.rules, 1),
}
"""Each kind of example, and its share of the rounds; an example of the last takes a process of git's."""
PEERS = "contract: command line"


def attack(campaign: Campaign) -> None:
    """Try `campaign.rounds` examples of all kinds together, and as many command lines with each peer as with smkit."""
    # Processes are forked for the examples, and a pool of threads would not follow them.
    torch.set_num_threads(1)
    total = sum(share for _, share in KINDS.values())
    for name, (kind, share) in KINDS.items():
        rounds = max(1, campaign.rounds * share // total)
        examples.run(campaign, name, kind, rounds)
        if name == PEERS and set(campaign.subjects) - {"smkit"}:
            for peer, peers_kind in peers.kinds().items():
                examples.run(campaign, name, peers_kind, rounds, peer)
