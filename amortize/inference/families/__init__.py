"""Families of local posteriors: one density over u a datapoint, each with parameters of its own."""
