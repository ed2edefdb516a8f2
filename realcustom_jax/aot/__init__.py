"""Ahead-of-time compilation for TPUs, without TPUs: memory, cost and time of training and sampling."""
