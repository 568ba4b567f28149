"""The people behind a handful of accounts: who they are, when they signed in, what they clicked. All made up, and seeded.

What only the mesh may read (addresses, names) is sealed to its ingress key of the day, as every platform does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from random import Random
from typing import Any

from deploy.demo.records import Record, Recorder, microseconds
from deploy.demo.world import Workspace
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.ids import derived_id
from shared.contract.sealing import seal
from shared.contract.topics import Topic

SOME = 4
"""Accounts that a person looks at; the others are known to the gateway alone."""

_HOUR_US = 3_600_000_000
_FIRST = ("ada", "bo", "chen", "dana", "eli", "fay", "gus", "hana", "ines", "jon", "kim", "lou")
_ACTIONS = ("chat.opened", "model.compared", "key.listed", "usage.viewed", "settings.viewed")
_BUSY = 12
_FEW = 4


class People:
    """What a gateway emits of `SOME` accounts, `leaver` among them. `ingress`: (id, public key) to seal to."""

    def __init__(
        self, seed: int, now: datetime, workspaces: Sequence[Workspace], leaver: str, ingress: tuple[str, bytes]
    ) -> None:
        self.leaver = leaver
        self._random = Random(f"people {seed}")
        self._recorder = Recorder(self._random)
        self._now_us = microseconds(now)
        self._ingress = ingress
        others = [account for account in dict.fromkeys(one.account for one in workspaces) if account != leaver]
        self.accounts = [leaver, *others[: SOME - 1]]
        self.workspaces = [one for one in workspaces if one.account in self.accounts]

    @property
    def address(self) -> str:
        """Where the leaver reads mail."""
        return self._address(self.leaver)

    def who(self) -> Iterator[Record]:
        """Accounts, workspaces, members, keys."""
        for account in self.accounts:
            yield self._said(events.AccountOpened, account, {
                "address": self._sealed(self._address(account)), "name": self._sealed(_name(account).title()),
                "identity": f"idp-{account}", "jurisdiction": "US",
            })  # fmt: skip
        for workspace in self.workspaces:
            account, name = workspace.account, workspace.name
            place = {"workspace": name}
            administrator, colleague = f"member-{account}", f"member-{name}-2"
            yield self._said(events.WorkspaceCreated, account, place | {"administrator": administrator})
            yield self._said(events.MemberAdded, account, place | {"member": administrator, "role": "administrator"})
            yield self._said(events.MemberAdded, account, place | {"member": colleague, "role": "member"})
            for key in workspace.keys:
                label = self._sealed(f"{_name(account)}'s laptop")
                yield self._said(events.KeyCreated, account, place | {"key": key, "member": colleague, "name": label})

    def traces(self) -> Iterator[Record]:
        """Sign-ins, connections and clicks of the last hours; of the leaver some more."""
        for account in self.accounts:
            for _ in range(_BUSY if account == self.leaver else _FEW):
                yield from self._visit(account)

    def late(self) -> Iterator[Record]:
        """What another instance still had in its spool when the leaver was gone: it must not be kept."""
        for _ in range(_FEW):
            yield from self._visit(self.leaver)

    def asks(self, now: datetime) -> tuple[Record, str]:
        """The wish, out of the settings of the account, and the case that it opens."""
        data = {"kind": "erasure", "scope": "account", "target": self.leaver, "channel": "settings"}
        return self._made(
            topics.PRIVACY_REQUESTS, events.PrivacyRequested, self.leaver, data, self.leaver, microseconds(now)
        )

    def wants_copy(self, now: datetime, passphrase: str) -> tuple[Record, str]:
        """The wish to have all its data, out of the settings, and the case that it opens."""
        data = {
            "kind": "access", "scope": "account", "target": self.leaver, "channel": "settings",
            "passphrase": self._sealed(passphrase),
        }  # fmt: skip
        return self._made(
            topics.PRIVACY_REQUESTS, events.PrivacyRequested, self.leaver, data, self.leaver, microseconds(now)
        )

    def confirms(self, case: str, code: str, now: datetime) -> Record:
        """The last word."""
        data = {"case": case, "code": code}
        return self._made(
            topics.PRIVACY_REQUESTS, events.PrivacyConfirmed, self.leaver, data, self.leaver, microseconds(now)
        )[0]

    def _visit(self, account: str) -> Iterator[Record]:
        random = self._random
        workspace = random.choice([one for one in self.workspaces if one.account == account])
        member, place = f"member-{account}", {"workspace": workspace.name}
        at_us = self._now_us - int(random.random() * 20 * _HOUR_US)
        ip = f"198.51.100.{random.randint(1, 254)}"
        who = {
            "member": member, "identity": f"idp-{account}", "kind": random.choice(("sign_in", "dashboard")),
            "session": derived_id(at_us // 1000, "session", account), "ip": self._sealed(ip), "agent": "browser",
        }  # fmt: skip
        yield self._made(topics.ACCESS, events.AccessRecorded, account, place | who, account, at_us)[0]
        does = {"member": member, "surface": "dashboard", "action": random.choice(_ACTIONS)}
        key = workspace.name
        yield self._made(topics.ACTIVITY, events.ActivityRecorded, account, place | does, key, at_us + 1_000_000)[0]

    def _said(self, model: type[Event], account: str, data: Mapping[str, Any]) -> Record:
        return self._made(topics.ACCOUNTS, model, account, data, account)[0]

    def _made(
        self,
        topic: Topic,
        model: type[Event],
        account: str,
        data: Mapping[str, Any],
        key: str,
        at_us: int | None = None,
    ) -> tuple[Record, str]:
        at_us = self._now_us if at_us is None else at_us
        return self._recorder.record(topic, model, at_us, account, {"account": account, **data}, key=key)

    def _sealed(self, text: str) -> str:
        return seal(text, *self._ingress)

    def _address(self, account: str) -> str:
        return f"{_name(account)}@{account.removeprefix('acct-')}.example"


def _name(account: str) -> str:
    return _FIRST[sum(account.encode()) % len(_FIRST)]
