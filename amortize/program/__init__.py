"""Reads a Pyro program: adopts its parameters, discovers its sites, turns it into densities.

Only this layer knows Pyro's inside.
"""
