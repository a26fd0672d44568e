"""Caching for any diffusers pipeline, through diffusers' hook registry."""
