"""Upbit: two signed calls on one order, GET and DELETE of `/v1/order`, and nothing else."""
