"""A server's models as Gymnasium environments; needs gymnasium, the extra ``gym``.

    import gymnasium
    import worldcache.client.gym

    env = gymnasium.make("WorldCache/doom-v0", base_url="http://127.0.0.1:8000", cache="balanced")
    worlds = gymnasium.make_vec("WorldCache/doom-v0", num_envs=8)      # one request a step

Importing this registers the environments. ``gymnasium.make("worldcache.client.gym:WorldCache/doom-v0")``
imports it by itself.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    message = "the environments need gymnasium: pip install 'worldcache[gym]'"
    raise ModuleNotFoundError(message, name=error.name) from None

from worldcache.client.gym.config import Reward, WorldFields
from worldcache.client.gym.env import WorldEnv
from worldcache.client.gym.registration import register_worlds
from worldcache.client.gym.vector_env import WorldVectorEnv

__all__ = ["Reward", "WorldEnv", "WorldFields", "WorldVectorEnv"]

register_worlds()
