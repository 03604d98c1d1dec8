"""Requests grouped: each gets its own answer, and its own error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dispatcher.api.groups import Groups
from dispatcher.errors import DatabaseUnavailable


class Refused(Exception):
    pass


class Server:
    """Doubles numbers, a group at a time, once it is let; refuses negative ones, and a group that has one."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.may_answer = asyncio.Event()

    async def send(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        await self.may_answer.wait()
        if any(number < 0 for number in numbers):
            raise Refused(str(numbers))
        return [2 * number for number in numbers]

    async def alone(self, number: int) -> int:
        [doubled] = await self.send([number])
        return doubled


async def ask_all(groups: Groups[int, int], numbers: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*(groups.ask(number) for number in numbers), return_exceptions=True)


def test_what_comes_meanwhile_goes_with_the_next_group() -> None:
    async def scenario() -> None:
        server = Server()
        groups: Groups[int, int] = Groups(server.send, size=3, at_once=1)
        asking = asyncio.create_task(ask_all(groups, range(8)))
        while not server.groups:
            await asyncio.sleep(0)
        server.may_answer.set()
        assert await asking == [2 * number for number in range(8)]
        assert [len(group) for group in server.groups] == [3, 3, 2]

    asyncio.run(scenario())


def test_so_many_at_a_time_and_no_more() -> None:
    async def scenario() -> None:
        server = Server()
        groups: Groups[int, int] = Groups(server.send, size=1, at_once=2)
        asking = asyncio.create_task(ask_all(groups, range(5)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.groups) == 2
        server.may_answer.set()
        assert len(await asking) == 5

    asyncio.run(scenario())


def test_who_is_wrong_fails_alone() -> None:
    async def scenario() -> None:
        server = Server()
        server.may_answer.set()
        groups: Groups[int, int] = Groups(server.send, size=10, at_once=1, alone=(Refused, server.alone))
        got = await ask_all(groups, [1, -1, 2])
        assert (got[0], got[2]) == (2, 4)
        assert str(got[1]) == "[-1]"

    asyncio.run(scenario())


def test_an_error_of_the_whole_group_is_everyones_and_the_next_ones_go_on() -> None:
    async def scenario() -> None:
        server = Server()
        server.may_answer.set()
        groups: Groups[int, int] = Groups(server.send, size=10, at_once=1)
        assert all(isinstance(one, Refused) for one in await ask_all(groups, [1, -1]))
        assert await groups.ask(3) == 6

    asyncio.run(scenario())


def test_who_gives_up_spoils_nothing_for_the_others() -> None:
    async def scenario() -> None:
        server = Server()
        groups: Groups[int, int] = Groups(server.send, size=10, at_once=1)
        first, second = asyncio.create_task(groups.ask(1)), asyncio.create_task(groups.ask(2))
        while not server.groups:
            await asyncio.sleep(0)
        first.cancel()
        server.may_answer.set()
        assert await second == 4
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(scenario())


def test_who_would_wait_behind_too_many_is_turned_away() -> None:
    async def scenario() -> None:
        server = Server()
        groups: Groups[int, int] = Groups(server.send, size=1, at_once=1, most=3)
        asking = asyncio.create_task(ask_all(groups, range(10)))
        for _ in range(20):
            await asyncio.sleep(0)
        server.may_answer.set()
        got = await asking
        assert [one for one in got if isinstance(one, int)] == [0, 2, 4]
        assert all(isinstance(one, DatabaseUnavailable) for one in got[3:])
        assert await groups.ask(5) == 10

    asyncio.run(scenario())


def test_who_asks_the_moment_an_answer_comes_is_not_forgotten() -> None:
    """The task that answered has ended, and nobody has been told of it yet."""

    async def scenario() -> None:
        server = Server()
        server.may_answer.set()
        groups: Groups[int, int] = Groups(server.send, size=10, at_once=1)
        async with asyncio.timeout(5):
            assert [await groups.ask(number) for number in range(10)] == [2 * number for number in range(10)]

    asyncio.run(scenario())
