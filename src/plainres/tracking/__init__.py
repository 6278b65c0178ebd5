"""Loggers of training curves: metrics.csv, TensorBoard and Weights & Biases."""
