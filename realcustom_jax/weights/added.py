"""Regex of the parameters that RealCustom adds to a base model. Imports nothing, so configs can use it."""

# It matches paths in the UNet ("scoring/…") and in the whole model ("unet/scoring/…"). On disk these
# parameters are in `realcustom/`.
ADDED = r"(^|/)(to_[kv]_vision|encoder_hidden_states_vision_projection|scoring)/"
