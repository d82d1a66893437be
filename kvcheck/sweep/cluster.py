"""Workers as actors of Ray, on whatever machines its cluster has. Ray is imported when a cluster is asked for."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kvcheck.core import front
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.sweep.pools import Pool
from kvcheck.sweep.worker import Done, Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

LOCAL = "local"
"""The address of a cluster of this machine alone, which lasts as long as the sweep."""
PATIENCE = 60.0
"""Seconds of waiting after which it is said what is waited for."""


class Actors(Pool):
    """One actor per worker: a GPU for each where the cluster has some, else a core. Ray places them.

    count: None for one per GPU, or per machine where there is no GPU. gpus: whether workers may take them.
    """

    def __init__(self, address: str, count: int | None, gpus: bool, tell: Callable[[str], None]) -> None:
        if find_spec("ray") is None:
            raise SpecError("--ray: Ray is not installed", "pip install 'kvcheck[ray]'")
        import ray as found

        ray: Any = found
        self._ray, self._tell, self._mine = ray, tell, not ray.is_initialized()
        if self._mine:
            own = {"num_cpus": count or 1, "include_dashboard": False} if address == LOCAL else {"address": address}
            try:
                ray.init(log_to_driver=False, **own)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise KvcheckError(
                    f"--ray {address}: no cluster of Ray answers there: {error}",
                    "ray start --head on one machine, then --ray auto there; --ray local needs none",
                ) from error
        there = ray.cluster_resources().get("GPU", 0) if gpus else 0
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        super().__init__(count or int(there) or nodes)
        needs = {"num_cpus": 1, "num_gpus": 1 if there else 0}
        self._make: Any = ray.remote(max_restarts=0, max_task_retries=0, **needs)(Worker)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, bool]] = {}  # (slot, whether it has work) by what is waited for
        self.start()

    def _start(self, slot: int) -> None:
        self._actors[slot] = self._make.remote(os.getcwd(), front.flags())
        self._calls[self._actors[slot].ready.remote()] = (slot, False)

    def submit(self, slot: int, job: Job) -> None:
        """As a call of the actor."""
        self.idle.discard(slot)
        self._calls[self._actors[slot].do.remote(job)] = (slot, True)

    def wait(self) -> list[tuple[int, Done | None]]:
        """One call that has ended. Of an actor that died, or whose machine did, it ends with an error."""
        while True:
            ended, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=PATIENCE)
            if ended:
                break
            if not any(works for _, works in self._calls.values()):
                self._tell("waiting for the cluster: it has no free GPU or core for a worker")
        slot, _ = self._calls.pop(ended[0])
        try:
            done: Done | None = self._ray.get(ended[0])
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._actors[slot])  # where its code raised, it lives on
            self._died(slot, str(error).partition("\n")[0])
            return [(slot, None)]
        self._ready(slot)
        return [] if done is None else [(slot, done)]

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._mine:
            self._ray.shutdown()
