"""service.privileges: giving up root, with the system calls watched."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from twisted_mta.service.privileges import PrivilegeError, drop_privileges


class DropTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.data = Path(self.mktemp())
        self.calls = mock.Mock()
        for name in ("setgroups", "setgid", "setuid", "chown"):
            self.patch(os, name, getattr(self.calls, name))
        self.patch(os, "geteuid", lambda: 0)

    def test_an_ordinary_user_has_nothing_to_give_up(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        drop_privileges("nobody", "", self.data)
        self.assertEqual(self.calls.mock_calls, [])

    def test_root_without_a_user_goes_on(self) -> None:
        drop_privileges("", "", self.data)
        self.assertEqual(self.calls.mock_calls, [])

    def test_order(self) -> None:
        """The groups first: who is no longer root can't change them."""
        nobody = pwd.getpwnam("nobody")
        drop_privileges("nobody", "", self.data)
        self.assertEqual(
            self.calls.mock_calls,
            [
                mock.call.chown(self.data, nobody.pw_uid, nobody.pw_gid),
                mock.call.setgroups([]),
                mock.call.setgid(nobody.pw_gid),
                mock.call.setuid(nobody.pw_uid),
            ],
        )
        self.assertEqual(self.data.stat().st_mode & 0o777, 0o700)

    def test_problems(self) -> None:
        with self.assertRaises(PrivilegeError):
            drop_privileges("no such user", "", self.data)
        with self.assertRaises(PrivilegeError):
            drop_privileges("nobody", "no such group", self.data)
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.data.write_text("not a directory")
        with self.assertRaises(PrivilegeError):
            drop_privileges("nobody", "", self.data)
        self.assertEqual([call for call in self.calls.mock_calls if call[0] == "setuid"], [])
