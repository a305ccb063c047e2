"""The part of the contract of IQueueStore that is about bodies."""

from __future__ import annotations

from typing import Any

from twisted_mta.testing.contracts.queue_base import (
    QueueContract,
    message,
    octets,
    put,
    write,
)


class BodiesContract(QueueContract):
    """Writing and reading them."""

    def test_abort(self) -> Any:
        async def check() -> None:
            body = await write(self.store, b"x" * 100)
            self.assertEqual(body.size, 100)
            body.abort()
            body.abort()
            used = await write(self.store, b"y" * 100)
            (item,) = await self.store.add([message("a")], used, claim=True)
            used.abort()
            self.assertEqual(octets(await self.store.body(item.message)), b"y" * 100)

        return self.run_async(check())

    def test_the_header_of_a_body(self) -> Any:
        async def check() -> None:
            for rest in (b"", b"body\r\n", b"body\r\n" * 50_000):
                data = b"Subject: x\r\nTo: y\r\n\r\n" + rest
                body = await write(self.store, data, 7000)
                self.assertEqual(await body.header(1000), b"Subject: x\r\nTo: y\r\n\r\n")
                self.assertEqual(await body.header(5), b"Subje")
                (item,) = await self.store.add([message(f"a{len(rest)}")], body, claim=True)
                self.assertEqual(octets(await self.store.body(item.message)), data)

        return self.run_async(check())

    def test_a_body_before_it_is_added(self) -> Any:
        async def check() -> None:
            for size in (10, 400_000):
                data = b"x" * size
                body = await write(self.store, data, 7000)
                stored = await body.stored()
                self.assertEqual((stored.size, octets(stored), octets(stored)), (size, data, data))
                (item,) = await self.store.add([message(f"s{size}")], body, claim=True)
                self.assertEqual(octets(await self.store.body(item.message)), data)

        return self.run_async(check())

    def test_a_body_opens_any_number_of_times(self) -> Any:
        async def check() -> None:
            (item,) = await put(self.store, message("a"), body=b"12345", claim=True)
            body = await self.store.body(item.message)
            self.assertEqual(body.size, 5)
            with body.open() as one, body.open() as two:
                self.assertEqual((one.read(3), two.read(), one.read()), (b"123", b"12345", b"45"))

        return self.run_async(check())
