"""Tests for twisted_mta.net.own_addresses."""

from __future__ import annotations

import socket
import unittest
from unittest import mock

from twisted_mta.config.schema import Listen, Role
from twisted_mta.net.own_addresses import OwnSockets, is_local


class IsLocalTests(unittest.TestCase):
    def test_of_this_machine(self) -> None:
        self.assertTrue(is_local("127.0.0.1"))
        self.assertTrue(is_local("0.0.0.0"))

    def test_of_others(self) -> None:
        self.assertFalse(is_local("192.0.2.1"))
        self.assertFalse(is_local("2001:db8::1"))

    def test_nothing_can_be_told_where_the_kernel_binds_to_anything(self) -> None:
        with mock.patch.object(socket, "socket"):
            self.assertFalse(is_local("127.0.0.1"))


class OwnSocketsTests(unittest.TestCase):
    def own(self, *endpoints: str, role: Role = Role.MX) -> OwnSockets:
        listen = [Listen(role=role, endpoint=endpoint) for endpoint in endpoints]
        return OwnSockets(listen, {"192.0.2.1", "2001:db8::1"}.__contains__)

    def test_all_interfaces(self) -> None:
        for endpoint in ("tcp:25", "tcp:port=25", "tcp:25:interface=0.0.0.0", r"tcp6:25:interface=\:\:"):
            own = self.own(endpoint)
            self.assertEqual(
                [own("192.0.2.1", 25), own("192.0.2.2", 25), own("192.0.2.1", 26)], [True, False, False]
            )

    def test_one_interface(self) -> None:
        own = self.own(r"tcp6:25:interface=2001\:DB8\:\:2", "tcp:2525:interface=127.0.0.1")
        self.assertTrue(own("2001:db8::2", 25))
        self.assertFalse(own("2001:db8::1", 25))
        self.assertTrue(own("127.0.0.1", 2525))

    def test_only_where_other_servers_bring_mail(self) -> None:
        self.assertFalse(self.own("tcp:25", role=Role.SUBMISSION)("192.0.2.1", 25))
        self.assertFalse(self.own("unix:/run/mta", "systemd:domain=INET:index=0")("192.0.2.1", 25))
