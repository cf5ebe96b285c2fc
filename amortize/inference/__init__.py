"""Algorithms: training, per-datapoint variational posteriors, importance sampling and annealing."""
