"""Looks at the rollout servers of a recipe before anything is loaded or trained.

A recipe may come to its GRPO stage after hours of other stages. What its server cannot do is said at the start, with
what works instead.
"""

from collections.abc import Callable

from earwise.config.recipe import Recipe
from earwise.config.stages import GrpoConfig
from earwise.errors import EngineError
from earwise.training.rollout.weight_sync import check_support


def check_rollout_servers(recipe: Recipe, notify: Callable[[str], None] = lambda line: None) -> None:
    """Check that the server of every GRPO stage can take in the weights as the recipe wants to send them.

    A server that does not answer yet is left to the stage itself.

    Args:
        recipe: Resolved recipe.
        notify: Receives a line about a server that does not answer.
    Raises:
        ConfigError: naming what works instead.
    """
    from earwise.engine.remote.address import parse_address  # imports the HTTP client, as the next two
    from earwise.engine.remote.client import run_coroutine
    from earwise.engine.remote.probe import query_server

    for stage in recipe.stages:
        if not isinstance(stage, GrpoConfig) or stage.rollout_server is None or stage.weight_sync is None:
            continue
        try:
            server = run_coroutine(query_server(parse_address(stage.rollout_server)))
        except EngineError as error:
            notify(f"{error} before its stage begins")
            continue
        check_support(server.kind, stage.weight_sync.method, recipe.model.name, stage.rollout_server)
