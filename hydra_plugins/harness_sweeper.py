"""The sweeper that makes `-m` plan a whole grid at once.

Thin on purpose: Hydra executes plugin modules a second time when it scans for them, so everything
with a state lives in harness/.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class HarnessSweeper(Sweeper):
    """Hands the raw overrides of a multirun to harness.run, which plans and executes them as one grid."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed beforehand: composition is done by harness.plan.compose."""

    def sweep(self, arguments: list[str]) -> Any:
        """Keep the overrides; harness.run plans and runs them."""
        from harness.run import request

        request(arguments)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="harness",
    provider="harness",
    node={"_target_": "hydra_plugins.harness_sweeper.HarnessSweeper"},
)
