"""Nobody is let in and nothing is let out: pickles, archives, secrets, buckets, rights, and words that are orders.

What a round is, and when it counts as what, each part says itself. Ten rounds are all there is; fewer take a part of
the pickles and of the secrets. Peers are beside smkit where they read a checkpoint or unpack an archive.
"""

from __future__ import annotations

import dataclasses

from torture.tally import Campaign


def attack(campaign: Campaign) -> None:
    # Some need torch, some a server of AWS's services, some neither.
    from torture.security import archives, bundles, cloud, injection, pickles

    for part in (archives, bundles, injection, cloud, pickles):
        folder = campaign.folder / part.__name__.rpartition(".")[2]
        folder.mkdir()
        part.attack(dataclasses.replace(campaign, folder=folder))
