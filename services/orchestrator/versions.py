"""Which versions of its models a run has: chosen when it begins (ADR-0033)."""

from collections.abc import Awaitable, Callable

from schemas.live_catalogue import LiveCatalogue
from schemas.plan import Plan


class Versions:
    """Chooses versions.

    Args:
        live: The catalogue as it is now.
        look: Reads what this process has not heard of yet.
    """

    def __init__(self, live: LiveCatalogue, look: Callable[[], Awaitable[None]]) -> None:
        self.live = live
        self._look = look

    async def chosen(self, plan: Plan, run_id: str) -> Plan:
        """Return a plan in which every model of the repository is one version.

        Whoever deployed it may have heard of a model a moment before us.

        Raises:
            NotFound: A model of it was removed.
            StoreUnavailable: The repository does not answer.
        """
        known = self.live.now.models
        names = {route.model for node in plan.worked_on() for route in node.routes}
        if not names <= known.keys():
            await self._look()
        return self.live.pinned(plan, run_id)
