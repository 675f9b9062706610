"""Random operations on a server, the same for every server, and all answers in plain words."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig
from nats.js.errors import APIError, BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError

from events.express import Express, Refused, delivered, encode_head, pub_ack


UNTOLD = {"Nats-Time-Stamp", "Nats-Server-Xkey"}
"""Headers that differ between any two servers."""
QUIET_S = 0.1
"""After so long nothing more comes."""
Answer = tuple[Any, ...]


class Player:
    """Plays one seed's operations; `answers` is what the server said.

    Args:
        nc: A connection.
        seed: Decides the operations; also in the names, so that seeds share a server.
    """

    def __init__(self, nc: Nats, seed: int) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=5)
        self._chance = random.Random(f"plays {seed}")
        self._name = f"s{seed}"
        self._serial = 0
        self._replies: list[str] = []
        self._live: list[Answer] = []
        self.answers: list[Answer] = []

    async def play(self, count: int) -> list[Answer]:
        """Set up, do `count` operations, tear down; return all answers."""
        await self._set_up()
        acts: list[Callable[[], Awaitable[Any]]] = [
            self._publish, self._publish, self._publish, self._queue, self._queue, self._pull,
            self._pull, self._settle, self._settle, self._get_last, self._get, self._get_many,
            self._purge, self._forget, self._bucket, self._bucket, self._batch, self._infos,
            self._follow, self._core,
        ]  # fmt: skip
        for _ in range(count):
            act = self._chance.choice(acts)
            answer = await act()
            self.answers.append((act.__name__, answer))
        await self._nc.flush()
        self.answers.append(("live", *self._live))
        for stream in ("L", "W", "KV"):
            name = f"KV_{self._name}" if stream == "KV" else f"{self._name}{stream}"
            await self._js.delete_stream(name)
        return self.answers

    async def _set_up(self) -> None:
        name = self._name
        await self._ask(
            f"$JS.API.STREAM.CREATE.{name}L",
            name=f"{name}L", subjects=[f"{name}.log.*"], storage="memory", allow_direct=True,
            discard="new", allow_atomic=True, num_replicas=1, allow_rollup_hdrs=True,
            max_msgs_per_subject=self._chance.choice([-1, -1, 2]), retention="limits",
            republish={"src": f"{name}.log.*", "dest": name + ".live.{{wildcard(1)}}"},
        )  # fmt: skip
        await self._ask(
            f"$JS.API.STREAM.CREATE.{name}W",
            name=f"{name}W", subjects=[f"{name}.work.*"], storage="memory", discard="new",
            retention="workqueue", num_replicas=1, max_bytes=self._chance.choice([-1, 2000]),
        )  # fmt: skip
        config = {
            "durable_name": "c", "ack_policy": "explicit", "filter_subject": f"{name}.work.*",
            "ack_wait": int(60e9), "max_ack_pending": self._chance.choice([2, 1000]),
        }  # fmt: skip
        await self._ask(f"$JS.API.CONSUMER.DURABLE.CREATE.{name}W.c",
                        stream_name=f"{name}W", config=config)  # fmt: skip
        await self._js.create_key_value(KeyValueConfig(bucket=name, history=1, direct=True))

        async def heard(message: Msg) -> None:
            self._live.append((message.subject, message.data, _told(message)))

        await self._nc.subscribe(f"{name}.live.*", cb=heard)
        await self._nc.flush()

    # ------------------------------------------------------------ operations

    async def _publish(self) -> Answer:
        subject = f"{self._name}.log.{self._chance.choice('abc')}"
        return await self._put(subject, self._expectations())

    async def _queue(self) -> Answer:
        headers = {"Nats-Msg-Id": self._chance.choice("xyzuvw")} if self._lucky(0.5) else {}
        return await self._put(f"{self._name}.work.{self._chance.choice('ab')}", headers)

    async def _put(self, subject: str, headers: dict[str, str]) -> Answer:
        self._serial += 1
        express = await Express.of(self._nc)
        body = f"{self._serial}".encode() * self._chance.choice([1, 1, 50])
        try:
            ack = pub_ack(
                await express.ask(subject, body, encode_head(headers) if headers else b"")
            )
        except Refused as refused:
            return ("refused", refused.status, refused.code, str(refused))
        except NatsError as error:
            return ("failed", type(error).__name__)
        return tuple(sorted(ack.items()))

    def _expectations(self) -> dict[str, str]:
        last = str(self._chance.randint(0, 12))
        return self._chance.choice([
            {}, {}, {"X-Own": "1"},
            {"Nats-Expected-Last-Subject-Sequence": last},
            {"Nats-Expected-Last-Subject-Sequence": "0"},
            {"Nats-Expected-Last-Subject-Sequence": last,
             "Nats-Expected-Last-Subject-Sequence-Subject": f"{self._name}.log.*"},
            {"Nats-Expected-Last-Sequence": last},
            {"Nats-Expected-Stream": f"{self._name}{self._chance.choice('LW')}"},
            {"Nats-Msg-Id": self._chance.choice("klm")},
            {"Nats-Rollup": "sub"},
        ])  # fmt: skip

    async def _pull(self) -> Answer:
        """Ask for messages that are there; return each and how the request ended.

        A real server's consumer may hear of a message a moment after its publisher does.
        """
        batch = self._chance.randint(1, 4)
        while True:
            found = await self._pull_once(batch)
            pending, *_ = await self._info("W", "c")
            if found != (("status", "404"),) or not pending:
                return found

    async def _pull_once(self, batch: int) -> Answer:
        got: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=got.put)
        ask = orjson.dumps({"batch": batch, "no_wait": True})
        await self._nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._name}W.c", ask, reply=inbox)
        found: list[Answer] = []
        while len(found) < batch:
            try:
                message = await asyncio.wait_for(got.get(), QUIET_S)
            except TimeoutError:
                found.append(("status", "none"))  # as many wait for their acks as may
                break
            if not message.reply:
                found.append(("status", (message.headers or {}).get("Status")))
                break
            self._replies.append(message.reply)
            receipt = delivered(message.reply)
            found.append((message.subject, message.data, receipt.deliveries, receipt.sequence,
                          receipt.left, _told(message)))  # fmt: skip
        await subscription.unsubscribe()
        return tuple(found)

    async def _settle(self) -> Answer:
        """Answer a delivery, perhaps one that was answered before or is stale."""
        if not self._replies:
            return ("nothing",)
        reply = self._chance.choice(self._replies)
        verdict = self._chance.choice([b"+ACK", b"+ACK", b"-NAK", b"+TERM", b"+WPI", b""])
        with contextlib.suppress(NatsError):
            await self._nc.request(reply, verdict, timeout=5)
        return (verdict, *await self._info("W", "c"))

    async def _get_last(self) -> Answer:
        subject = f"{self._name}.log.{self._chance.choice('abc*')}"
        direct = self._lucky(0.5)
        if direct:
            subject = subject.replace("*", "a")
        return await self._found(
            lambda: self._js.get_last_msg(f"{self._name}L", subject, direct=direct)
        )

    async def _get(self) -> Answer:
        seq, direct = self._chance.randint(1, 15), self._lucky(0.5)
        if self._lucky(0.5):
            return await self._found(
                lambda: self._js.get_msg(f"{self._name}L", seq=seq, direct=direct)
            )
        subject = f"{self._name}.log.{self._chance.choice('abc*')}"
        return await self._found(
            lambda: self._js.get_msg(
                f"{self._name}L", seq=seq, subject=subject, next=True, direct=direct
            )
        )

    async def _found(self, ask: Callable[[], Awaitable[Any]]) -> Answer:
        try:
            found = await ask()
        except APIError as error:
            return (type(error).__name__, error.err_code)
        headers = {k: v for k, v in (found.headers or {}).items() if k not in UNTOLD}
        return (found.subject, found.seq, found.data, tuple(sorted(headers.items())))

    async def _get_many(self) -> Answer:
        """A batched direct get, message by message."""
        ask = {"seq": self._chance.randint(1, 10), "batch": self._chance.randint(1, 5),
               "next_by_subj": f"{self._name}.log.{self._chance.choice('abc*')}"}  # fmt: skip
        got: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=got.put)
        await self._nc.publish(f"$JS.API.DIRECT.GET.{self._name}L", orjson.dumps(ask), reply=inbox)
        found: list[Answer] = []
        while not found or not found[-1][0]:
            message = await asyncio.wait_for(got.get(), 5)
            status = (message.headers or {}).get("Status")
            found.append((status, message.data, _told(message)))
        await subscription.unsubscribe()
        return tuple(found)

    async def _purge(self) -> Answer:
        ask: dict[str, Any] = {}
        if self._lucky(0.8):
            ask["filter"] = f"{self._name}.log.{self._chance.choice('abc')}"
        if self._lucky(0.5):
            ask[self._chance.choice(["seq", "keep"])] = self._chance.randint(1, 6)
        return await self._ask(f"$JS.API.STREAM.PURGE.{self._name}L", **ask)

    async def _forget(self) -> Answer:
        seq = self._chance.randint(1, 12)
        return await self._ask(f"$JS.API.STREAM.MSG.DELETE.{self._name}L", seq=seq)

    async def _bucket(self) -> Answer:
        """The key-value store, by nats-py's own means."""
        bucket = await self._js.key_value(self._name)
        key, value = self._chance.choice("ab"), f"{self._serial}".encode()
        last = self._chance.randint(0, 4)
        acts: list[Callable[[], Awaitable[Any]]] = [
            lambda: bucket.put(key, value), lambda: bucket.create(key, value),
            lambda: bucket.update(key, value, last=last), lambda: bucket.get(key),
            lambda: bucket.get(key), lambda: bucket.delete(key), lambda: bucket.purge(key),
        ]  # fmt: skip
        number = self._chance.randrange(len(acts))
        try:
            answer = await acts[number]()
        except (KeyNotFoundError, KeyWrongLastSequenceError, BadRequestError) as error:
            return (number, type(error).__name__)
        return (number, getattr(answer, "value", answer), getattr(answer, "revision", 0))

    async def _batch(self) -> Answer:
        """An atomic batch, sometimes with an expectation that fails or a number left out."""
        express = await Express.of(self._nc)
        self._serial += 1
        name, count = f"{self._name}b{self._serial}", self._chance.randint(1, 3)
        numbers = list(range(1, count + 1))
        if self._lucky(0.2):
            numbers[-1] += 1
        subjects = self._chance.sample("abc", count)
        for place, (number, letter) in enumerate(zip(numbers, subjects, strict=True)):
            headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
            if self._lucky(0.5):
                last = str(self._chance.choice([0, self._chance.randint(0, 9)]))
                headers["Nats-Expected-Last-Subject-Sequence"] = last
            subject = f"{self._name}.log.{letter}"
            if place < count - 1:
                express.publish(subject, b"batch", encode_head(headers))
                continue
            headers["Nats-Batch-Commit"] = "1"
            try:
                ack = pub_ack(await express.ask(subject, b"batch", encode_head(headers)))
            except Refused as refused:
                return ("refused", refused.status, refused.code)
            except NatsError as error:
                return ("failed", type(error).__name__)
            return tuple(sorted((k, v) for k, v in ack.items() if k != "batch"))
        raise AssertionError("the last one returns")

    async def _infos(self) -> Answer:
        info = await self._js.stream_info(f"{self._name}L", subjects_filter=">")
        state = info.state
        subjects = tuple(sorted((state.subjects or {}).items()))
        work = (await self._js.stream_info(f"{self._name}W")).state
        return (state.messages, state.first_seq, state.last_seq, subjects,
                work.messages, work.first_seq, work.last_seq)  # fmt: skip

    async def _info(self, stream: str, consumer: str) -> Answer:
        info = await self._js.consumer_info(f"{self._name}{stream}", consumer)
        assert info.delivered is not None
        return (info.num_pending, info.num_ack_pending, info.delivered.consumer_seq,
                info.delivered.stream_seq)  # fmt: skip

    async def _follow(self) -> Answer:
        """An ephemeral consumer of headers only, from a sequence on, as the run index has."""
        start = self._chance.randint(1, 8)
        config = {
            "ack_policy": "none", "deliver_policy": "by_start_sequence", "headers_only": True,
            "opt_start_seq": start, "mem_storage": True, "inactive_threshold": int(60e9),
        }  # fmt: skip
        made = await self._nc.request(
            f"$JS.API.CONSUMER.CREATE.{self._name}L",
            orjson.dumps({"stream_name": f"{self._name}L", "config": config}),
        )
        name = orjson.loads(made.data)["name"]
        got: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=got.put)
        ask = orjson.dumps({"batch": 3, "expires": int(0.05e9)})
        await self._nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._name}L.{name}", ask, reply=inbox)
        found: list[Answer] = []
        while len(found) < 3:
            message = await asyncio.wait_for(got.get(), 5)
            found.append((bool(message.reply), message.data, _told(message)))
            if not message.reply:
                break
        await subscription.unsubscribe()
        await self._js.delete_consumer(f"{self._name}L", name)
        return tuple(found)

    async def _core(self) -> Answer:
        """Requests without a server, and a queue group of two."""
        served: list[int] = []

        def answerer(number: int) -> Callable[[Msg], Awaitable[None]]:
            async def answer(message: Msg) -> None:
                served.append(number)
                await message.respond(message.data)

            return answer

        subject = f"{self._name}.infer"
        try:
            await self._nc.request(subject, b"?", timeout=5)
        except NatsError as error:
            nobody = type(error).__name__
        else:
            nobody = "answered"
        members = [
            await self._nc.subscribe(subject, queue="q", cb=answerer(number)) for number in range(2)
        ]
        replies = [(await self._nc.request(subject, f"{n}".encode())).data for n in range(3)]
        for member in members:
            await member.unsubscribe()
        return (nobody, tuple(replies), len(served))

    # ------------------------------------------------------------ tools

    async def _ask(self, subject: str, **document: Any) -> Answer:
        answer = orjson.loads(
            (await self._nc.request(subject, orjson.dumps(document), timeout=5)).data
        )
        if "error" in answer:
            error = answer["error"]
            return ("error", error["code"], error["err_code"])
        return ("ok", answer.get("purged"), answer.get("success"))

    def _lucky(self, chance: float) -> bool:
        return self._chance.random() < chance


def _told(message: Msg) -> Answer:
    """Return the headers that every server gives alike."""
    return tuple(sorted((k, v) for k, v in (message.headers or {}).items() if k not in UNTOLD))
