"""Inspection of one image: how its target words are narrowed, step by step."""
