"""Stories: scenes whose prompts name characters, generated with one look, and saved to be made again."""
