"""What images are worth: the field's metrics, the toybox benchmark with its judge, DreamBench, the report."""
