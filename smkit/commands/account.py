"""Commands about what jobs run in: the table of images, the doctor's findings, policies for IAM."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

from smkit.cloud import images
from smkit.cloud.aws import connect
from smkit.cloud.doctor import Check, Wishes, diagnose
from smkit.cloud.policies import Place, policy
from smkit.cloud.role import account_of, find_role
from smkit.commands import screens
from smkit.contract import default_bucket


def show_images(arguments: argparse.Namespace) -> int:
    """Show the table of images."""
    head, *rows = images.as_rows()
    if arguments.json:
        keys = [title.lower().replace(" ", "_") for title in head]
        screens.write_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        screens.write(screens.table(head, rows))
    return 0


def show_diagnosis(arguments: argparse.Namespace) -> int:
    """Show what the doctor finds, each as soon as it is known; return 1 if there is a problem."""
    checks = diagnose(
        Wishes(
            instance_type=arguments.instance_type,
            role=arguments.role,
            bucket=arguments.bucket,
            profile_name=arguments.profile_name,
            region=arguments.region,
        )
    )
    found = list(checks) if arguments.json else list(_shown(checks))
    if arguments.json:
        screens.write_json(found)
    else:
        problems, warnings = (sum(check.state == state for check in found) for state in ("problem", "warning"))
        screens.write(f"\n{screens.count(problems, 'problem')}, {screens.count(warnings, 'warning')}")
    return 1 if any(check.state == "problem" for check in found) else 0


_MARKS = {"ok": "ok", "warning": "warning", "problem": "problem", "note": "-"}


def _shown(checks: Iterable[Check]) -> Iterable[Check]:
    for check in checks:
        screens.write(screens.finding(_MARKS[check.state], check.subject, check.finding, check.fix))
        yield check


def show_policy(arguments: argparse.Namespace) -> int:
    """Show a policy of least privilege, filled in for this account, bucket and role."""
    clients = connect(profile_name=arguments.profile_name, region=arguments.region)
    role, _ = find_role(arguments.role, clients, environ=os.environ)
    known = clients.with_account(account_of(role))
    place = Place(
        partition=clients.partition,
        region=clients.region,
        account=known.account,
        bucket=arguments.bucket or default_bucket(known.region, known.account),
        role=role.partition(":role/")[2],
        inputs=arguments.input,
        secrets=arguments.secret,
    )
    screens.write_json(policy(arguments.policy, place))
    return 0
