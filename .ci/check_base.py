"""Run by .ci/run in an environment that holds the wheel without extras: the library imports lightly."""

import importlib
import importlib.util
import sys

import worldcache
import worldcache.core

assert importlib.util.find_spec("torch") is None, "the base install brought torch"
if importlib.util.find_spec("worldcache.client") is not None:
    importlib.import_module("worldcache.client")
heavy = {"torch", "diffusers", "app", "fastapi", "PIL", "websockets"} & set(sys.modules)
assert not heavy, f"importing worldcache imported {heavy}"
sys.stdout.write(f"worldcache {worldcache.__version__} imports without torch and without the service\n")
