"""JetStream in memory: the API the services use, over `streams` and `consumers`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from tests.support.sim.batches import Batches
from tests.support.sim.consumers import Consumer
from tests.support.sim.schedules import Schedules
from tests.support.sim.streams import Message, NotStored, Stream
from tests.support.sim.subjects import fits, overlap, read_head, status, with_lines


if TYPE_CHECKING:
    from tests.support.sim.network import Link
    from tests.support.sim.server import Server

API = "$JS.API."
PREFIX_ACK = "$JS.ACK."
NS = 1e9


class Refusal(Exception):
    """The API's error."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.error = {"code": code, "err_code": err_code, "description": description}


NO_STREAM = (404, 10059, "stream not found")
NO_CONSUMER = (404, 10014, "consumer not found")
NO_MESSAGE = (404, 10037, "no message found")
NAME_IN_USE = (400, 10058, "stream name already in use with a different configuration")
DEFAULTS: dict[str, Any] = {
    "retention": "limits",
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "discard": "old",
    "storage": "file",
    "num_replicas": 1,
    "duplicate_window": int(120e9),
}


def stamp(at: float) -> str:
    """Return a time as the server writes it."""
    whole = datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{int((at % 1) * 1e9):09d}Z"


class JetStream:
    """All streams of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self._batches = Batches(self)
        self._schedules = Schedules(self)
        self._serial = 0

    # ------------------------------------------------------------ of the server

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._server.now()

    def later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> Any:
        """Call something later; the answer has `cancel`."""
        return self._server.timers.call_later(delay_s, call, *args)

    def has_interest(self, subject: str) -> bool:
        """Tell whether anybody subscribed."""
        return self._server.has_interest(subject)

    def say(self, subject: str, head: bytes, data: bytes = b"") -> None:
        """Send to whoever subscribed."""
        self._server.deliver(subject, "", head, data)

    def hand(
        self, consumer: Consumer, to: str, subject: str, reply: str, head: bytes, data: bytes
    ) -> None:
        """Send a delivery: under the message's subject, to the subscriber of the pull's reply."""
        link = self._server.link_of(to)
        times = self._server.faults.deliveries(link, consumer)
        for _ in range(times):
            self._server.deliver_as(to, subject, reply, head, data)

    def flush(self) -> None:
        """Send what was said."""
        self._server.flush()

    def interest_came(self, subject: str) -> None:
        """Nothing waits for subscribers: pulls come after them."""

    def forget(self, consumer: Consumer) -> None:
        """Remove a consumer."""
        consumer.end()
        self.consumers.pop((consumer.stream.name, consumer.name), None)

    def restart(self) -> None:
        """Lose what is in memory; what is on disk stays, durable consumers with it."""
        self._batches.clear()
        for key, consumer in list(self.consumers.items()):
            memory = consumer.stream.config["storage"] == "memory"
            if (
                memory
                or consumer.config.get("mem_storage")
                or not consumer.config.get("durable_name")
            ):
                consumer.alive = False
                del self.consumers[key]
            else:
                consumer.waiting.clear()
                consumer.schedule()
        for name, stream in list(self.streams.items()):
            if stream.config["storage"] == "memory":
                del self.streams[name]

    # ------------------------------------------------------------ what arrives

    def take(self, subject: str, reply: str, head: bytes, data: bytes, link: Link | None) -> bool:
        """Take a published message if it is for JetStream; tell whether it was."""
        if subject.startswith(PREFIX_ACK):
            self._ack(subject, reply, data)
            return True
        if subject.startswith(API):
            self._api(subject[len(API) :], reply, data)
            return True
        for stream in list(self.streams.values()):
            if stream.takes(subject):
                self._publish(stream, subject, reply, head, data)
                return True
        return False

    def _ack(self, subject: str, reply: str, verdict: bytes) -> None:
        tokens = subject.split(".")
        consumer = self.consumers.get((tokens[2], tokens[3]))
        if consumer is None:
            return
        consumer.acked(int(tokens[5]), verdict)
        if reply:
            self.say(reply, b"")

    def _publish(self, stream: Stream, subject: str, reply: str, head: bytes, data: bytes) -> None:
        headers = read_head(head) if head else {}
        try:
            if "Nats-Batch-Id" in headers:
                answer = self._batches.take(stream, subject, headers, head, data)
            else:
                answer = self.put(stream, subject, headers, head, data)
        except NotStored as refused:
            answer = {"error": refused.error, "stream": stream.name, "seq": 0}
        if reply and answer is not None:
            self.say(reply, b"", orjson.dumps(answer))
        elif reply:
            self.say(reply, b"")

    def put(
        self, stream: Stream, subject: str, headers: dict[str, str], head: bytes, data: bytes
    ) -> dict[str, Any]:
        """Check and store one message, and tell consumers and listeners; return the ack.

        Raises:
            NotStored: It was refused.
        """
        now = self.now()
        stream.expire(now)
        known = stream.repeated(headers, now)
        if known is not None:
            return {"stream": stream.name, "seq": known, "duplicate": True}
        stream.check(subject, headers, len(head) + len(data))
        if "Nats-Schedule" in headers:
            self._schedules.check(stream, headers)
            stream.purge(subject, 0, 0)
        return {"stream": stream.name, "seq": self.append(stream, subject, head, data).seq}

    def append(self, stream: Stream, subject: str, head: bytes, data: bytes) -> Message:
        """Store a message that was checked, and tell consumers and listeners."""
        last = stream.last_of(subject)
        message = stream.store(subject, head, data, self.now())
        self._republish(stream, message, last.seq if last else 0)
        if "Nats-Schedule" in message.headers:
            self._schedules.arm(stream, message)
        for consumer in list(self.consumers.values()):
            if consumer.stream is stream:
                consumer.serve()
        return message

    def _republish(self, stream: Stream, message: Message, last: int) -> None:
        rule = stream.config.get("republish")
        if not rule or not fits(rule.get("src") or ">", message.subject):
            return
        subject = rule["dest"]
        given = message.subject.split(".")
        stars = [
            token
            for token, wanted in zip(given, rule["src"].split("."), strict=False)
            if wanted == "*"
        ]
        for number, token in enumerate(stars, start=1):
            subject = subject.replace(f"{{{{wildcard({number})}}}}", token)
        head = with_lines(
            message.head,
            f"Nats-Stream: {stream.name}",
            f"Nats-Subject: {message.subject}",
            f"Nats-Sequence: {message.seq}",
            f"Nats-Time-Stamp: {stamp(message.at_ns / NS)}",
            f"Nats-Last-Sequence: {last}",
        )
        self._server.deliver(subject, "", head, message.data)

    # ------------------------------------------------------------ the API

    def _api(self, request: str, reply: str, body: bytes) -> None:
        tokens = request.split(".")
        if request.startswith("CONSUMER.MSG.NEXT."):
            consumer = self.consumers.get((tokens[3], tokens[4]))
            if consumer is not None:
                consumer.stream.expire(self.now())
                consumer.pull(reply, body)
            elif reply:
                self.say(reply, status(503))
            return
        if request.startswith("DIRECT.GET."):
            self._direct(tokens[2], ".".join(tokens[3:]), reply, body)
            return
        try:
            answer = self._answer(tokens, orjson.loads(body) if body else {})
        except Refusal as refusal:
            answer = {"error": refusal.error}
        if reply:
            self.say(reply, b"", orjson.dumps(answer))

    def _answer(self, tokens: list[str], asked: dict[str, Any]) -> dict[str, Any]:
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "INFO": self._account,
            "STREAM.NAMES": self._names,
            "STREAM.CREATE": self._create,
            "STREAM.INFO": self._stream_info_of,
            "STREAM.DELETE": self._delete,
            "STREAM.PURGE": self._purge,
            "STREAM.MSG.GET": self._get,
            "STREAM.MSG.DELETE": self._delete_message,
            "CONSUMER.INFO": self._consumer_info,
            "CONSUMER.DELETE": self._delete_consumer,
            "CONSUMER.CREATE": self._create_consumer,
            "CONSUMER.DURABLE.CREATE": self._create_consumer,
        }
        for words in (3, 2, 1):
            verb = verbs.get(".".join(tokens[:words]))
            if verb is not None:
                return verb(asked, *tokens[words : words + 2])
        raise Refusal(400, 10003, "bad request")

    def _account(self, asked: dict[str, Any]) -> dict[str, Any]:
        api = {"total": 0, "errors": 0}
        count = len(self.streams)
        return {
            "memory": 0, "storage": 0, "streams": count, "consumers": 0, "limits": {}, "api": api,
        }  # fmt: skip

    def _names(self, asked: dict[str, Any]) -> dict[str, Any]:
        subject = asked.get("subject")
        names = [s.name for s in self.streams.values() if not subject or self._has(s, subject)]
        return {"total": len(names), "offset": 0, "limit": 1024, "streams": names}

    def _stream_info_of(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        return self._stream_info(self._stream(name), asked.get("subjects_filter"))

    def _delete(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        del self.streams[self._stream(name).name]
        for key in [key for key in self.consumers if key[0] == name]:
            self.forget(self.consumers[key])
        return {"success": True}

    def _purge(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        subject, before = asked.get("filter") or ">", asked.get("seq", 0)
        gone = self._stream(name).purge(subject, before, asked.get("keep", 0))
        return {"success": True, "purged": gone}

    def _delete_message(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        stream = self._stream(name)
        if asked["seq"] not in stream.messages:
            raise Refusal(400, 10043, "stream message not found")
        stream.remove(asked["seq"])
        for consumer in list(self.consumers.values()):
            if consumer.stream is stream:
                consumer.settle(asked["seq"])
                consumer.serve()
        return {"success": True}

    def _consumer_info(self, asked: dict[str, Any], stream: str, name: str) -> dict[str, Any]:
        return self._consumer(self._stream(stream), name).info()

    def _delete_consumer(self, asked: dict[str, Any], stream: str, name: str) -> dict[str, Any]:
        self.forget(self._consumer(self._stream(stream), name))
        return {"success": True}

    def _has(self, stream: Stream, subject: str) -> bool:
        return any(overlap(pattern, subject) for pattern in stream.config["subjects"])

    def _stream(self, name: str) -> Stream:
        stream = self.streams.get(name)
        if stream is None:
            raise Refusal(*NO_STREAM)
        stream.expire(self.now())
        return stream

    def _consumer(self, stream: Stream, name: str) -> Consumer:
        consumer = self.consumers.get((stream.name, name))
        if consumer is None:
            raise Refusal(*NO_CONSUMER)
        return consumer

    def _create(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        given = {key: value for key, value in asked.items() if value is not None}
        config = {**DEFAULTS, **{key: value for key, value in given.items() if value != 0}}
        for key in (
            "max_consumers",
            "max_msgs",
            "max_bytes",
            "max_msgs_per_subject",
            "max_msg_size",
        ):
            config[key] = config.get(key) or -1
        if config["max_age"]:
            config["duplicate_window"] = min(config["duplicate_window"], config["max_age"])
        known = self.streams.get(name)
        if known is not None:
            if known.config != config:
                raise Refusal(*NAME_IN_USE)
            return self._stream_info(known, None)
        stream = self.streams[name] = Stream(config, stamp(self.now()))
        return {**self._stream_info(stream, None), "did_create": True}

    def _stream_info(self, stream: Stream, subjects: str | None) -> dict[str, Any]:
        state: dict[str, Any] = {
            "messages": len(stream.messages),
            "bytes": stream.bytes_kept,
            "first_seq": stream.first_seq,
            "last_seq": stream.last_seq,
            "consumer_count": sum(key[0] == stream.name for key in self.consumers),
            "num_subjects": len(stream.by_subject),
        }
        if subjects:
            state["subjects"] = {
                subject: len(found)
                for subject, found in stream.by_subject.items()
                if fits(subjects, subject)
            }
        return {"config": stream.config, "created": stream.created, "state": state}

    def _get(self, asked: dict[str, Any], name: str) -> dict[str, Any]:
        message = self._find(self._stream(name), asked)
        if message is None:
            raise Refusal(*NO_MESSAGE)
        found = {
            "subject": message.subject,
            "seq": message.seq,
            "time": stamp(message.at_ns / NS),
        }
        if message.data:
            found["data"] = base64.b64encode(message.data).decode()
        if message.head:
            found["hdrs"] = base64.b64encode(message.head).decode()
        return {"message": found}

    def _find(self, stream: Stream, asked: dict[str, Any]) -> Message | None:
        if "last_by_subj" in asked:
            return stream.last_of(asked["last_by_subj"])
        if "next_by_subj" in asked:
            return next(stream.following(asked.get("seq", 1), asked["next_by_subj"]), None)
        return stream.messages.get(asked["seq"])

    def _create_consumer(
        self, asked: dict[str, Any], stream_name: str, name: str = ""
    ) -> dict[str, Any]:
        stream = self._stream(stream_name)
        config = {key: value for key, value in asked["config"].items() if value is not None}
        config.setdefault("ack_policy", "explicit")
        config.setdefault("deliver_policy", "all")
        config.setdefault("replay_policy", "instant")
        if config["ack_policy"] != "none":
            config["ack_wait"] = config.get("ack_wait") or int(30e9)
            config["max_ack_pending"] = config.get("max_ack_pending") or 1000
        config["max_deliver"] = config.get("max_deliver") or -1
        if not name:
            self._serial += 1
            name = f"ephemeral{self._serial}"
        known = self.consumers.get((stream.name, name))
        if known is not None:
            return known.info()
        consumer = Consumer(self, stream, name, config, stamp(self.now()), idle_since=self.now())
        match config["deliver_policy"]:
            case "by_start_sequence":
                consumer.next_seq = config["opt_start_seq"]
            case "new":
                consumer.next_seq = stream.last_seq + 1
            case _:
                consumer.next_seq = 1
        self.consumers[stream.name, name] = consumer
        consumer.schedule()
        return consumer.info()

    # ------------------------------------------------------------ direct get

    def _direct(self, name: str, subject: str, reply: str, body: bytes) -> None:
        stream = self.streams.get(name)
        if stream is None or not stream.config.get("allow_direct"):
            self.say(reply, status(503))
            return
        stream.expire(self.now())
        asked = {"last_by_subj": subject} if subject else orjson.loads(body or b"{}")
        if "batch" in asked:
            self._direct_batch(stream, reply, asked)
            return
        message = self._find(stream, asked)
        if message is None:
            self.say(reply, status(404, "Message Not Found"))
        else:
            self.say(reply, _found(stream, message), message.data)

    def _direct_batch(self, stream: Stream, reply: str, asked: dict[str, Any]) -> None:
        found = list(stream.following(asked.get("seq", 1), asked.get("next_by_subj") or ">"))
        if not found:
            self.say(reply, status(404, "Message Not Found"))
            return
        last = 0
        for number, message in enumerate(found[: asked["batch"]], start=1):
            more = (f"Nats-Num-Pending: {len(found) - number}", f"Nats-Last-Sequence: {last}")
            self.say(reply, _found(stream, message, *more), message.data)
            last = message.seq
        left = max(0, len(found) - asked["batch"])
        self.say(
            reply, status(204, "EOB", f"Nats-Num-Pending: {left}", f"Nats-Last-Sequence: {last}")
        )


def _found(stream: Stream, message: Message, *more: str) -> bytes:
    return with_lines(
        message.head,
        f"Nats-Stream: {stream.name}",
        f"Nats-Subject: {message.subject}",
        f"Nats-Sequence: {message.seq}",
        f"Nats-Time-Stamp: {stamp(message.at_ns / NS)}",
        *more,
    )
