"""Compiles the real training step or sampler for TPUs that are not there, and tells what they would need."""
