"""The library's way to find the recorders: `PERSISTENCE_MODULE=events.recorders`.

Environment of an application (each may be prefixed with the application's name):

    NATS_URL         addresses of nats-server, separated by commas; required
    NATS_USER        user name, if the server wants one
    NATS_PASSWORD    the user's password
    RECORD_TENANT    tenant that owns the logs; `default`
    RECORD_REPLICAS  copies of each message, 1 to 5; 1
    CREATE_TABLE     whether to create missing streams; yes
"""

from types import TracebackType
from typing import Any, TypeVar

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    InfrastructureFactoryError,
    ProcessRecorder,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool
from typing_extensions import override

from events.recorders.bridge import Bridge
from events.recorders.process import JetStreamProcessRecorder, JetStreamTrackingRecorder
from events.recorders.read_write import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    RecordLog,
)
from schemas.ids import DEFAULT_TENANT


R = TypeVar("R")


class JetStreamFactory(InfrastructureFactory[JetStreamTrackingRecorder]):
    """Makes recorders that share one connection; logs are named `<application>-<purpose>`."""

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        url = self.env.get("NATS_URL")
        if not url:
            raise InfrastructureFactoryError("NATS_URL is not set")
        options: dict[str, Any] = {}
        if self.env.get("NATS_USER"):
            options = {
                "user": self.env.get("NATS_USER"),
                "password": self.env.get("NATS_PASSWORD", ""),
            }
        self._bridge = Bridge(url.split(","), options=options)

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self.close()

    @override
    def close(self) -> None:
        """Close the connection; the recorders refuse further calls."""
        self._bridge.close()

    @override
    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Return a recorder of its own log, such as `snapshots`."""
        return JetStreamAggregateRecorder(self._bridge, self._log(purpose))

    @override
    def application_recorder(self) -> ApplicationRecorder:
        """Return the recorder of the application's events."""
        found = self._class(self.APPLICATION_RECORDER_TOPIC, JetStreamApplicationRecorder)
        return found(self._bridge, self._log("events"))

    @override
    def tracking_recorder(
        self, tracking_recorder_class: type[JetStreamTrackingRecorder] | None = None
    ) -> JetStreamTrackingRecorder:
        """Return a recorder of positions."""
        found = tracking_recorder_class or self._class(
            self.TRACKING_RECORDER_TOPIC, JetStreamTrackingRecorder
        )
        return found(self._bridge, self._log("tracking"))

    @override
    def process_recorder(self) -> ProcessRecorder:
        """Return the recorder of an application that follows others."""
        found = self._class(self.PROCESS_RECORDER_TOPIC, JetStreamProcessRecorder)
        return found(self._bridge, self._log("events"))

    def _log(self, purpose: str) -> RecordLog:
        name = f"{self.env.name}-{purpose}" if self.env.name else purpose
        return RecordLog(
            name=name,
            tenant=self.env.get("RECORD_TENANT", DEFAULT_TENANT),
            replicas=int(self.env.get("RECORD_REPLICAS", "1")),
            create=strtobool(self.env.get("CREATE_TABLE", "yes")),
        )

    def _class(self, variable: str, default: type[R]) -> type[R]:
        topic = self.env.get(variable)
        found = resolve_topic(topic) if topic else default
        if not (isinstance(found, type) and issubclass(found, default)):
            raise InfrastructureFactoryError(f"{variable} must name a {default.__name__}")
        return found
