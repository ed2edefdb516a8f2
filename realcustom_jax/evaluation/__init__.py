"""Evaluation: the field's metrics, the toybox benchmark with its judge, DreamBench, and the report."""
