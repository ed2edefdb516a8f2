"""Which parameters RealCustom adds to a base model. Imports nothing, so that config files can use it."""

# Searched in paths of the UNet ("scoring/…") and of the whole model ("unet/scoring/…") alike. On disk these
# parameters live in `realcustom/`.
ADDED = r"(^|/)(to_[kv]_vision|encoder_hidden_states_vision_projection|scoring)/"
