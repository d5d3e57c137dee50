"""The sweeper that makes `-m` plan a whole grid at once, and the search path to `experiments/`.

Thin on purpose: Hydra executes plugin modules a second time when it scans for them, so everything
with a state lives in harness/.
"""

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class HarnessSweeper(Sweeper):
    """Hands the raw overrides of a multirun to harness.run, which plans and executes them as one grid."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed beforehand: composition is done by harness.compose."""

    def sweep(self, arguments: list[str]) -> Any:
        """Note what was asked for; harness.run goes on from there."""
        from harness.run import ask

        ask(arguments)


class HarnessSearchPath(SearchPathPlugin):
    """Makes `experiments=<slug>` a config group beside the presets."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder that holds `experiments/`, when the program is ours."""
        from harness.compose import presets_folder

        if any(part.path and part.path.endswith(str(presets_folder() / "conf")) for part in search_path.get_path()):
            search_path.append(provider="harness", path=f"file://{presets_folder()}")


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="harness",
    provider="harness",
    node={"_target_": "hydra_plugins.harness_sweeper.HarnessSweeper"},
)
